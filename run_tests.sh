#!/usr/bin/env bash
# Runs the tests; sets up first where needed.
#
#   ./run_tests.sh [--all] [PART [ARGUMENT OF pytest ...]]
#
#   ./run_tests.sh                      all parts, of the slow tests one quarter, which changes with every commit
#   ./run_tests.sh --all                all parts, every test
#   ./run_tests.sh single -k reader     one part: single, parallel or integration
#   ./run_tests.sh --setup              makes the environments and runs no test
#
#   WIDEFOV_SLOW=0..3|none|all   which quarter of the slow tests (default: by the number of commits)
#   WIDEFOV_TEST_WORKERS=N       processes that run tests side by side in single and integration (default: 2)
#   WIDEFOV_TEST_MPICH=0         leave out the tests with MPICH, for which .venv-mpich is made (once, 2-5 minutes)
#   NP="N ..."                   ranks of the parallel part (default: 2; in quarter 0 and with --all also 3)
#   PART_TIMEOUT=S               seconds after which a part that hangs is ended (default: 3600)

# `sh FILE` is another shell on most machines.
if [ -z "${BASH_VERSION:-}" ] || [ -o posix ]; then exec env -u POSIXLY_CORRECT -u SHELLOPTS bash "$0" "$@"; fi

set -uo pipefail
root=$(cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")" && pwd -P)
cd -- "$root" || exit 1
# shellcheck source=setup_env.sh
. ./setup_env.sh
# shellcheck disable=SC2034  # read by wf_ensure
wf_dev=1

usage() { sed -n '2,/^$/s/^# \{0,1\}//p' "$root/run_tests.sh"; }
refuse() { printf 'run_tests.sh: %s; see ./run_tests.sh --help\n' "$1" >&2 && exit 2; }

parts=(single parallel integration)
setup_only=0
slow=${WIDEFOV_SLOW:-}
while (($#)); do
    case $1 in
        --all) slow=all && shift ;;
        --setup) parts=(integration) setup_only=1 && shift ;;
        -h | --help) usage && exit 0 ;;
        single | parallel | integration) parts=("$1") && shift && break ;;
        *) refuse "unknown part or option $1" ;;
    esac
done
# Quarters take turns by commit; by day where git has no history (an archive) or only its end (a shallow clone).
if [[ -z $slow ]]; then
    if [[ $(git rev-parse --is-shallow-repository 2>/dev/null) == false ]]; then
        slow=$(($(git rev-list --count HEAD) % 4))
    else
        slow=$(($(date +%s) / 86400 % 4))
    fi
fi
[[ $slow =~ ^([0-3]|none|all)$ ]] || refuse "WIDEFOV_SLOW=$slow is not 0, 1, 2, 3, none or all"
export WIDEFOV_SLOW=$slow
ranks_of_parallel=${NP:-2}
[[ -n ${NP:-} || ! $slow =~ ^(0|all)$ ]] || ranks_of_parallel="2 3"
limit=${PART_TIMEOUT:-3600}
export TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-2}
# --dist loadgroup: tests of one xdist_group run in one process, one after the other. In the order of the conftest.py
# files: what takes long or sleeps comes first.
beside=(-n "${WIDEFOV_TEST_WORKERS:-2}" --dist loadgroup --no-loadscope-reorder)

with_limit() { timeout --kill-after=20 "$limit" "$@"; }

# folder_of PART: where its tests are.
folder_of() { if [[ $1 == single ]]; then echo tests/unit; else echo "tests/$1"; fi; }

# parallel_tests RANKS ARGUMENT...: every rank runs the same tests in the same order; all but the first write to a file,
# shown when one of them fails.
parallel_tests() {
    local status=0 file ranks=$1
    shift
    local -a launcher
    logs=$(mktemp -d)
    if [[ $wf_flavour == openmpi ]]; then
        launcher=(mpirun --oversubscribe --bind-to none)
        if ((EUID == 0)); then export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1; fi
    else
        launcher=(mpiexec.hydra)
    fi
    # shellcheck disable=SC2016  # the inner shell expands these
    OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} WIDEFOV_TEST_LOGS=$logs with_limit "${launcher[@]}" -np "$ranks" \
        bash -c 'rank=${OMPI_COMM_WORLD_RANK:-${PMI_RANK:-0}}
            if [[ $rank != 0 ]]; then exec >"$WIDEFOV_TEST_LOGS/rank$rank.txt" 2>&1; fi
            exec "$@"' rank "$wf_python" -m pytest tests/parallel --durations=25 -p no:cacheprovider "$@" || status=$?
    if ((status != 0)); then
        for file in "$logs"/rank*.txt; do
            if [[ -s $file ]]; then printf -- '--- %s\n' "$(basename -- "$file" .txt)" && tail -n 60 "$file"; fi
        done
    fi
    rm -rf -- "$logs"
    return "$status"
}

wf_ensure
wf_activate
if [[ ${parts[*]} == *integration* && ${WIDEFOV_TEST_MPICH:-1} != 0 && -z ${WIDEFOV_ENV:-} ]]; then
    WIDEFOV_MPI=mpich WIDEFOV_VENV=$root/.venv-mpich WIDEFOV_COPY=$wf_venv ./setup_env.sh || exit 1
fi
if ((setup_only)); then exit 0; fi
printf 'run_tests.sh: slow tests: %s\n' "$(case $slow in all | none) echo "$slow" ;; *) echo "quarter $slow of 0 to 3" ;; esac)"
report=()
failed=0
for part in "${parts[@]}"; do
    folder=$(folder_of "$part")
    printf '\n== %s\n' "$folder"
    begin=$SECONDS
    status=0
    case $part in
        parallel)
            for ranks in $ranks_of_parallel; do
                printf -- '-- %s ranks\n' "$ranks"
                parallel_tests "$ranks" "$@" || status=$?
            done
            ;;
        single)
            # One thread a process: more would wait for each other's cores.
            OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} with_limit "$wf_python" -m pytest "$folder" "${beside[@]}" \
                --durations=25 "$@" || status=$?
            ;;
        integration)
            with_limit "$wf_python" -m pytest "$folder" "${beside[@]}" --durations=25 "$@" || status=$?
            ;;
    esac
    outcome=passed
    if ((status == 124 || status == 137)); then
        outcome="FAILED: ended after $limit s (PART_TIMEOUT)"
    elif ((status == 5)); then
        outcome="FAILED: no tests"
    elif ((status != 0)); then
        outcome="FAILED (exit code $status)"
    fi
    if ((status != 0)); then failed=1; fi
    report+=("$part: $outcome, $((SECONDS - begin)) s")
done
printf '\n'
printf 'run_tests.sh: %s\n' "${report[@]}"
exit "$failed"
