"""A Python that lacks packages, or finds those of another Python, is named in one line with what to do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from parallel.preemption import EXIT_CODE
from system import start
from tests.support.paths import ROOT

PROGRAMS = (
    "train.py",
    "train_classifier.py",
    "predict.py",
    "evaluate.py",
    "export.py",
    "doctor",
    "-m preprocessing",
    "-m preprocessing.check",
)


def started(program: str, **env: str) -> subprocess.CompletedProcess[str]:
    """A program with --help."""
    command = [sys.executable, *program.split(), "--help"]
    return subprocess.run(command, cwd=ROOT, env=os.environ | env, capture_output=True, text=True, check=False)


def test_nothing_is_wrong_here() -> None:
    assert start.fault() == ""


def test_what_is_missing_is_named_with_the_environment_to_activate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start, "ROOT", tmp_path)
    there = sys.executable
    assert start.fault(("numpy", "no_such")) == f"{there} has no no_such: run {tmp_path}/setup_env.sh"
    activate = tmp_path / ".venv" / "bin" / "activate"
    activate.parent.mkdir(parents=True)
    activate.touch()
    assert start.fault(("no_such", "nor_this")) == f"{there} has no no_such, nor_this: source {activate}"
    assert start.fault(version=(3, 13)) == (
        f"{there} is Python 3.13, but 3.10 to 3.12 are supported: source {activate}"
    )


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_program_names_packages_of_another_python_in_one_line(tmp_path: Path, program: str) -> None:
    module = tmp_path / "numpy" / "__init__.py"
    module.parent.mkdir()
    module.write_text("raise ImportError('cannot import name multiarray')", encoding="utf-8")
    done = started(program, PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.endswith(
        f": error: numpy from PYTHONPATH, {module}, does not work in {sys.executable} "
        "(ImportError: cannot import name multiarray): unset PYTHONPATH\n"
    )
    assert done.stderr.count("\n") == 1


def test_a_package_of_pythonpath_that_works_is_used(tmp_path: Path) -> None:
    (tmp_path / "shapely").mkdir()
    (tmp_path / "shapely" / "__init__.py").touch()
    (tmp_path / "shapely" / "geometry.py").touch()
    assert "PYTHONPATH" not in started("-m system.start", PYTHONPATH=str(tmp_path)).stderr


def test_keras_has_its_own_settings_whatever_others_left(tmp_path: Path) -> None:
    (tmp_path / ".keras").mkdir()
    settings = '{"backend": "jax", "floatx": "float64", "image_data_format": "channels_first"}'
    (tmp_path / ".keras" / "keras.json").write_text(settings, encoding="utf-8")
    look = "import system.start, keras.config as c; print(c.backend(), c.floatx(), c.image_data_format())"
    env = os.environ | {"HOME": str(tmp_path), "KERAS_BACKEND": "jax", "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run([sys.executable, "-c", look], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.stdout == "tensorflow float32 channels_last\n"


def test_usr1_before_a_program_listens_is_a_request_to_leave() -> None:
    text = (
        "import os, signal, sys; sys.argv = ['a/train.py']; import system.start; os.kill(os.getpid(), signal.SIGUSR1)"
    )
    done = subprocess.run([sys.executable, "-c", text], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == start.EXIT_CODE == EXIT_CODE
    assert done.stderr == "train.py: SIGUSR1 before the first step: nothing was to be saved\n"
