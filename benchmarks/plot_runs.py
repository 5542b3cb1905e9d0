"""Compare finished runs: a table of their last and best scores, and curves.

python -m benchmarks.plot_runs LOG_DIR [LOG_DIR ...] --png curves.png --json numbers.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SCORES = ("miou", "dice", "auc", "loss")


def read_run(log_dir: Path) -> dict[str, Any]:
    """Rows of metrics.jsonl by kind, and the options of the run."""
    lines = (log_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    options = json.loads((log_dir / "options.json").read_text(encoding="utf-8"))
    return {
        "name": log_dir.name,
        "options": options,
        **{k: [r for r in rows if r["kind"] == k] for k in ("train", "val")},
    }


def summary(run: dict[str, Any]) -> dict[str, Any]:
    """Numbers of one run: final and best validation scores, images, speed (median over log lines after the first)."""
    last, best = run["val"][-1], max(run["val"], key=lambda row: row["miou"] or 0)
    speeds = sorted(row["images_per_s"] for row in run["train"][1:] if row["images_per_s"])
    numbers = {"run": run["name"], "images": last["images"], "best_miou": best["miou"], "best_at": best["images"]}
    numbers |= {score: last[score] for score in SCORES}
    return numbers | {"images_per_s": speeds[len(speeds) // 2] if speeds else None}


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """Training loss and validation mIoU against images, one line per run."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), constrained_layout=True)
    for run in runs:
        for axis, kind, score in zip(axes, ("train", "val"), ("loss", "miou"), strict=True):
            rows = [row for row in run[kind] if row[score] is not None]
            marker = "o" if kind == "val" else None
            axis.plot([r["images"] for r in rows], [r[score] for r in rows], marker=marker, label=run["name"])
    for axis, title in zip(axes, ("training loss", "validation mIoU"), strict=True):
        axis.set(xlabel="images trained (all ranks)", title=title)
        axis.grid(alpha=0.3)
        axis.legend()
    axes[0].set_yscale("log")
    figure.savefig(path, dpi=110)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log_dirs", type=Path, nargs="+", metavar="LOG_DIR", help="--log_dir of a run")
    parser.add_argument("--png", type=Path, help="write curves")
    parser.add_argument("--json", type=Path, help="write the numbers")
    given = parser.parse_args()
    runs = [read_run(log_dir) for log_dir in given.log_dirs]
    numbers = [summary(run) for run in runs]
    print("| run | images | best val mIoU (at) | final mIoU | Dice | AUC | images/s |")
    print("|---|---|---|---|---|---|---|")
    for n in numbers:
        print(
            f"| {n['run']} | {n['images']} | {n['best_miou']:.4f} ({n['best_at']}) | {n['miou']:.4f} | {n['dice']:.4f} "
            f"| {n['auc']:.4f} | {n['images_per_s']:.2f} |"
        )
    if given.png:
        draw(runs, given.png)
    if given.json:
        given.json.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
