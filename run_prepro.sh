#!/usr/bin/env bash
#SBATCH --job-name=widefov-prepro
#SBATCH --open-mode=append
# Prepares a data set: checks, masks of tissue and tumor, patches, manifest. The first use on a machine also sets it up
# (setup_env.sh).
#
#   ./run_prepro.sh                                  the demo: makes small slides and prepares them
#   ./run_prepro.sh --slide_path DIR --label_path DIR --out OUT ...      on every CPU of this machine
#   ./run_prepro.sh --num_processes 4 ...            on four
#   ./run_prepro.sh --steps tissue trim_tissue ...   these steps instead of a full run
#   mpirun -np 8 ./run_prepro.sh ...                 on MPI ranks, also on several machines: rank 0 assigns slides
#   ./run_prepro.sh --dataset 17 --data_root DIR --proc_center 1 3 --out OUT         CAMELYON17, two centers
#   ./run_prepro.sh --help                           all options
#
# The same command resumes a stopped run, and does nothing if everything is finished. Exit code 0: all slides are
# finished; 1: some failed, see the table at the end; 2: wrong arguments or folders, or a full disk.
#
# Environment variables, all optional:
#   STEP=NAME         one step only, or pack, with its own arguments (STEP=list ./run_prepro.sh names them)
#   DRY_RUN=1         print the command; run and set up nothing
# and those of setup_env.sh (WIDEFOV_VENV, WIDEFOV_ENV=active ...: ./setup_env.sh --help).

# `sh FILE` is another shell on most machines.
if [ -z "${BASH_VERSION:-}" ] || [ -o posix ]; then exec env -u POSIXLY_CORRECT -u SHELLOPTS bash "$0" "$@"; fi

set -euo pipefail

# Nobody to read a message is no reason to end.
trap '' PIPE

fail() {
    printf 'run_prepro.sh: %s\n' "$1" >&2
    exit 2
}

# The folder of this file. SLURM runs a copy of a batch script elsewhere: there it is the folder it was submitted from.
find_root() {
    local place
    for place in "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")" "${SLURM_SUBMIT_DIR:-}"; do
        if [[ -n $place && -r $place/setup_env.sh ]]; then cd -- "$place" && pwd -P && return 0; fi
    done
    fail "setup_env.sh is not beside this script. Submit it from its folder: cd /path/to/widefov && sbatch run_prepro.sh ..."
}

root=$(find_root)
# shellcheck source=setup_env.sh
. "$root/setup_env.sh"

# As in preprocessing/steps.py; a test compares them.
steps="check, tissue, xml_to_mask, mask_to_xml, extract_patches, manifest, trim_tissue, extract_tissue"

# Ranks: all run this script, one prints.
is_first_rank() { [[ ${OMPI_COMM_WORLD_RANK:-${PMI_RANK:-${PMIX_RANK:-0}}} == 0 ]]; }

# The slides of the demo; under MPI the first process makes them, the others wait.
demo_slides() {
    local last=$1/val/masks/tumor_102_Mask.tif
    mkdir -p -- "$1"
    (
        if command -v flock >/dev/null; then flock 9; fi
        if [[ ! -e $last ]]; then "$wf_python" -m slides.synthetic --out "$1"; fi
    ) 9>"$1/.lock"
}

demo() {
    local data=runs/demo/slides
    cd -- "$root"
    if [[ ${DRY_RUN:-} != 1 ]]; then
        if is_first_rank; then
            printf '%s\n' "Demo: makes small synthetic slides in $root/$data (under a minute) and prepares them in" \
                "$root/runs/demo/prepro. Your own slides: ./run_prepro.sh --help" || true
        fi
        demo_slides "$data"
    fi
    run preprocessing --slide_path "$data/train/images" --label_path "$data/train/annotations" --label_format xml \
        --valid_slide_path "$data/val/images" --valid_label_path "$data/val/annotations" --out runs/demo/prepro \
        --patch_size 256 --resolution 0.5 --save_neg
}

# run MODULE ARGUMENT...: replaces this process by python with this module of ours. The working directory stays that of
# the caller: paths may be relative to it.
run() {
    local command
    set -- -u "$root/launch/run_module.py" "$@"
    if [[ ${DRY_RUN:-} == 1 ]]; then
        command=$(printf '%q ' "$wf_python" "$@")
        printf '%s\n' "${command% }"
        exit 0
    fi
    exec "$wf_python" "$@"
}

if [[ ${DRY_RUN:-} != 1 ]]; then wf_ensure; fi
wf_activate
if [[ -n ${STEP:-} ]]; then
    if ! [[ $STEP =~ ^[a-z_]+$ ]] || ! grep -qs __main__ -- "$root/preprocessing/$STEP.py"; then
        fail "STEP=$STEP is not a step; choose one of: $steps and pack"
    fi
    run "preprocessing.$STEP" "$@"
fi
if (($# == 0)); then demo; fi
run preprocessing "$@"
