"""Studies: several arms that differ in named options, each trained with several seeds; their table and curves.

A run here is a dict: `arm`, `seed`, `val` (rows of its validations), `images_per_s`, `log_dir`.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from benchmarks.plot_runs import read_run

SCORES = ("miou", "dice", "auc", "iou_0", "iou_1")


def train(script: Path, arm: str, seed: int, log_dir: Path, options: Sequence[Any]) -> dict[str, Any]:
    """Train one arm with one seed in a process of its own.

    Args:
        script: train.py, or a script that takes its options.
        arm: Name of the arm.
        seed: Of weights and sample stream.
        log_dir: Folder of the run.
        options: Of train.py, but for the seed and the folder.

    Raises:
        RuntimeError: The run failed; with the end of what it said.
    """
    command = [sys.executable, script, *options, "--seed", seed, "--log_dir", log_dir]
    ended = subprocess.run([str(word) for word in command], check=False, capture_output=True, text=True)
    if ended.returncode:
        raise RuntimeError(f"{arm} seed {seed} ended with code {ended.returncode}:\n{ended.stderr[-2000:]}")
    return read(arm, seed, log_dir)


def read(arm: str, seed: int, log_dir: Path) -> dict[str, Any]:
    """Read a finished run; see `train`."""
    run = read_run(log_dir)
    speeds = [row["images_per_s"] for row in run["train"] if row["images_per_s"]]
    speed = float(np.median(speeds))
    return {"arm": arm, "seed": seed, "val": run["val"], "images_per_s": speed, "log_dir": str(log_dir)}


def table(runs: list[dict[str, Any]], arms: Sequence[str]) -> list[dict[str, Any]]:
    """Mean and standard deviation over seeds of each arm's last validation."""
    rows = []
    for arm in arms:
        mine = [r for r in runs if r["arm"] == arm]
        row: dict[str, Any] = {"arm": arm, "seeds": len(mine)}
        for score in SCORES:
            values = np.array([r["val"][-1][score] for r in mine])
            row |= {score: float(values.mean()), f"{score}_sd": float(values.std(ddof=1)) if len(mine) > 1 else 0.0}
        rows.append(row | {"images_per_s": float(np.mean([r["images_per_s"] for r in mine]))})
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """Print a table."""
    print("\narm         mIoU            Dice            IoU normal  IoU tumor  AUC     images/s")
    for r in rows:
        print(
            f"{r['arm']:<10}  {r['miou']:.4f} +- {r['miou_sd']:.4f}  {r['dice']:.4f} +- {r['dice_sd']:.4f}  "
            f"{r['iou_0']:.4f}      {r['iou_1']:.4f}      {r['auc']:.4f}  {r['images_per_s']:.1f}"
        )


def curves(axes: plt.Axes, runs: list[dict[str, Any]], arms: Sequence[str], per_image: dict[str, float]) -> None:
    """Draw validation mIoU over training: mean of the seeds with dots, each seed thin.

    Args:
        axes: Where to draw.
        runs: All runs.
        arms: Names, in order of their colors.
        per_image: What one image counts on the x axis, by arm; 1 where it is left out.
    """
    for number, arm in enumerate(arms):
        mine = [r for r in runs if r["arm"] == arm]
        seen = [row["images"] * per_image.get(arm, 1) for row in mine[0]["val"]]
        miou = np.array([[row["miou"] for row in r["val"]] for r in mine])
        for one in miou:
            axes.plot(seen, one, color=f"C{number}", alpha=0.3, linewidth=1)
        axes.plot(seen, miou.mean(0), color=f"C{number}", label=arm, linewidth=2, marker="o")
    axes.set(ylabel="validation mIoU")
    axes.legend()
    axes.grid(alpha=0.3)
