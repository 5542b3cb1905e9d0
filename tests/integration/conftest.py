"""Which tests run, in which order and process; fixtures shared by several files."""

import os
import sys
from pathlib import Path

import pytest

from tests.support.bench import Bench
from tests.support.paths import ROOT
from tests.support.slow import chosen

# What takes longest or sleeps begins first, so that two processes end at about the same time.
LONGEST_FIRST = (
    "faults", "test_end_to_end", "hosts", "test_predict", "test_train", "test_elastic", "test_sampling",
    "test_equivalence", "test_prepro_real", "test_memory", "test_launch.", "test_prepro.",
)  # fmt: skip
LEFT_OUT = pytest.StashKey[list[str]]()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out slow tests by WIDEFOV_SLOW (default: none is left out) and puts the longest first."""
    slow = [item.nodeid for item in items if item.get_closest_marker("slow")]
    left_out = set(slow) - chosen(slow, os.environ.get("WIDEFOV_SLOW", "all"))
    config.stash[LEFT_OUT] = sorted(left_out)
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in left_out])
    items[:] = sorted((item for item in items if item.nodeid not in left_out), key=turn)


def turn(item: pytest.Item) -> int:
    """Place of a test's file in the order."""
    return next((place for place, name in enumerate(LONGEST_FIRST) if name in item.nodeid), len(LONGEST_FIRST))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker of pytest-xdist tells its parent what it left out."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = session.config.stash.get(LEFT_OUT, [])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error: object) -> None:
    """The parent's side; all workers say the same."""
    node.config.stash[LEFT_OUT] = getattr(node, "workeroutput", {}).get("left_out", [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Names of the slow tests that did not run."""
    left_out = config.stash.get(LEFT_OUT, [])
    if left_out:
        terminalreporter.section(f"slow tests left out by WIDEFOV_SLOW={os.environ['WIDEFOV_SLOW']}: {len(left_out)}")
        for name in left_out:
            terminalreporter.write_line(name)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """A bench whose python is this one, without GPUs."""
    made = Bench(tmp_path / "bench")
    made.stub("python", f'exec "{sys.executable}" "$@"')
    made.stub("nvidia-smi", "exit 9")
    return made


@pytest.fixture
def allowed_cpu() -> int:
    """A CPU that this process may use."""
    return min(os.sched_getaffinity(0))


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
