#!/usr/bin/env bash
# The command lines of mpirun, mpiexec.hydra, srun and horovodrun; run_train.sh sources this file.

# Variables belong to run_train.sh, which calls the functions by composed names.
# shellcheck disable=SC2034,SC2154,SC2329

# --- Several hosts (HOSTS, HOSTFILE, IFACE) ---------------------------------------------------------------------------

# watched_ssh OPTION VARIABLE...: whether the launcher reaches other hosts through launch/remote.sh; not if OPTION in
# LAUNCHER_ARGS or one of the VARIABLEs chooses another way, or if launchers would split its path.
watched_ssh() {
    local option=$1 name
    shift
    [[ -n ${HOSTS:-}${HOSTFILE:-} && ${LAUNCHER_ARGS:-} != *$option* && $root != *[[:space:]]* ]] || return 1
    for name in "$@"; do [[ -z ${!name:-} ]] || return 1; done
}

# Sets daemons: the arguments with which Open MPI starts and watches its daemons on other hosts.
open_mpi_daemons() {
    local prefix
    daemons=()
    [[ -n ${HOSTS:-}${HOSTFILE:-} ]] || return 0
    prefix=$(dirname -- "$(dirname -- "$(command -v mpirun || true)")")
    # A shell started by ssh has neither our PATH nor a module's.
    if [[ -x $prefix/bin/orted ]]; then daemons+=(--prefix "$prefix"); fi
    # A silent host is given up after 30 s on both sides instead of 8 minutes.
    daemons+=(--mca oob_tcp_keepalive_time 10 --mca oob_tcp_keepalive_intvl 5 --mca oob_tcp_keepalive_probes 4)
    if watched_ssh plm_rsh OMPI_MCA_plm_rsh_agent; then daemons+=(--mca plm_rsh_agent "$root/launch/remote.sh"); fi
}

# The network of the ranks. By default Open MPI also uses the bridges of containers and virtual machines, whose address
# is the same on every host: a rank then connects to its own host and the job hangs.
open_mpi_network() {
    local chosen
    if [[ -n ${IFACE:-} ]]; then
        command+=(--mca btl_tcp_if_include "$IFACE" --mca oob_tcp_if_include "$IFACE")
    elif [[ -n ${HOSTS:-}${HOSTFILE:-} && ${LAUNCHER_ARGS:-} != *btl_tcp_if_* ]]; then
        # A cluster's configuration may have chosen already; Open MPI refuses both kinds of list together.
        chosen=$(ompi_info --param btl tcp --level 9 --parsable 2>/dev/null | grep 'tcp_if_[a-z]*:source:' |
            grep -v ':default$' || true)
        if [[ -z $chosen ]]; then
            command+=(--mca btl_tcp_if_exclude "127.0.0.0/8,docker0,podman0,cni0,lxcbr0,virbr0")
        fi
    fi
}

# --- One function for each launcher ------------------------------------------------------------------------------------

mpirun_command() {
    local name
    local -a daemons
    command=(mpirun -np "$ranks")
    if [[ -n ${HOSTS:-} ]]; then command+=(--host "$HOSTS"); fi
    if [[ -n ${HOSTFILE:-} ]]; then command+=(--hostfile "$HOSTFILE"); fi
    open_mpi_daemons
    command+=(${daemons[@]+"${daemons[@]}"})
    open_mpi_network
    if ((cores_per_rank >= 1)); then
        # PE: this many adjacent cores for each rank, to which its threads are bound.
        command+=(-map-by "ppr:$ranks_per_host:node:PE=$cores_per_rank" --bind-to core)
    else
        command+=(-map-by "ppr:$ranks_per_host:node" --bind-to none --oversubscribe)
    fi
    # In a container of Docker.
    if [[ -z ${OMPI_MCA_btl_vader_single_copy_mechanism:-} ]] &&
        [[ $("$wf_python" "$root/launch/single_copy.py" 2>/dev/null) == refused ]]; then
        settings+=(OMPI_MCA_btl_vader_single_copy_mechanism=none)
    fi
    # Open MPI forwards only its own variables to other hosts.
    for name in PATH LD_LIBRARY_PATH PYTHONPATH CAMELYON_ROOT CUDA_VISIBLE_DEVICES OMP_NUM_THREADS \
        TF_NUM_INTRAOP_THREADS TF_CPP_MIN_LOG_LEVEL WIDEFOV_MARK $(compgen -e | grep -E '^(HOROVOD|NCCL)_' || true); do
        if [[ -n ${!name:-} || " ${settings[*]}" == *" $name="* ]]; then command+=(-x "$name"); fi
    done
    if ((EUID == 0)); then settings+=(OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1); fi
}

# hydra_domain: the part of the host for one rank, if the host has as many such parts as ranks.
hydra_domain() {
    if ((ranks_per_host == 1)); then
        printf none
    elif ((ranks_per_host == $(count_cpus sockets))); then
        printf socket
    elif ((ranks_per_host == $(count_cpus numa))); then
        printf numa
    else
        printf none
    fi
}

hydra_command() {
    local domain
    domain=$(hydra_domain)
    command=(mpiexec.hydra -np "$ranks")
    if [[ $wf_flavour == intel ]]; then
        if [[ -n ${HOSTS:-} ]]; then command+=(-hosts "$(printf %s "$HOSTS" | sed "s/:[0-9]*//g")"); fi
        if ((hosts > 1)); then command+=(-ppn "$ranks_per_host"); fi
        # Intel MPI pins by default: an equal share of the cores for each rank.
        if [[ $domain == none ]]; then domain=auto; fi
        settings+=(I_MPI_PIN_DOMAIN="${I_MPI_PIN_DOMAIN:-$domain}")
    else
        if [[ -n ${HOSTS:-} ]]; then command+=(-hosts "$HOSTS"); fi
        if ((hosts > 1)); then command+=(-ppn "$ranks_per_host"); fi
        if [[ $domain != none ]]; then
            # All hardware threads of a part; without -map-by all ranks could land on the first.
            command+=(-bind-to "$domain" -map-by "$domain")
        elif ((cores_per_rank >= 1)); then
            command+=(-bind-to "core:$cores_per_rank")
        else
            command+=(-bind-to none)
        fi
    fi
    if [[ -n ${HOSTFILE:-} ]]; then command+=(-f "$HOSTFILE"); fi
    if watched_ssh -launcher HYDRA_LAUNCHER HYDRA_LAUNCHER_EXEC HYDRA_BOOTSTRAP I_MPI_HYDRA_BOOTSTRAP; then
        command+=(-launcher ssh -launcher-exec "$root/launch/remote.sh")
    fi
    if [[ -n ${IFACE:-} ]]; then
        command+=(-iface "$IFACE")
        settings+=(FI_TCP_IFACE="$IFACE")
    fi
}

srun_command() {
    # ALL: after sbatch --export=NONE the ranks would otherwise lack HOROVOD_*, NCCL_* and PATH.
    command=(srun "--mpi=${WIDEFOV_SRUN_MPI:-pmix}" --export=ALL --kill-on-bad-exit=1 "--ntasks=$ranks"
        "--cpus-per-task=${SLURM_CPUS_PER_TASK:-$threads}" --cpu-bind=cores)
    # The step of an interactive shell holds the CPUs that this one needs.
    if ((interactive)); then command+=(--overlap); fi
    if [[ -z ${SLURM_NTASKS:-} ]]; then command+=("--ntasks-per-node=$ranks_per_host"); fi
    [[ -z ${HOSTS:-}${HOSTFILE:-} ]] || fail "inside a SLURM job SLURM chooses the hosts; omit HOSTS and HOSTFILE."
}

horovodrun_command() {
    local name arguments
    local -a daemons=()
    # The module, because the first line of the script horovodrun names an interpreter whose path may have blanks.
    command=("$wf_python" -c 'from horovod.runner.launch import run_commandline; run_commandline()' -np "$ranks")
    if [[ -n ${HOSTS:-} ]]; then command+=(-H "$HOSTS"); fi
    if [[ -n ${HOSTFILE:-} ]]; then command+=(--hostfile "$HOSTFILE"); fi
    # Over Gloo it puts all variables with their values on the ranks' command lines, which every user of a host can read
    # (ps). Training needs no secrets, so they are removed.
    for name in $(compgen -e | grep -iE 'token|secret|passw|credential|private|(^|_|api|access)key(_|$)' || true); do
        settings=(-u "$name" ${settings[@]+"${settings[@]}"})
    done
    if [[ -n ${IFACE:-} ]]; then command+=(--network-interfaces "$IFACE"); fi
    # It keeps the results of its checks in ~/.horovod.
    if [[ ! -w $HOME ]]; then command+=(--disable-cache); fi
    if [[ $wf_flavour == openmpi ]]; then open_mpi_daemons; fi
    if ((cores_per_rank >= 1)); then
        command+=(--binding-args "--bind-to core --map-by slot:PE=$cores_per_rank")
    elif [[ $wf_flavour == openmpi ]]; then
        daemons+=(--oversubscribe)
    fi
    # One argument, which horovodrun passes to a shell.
    if ((${#daemons[@]})); then
        arguments=$(printf '%q ' "${daemons[@]}")
        command+=("--mpi-args=${arguments% }")
    fi
}
