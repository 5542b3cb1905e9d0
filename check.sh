#!/usr/bin/env bash
# The one lint command, here and in CI: format, lint, types, shell scripts, sizes of files, phrases. Changes no file,
# except with --fix.
#
#   ./check.sh             everything, about a minute on 2 cores; less once mypy has its cache
#   ./check.sh FILE...     these files only, without types, in two seconds: what the pre-commit hook calls
#   ./check.sh --fix       formats and repairs what ruff can, then checks everything
#
# Sets up first where needed (./setup_env.sh --help).

# `sh FILE` is another shell on most machines.
if [ -z "${BASH_VERSION:-}" ] || [ -o posix ]; then exec env -u POSIXLY_CORRECT -u SHELLOPTS bash "$0" "$@"; fi

set -uo pipefail
root=$(cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")" && pwd -P)
cd -- "$root" || exit 1

# Strict types everywhere but in tests/ and benchmarks/.
typed=(
    train.py train_classifier.py predict.py evaluate.py export.py tune.py
    artifacts cohorts doctor evaluation inference launch metrics models options pages parallel preprocessing samplers
    classification segmentation slides streaming system training tuning .ci/phrases.py .ci/sizes.py
)

fix=0
case ${1:-} in
    -h | --help) sed -n '2,/^$/s/^# \{0,1\}//p' "$root/check.sh" && exit 0 ;;
    --fix) fix=1 && shift ;;
    -*) printf 'check.sh: unknown option %s; see ./check.sh --help\n' "$1" >&2 && exit 2 ;;
esac

# shellcheck source=setup_env.sh
. ./setup_env.sh
# shellcheck disable=SC2034  # read by wf_ensure
wf_dev=1
wf_ensure
wf_activate

failed=()
check() {
    local name=$1
    shift
    printf '== %s\n' "$name"
    "$@" || failed+=("$name")
}

# As a program, not as a module: the wheel has only the binary.
shell_scripts() { "$(dirname -- "$wf_python")/shellcheck" "$@"; }

# Python and shell files among the arguments; all of them without arguments.
check_files() {
    local name
    local -a python=() shell=()
    for name in "$@"; do
        case $name in
            *.py) python+=("$name") ;;
            *.sh | *.sbatch | .ci/run) shell+=("$name") ;;
        esac
    done
    if (($# == 0)); then
        python=(.)
        shell=(*.sh .ci/run launch/*.sh experiments/*.sh docs/clusters/*.sbatch tests/integration/hosts/*.sh)
    fi
    if ((${#python[@]})); then
        if ((fix)); then "$wf_python" -m ruff format "${python[@]}" && "$wf_python" -m ruff check --fix "${python[@]}"; fi
        # --force-exclude: what pyproject.toml leaves out stays out when a file is named.
        check "format (./check.sh --fix repairs it)" "$wf_python" -m ruff format --check --force-exclude "${python[@]}"
        check "lint" "$wf_python" -m ruff check --force-exclude "${python[@]}"
    fi
    if ((${#shell[@]})); then check "shell scripts" shell_scripts "${shell[@]}"; fi
    check "sizes of files and functions" "$wf_python" .ci/sizes.py "$@"
    check "phrases" "$wf_python" .ci/phrases.py "$@"
}

if (($#)); then
    check_files "$@"
else
    # mypy takes one core for most of the time; the rest runs beside it.
    types=$(mktemp)
    trap 'rm -f -- "$types"' EXIT
    "$wf_python" -m mypy "${typed[@]}" >"$types" 2>&1 &
    mypy=$!
    check_files
    check "types" wait "$mypy"
    cat -- "$types"
fi
if ((${#failed[@]})); then
    printf 'check.sh: failed: %s\n' "$(IFS=, && printf '%s' "${failed[*]}")" >&2
    exit 1
fi
printf 'check.sh: all passed\n'
