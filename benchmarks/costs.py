"""What training steps cost, for the planner: memory and time of some sizes, and the lines through them.

python -m benchmarks.costs --json training/costs.json [--models ...] [--recompute ...] [--sizes 768 1280]

Cases that are not measured keep what the file holds already.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.step import Case, child
from models import NAMES
from models.recompute import MODES


def line(points: list[tuple[float, float]]) -> list[float]:
    """Fixed part and slope of the straight line through the outermost of some points."""
    (x0, y0), (x1, y1) = min(points), max(points)
    slope = (y1 - y0) / (x1 - x0)
    return [y0 - slope * x0, slope]


def main() -> None:
    """Measure, fit, print, write."""
    parser = argparse.ArgumentParser(description="measure what the planner predicts from")
    parser.add_argument("--models", nargs="+", default=list(NAMES), choices=NAMES)
    parser.add_argument("--recompute", nargs="+", default=list(MODES), choices=MODES)
    parser.add_argument("--sizes", type=int, nargs=2, default=[768, 1280], help="px")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--json", type=Path, required=True)
    opts = parser.parse_args()
    costs: dict[tuple[str, ...], dict[str, Any]] = {}
    if opts.json.exists():
        old = json.loads(opts.json.read_text(encoding="utf-8"))["costs"]
        costs = {(c["model"], c["recompute"]): c for c in old}
    for model, recompute in itertools.product(opts.models, opts.recompute):
        runs = [child(Case(model, size, recompute=recompute), opts.steps) for size in opts.sizes]
        mpx = [run["img_size"] ** 2 / 1e6 for run in runs]
        product = sum(run["product_gflop_s"] for run in runs) / len(runs)
        # Every run's time as it would be at the mean rate of the machine.
        seconds = [run["step_s"] * run["product_gflop_s"] / product for run in runs]
        costs[model, recompute] = {
            "model": model, "recompute": recompute, "product_gflop_s": product,
            "gib": line(list(zip(mpx, (run["resident_gib"] for run in runs), strict=True))),
            "seconds": line(list(zip(mpx, seconds, strict=True))),
            "runs": [{k: run[k] for k in ("img_size", "resident_gib", "step_s", "product_gflop_s")} for run in runs],
        }  # fmt: skip
        for run in runs:
            print(
                f"{model:<9} {recompute:<7} {run['img_size']:>5} px {run['resident_gib']:>6.2f} GiB "
                f"{run['step_s']:>7.2f} s at {run['product_gflop_s']:.0f} GFLOP/s",
                flush=True,
            )
        report.write(opts.json, {"costs": list(costs.values())})


if __name__ == "__main__":
    main()
