"""How jobs met their faults: python -m tests.integration.faults.table [--repetitions N] --json FILE.

Every fault of the tests, again and again; prints a table of time to end, images lost and outcome.
"""

import argparse
import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks import report
from tests.integration.faults.job import AT, AT_SLIDE, INTERVAL, LIMIT_S, STALL_S, Job, Outcome, repair_disk, small_disk

FAULTS = (
    ("SIGKILL in a step", "step:1"),
    ("SIGKILL in the allreduce, rank 1", "allreduce:1"),
    ("SIGKILL in the allreduce, rank 0", "allreduce:0"),
    ("SIGKILL in validation", "validation:1"),
    ("SIGKILL in a checkpoint", "checkpoint:0"),
    ("SIGSTOP, rank 1", "stop:1"),
    ("SIGSTOP, rank 0", "stop:0"),
    ("SIGKILL to the launcher", "launcher:1"),
    ("slides cut short, rank 1", "slide:1"),
    ("disk full", "full:0"),
    ("log folder read-only", "readonly:0"),
    ("SIGKILL, newest checkpoint cut short", "step:1"),
)
NEEDS_ROOT = ("full", "readonly")


def met(name: str, fault: str, folder: Path) -> Outcome:
    """One job with the fault, and the one that resumes after it."""
    job = Job(folder)
    kind = fault.split(":", maxsplit=1)[0]
    with ExitStack() as stack:
        if kind in NEEDS_ROOT:
            stack.enter_context(small_disk(job.log_dir, "8m"))
        outcome = job.finish(job.start(f"{fault}:{AT_SLIDE if kind == 'slide' else AT}"))
        if kind in NEEDS_ROOT:
            repair_disk(job.log_dir)
        if kind == "slide":
            job.repair_slides()
        if "cut short" in name and kind == "step":
            job.damage_newest()
        return job.resumed(outcome)


def row(name: str, outcome: Outcome, losses: dict[int, float]) -> dict[str, Any]:
    """What the table shows of a job."""
    return {
        "fault": name, "seconds": round(outcome.seconds, 1), "exit_code": outcome.code, "images_lost": outcome.lost,
        "left": outcome.left, "resumed_at": outcome.resumed_at, "equal": outcome.losses == losses,
    }  # fmt: skip


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description="faults of a job, and what became of it")
    parser.add_argument("--repetitions", type=int, default=2)
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    opts = parser.parse_args()
    rows: list[dict[str, Any]] = []
    print(f"{'fault':<38} {'jobs':>4}  {'s to end':>9}  {'images lost':>11}  {'left':>4}  same run after --resume")
    with tempfile.TemporaryDirectory() as folder:
        whole = Job(Path(folder) / "whole")
        assert whole.finish(whole.start()).code == 0
        for name, fault in FAULTS:
            if fault.split(":")[0] in NEEDS_ROOT and os.geteuid():
                print(f"{name:<38} not tried: a disk of its own needs root")
                continue
            for repetition in range(opts.repetitions):
                place = Path(folder) / f"{len(rows)}-{repetition}"
                rows.append(row(name, met(name, fault, place), whole.losses()))
            own = rows[-opts.repetitions :]
            seconds, lost = ([r[key] for r in own] for key in ("seconds", "images_lost"))
            print(
                f"{name:<38} {len(own):>4}  {min(seconds):>4}-{max(seconds):<4}  {min(lost):>5}-{max(lost):<5}  "
                f"{sum(len(r['left']) for r in own):>4}  {sum(r['equal'] for r in own)} of {len(own)}",
                flush=True,
            )
    print(
        f"{len(rows)} jobs; a checkpoint every {INTERVAL} images; --stall_timeout {STALL_S} where a rank is stopped; "
        f"limit {LIMIT_S} s"
    )
    if opts.json:
        report.write(opts.json, {"jobs": rows, "checkpoint_every": INTERVAL, "stall_timeout_s": STALL_S})


if __name__ == "__main__":
    main()
