"""Whatever happens to a rank, its disk or its slides: the job ends soon, names the cause, cleans up, resumes.

Two ranks of the small network through run_train.sh; the faults are in faulty_train.py.
"""

import os
import re
from pathlib import Path

import numpy as np
import pytest

from tests.integration.faults.job import AT, AT_SLIDE, IMAGES, INTERVAL, LIMIT_S, Job, Outcome, repair_disk, small_disk

pytestmark = pytest.mark.xdist_group("faults")
SLOW, KIND = pytest.mark.slow, pytest.mark.kind
KILLED = r"process rank {} with PID \d+ on node \S+ exited on signal 9 \(Killed\)"
SILENT = r"{} \(\S+\) has not answered for 8 s \(--stall_timeout\)"
ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """Training losses of the run that met no fault."""
    job = Job(tmp_path_factory.mktemp("whole"))
    outcome = job.finish(job.start())
    assert outcome.code == 0, outcome.text[-3000:]
    assert list(job.losses()) == list(range(2, IMAGES + 1, 2))
    return job.losses()


def check(outcome: Outcome, uninterrupted: dict[int, float], message: str, images_lost: int = INTERVAL) -> None:
    """Ended in time with the message, nothing left, and after the resume the run that met no fault."""
    assert outcome.code != 0
    assert outcome.seconds < LIMIT_S
    assert outcome.left == []
    assert len(re.findall(message, outcome.text)) == 1, outcome.text[-3000:]
    assert "Traceback" not in outcome.text
    assert outcome.resumed_at > 0
    assert outcome.lost <= images_lost
    assert outcome.losses is not None
    assert list(outcome.losses) == list(uninterrupted)
    # One thread and two ranks: the same sums in the same order.
    np.testing.assert_array_equal(list(outcome.losses.values()), list(uninterrupted.values()))


@pytest.mark.parametrize(
    ("kind", "rank", "message"),
    [
        pytest.param("step", 1, KILLED.format(1), marks=KIND("rank killed")),
        pytest.param("allreduce", 0, KILLED.format(0), marks=[KIND("rank killed"), SLOW]),
        pytest.param("validation", 1, KILLED.format(1), marks=[KIND("rank killed"), SLOW]),
        pytest.param("checkpoint", 0, KILLED.format(0), marks=[KIND("rank killed"), SLOW]),
        pytest.param("stop", 1, SILENT.format("rank 0 of 2: rank 1 of 2"), marks=KIND("rank stopped")),
        pytest.param("stop", 0, SILENT.format("rank 1 of 2: rank 0"), marks=[KIND("rank stopped"), SLOW]),
        pytest.param("slide", 1, r"rank 1 of 2: error: slide .*rank1/images/.* cannot be read"),
    ],
)
def test_ends_and_resumes(kind: str, rank: int, message: str, tmp_path: Path, uninterrupted: dict[int, float]) -> None:
    job = Job(tmp_path)
    outcome = job.finish(job.start(f"{kind}:{rank}:{AT_SLIDE if kind == 'slide' else AT}"))
    if kind == "slide":
        job.repair_slides()
    check(job.resumed(outcome), uninterrupted, message)


def test_launcher_killed(tmp_path: Path, uninterrupted: dict[int, float]) -> None:
    """The launcher cannot report it: the script does, and its ranks do not outlive it."""
    job = Job(tmp_path)
    check(job.with_fault(f"launcher:1:{AT}"), uninterrupted, r"run_train.sh: mpirun was killed by SIGKILL")


@ROOT_ONLY
@pytest.mark.parametrize(
    ("kind", "cause"),
    [
        pytest.param("full", "No space left on device", marks=KIND("disk")),
        pytest.param("readonly", "Read-only file system", marks=[KIND("disk"), SLOW]),
    ],
)
def test_disk(kind: str, cause: str, tmp_path: Path, uninterrupted: dict[int, float]) -> None:
    job = Job(tmp_path)
    with small_disk(job.log_dir, "8m"):
        outcome = job.finish(job.start(f"{kind}:0:{AT}"))
        repair_disk(job.log_dir)
        check(job.resumed(outcome), uninterrupted, rf"train\.py: .*{cause}")


@KIND("preempted")
@pytest.mark.parametrize(
    ("kind", "launcher"),
    [
        ("usr1", "mpirun"),
        pytest.param("term", "mpirun", marks=SLOW),
        pytest.param("term", "hydra", marks=SLOW),
    ],
)
def test_preempted(
    request: pytest.FixtureRequest, kind: str, launcher: str, tmp_path: Path, uninterrupted: dict[int, float]
) -> None:
    """Not a fault: one rank, or the script, is asked to stop. No image is lost, and the exit code is 75."""
    env = request.getfixturevalue("mpich") if launcher == "hydra" else {}
    job = Job(tmp_path, **env)
    outcome = job.finish(job.start(f"{kind}:1:{AT}"))
    assert outcome.code == 75, outcome.text[-3000:]
    # The signal comes in the step from AT on; all leave after that one or the next.
    assert re.search(rf"preempted   SIGUSR1 at image ({AT + 2}|{AT + 4}) of {IMAGES}", outcome.text)
    check(job.resumed(outcome), uninterrupted, "preempted   SIGUSR1 at image", images_lost=0)


@SLOW
@KIND("rank killed")
def test_cut_short_checkpoint(tmp_path: Path, uninterrupted: dict[int, float]) -> None:
    """The newest checkpoint is damaged, too: the one before is taken."""
    job = Job(tmp_path)
    outcome = job.finish(job.start(f"step:1:{AT}"))
    job.damage_newest()
    outcome = job.resumed(outcome)
    check(outcome, uninterrupted, "exited on signal 9", images_lost=2 * INTERVAL)
    assert outcome.resumed_at == AT // INTERVAL * INTERVAL - INTERVAL
