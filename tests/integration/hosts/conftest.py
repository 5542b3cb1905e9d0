"""Hosts for the tests of this folder, and where Horovod for the other MPI is."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.hosts.netns import Cable, Hosts, why_not
from tests.support.paths import ROOT


@pytest.fixture(scope="session")
def _possible() -> None:
    reason = why_not()
    if reason:
        pytest.skip(reason)


@pytest.fixture(scope="module")
def two_hosts(_possible: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """Two hosts on fast cables, for tests that leave them as they were."""
    with Hosts(tmp_path_factory.mktemp("two") / "hosts", [Cable(), Cable()]) as hosts:
        yield hosts


@pytest.fixture
def fresh_hosts(_possible: None, tmp_path: Path) -> Iterator[Hosts]:
    """Two hosts to be cut off."""
    with Hosts(tmp_path / "hosts", [Cable(), Cable()]) as hosts:
        yield hosts


@pytest.fixture
def three_hosts(_possible: None, tmp_path: Path) -> Iterator[Hosts]:
    """Three hosts that come and go."""
    with Hosts(tmp_path / "hosts", [Cable(), Cable(), Cable()]) as hosts:
        yield hosts


@pytest.fixture(scope="module")
def slow_hosts(_possible: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """Three hosts, two of them behind 20 ms and a loss of 1 %."""
    bad = Cable(delay=0.02, loss=0.01)
    with Hosts(tmp_path_factory.mktemp("slow") / "hosts", [Cable(), bad, bad]) as hosts:
        yield hosts


@pytest.fixture
def mpich() -> dict[str, str]:
    """Settings for run_train.sh with the environment that run_tests.sh makes for MPICH."""
    venv = Path(os.environ.get("WIDEFOV_TEST_MPICH_VENV", ROOT / ".venv-mpich"))
    if not (venv / ".widefov-stamp").exists():
        pytest.skip("no MPICH here; to make it: WIDEFOV_MPI=mpich WIDEFOV_VENV=.venv-mpich ./setup_env.sh")
    return {"WIDEFOV_VENV": str(venv), "WIDEFOV_ENV": "", "LAUNCHER": "hydra"}


@pytest.fixture
def open_mpi() -> dict[str, str]:
    """Settings for run_train.sh with mpirun."""
    if os.environ.get("WIDEFOV_MPI") == "mpich":
        pytest.skip("this environment was set up for MPICH")
    return {"LAUNCHER": "mpirun"}
