"""Fixtures shared by the tests of the shell scripts."""

import os
import sys
from pathlib import Path

import pytest

from tests.support.bench import Bench


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
