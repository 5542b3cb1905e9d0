#!/usr/bin/env bash
#SBATCH --job-name=widefov
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
# Trains a network. The first call on a machine also sets it up (setup_env.sh).
#
#   ./run_train.sh                               the demo: makes small slides and trains on them with 2 ranks
#   NP=4 ./run_train.sh --img_size 1024 ...      train.py with these arguments on 4 ranks
#   sbatch --nodes=2 --gpus-per-node=4 run_train.sh --resume auto --log_dir ...        the same as a SLURM job
#   ./run_train.sh --help                        the arguments of train.py
#   ./run_train.sh --doctor ...                  checks in seconds whether such a run would succeed (--doctor --help)
#
# On SIGTERM, SIGINT (Ctrl-C), SIGHUP (a closed terminal) or SIGUSR1, sent to this script, its process group or by the
# scheduler, the run writes a checkpoint and exits with code 75; a second SIGTERM or SIGINT ends it within 10 s. A SLURM
# job whose arguments include --resume is then requeued.
#
# Settings, all optional:
#   NP=N              total number of ranks (default: SLURM's tasks; else one per GPU; else one per CPU socket)
#   HOSTS=a:4,b:4     hosts with their number of ranks;  HOSTFILE=FILE: the same from a file in the launcher's format
#   IFACE=NAME        network interface between the hosts, if the launcher picks the wrong one (ip -br address)
#   LAUNCHER=NAME     mpirun, hydra, srun, horovodrun or none (default: srun inside a SLURM job; none for one rank;
#                     else the launcher of the MPI that Horovod was built with)
#   LAUNCHER_ARGS=... further arguments for the launcher, split at blanks
#   WIDEFOV_SRUN_MPI=pmix   the value of srun --mpi=
#   OMP_NUM_THREADS=N       threads per rank (default: cores / ranks on this host)
#   REQUEUE=0         do not requeue a preempted SLURM job
#   SCRIPT=FILE       another program in place of train.py, for example train_classifier.py or predict.py
#   DRY_RUN=1         print the command only; nothing is run or set up
# and those of setup_env.sh (WIDEFOV_VENV, WIDEFOV_MPI, WIDEFOV_ENV=active ...: ./setup_env.sh --help).

# Some functions are called by composed names, others by traps.
# shellcheck disable=SC2329

# `sh FILE` is another shell on most machines.
if [ -z "${BASH_VERSION:-}" ] || [ -o posix ]; then exec env -u POSIXLY_CORRECT -u SHELLOPTS bash "$0" "$@"; fi

set -euo pipefail

# A request to leave, be it before anything was started.
asked=''
trap 'asked=USR1' USR1
trap '[[ -z $asked ]] || exit 75' EXIT

fail() {
    printf 'run_train.sh: %s\n' "$1" >&2
    exit 2
}

# The folder of this file, also if a link was called. SLURM runs a copy of a batch script, so there SLURM is asked for
# the path submitted.
find_root() {
    local place
    for place in "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")" "$(submitted_from)" "${SLURM_SUBMIT_DIR:-}"; do
        if [[ -n $place && -r $place/setup_env.sh ]]; then cd -- "$place" && pwd -P && return 0; fi
    done
    fail "setup_env.sh is not beside this script. Submit it from its folder: cd /path/to/widefov && sbatch run_train.sh ..."
}

submitted_from() {
    local command
    [[ -n ${SLURM_JOB_ID:-} ]] || return 0
    command=$(scontrol show job "$SLURM_JOB_ID" 2>/dev/null | sed -n 's/^ *Command=\([^ ]*\).*/\1/p') || return 0
    if [[ -n $command ]]; then dirname -- "$command"; fi
}

root=$(find_root)
# shellcheck source=setup_env.sh
. "$root/setup_env.sh"
# shellcheck source=launch/launchers.sh
. "$root/launch/launchers.sh"
# shellcheck source=launch/leaving.sh
. "$root/launch/leaving.sh"

# --- This host --------------------------------------------------------------------------------------------------------

count_gpus() {
    local -a listed
    if [[ -n ${CUDA_VISIBLE_DEVICES+set} ]]; then
        IFS=, read -r -a listed <<<"$CUDA_VISIBLE_DEVICES"
        # -1 is the usual way to hide all of them.
        if [[ ${listed[0]:--1} == -1 ]]; then printf 0; else printf '%d' "${#listed[@]}"; fi
    else
        # Without a driver: no output and no error.
        { nvidia-smi -L 2>/dev/null || true; } | awk '/^GPU/ { n++ } END { print n + 0 }'
    fi
}

# count_cpus WHAT: sockets, numa nodes or cores among the CPUs this process may use ("Cpus_allowed_list: 0-3,8"), at
# least 1.
count_cpus() {
    local allowed
    allowed=$(awk '/^Cpus_allowed_list/ { print $2 }' /proc/self/status)
    { lscpu -p=cpu,socket,core,node 2>/dev/null || true; } | awk -F, -v allowed="$allowed" -v what="$1" '
        BEGIN {
            n = split(allowed, part, ",")
            for (i = 1; i <= n; i++) {
                m = split(part[i], end, "-")
                for (cpu = end[1] + 0; cpu <= end[m] + 0; cpu++) may[cpu] = 1
            }
        }
        !/^#/ && ($1 in may) { seen[what == "sockets" ? $2 : what == "numa" ? $4 : $2 "," $3] = 1 }
        END { for (key in seen) count++; print count ? count : 1 }'
}

# --- Environment variables are checked before use ------------------------------------------------------------------------

# require_number NAME: bash arithmetic would execute code in a variable's value.
require_number() {
    [[ -z ${!1:-} || ${!1} =~ ^[1-9][0-9]*$ ]] || fail "$1=${!1} is not a whole number of 1 or more."
}

check_environment() {
    local name host='[A-Za-z0-9_][A-Za-z0-9_.-]*(:[1-9][0-9]*)?'
    for name in SLURM_NTASKS SLURM_JOB_NUM_NODES SLURM_CPUS_PER_TASK SLURM_CPUS_ON_NODE; do require_number "$name"; done
    # Host names reach ssh, which would parse -oProxyCommand=... as an option.
    [[ -z ${HOSTS:-} || $HOSTS =~ ^$host(,$host)*$ ]] ||
        fail "HOSTS=$HOSTS is not a list of hosts. Example: HOSTS=node1:4,node2:4"
    if [[ -n ${HOSTFILE:-} ]]; then
        [[ -f $HOSTFILE && -r $HOSTFILE ]] || fail "HOSTFILE=$HOSTFILE is not a readable file."
        if grep -qE '^[[:space:]]*-' -- "$HOSTFILE"; then fail "HOSTFILE=$HOSTFILE: a host name cannot begin with -."; fi
        # Launchers would parse a leading - as an option, too.
        [[ $HOSTFILE == /* ]] || HOSTFILE=$PWD/$HOSTFILE
    fi
    if [[ ${SCRIPT:-} == -* ]]; then SCRIPT=./$SCRIPT; fi
}

# --- How many ranks, where, with how many threads ---------------------------------------------------------------------

in_slurm() { [[ -n ${SLURM_JOB_ID:-} ]] && command -v srun >/dev/null; }

# Sockets per node of the job; those of this node if SLURM does not report them.
slurm_sockets() {
    local sockets
    sockets=$(sinfo --noheader --nodes="${SLURM_JOB_NODELIST:-}" --format=%X 2>/dev/null | sort -n | head -n 1) || sockets=''
    if [[ $sockets =~ ^[1-9][0-9]*$ ]]; then printf '%d' "$sockets"; else count_cpus sockets; fi
}

# The hosts of the job, for launchers other than srun: a:4,b:4.
slurm_hosts() {
    local host list=''
    while IFS= read -r host; do
        if [[ -n $host ]]; then list+=${list:+,}$host:$ranks_per_host; fi
    done < <(scontrol show hostnames "${SLURM_JOB_NODELIST:-}" 2>/dev/null)
    printf '%s' "$list"
}

# A process started by mpirun, mpiexec or srun is already a rank and must not start others.
is_rank() {
    [[ -n ${OMPI_COMM_WORLD_RANK:-}${PMI_RANK:-}${PMIX_RANK:-}${HOROVOD_RANK:-} ]] && ((interactive == 0))
}

# A shell from `srun --pty bash` is the only task of its step, which has the variables of a rank. Sets interactive.
find_interactive() {
    interactive=0
    [[ ${NP:-1} != 1 || -n ${HOSTS:-}${HOSTFILE:-} ]] || return 0
    if [[ ${OMPI_COMM_WORLD_SIZE:-} == 1 ]]; then
        fail "mpirun started this script as its only rank, but NP=${NP:-} or HOSTS ask for more; omit mpirun, or NP and HOSTS."
    fi
    [[ -n ${PMI_RANK:-}${PMIX_RANK:-} && ${PMI_SIZE:-${SLURM_STEP_NUM_TASKS:-}} == 1 ]] || return 0
    [[ -z ${OMPI_COMM_WORLD_SIZE:-}${HOROVOD_RANK:-} ]] || return 0
    interactive=1
    # The ranks get theirs from their own launcher.
    local name
    for name in $(compgen -e | grep -E '^PMIX?_' || true); do unset "$name"; done
}

count_hosts() {
    local -a named
    if [[ -n ${HOSTS:-} ]]; then
        IFS=, read -r -a named <<<"$HOSTS"
        printf '%d' "${#named[@]}"
    elif [[ -n ${HOSTFILE:-} ]]; then
        awk '!/^[ \t]*(#|$)/ { n++ } END { print n ? n : 1 }' <"$HOSTFILE"
    else
        printf 1
    fi
}

count_slots() {
    printf '%s' "$HOSTS" | awk -v RS=, '{ n += (split($1, part, ":") > 1) ? part[2] : 1 } END { print n }'
}

choose_ranks() {
    local gpus
    hosts=$(count_hosts)
    gpus=$(count_gpus)
    if [[ -n ${NP:-} ]]; then
        ranks=$NP
    elif in_slurm; then
        gpus=${SLURM_GPUS_ON_NODE:-$gpus}
        ranks=${SLURM_NTASKS:-$(((gpus > 0 ? gpus : $(slurm_sockets)) * ${SLURM_JOB_NUM_NODES:-1}))}
    elif [[ -n ${HOSTS:-} ]]; then
        ranks=$(count_slots)
    elif ((gpus > 0)); then
        ranks=$((gpus * hosts))
    else
        # The threads of one rank fill a socket without using the other's memory; more ranks would only need more memory.
        ranks=$(($(count_cpus sockets) * hosts))
    fi
    [[ $ranks =~ ^[1-9][0-9]*$ ]] || fail "NP=$ranks is not a whole number of 1 or more. Example: NP=4 ./run_train.sh ..."
    if in_slurm; then hosts=${SLURM_JOB_NUM_NODES:-$hosts}; fi
    ranks_per_host=$(((ranks + hosts - 1) / hosts))
}

choose_threads() {
    local logical cores
    logical=$(OMP_NUM_THREADS='' OMP_THREAD_LIMIT='' nproc)
    cores=$(count_cpus cores)
    if [[ ${launcher:-} == srun ]]; then
        # The batch step may be bound to fewer CPUs than its tasks.
        logical=${SLURM_CPUS_ON_NODE:-$logical}
        cores=$logical
        if [[ -n ${SLURM_CPUS_PER_TASK:-} ]]; then logical=$((SLURM_CPUS_PER_TASK * ranks_per_host)); fi
    fi
    cores_per_rank=$((cores / ranks_per_host))
    threads=$((logical / ranks_per_host))
    if ((threads < 1)); then threads=1; fi
    threads=${OMP_NUM_THREADS:-$threads}
    [[ $threads =~ ^[1-9][0-9]*$ ]] || fail "OMP_NUM_THREADS=$threads is not a whole number of 1 or more."
    settings=(OMP_NUM_THREADS="$threads" TF_NUM_INTRAOP_THREADS="${TF_NUM_INTRAOP_THREADS:-$threads}")
}

choose_launcher() {
    launcher=${LAUNCHER:-}
    if [[ -z $launcher ]]; then
        if is_rank || { ((ranks == 1)) && ! in_slurm && [[ -z ${HOSTS:-}${HOSTFILE:-} ]]; }; then
            launcher=none
        elif in_slurm; then
            launcher=srun
        else
            case $wf_flavour in
                mpich | intel) launcher=hydra ;;
                *) launcher=mpirun ;;
            esac
        fi
    fi
    case $launcher in
        mpirun | hydra | srun | horovodrun) ;;
        none) ((ranks == 1)) || is_rank || fail "LAUNCHER=none starts one rank, but NP=$ranks; omit one of the two." ;;
        *) fail "LAUNCHER=$launcher is unknown; use mpirun, hydra, srun, horovodrun or none." ;;
    esac
    if in_slurm && [[ $launcher != srun && $launcher != none && -z ${HOSTS:-}${HOSTFILE:-} ]]; then
        HOSTS=$(slurm_hosts)
    fi
}

# --- Running it -------------------------------------------------------------------------------------------------------

# launch ARGUMENT...: builds the command and runs it.
launch() {
    local -a extra=()
    local argument
    choose_ranks
    choose_launcher
    if [[ $launcher == none ]]; then ranks_per_host=1; fi
    choose_threads
    if [[ $launcher != none && ${DRY_RUN:-} != 1 ]]; then export WIDEFOV_MARK="widefov-$$-$RANDOM"; fi
    command=()
    if [[ $launcher == none ]]; then
        # A rank of another launcher, which also chooses the threads.
        if is_rank; then settings=(); fi
    else
        "${launcher}_command"
    fi
    read -r -d '' -a extra <<<"${LAUNCHER_ARGS:-}" || true
    command=(env ${settings[@]+"${settings[@]}"} ${command[@]+"${command[@]}"} ${extra[@]+"${extra[@]}"} "$wf_python" -u "$@")
    if [[ ${DRY_RUN:-} == 1 ]]; then
        argument=$(printf '%q ' "${command[@]}")
        printf '%s\n' "${argument% }"
        exit 0
    fi
    if ((doctor)); then examine; fi
    require_launcher
    # A rank of another launcher gets its signals from there.
    if is_rank; then leave_if_asked && exec "${command[@]}"; fi
    supervise "${command[@]}"
}

# launcher_program: the program that starts the ranks.
launcher_program() {
    case $launcher in
        hydra) printf mpiexec.hydra ;;
        mpirun | srun) printf '%s' "$launcher" ;;
        horovodrun) printf '%s' "$wf_python" ;;
    esac
}

require_launcher() {
    local program cure="load the MPI module that Horovod was built with"
    program=$(launcher_program)
    if [[ $launcher == srun ]]; then cure="use a node, or a container, that has SLURM's programs"; fi
    [[ -z $program ]] || command -v -- "$program" >/dev/null ||
        fail "$program is not on PATH, so LAUNCHER=$launcher cannot start $ranks ranks; $cure, or choose another LAUNCHER."
}

# examine: runs the doctor with a description of the launch; its trial launch is `command`.
examine() {
    local program started_by='' machines=''
    program=$(launcher_program)
    if [[ $launcher == mpirun || $launcher == hydra ]]; then started_by=$(wf_flavour_of "$program"); fi
    if [[ -n ${HOSTS:-} ]]; then
        machines=$HOSTS
    elif [[ -n ${HOSTFILE:-} ]]; then
        machines=$(awk '!/^[ \t]*(#|$)/ { printf "%s,", $1 }' <"$HOSTFILE")
    fi
    exec "$wf_python" -u "$root/doctor" --launch <(
        printf '%s\0' "launcher=$launcher" "program=$program" "ranks=$ranks" "hosts=$(printf %s "$machines" | sed 's/:[^,]*//g')" \
            "built_for=$(wf_flavour_of_horovod)" "started_by=$started_by" "horovod=$wf_horovod" '' "${command[@]}"
    ) ${arguments[@]+"${arguments[@]}"}
}

demo() {
    local out=runs/demo
    NP=${NP:-2}
    if [[ ${DRY_RUN:-} != 1 ]]; then
        printf '%s\n' "Demo: writes small synthetic slides to $root/$out/slides (under a minute), trains effdetd0 on them with" \
            "$NP MPI ranks and validates (up to 10 minutes on 2 cores). For your own slides see ./run_train.sh --help" || true
        (cd -- "$root" && "$wf_python" -m slides.synthetic --out "$out/slides")
    fi
    # The paths in demo.args are relative to the repository.
    cd -- "$root"
    launch train.py @experiments/demo.args
}

# --doctor may stand anywhere among the arguments, so that it is easily added to an existing command.
doctor=0
arguments=()
for argument in "$@"; do
    if [[ $argument == --doctor ]]; then doctor=1; else arguments+=("$argument"); fi
done
check_environment
find_interactive
if ((doctor)) && is_rank; then fail "--doctor starts its own ranks; call it without a launcher."; fi
if [[ ${DRY_RUN:-} != 1 ]]; then wf_ensure; fi
wf_activate
set -- ${arguments[@]+"${arguments[@]}"}
case "${1:-}" in
    -h | --help)
        if ((doctor)); then exec "$wf_python" "$root/doctor" --help; fi
        exec "$wf_python" "${SCRIPT:-$root/train.py}" "$@"
        ;;
    '') if (($# == 0 && doctor == 0)); then demo; fi ;;
esac
if ((doctor)); then launch "$root/doctor" --probe "$@"; fi
launch "${SCRIPT:-$root/train.py}" "$@"
