"""What augmentation costs: its time per batch beside that of a training step on the same batch, in one process.

python -m benchmarks.augment --json FILE [--models effdetd0 deeplab] [--sizes 256 512 1024] [--rounds 7]

Every round runs each level and the step once, one after the other; `share` is the median over rounds of the time of
the level by that of the step, with its smallest and largest value. One rank, all cores.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

from benchmarks import report
from benchmarks.step import Case, prepared
from options.choices import AUGMENTATIONS, MODELS
from samplers.augment import Augment

PIXELS = 2**21  # px per batch, at most


def seconds(run: Callable[[], Any]) -> float:
    """Wall time of a call whose result has been fetched."""
    start = time.perf_counter()
    tf.nest.map_structure(np.asarray, run())
    return time.perf_counter() - start


def measure(model_name: str, img_size: int, rounds: int) -> list[dict[str, Any]]:
    """Rows of one model at one field of view, one per level."""
    batch = max(1, min(4, PIXELS // img_size**2))
    run, image_BHWC, label_BHW, _ = prepared(Case(model_name, img_size, batch))
    augments = {level: Augment(level, 0) for level in AUGMENTATIONS if level != "none"}
    times: dict[str, list[float]] = {level: [] for level in ("step", *augments)}
    for number in range(rounds + 2):  # the first two trace and warm up
        found = {"step": seconds(lambda: run(image_BHWC, label_BHW))}
        for level, augment in augments.items():
            index_B = np.arange(batch) + number * batch
            found[level] = seconds(lambda a=augment, i=index_B: a(image_BHWC, label_BHW, i))  # type: ignore[misc]
        if number >= 2:
            for level, taken in found.items():
                times[level].append(taken)
    rows = []
    for level in augments:
        share = np.array(times[level]) / np.array(times["step"])
        rows.append(
            {
                "model": model_name, "img_size": img_size, "batch": batch, "level": level,
                "ms_per_patch": float(np.median(times[level])) / batch * 1e3,
                "step_ms_per_patch": float(np.median(times["step"])) / batch * 1e3,
                "share": float(np.median(share)), "share_low": float(share.min()), "share_high": float(share.max()),
            }
        )  # fmt: skip
    return rows


def main() -> None:
    """Print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description="measure augmentation against the training step")
    parser.add_argument("--models", nargs="+", default=["effdetd0", "deeplab"], choices=MODELS)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    opts = parser.parse_args()
    print("model       px  batch  level     ms/patch  step ms/patch  share   spread")
    rows = []
    for name in opts.models:
        for img_size in opts.sizes:
            for row in measure(name, img_size, opts.rounds):
                rows.append(row)
                print(
                    f"{row['model']:<9} {row['img_size']:>4} {row['batch']:>6}  {row['level']:<9} "
                    f"{row['ms_per_patch']:>7.1f} {row['step_ms_per_patch']:>14.1f}  {row['share']:.3f}   "
                    f"{row['share_low']:.3f}-{row['share_high']:.3f}",
                    flush=True,
                )
    if opts.json:
        report.write(opts.json, {"rows": rows})


if __name__ == "__main__":
    main()
