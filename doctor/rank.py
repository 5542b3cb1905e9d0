"""The program of the trial launch: what one rank sees and can do on its node."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from doctor.job import Task
from doctor.launch import MARK
from parallel.comm import Comm
from parallel.launchers import launched_rank

PACKAGES = ("tensorflow", "keras", "numpy", "horovod")
MESSAGE_BYTES = 2**20
_ENTRIES = 20_000
_SHARED_WAIT_S = 3.0


def send(kind: str, value: Any) -> None:
    """Write one line for the doctor, in one call so that lines of different ranks do not mix."""
    sys.stdout.flush()
    os.write(1, f"{MARK}{json.dumps([kind, value])}\n".encode())


def hello() -> None:
    """Report that this process runs, before loading anything that could hang."""
    send("hello", {"rank": launched_rank(), "host": socket.gethostname()})


def examine(comm: Comm, task: Task, root: Path) -> None:
    """Report on this rank. Collective; rank 0 sends all reports."""
    mine: dict[str, Any] = {"rank": comm.rank, "host": socket.gethostname(), "local_size": comm.local_size}
    errors: list[str] = []

    def note(name: str, action: Callable[[], Any]) -> None:
        # Ranks: the collective calls below must be made even after an error.
        try:
            mine[name] = action()
        except Exception as error:
            errors.append(f"{name}: {type(error).__name__}: {error}")

    note("devices", lambda: _devices(comm, task.gpus))
    note("placement", lambda: _placement(comm))
    note("memory", lambda: _memory(comm, task.gpus))
    note("versions", lambda: versions(root))
    note("inputs", lambda: {option: seen(path) for option, path in task.inputs.items()})
    note("log_dir", lambda: folder(task.log_dir))
    note("stage_dir", lambda: folder(task.stage_dir))
    mine["shared"] = _shared(comm, task.log_dir)
    # Ranks: all at the same time, as in a step.
    comm.gather(None)
    note("gflop_s", _rate)
    mine |= _allreduce(comm)
    if comm.rank == 0:
        note("parameters", lambda: _parameters(task))
    mine["errors"] = errors
    everybody = comm.gather(mine)
    if comm.rank == 0:
        for report in everybody:
            send("rank", report)
    # Ranks: none exits before all reports are sent; a launcher may end the others with the first.
    comm.gather(None)


def versions(root: Path) -> dict[str, str]:
    """Versions that must agree on all nodes: Python, packages, our own code."""
    found = {"python": platform.python_version()}
    installed = {name: list(metadata.distributions(name=name)) for name in PACKAGES}
    found |= {name: copies[0].version if copies else "absent" for name, copies in installed.items()}
    code = hashlib.sha256()
    for path in sorted(path for depth in ("", "[a-z]*/", "[a-z]*/[a-z]*/") for path in root.glob(f"{depth}*.py")):
        if path.relative_to(root).parts[0] not in ("tests", "runs"):
            code.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return found | {"code": code.hexdigest()[:12]}


def seen(path: Path) -> str:
    """Describe what is at a path; equal on all nodes that see the same."""
    if path.is_dir():
        entries = sorted(os.listdir(path))
        digest = hashlib.sha256("\0".join(entries[:_ENTRIES]).encode("utf-8", "surrogateescape"))
        return f"{len(entries)} entries, {digest.hexdigest()[:8]}"
    if path.is_file():
        with path.open("rb") as file:
            file.read(1)
        return f"{path.stat().st_size} bytes"
    # a TensorFlow checkpoint is named by the common prefix of its files
    return "a checkpoint" if path.with_name(f"{path.name}.index").is_file() else "missing"


def existing(path: Path) -> Path:
    """The path, or its nearest parent that exists."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())


def folder(path: Path | None) -> dict[str, Any] | None:
    """Whether a folder can be written or created, and the free bytes there; removes its test file."""
    if path is None:
        return None
    there = existing(path)
    error = None
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"x")
            file.flush()
            os.fsync(file.fileno())
    except OSError as problem:
        error = f"{there}: {problem.strerror or problem}"
    return {"there": str(there), "free": shutil.disk_usage(there).free, "error": error}


def _shared(comm: Comm, log_dir: Path | None) -> bool | None:
    """Whether this rank sees a file that rank 0 creates in `log_dir` or its nearest parent; None without `log_dir`."""
    if log_dir is None:
        return None
    mine = None
    if comm.rank == 0:
        try:
            handle, name = tempfile.mkstemp(prefix=".widefov-doctor-", dir=existing(log_dir))
            os.close(handle)
            mine = name
        except OSError:
            mine = None
    name = comm.gather(mine)[0]
    deadline = time.monotonic() + _SHARED_WAIT_S  # network file systems cache listings of folders for a while
    found = name is not None and Path(name).exists()
    while name is not None and not found and time.monotonic() < deadline:
        time.sleep(0.2)
        found = Path(name).exists()
    comm.gather(None)
    if mine is not None:
        Path(mine).unlink(missing_ok=True)
    return None if name is None else found


def _devices(comm: Comm, gpus: bool) -> dict[str, Any]:
    from parallel.devices import gpu_count, unused_gpus, use_devices

    words = use_devices(comm)
    return {"words": words, "tensorflow": gpu_count() if gpus else 0, "unused": unused_gpus(comm) if gpus else ""}


def _placement(comm: Comm) -> dict[str, Any]:
    from system.placement import placement

    return asdict(placement(comm.rank, comm.local_size))


def _memory(comm: Comm, gpus: bool) -> dict[str, Any]:
    from parallel.devices import own_gpu
    from training.planner import memory

    return asdict(memory(own_gpu(comm) if gpus else None))


def _rate() -> float:
    from training.planner import product_rate

    return product_rate(repeats=3)


def _parameters(task: Task) -> int:
    import models

    # Two classes: more of them only change the last layer.
    return int(models.build(task.network, task.img_size, 2, task.channels, task.precision).count_params())


def _allreduce(comm: Comm) -> dict[str, Any]:
    """Whether a sum over ranks is correct, and the time of a sum of one number and of 1 MB, s."""
    if comm.size == 1:
        return {}
    small, large = np.array([comm.rank + 1], np.float32), np.full(MESSAGE_BYTES // 4, comm.rank + 1, np.float32)
    expected = comm.size * (comm.size + 1) / 2
    right = True
    taken: dict[str, float] = {}
    for name, array, repeats in (("small_s", small, 20), ("large_s", large, 10)):
        times = []
        for _ in range(repeats):
            begin = time.perf_counter()
            total = comm.sum_array(array)
            times.append(time.perf_counter() - begin)
            right = right and bool((total == expected).all())
        taken[name] = statistics.median(times)
    return {"sum_right": right, **taken}
