"""Disk space, memory and time of the run."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

from artifacts.checkpoints import KEEP
from cohorts.pairing import Case
from cohorts.staging import parts_of
from doctor.job import Task
from doctor.report import Finding, failed, passed, warned
from slides.truth.label import has_outlines
from system.csv_tables import counted
from training.planner import MARGIN, Memory, costs, sharing

# Every parameter and Adam's two moments, 4 bytes each.
CHECKPOINT_BYTES = 12
# Beside the newest `KEEP`: best, final, and one being written.
CHECKPOINTS = KEEP + 3
# The exported model twice (Keras and SavedModel) and once more while it is written; events, logs, pictures.
EXPORT_BYTES, LOGS_BYTES = 12, 200 * 10**6

USUAL_CACHE_MB = 128  # decoded tiles, included in the planner's estimate

Reports = Sequence[dict[str, Any]]


def checkpoints(ranks: Reports, task: Task) -> Iterator[Finding]:
    """Disk space for the files of rank 0."""
    if task.log_dir is None or ranks[0].get("log_dir") is None or "parameters" not in ranks[0]:
        return
    parameters, free = ranks[0]["parameters"], ranks[0]["log_dir"]["free"]
    need = parameters * (CHECKPOINT_BYTES * CHECKPOINTS + EXPORT_BYTES) + LOGS_BYTES
    found = (
        f"{_gb(need)} for {CHECKPOINTS} checkpoints of {_gb(parameters * CHECKPOINT_BYTES)} and the model "
        f"({parameters:,} parameters); {_gb(free)} free in {ranks[0]['log_dir']['there']}"
    )
    if need > free:
        yield failed("disk", found, "free some space, or choose another --log_dir")
    elif 2 * need > free:
        yield warned("disk", found, "free some space: a full disk ends the run")
    else:
        yield passed("disk", found)


def staged(ranks: Reports, task: Task, cases: Sequence[Case]) -> Iterator[Finding]:
    """Disk space for copies of slides on each node."""
    if task.stage_dir is None:
        return
    cannot = [f"{r['host']}: {r['stage_dir']['error']}" for r in ranks if r["stage_dir"]["error"]]
    if cannot:
        yield failed("--stage_dir", f"cannot be written, {cannot[0]}", "choose a local disk, e.g. $TMPDIR")
        return
    files = {path for case in cases for path in (case.slide_path, case.label_path) if path and not has_outlines(path)}
    total = sum(part.stat().st_size for path in files for part in parts_of(path))
    least = min(ranks, key=lambda r: r["stage_dir"]["free"])
    space = min(task.stage_bytes, int(least["stage_dir"]["free"] * 0.95))
    found = f"{_gb(total)} of slides and masks, space for {_gb(space)} on {least['host']}"
    if total > space:
        yield warned("--stage_dir", found, "the rest is read in place; raise --stage_gb or choose a larger disk")
    else:
        yield passed("--stage_dir", found)


def memory(ranks: Reports, task: Task) -> Iterator[Finding]:
    """Memory of a step as the planner estimates it, on the node with the least memory per rank."""
    if task.stream is not None:
        yield warned("memory", f"--stream {task.stream}: known once the network is built", "train.py --plan says it")
        return
    cost = costs(task.network).get(task.recompute)
    sharers = sharing([Memory(**r["memory"]) for r in ranks], [r["local_size"] for r in ranks])
    tightest, local = min(
        zip(ranks, sharers, strict=True), key=lambda pair: float(pair[0]["memory"]["total"]) / pair[1]
    )
    here = tightest["memory"]
    if cost is None:
        yield warned("memory", f"{task.network} with --recompute {task.recompute} was not measured", "try --debug")
        return
    each = cost.step_gib(task.img_size, task.batch) + max(0, task.tile_cache_mb - USUAL_CACHE_MB) / 1024
    need = each * local
    found = (
        f"about {need:.1f} GiB for {local} rank{'s' if local > 1 else ''} on {tightest['host']} ({each:.1f} each); "
        f"{here['owner']} {here['total']:.1f} GiB, {here['free']:.1f} free"
    )
    if task.precision != "float32":
        found += f"; the estimate is for float32, {task.precision} needs less"
    ways = "a smaller --img_size or --batch_size, --recompute blocks or fine, fewer ranks per node (train.py --plan)"
    certain = task.precision == "float32" and task.memory_check
    if need / (1 + MARGIN) > here["total"] and certain:
        yield failed("memory", found, ways)
    elif need * (1 + MARGIN) > here["free"]:
        yield warned("memory", found, f"close other programs, or {ways}")
    else:
        yield passed("memory", found)


def duration(ranks: Reports, task: Task) -> Iterator[Finding]:
    """Time of a step and of the run, from the planner and the slowest rank's arithmetic, against the job's end."""
    cost = costs(task.network).get(task.recompute)
    if cost is None or task.stream is not None or any(report["devices"]["tensorflow"] for report in ranks):
        return
    rate = min(report["gflop_s"] for report in ranks)
    step_s = cost.step_s(task.img_size, task.batch, rate) * task.passes
    size = len(ranks)
    total = step_s * task.steps(size)
    found = (
        f"about {step_s:.1f} s per step of {counted(task.joint(size), 'image')}, {_time(total)} "
        f"for {counted(task.steps(size), 'step')} "
        f"(arithmetic only, {rate:.0f} GFLOP/s per rank; without reading, validation, network)"
    )
    left = _left()
    if left is not None and total > left:
        yield warned(
            "time",
            f"{found}; the job ends in {_time(left)}",
            "--resume auto and a small --checkpoint_every in the job script, then submit it again",
        )
    else:
        yield passed("time", found)


def _left() -> float | None:
    """Seconds to the end of a SLURM job; None if unknown."""
    end = os.environ.get("SLURM_JOB_END_TIME", "")
    return float(end) - time.time() if end.isdigit() else None


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.0f} MB"


def _time(seconds: float) -> str:
    for unit, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 1.5 * unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.0f} s"
