"""A rank that ends because others are unreachable has its daemon ended, and nobody else."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.paths import ROOT

CALL = "import time; from parallel.stranded_daemon import *; print(time.monotonic(), end_daemon_later(1), flush=True)"


def parent_called(name: str, folder: Path) -> "subprocess.Popen[str]":
    """A process of this name that starts a rank, which ends; then it waits for 60 s."""
    bash = shutil.which("bash")
    assert bash is not None
    program = folder / name
    program.symlink_to(bash)
    # After `sleep` there is another command, or bash would become sleep.
    script = f"'{sys.executable}' -c '{CALL}'; sleep 60 >/dev/null 2>&1 & wait; true"
    return subprocess.Popen([str(program), "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("name", ["orted", "prted"])
def test_the_daemon_is_ended_after_a_while(name: str, tmp_path: Path) -> None:
    process = parent_called(name, tmp_path)
    assert process.stdout
    called, found = process.stdout.readline().split()
    assert found == "True"
    assert process.wait(60) == -15
    assert time.monotonic() - float(called) >= 1.0


def test_another_launcher_is_left_alone(tmp_path: Path) -> None:
    process = parent_called("mpirun", tmp_path)
    assert process.stdout
    assert process.stdout.readline().split()[1] == "False"
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(2)
    process.kill()
    process.wait()
