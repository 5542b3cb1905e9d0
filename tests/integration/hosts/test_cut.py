"""A host whose cable is pulled in mid-run: the job ends on both sides of the cut, says why, and leaves no process."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.integration.hosts import jobs
from tests.integration.hosts.netns import Hosts
from tests.support.paths import ROOT
from tests.support.tiny import SMALL, TinySet

pytestmark = [pytest.mark.usefixtures("watched"), pytest.mark.kind("host cut off")]


@pytest.fixture(scope="module")
def watched() -> None:
    """Without the ranks' own watch a host that is silent is seen by the launcher at best."""
    said = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "--help"], capture_output=True, text=True, check=True
    )
    if "--stall_timeout" not in said.stdout:
        pytest.skip("this train.py has no --stall_timeout")


def cut_in_mid_run(hosts: Hosts, folder: Path, **given: str) -> str:
    """Trains on two hosts, cuts the second one off, and waits for the end; what was printed after the cut."""
    long = {"num_steps": "1000000", "log_every": "20", "validate_every": "1000000", "stall_timeout": "10"}
    job = jobs.start(hosts, folder / "output", SMALL, TinySet(folder).arguments(**long), **given)
    try:
        job.wait_for("train       20")
        before = len(job.said())
        hosts.cut(hosts.names[1])
        begin = time.monotonic()
        assert job.all_gone_within(60), hosts.jobs()
        assert job.process.wait(5) != 0
        assert time.monotonic() - begin > 9, "noticed before the time was up: not what was to be tested"
    finally:
        print(job.said()[-6000:])
    return job.said()[before:]


def check(hosts: Hosts, said: str) -> None:
    """One line names the rank, its host and the cause."""
    lines = [line for line in said.splitlines() if "has not answered for 10 s" in line]
    assert len(lines) == 1
    assert f"rank 1 of 2 ({hosts.names[1]})" in lines[0] or f"rank 0 ({hosts.names[1]})" in lines[0]


def test_mpirun(fresh_hosts: Hosts, tmp_path: Path, open_mpi: dict[str, str]) -> None:
    said = cut_in_mid_run(fresh_hosts, tmp_path, **open_mpi)
    check(fresh_hosts, said)
    assert f"lost the connection to {fresh_hosts.names[1]}" in said


@pytest.mark.slow
def test_hydra(fresh_hosts: Hosts, tmp_path: Path, mpich: dict[str, str]) -> None:
    said = cut_in_mid_run(fresh_hosts, tmp_path, **mpich)
    check(fresh_hosts, said)
    assert f"lost the connection to {fresh_hosts.names[1]}" in said


@pytest.mark.slow
def test_horovodrun_over_gloo(fresh_hosts: Hosts, tmp_path: Path) -> None:
    check(fresh_hosts, cut_in_mid_run(fresh_hosts, tmp_path, LAUNCHER="horovodrun", LAUNCHER_ARGS="--gloo"))
