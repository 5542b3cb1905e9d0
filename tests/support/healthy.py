"""A launch, a run and a rank's report with which all is well, for tests of the doctor's checks."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from doctor.job import Launch, Task
from doctor.report import Finding

START = Launch("mpirun", "mpirun", 2, (), "openmpi", "openmpi", "0.28.1", ("true",))
TASK = Task(
    network="effdetd0", img_size=128, um_px=2.0, channels=3, precision="float32", recompute="none", stream=None,
    batch=2, passes=1, images=4000, log_every=128,
    validate_every=400, checkpoint_every=400, warmup=200, sync_bn=False, frozen_bn=False,
    gpus=False, sample_processes=1, tile_cache_mb=128, memory_check=True, log_dir=Path("/runs/a"), stage_dir=None,
    stage_bytes=10**9, inputs={"slide_path": Path("/slides")}, resumes=False,
)  # fmt: skip


def a_rank(number: int = 0, host: str = "a", cpus: Iterable[int] = (0, 1, 2, 3), **changed: Any) -> dict[str, Any]:
    """What rank `number` of two on two nodes of 4 CPUs would report."""
    placed = {"rank": number, "host": host, "cpus": list(cpus), "there": 4, "threads": 4, "sockets": [0]}
    return {
        "rank": number, "host": host, "local_size": 1, "errors": [], "shared": True, "gflop_s": 100.0,
        "devices": {"words": "4 CPU threads per rank", "tensorflow": 0, "unused": ""}, "placement": placed,
        "memory": {"total": 64.0, "free": 60.0, "owner": "machine"}, "versions": {"numpy": "2.0.2", "code": "abc"},
        "inputs": {"slide_path": "270 entries, 0123"}, "stage_dir": None, "parameters": 4_000_000,
        "log_dir": {"there": "/runs", "free": 10**12, "error": None},
        "sum_right": True, "small_s": 20e-6, "large_s": 1e-3,
    } | changed  # fmt: skip


def levels(found: Iterable[Finding]) -> list[str]:
    return [finding.level for finding in found]


def only(found: Iterable[Finding]) -> Finding:
    (finding,) = found
    return finding
