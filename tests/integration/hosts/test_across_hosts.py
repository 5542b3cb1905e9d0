"""Training over several hosts, over TCP: the numbers of one host, whatever the launcher and the network."""

import subprocess
from pathlib import Path

import pytest

from tests.integration.hosts import jobs
from tests.integration.hosts.netns import Hosts
from tests.support.tiny import SMALL, TinySet, environment

pytestmark = pytest.mark.xdist_group("across hosts")

# Each host also has a bridge docker0 with the same address, for Open MPI to fall for.


def arguments(folder: Path) -> tuple[list[str], Path]:
    """A tiny data set in this folder, the options that train on it, and the run's folder."""
    tiny = TinySet(folder)
    return tiny.arguments(num_steps="24", log_every="6", validate_every="12"), tiny.log_dir


def one_host(folder: Path, ranks: int) -> Path:
    """The folder of the same run with all ranks on this machine."""
    words, log_dir = arguments(folder)
    given = {"NP": str(ranks), "SCRIPT": SMALL, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [jobs.RUN_TRAIN, *words], env=environment(**given), stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert f"{ranks} x batch 1 = {ranks} images a step" in done.stdout
    return log_dir


@pytest.fixture(scope="module")
def two_ranks_here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return one_host(tmp_path_factory.mktemp("here2"), 2)


@pytest.fixture(scope="module")
def three_ranks_here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return one_host(tmp_path_factory.mktemp("here3"), 3)


def train(hosts: Hosts, folder: Path, **given: str) -> tuple[str, Path]:
    """A training with one rank on each host: what it printed, and the run's folder."""
    words, log_dir = arguments(folder)
    said = jobs.start(hosts, folder / "output", SMALL, words, **given).wait()
    ranks = len(hosts.names)
    assert f"{ranks} x batch 1 = {ranks} images a step" in said
    # Of its memory each host gives all to its one rank: nobody else is local.
    assert "free, for 1 rank" in said
    return said, log_dir


def check_same(log_dir: Path, other: Path, tolerance: float) -> None:
    """Losses, scores and every array of the final checkpoint differ by at most `tolerance`, relative."""
    rows, others = jobs.metrics(log_dir), jobs.metrics(other)
    assert len(rows) == 6
    for (kind, row), (expected_kind, expected) in zip(rows, others, strict=True):
        assert kind == expected_kind
        assert row == pytest.approx(expected, rel=tolerance, abs=tolerance)
    arrays, expected_arrays = jobs.weights(log_dir), jobs.weights(other)
    assert len(arrays) > 8
    assert arrays.keys() == expected_arrays.keys()
    for name, array in arrays.items():
        assert array == pytest.approx(expected_arrays[name], rel=tolerance, abs=tolerance), name


SLOW, KIND = pytest.mark.slow, pytest.mark.kind

# Two summands have one sum: with two ranks no rounding depends on who adds.
EXACT = 0.0


@KIND("training over hosts")
def test_mpirun(two_hosts: Hosts, two_ranks_here: Path, tmp_path: Path, open_mpi: dict[str, str]) -> None:
    _, log_dir = train(two_hosts, tmp_path, **open_mpi)
    check_same(log_dir, two_ranks_here, EXACT)


@SLOW
@KIND("training over hosts")
def test_hydra(two_hosts: Hosts, two_ranks_here: Path, tmp_path: Path, mpich: dict[str, str]) -> None:
    _, log_dir = train(two_hosts, tmp_path, **mpich)
    check_same(log_dir, two_ranks_here, EXACT)


@SLOW
@KIND("training over hosts")
def test_horovodrun_over_gloo(two_hosts: Hosts, two_ranks_here: Path, tmp_path: Path) -> None:
    _, log_dir = train(two_hosts, tmp_path, LAUNCHER="horovodrun", LAUNCHER_ARGS="--gloo")
    check_same(log_dir, two_ranks_here, EXACT)


@SLOW
@KIND("training over hosts")
def test_three_hosts_behind_delay_and_loss(
    slow_hosts: Hosts, three_ranks_here: Path, tmp_path: Path, open_mpi: dict[str, str]
) -> None:
    lost = [slow_hosts.lost_frames(name) for name in slow_hosts.names[1:]]
    _, log_dir = train(slow_hosts, tmp_path, **open_mpi)
    assert all(slow_hosts.lost_frames(name) > before for name, before in zip(slow_hosts.names[1:], lost, strict=True))
    # Three summands: another order rounds differently by 2 x 2^-24 of their sum; Adam divides by the gradient's own
    # size, and 8 steps of 2e-3 turn that into some 1e-6 where a gradient is not much above its rounding.
    check_same(log_dir, three_ranks_here, 2e-5)


# ------------------------------------------------------------------------------------------------------- the network

# 20 times 4 MiB: far more than what launching sends.
SIZE, ROUNDS = 2**20, 20


def summed(hosts: Hosts, folder: Path, **given: str) -> str:
    """Sums over all hosts by `allreduce.py`; at least the summands of every host must have passed the switch."""
    before = [hosts.sent_bytes(name) for name in hosts.names]
    said = jobs.start(hosts, folder / "output", jobs.ALLREDUCE, [str(SIZE), str(ROUNDS)], **given).wait()
    for name, first in zip(hosts.names, before, strict=True):
        assert hosts.sent_bytes(name) - first >= 4 * SIZE * ROUNDS
    return said


def everywhere(hosts: Hosts) -> str:
    """What `allreduce.py` prints when every host has one rank, the first on its host."""
    return f"sum [{2.0 ** len(hosts.names) - 1}] places {[(name, 0, 1) for name in hosts.names]}"


@SLOW
@KIND("sums over hosts")
def test_the_sums_cross_the_switch_mpirun(two_hosts: Hosts, tmp_path: Path, open_mpi: dict[str, str]) -> None:
    assert everywhere(two_hosts) in summed(two_hosts, tmp_path, **open_mpi)


@SLOW
@KIND("sums over hosts")
def test_the_sums_cross_the_switch_hydra(two_hosts: Hosts, tmp_path: Path, mpich: dict[str, str]) -> None:
    assert everywhere(two_hosts) in summed(two_hosts, tmp_path, IFACE="eth0", **mpich)


@KIND("sums over hosts")
def test_the_sums_cross_the_switch_gloo(two_hosts: Hosts, tmp_path: Path) -> None:
    said = summed(two_hosts, tmp_path, LAUNCHER="horovodrun", LAUNCHER_ARGS="--gloo", IFACE="eth0")
    assert everywhere(two_hosts) in said


@SLOW
@KIND("sums over hosts")
def test_the_sums_cross_the_switch_horovodrun_over_mpi(
    two_hosts: Hosts, tmp_path: Path, open_mpi: dict[str, str]
) -> None:
    assert everywhere(two_hosts) in summed(two_hosts, tmp_path, **open_mpi | {"LAUNCHER": "horovodrun"})


@SLOW
@KIND("sums over hosts")
def test_a_hostfile_and_an_interface(two_hosts: Hosts, tmp_path: Path, open_mpi: dict[str, str]) -> None:
    hostfile = tmp_path / "machines"
    hostfile.write_text("".join(f"{name} slots=1\n" for name in two_hosts.names), encoding="utf-8")
    said = summed(two_hosts, tmp_path, HOSTS="", HOSTFILE=str(hostfile), IFACE="eth0", **open_mpi)
    assert everywhere(two_hosts) in said
