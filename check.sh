#!/usr/bin/env bash
# The one lint command, here and in CI: format, lint, types, shell scripts, structure. Changes nothing; ./check.sh --fix
# formats and repairs what ruff can.

set -uo pipefail
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
cd -- "$root" || exit 1
# shellcheck source=setup_env.sh
. ./setup_env.sh
wf_dev=1

failed=()
check() {
    local name=$1
    shift
    printf '== %s\n' "$name"
    "$@" || failed+=("$name")
}

shell_scripts() {
    local -a scripts
    scripts=(*.sh .ci/run experiments/*.sh docs/clusters/*.sbatch tests/integration/hosts/*.sh)
    # As a program, not as a module: the wheel has nothing but the binary.
    "$(dirname -- "$wf_python")/shellcheck" "${scripts[@]}"
}

strict_types() {
    local -a strict=()
    local path
    for path in system cohorts slides samplers preprocessing metrics inference options/arguments.py options/parser.py parallel/comm.py system/placement.py \
        system/cgroups.py; do
        if [[ -e $path ]]; then strict+=("$path"); fi
    done
    "$wf_python" -m mypy "${strict[@]}"
}

# A file is read in one sitting, a function on one screen.
small_files() {
    "$wf_python" - <<'PYTHON'
import ast
import subprocess
import sys

names = subprocess.run(["git", "ls-files", "*.py", "*.sh"], capture_output=True, text=True, check=True).stdout.split("\n")
faults = []
for name in filter(None, names):
    try:
        with open(name, encoding="utf-8") as file:
            text = file.read()
    except FileNotFoundError:
        continue
    if len(text.splitlines()) >= 400:
        faults.append(f"{name}: {len(text.splitlines())} lines, allowed are fewer than 400")
    if name.endswith(".py"):
        for node in ast.walk(ast.parse(text, name)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                body = [n for n in node.body if not (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant))]
                lines = (node.end_lineno or 0) - (body[0].lineno if body else node.lineno) + 1
                if lines >= 60:
                    faults.append(f"{name}:{node.lineno}: {node.name} has {lines} lines, allowed are fewer than 60")
print("\n".join(faults))
sys.exit(bool(faults))
PYTHON
}

wf_ensure
wf_activate
if [[ ${1:-} == --fix ]]; then
    "$wf_python" -m ruff format . && "$wf_python" -m ruff check --fix .
fi
check "format (./check.sh --fix repairs it)" "$wf_python" -m ruff format --check .
check "lint" "$wf_python" -m ruff check .
check "types" strict_types
check "shell scripts" shell_scripts
check "small files and functions" small_files
if ((${#failed[@]})); then
    printf 'check.sh: failed: %s\n' "$(IFS=, && printf '%s' "${failed[*]}")" >&2
    exit 1
fi
printf 'check.sh: all passed\n'
