"""`./run_train.sh --doctor`, started as a user starts it; the launchers that cannot work are stubs."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import horovod
import pytest

from tests.support.paths import ROOT
from tests.support.tiny import TinySet, run_train

RUN_TRAIN = str(ROOT / "run_train.sh")


def doctor(*words: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    return run_train("--doctor", *words, **env)


def lines(done: subprocess.CompletedProcess[str], level: str) -> list[str]:
    """What was looked at, of one level."""
    return [line.split()[1] for line in done.stdout.splitlines() if line.startswith(level)]


def stub(folder: Path, name: str, text: str) -> dict[str, str]:
    """Writes a program of this name, the first on PATH of the environment returned; this Python is the active one."""
    folder.mkdir(exist_ok=True)
    program = folder / name
    program.write_text(f"#!{shutil.which('bash')}\n{text}\n", encoding="utf-8")
    program.chmod(0o755)
    path = os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ["PATH"]])
    return {"WIDEFOV_ENV": "active", "PATH": path}


@pytest.fixture
def for_open_mpi() -> None:
    package = Path(next(iter(horovod.__path__)))
    if not any(b"libmpi.so.40" in library.read_bytes() for library in package.glob("tensorflow/mpi_lib*.so")):
        pytest.skip("Horovod was built with another MPI than Open MPI here")


def test_a_run_that_would_go_well(tmp_path: Path) -> None:
    tiny = TinySet(tmp_path / "set")
    words = tiny.arguments("--log_every", "2", "--validate_every", "4", num_steps="800", batch_size="2")
    report = tmp_path / "report.json"
    done = doctor(*words, "--json", report, NP="2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert lines(done, "FAIL") == []
    expected = (
        "python packages horovod launcher pairing slides spacing classes ranks versions devices pinning allreduce"
    )
    expected += " paths --log_dir disk memory time options"
    assert lines(done, "PASS") == expected.split(), done.stdout
    stored = json.loads(report.read_text(encoding="utf-8"))
    assert stored["counts"] == {"PASS": 19, "WARN": 0, "FAIL": 0}
    assert [rank["rank"] for rank in stored["ranks"]] == [0, 1]
    assert not tiny.log_dir.exists()


def test_slides_that_are_not_there(tmp_path: Path) -> None:
    tiny = TinySet(tmp_path / "set")
    shutil.rmtree(tmp_path / "set" / "train" / "images")
    done = doctor(*tiny.arguments(), NP="1")
    assert done.returncode == 1
    assert lines(done, "FAIL") == ["pairing", "--slide_path"]
    assert "does not exist" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_a_launcher_of_another_mpi(tmp_path: Path, for_open_mpi: None) -> None:
    env = stub(tmp_path / "bin", "mpirun", "echo 'HYDRA build details:'; [[ $1 == --version ]]")
    done = doctor(NP="2", **env)
    assert done.returncode == 1
    assert lines(done, "FAIL") == ["launcher", "ranks"]
    assert "is MPICH's" in done.stdout
    assert "Horovod was built with Open MPI" in done.stdout


def test_a_machine_that_cannot_be_reached(tmp_path: Path, for_open_mpi: None) -> None:
    said = "ssh: Could not resolve hostname no-such-host.invalid: Name or service not known"
    env = stub(
        tmp_path / "bin",
        "mpirun",
        f"if [[ $1 == --version ]]; then echo 'Open MPI'; else echo '{said}' >&2; exit 255; fi",
    )
    done = doctor(HOSTS="localhost:1,no-such-host.invalid:1", **env)
    assert done.returncode == 1
    assert lines(done, "FAIL") == ["ranks"]
    assert "only 0 of 2 ranks started (exit code 255); not reached: no-such-host.invalid (unknown host name" in (
        done.stdout
    )
    assert said in done.stdout


def test_a_launch_that_hangs_ends_at_its_limit(tmp_path: Path, for_open_mpi: None) -> None:
    env = stub(tmp_path / "bin", "mpirun", "if [[ $1 == --version ]]; then echo 'Open MPI'; else sleep 300; fi")
    done = doctor("--launch_limit", "2", NP="2", **env)
    assert done.returncode == 1
    assert "only 0 of 2 ranks started in 2 s" in done.stdout


def test_options_that_are_wrong() -> None:
    done = doctor("--img_size", "200", NP="1")
    assert done.returncode == 1
    assert lines(done, "FAIL") == ["options"]
    assert "--img_size 200: must be a multiple of 128" in done.stdout


def test_the_doctor_is_no_rank() -> None:
    done = doctor(OMPI_COMM_WORLD_RANK="0")
    assert done.returncode == 2
    assert "--doctor starts its own ranks" in done.stderr
