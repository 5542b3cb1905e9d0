"""One training step of `train.py --stream`: seconds and peak memory, against what the planner says.

    python -m benchmarks.streamed_training --model deeplab --img_size 8192 --stream 1024 --json FILE

Random patches, frozen statistics, Adam, batch 1, cross-entropy. Peak memory is the process's, with TensorFlow, the
network and the optimizer in it, without slides and batches read ahead; a first step also traces.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import report
from options.choices import MODELS


def measure(name: str, img_size: int, tile: int, loss_name: str, steps: int) -> dict[str, Any]:
    """Numbers of some steps, in this process."""
    import models
    from parallel.comm import SoloComm
    from segmentation import streamed_network
    from segmentation.losses import Loss
    from segmentation.streamed_step import StreamedStep
    from training import planner
    from training.optimizer import Adam

    model = models.build(name, img_size, 2)
    models.freeze(model, batch_norm=True, backbone=False)
    loss = Loss(loss_name, (1.0, 1.0))
    stream = streamed_network.streamed(model, tile)
    need = streamed_network.cost(stream, model, 1, loss.is_mean)
    rate = planner.product_rate()
    step = StreamedStep(model, stream, Adam(model.trainable_variables), SoloComm(), loss, False, None)
    rng = np.random.default_rng(0)
    image_BHWC = rng.integers(0, 256, (1, img_size, img_size, 3), np.uint8)
    label_BHW = rng.integers(0, 2, (1, img_size, img_size), np.uint8)
    ahead = planner.PIPELINE_GIB + img_size**2 * planner.BATCHES_AHEAD * planner.BATCH_BYTES_PER_PX / 2**30
    found: dict[str, Any] = {"tiles": need.tiles, "predicted_gib": need.gib() - ahead, "product_gflop_s": rate}
    found |= {"predicted_s": need.seconds(rate), "factor": need.factor, "tile": stream.tile}
    before, taken = report.peak_resident_bytes(), []
    for _ in range(steps):
        start, cpu = time.perf_counter(), time.process_time()
        step(image_BHWC, label_BHW, 1e-4)
        taken.append([time.perf_counter() - start, time.process_time() - cpu])
    peak = report.peak_resident_bytes()
    return found | {"before_gib": before / 2**30, "peak_gib": peak / 2**30, "wall_and_cpu_s": taken}


def main() -> None:
    """Print the numbers, and write them as JSON."""
    parser = argparse.ArgumentParser(description="a training step of a streamed network")
    parser.add_argument("--model", choices=MODELS, default="deeplab")
    parser.add_argument("--img_size", type=int, default=2048, help="side of the patch, px")
    parser.add_argument("--stream", type=int, default=1024, help="side of a tile, px")
    parser.add_argument("--loss", default="ce")
    parser.add_argument("--steps", type=int, default=1, help="the first one also traces")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    opts = parser.parse_args()
    found = measure(opts.model, opts.img_size, opts.stream, opts.loss, opts.steps)
    print(", ".join(f"{name} {value}" for name, value in found.items()), flush=True)
    if opts.json:
        report.write(opts.json, {"model": opts.model, "size_px": opts.img_size, "loss": opts.loss} | found)


if __name__ == "__main__":
    main()
