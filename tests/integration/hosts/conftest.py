"""Hosts for the tests of this folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.hosts.netns import Cable, Hosts, why_not


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
