#!/usr/bin/env bash
# Runs the tests; sets up first if needed.
#
#   ./run_tests.sh                          all parts
#   ./run_tests.sh single -k reader         one part (single, parallel, integration), with arguments for pytest
#
#   NP=N            ranks of the parallel part (default: once with 2, once with 3)
#   WIDEFOV_TEST_MPICH=0   leave out the launch by mpiexec.hydra, for which .venv-mpich is made (once, 5-10 minutes)
#   PART_TIMEOUT=S  seconds after which a part that hangs is ended (default: 3600)

set -uo pipefail
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
cd -- "$root" || exit 1
# shellcheck source=setup_env.sh
. ./setup_env.sh
# shellcheck disable=SC2034  # read by wf_ensure
wf_dev=1

parts=(single parallel integration)
case ${1:-} in
    single | parallel | integration) parts=("$1") && shift ;;
    -h | --help) sed -n '2,/^$/s/^# \{0,1\}//p' "$0" && exit 0 ;;
esac
limit=${PART_TIMEOUT:-3600}
export TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-2}

with_limit() { timeout --kill-after=20 "$limit" "$@"; }

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
            exec "$@"' rank "$wf_python" -m pytest tests/parallel -p no:cacheprovider "$@" || status=$?
    if ((status != 0)); then
        for file in "$logs"/rank*.txt; do
            if [[ -s $file ]]; then printf -- '--- %s\n' "$(basename -- "$file" .txt)" && tail -n 60 "$file"; fi
        done
    fi
    rm -rf -- "$logs"
    return "$status"
}

# folder_of PART: where its tests are.
folder_of() { if [[ $1 == single ]]; then echo tests/unit; else echo "tests/$1"; fi; }

has_tests() { [[ -n $(find "$(folder_of "$1")" -name 'test_*.py' -print -quit 2>/dev/null) ]]; }

wf_ensure
wf_activate
if [[ ${parts[*]} == *integration* && ${WIDEFOV_TEST_MPICH:-1} != 0 && -z ${WIDEFOV_ENV:-} ]]; then
    WIDEFOV_MPI=mpich WIDEFOV_VENV=$root/.venv-mpich ./setup_env.sh || exit 1
fi
report=()
failed=0
for part in "${parts[@]}"; do
    if ! has_tests "$part"; then
        report+=("$part: FAILED: $(folder_of "$part") has no tests")
        failed=1
        continue
    fi
    printf '\n== %s\n' "$(folder_of "$part")"
    begin=$SECONDS
    status=0
    if [[ $part == parallel ]]; then
        for ranks in ${NP:-2 3}; do
            printf -- '-- %s ranks\n' "$ranks"
            parallel_tests "$ranks" "$@" || status=$?
        done
    else
        with_limit "$wf_python" -m pytest "$(folder_of "$part")" "$@" || status=$?
    fi
    outcome=passed
    if ((status == 124 || status == 137)); then
        outcome="FAILED: ended after $limit s (PART_TIMEOUT)"
    elif ((status != 0)); then
        outcome="FAILED (exit code $status)"
    fi
    if ((status != 0)); then failed=1; fi
    report+=("$part: $outcome, $((SECONDS - begin)) s")
done
printf '\n'
printf 'run_tests.sh: %s\n' "${report[@]}"
exit "$failed"
