"""Two real ranks of the allreduce benchmark: what it counts and what it says when it cannot."""

import json
import subprocess
from pathlib import Path

import pytest

from benchmarks.allreduce import NAMESPACE, TCP, started


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    path = tmp_path / "shapes.json"
    path.write_text(json.dumps({"tiny": [[1000, 250], [7], [3, 3]]}), encoding="utf-8")
    return path


def test_bytes_on_the_wire_are_those_of_the_gradients(shapes: Path) -> None:
    if subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine makes no network namespaces for users")
    if "Open MPI" not in subprocess.run(["mpirun", "--version"], capture_output=True, text=True, check=False).stdout:
        pytest.skip("only with Open MPI is TCP requested")
    full, half = started("wire", shapes, 1, TCP, NAMESPACE)["wire"]
    # 250016 numbers; of two ranks each sends as many bytes as it has, and headers and negotiation
    assert (full["formula"], half["formula"]) == (1000064, 500032)
    assert 1000064 < full["counted"] < 1.05e6
    assert 500032 < half["counted"] < 0.55e6


def test_failure_names_its_cause(tmp_path: Path) -> None:
    shapes = tmp_path / "shapes.json"
    shapes.write_text("{", encoding="utf-8")
    with pytest.raises(RuntimeError, match=r"two ranks ended with code 1: .*JSONDecodeError"):
        started("wire", shapes, 1, {})
