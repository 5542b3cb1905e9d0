#!/usr/bin/env bash
# What the launchers need to work over several machines (HOSTS, HOSTFILE, IFACE); run_train.sh sources it.

# Variables of run_train.sh.
# shellcheck disable=SC2034,SC2154

# watched_ssh OPTION VARIABLE...: whether the launcher is to reach other machines by run_remote.sh; not where an OPTION in
# LAUNCHER_ARGS or one of the VARIABLEs says how, and not where launchers would split its path.
watched_ssh() {
    local option=$1 name
    shift
    [[ -n ${HOSTS:-}${HOSTFILE:-} && ${LAUNCHER_ARGS:-} != *$option* && $root != *[[:space:]]* ]] || return 1
    for name in "$@"; do [[ -z ${!name:-} ]] || return 1; done
}

# Sets daemons: what Open MPI needs to start and watch its daemons on other machines.
open_mpi_daemons() {
    local prefix
    daemons=()
    [[ -n ${HOSTS:-}${HOSTFILE:-} ]] || return 0
    prefix=$(dirname -- "$(dirname -- "$(command -v mpirun || true)")")
    # A shell that ssh starts elsewhere knows neither our PATH nor a module's.
    if [[ -x $prefix/bin/orted ]]; then daemons+=(--prefix "$prefix"); fi
    # A machine that falls silent is given up after 30 s, on both sides; left alone it takes 8 minutes.
    daemons+=(--mca oob_tcp_keepalive_time 10 --mca oob_tcp_keepalive_intvl 5 --mca oob_tcp_keepalive_probes 4)
    if watched_ssh plm_rsh OMPI_MCA_plm_rsh_agent; then daemons+=(--mca plm_rsh_agent "$root/run_remote.sh"); fi
}

# Which network the ranks use. Left alone, Open MPI also takes the bridges of containers and virtual machines, whose
# address is the same on every machine: a rank then connects to its own machine and the job hangs.
open_mpi_network() {
    local chosen
    if [[ -n ${IFACE:-} ]]; then
        command+=(--mca btl_tcp_if_include "$IFACE" --mca oob_tcp_if_include "$IFACE")
    elif [[ -n ${HOSTS:-}${HOSTFILE:-} && ${LAUNCHER_ARGS:-} != *btl_tcp_if_* ]]; then
        # A cluster's own file or variable may have chosen; Open MPI refuses to be given both kinds of list.
        chosen=$(ompi_info --param btl tcp --level 9 --parsable 2>/dev/null | grep 'tcp_if_[a-z]*:source:' |
            grep -v ':default$' || true)
        if [[ -z $chosen ]]; then
            command+=(--mca btl_tcp_if_exclude "127.0.0.0/8,docker0,podman0,cni0,lxcbr0,virbr0")
        fi
    fi
}
