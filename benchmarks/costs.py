"""What training steps cost, for the planner: memory and time of some sizes, and lines through them.

python -m benchmarks.costs --json training/costs.json [--models ...] [--recompute ...] [--sizes 768 1280]

Runs of other cases and sizes that the file holds already are kept.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import report
from benchmarks.step import Case, child
from options.choices import MODELS, RECOMPUTATIONS


def memory_line(mpx: Sequence[float], gib: Sequence[float]) -> list[float]:
    """Fixed part and slope of the straight line with the least squares of relative errors."""
    slope, fixed = np.polyfit(mpx, gib, 1, w=1 / np.asarray(gib))
    return [float(fixed), float(slope)]


def time_line(mpx: Sequence[float], seconds: Sequence[float]) -> list[float]:
    """Line through 0 and the largest size: with fewer pixels, noise and first steps weigh more than any fixed part."""
    largest = int(np.argmax(mpx))
    return [0.0, seconds[largest] / mpx[largest]]


def fitted(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Lines through the runs of one network and recomputation, and the runs; of a size the first one counts."""
    runs = list({run["img_size"]: run for run in reversed(runs)}.values())
    runs.sort(key=lambda run: run["img_size"])
    mpx = [run["img_size"] ** 2 / 1e6 for run in runs]
    timed = [run for run in runs if run["timed"]]
    timed = timed or runs
    product = float(np.mean([run["product_gflop_s"] for run in timed]))
    # Every run's time as it would be at the mean rate of the machine.
    seconds = [run["step_s"] * run["product_gflop_s"] / product for run in timed]
    return {
        "product_gflop_s": product,
        "gib": memory_line(mpx, [run["resident_gib"] for run in runs]),
        "seconds": time_line([run["img_size"] ** 2 / 1e6 for run in timed], seconds),
        "runs": runs,
    }


def main() -> None:
    """Measure, fit, print, write."""
    parser = argparse.ArgumentParser(description="measure what the planner predicts from")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--recompute", nargs="+", default=list(RECOMPUTATIONS), choices=RECOMPUTATIONS)
    parser.add_argument("--sizes", type=int, nargs="+", default=[768, 1280], help="px")
    parser.add_argument("--steps", type=int, default=2, help="timed steps; 0: only memory, from the first step")
    parser.add_argument("--fresh", action="store_true", help="forget runs of other sizes that the file holds")
    parser.add_argument("--json", type=Path, required=True)
    opts = parser.parse_args()
    costs: dict[tuple[str, ...], dict[str, Any]] = {}
    if opts.json.exists():
        old = json.loads(opts.json.read_text(encoding="utf-8"))["costs"]
        costs = {(c["model"], c["recompute"]): c for c in old}
    for model, recompute in itertools.product(opts.models, opts.recompute):
        runs = [
            {name: run[name] for name in ("img_size", "resident_gib", "step_s", "product_gflop_s")}
            | {"timed": opts.steps > 0}
            for run in (child(Case(model, size, recompute=recompute), opts.steps) for size in opts.sizes)
        ]
        runs += [] if opts.fresh else costs.get((model, recompute), {}).get("runs", [])
        costs[model, recompute] = {"model": model, "recompute": recompute} | fitted(runs)
        for run in runs:
            print(
                f"{model:<9} {recompute:<7} {run['img_size']:>5} px {run['resident_gib']:>6.2f} GiB "
                f"{run['step_s']:>7.2f} s at {run['product_gflop_s']:.0f} GFLOP/s",
                flush=True,
            )
        rows = sorted(costs.items(), key=lambda item: (MODELS.index(item[0][0]), RECOMPUTATIONS.index(item[0][1])))
        report.write(opts.json, {"costs": [cost for _, cost in rows]})


if __name__ == "__main__":
    main()
