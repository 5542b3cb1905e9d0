"""The small comparisons behind docs/performance.md: each way to do a thing, timed in turn in one process.

python -m benchmarks.parts --json FILE [--rounds 15]

Prints the median, smallest and largest time of each way over the rounds. Maps are 1 x 256 x 256 x 96 float32 (25 MB),
patches 2 x 1024 x 1024 x 3, tiles 512 x 512.
"""

from __future__ import annotations

import argparse
import os
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import cv2
import imagecodecs
import numpy as np
import tensorflow as tf
from isal import isal_zlib

from benchmarks import report
from models import fused
from samplers import quality
from slides import artefacts
from training.step import scaled

MAP, CHANNELS = (1, 256, 256, 96), 96
Ways = dict[str, Callable[[], Any]]


def elementwise() -> dict[str, Ways]:
    """Passes over maps: TensorFlow's operations, and joined by XLA."""
    x, gradient, other = (tf.random.normal(MAP) for _ in range(3))
    one, zero = tf.ones(CHANNELS), tf.zeros(CHANNELS)
    weights = tf.constant([0.3, 0.3, 0.4])

    def slope() -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.nn.silu(x)
        return tape.gradient(y, x, gradient)

    def statistics(x: Any) -> Any:
        mean, variance = tf.nn.moments(x, (0, 1, 2))
        return (x - mean) * tf.math.rsqrt(variance + 1e-3)

    fusion = tf.function(lambda: tf.nn.silu(x * weights[0] + gradient * weights[1] + other * weights[2]))
    joined_statistics = tf.function(statistics, jit_compile=True)
    return {
        "gradient of swish": {
            "TensorFlow": tf.function(slope),
            "joined": lambda: fused._before_swish(x, one, zero, gradient),
        },
        "fusion of three maps and swish": {
            "TensorFlow": fusion,
            "joined": lambda: fused._weighted_swish(weights, (x, gradient, other)),
        },
        "batch normalization": {
            "FusedBatchNormV3": lambda: (
                tf.raw_ops.FusedBatchNormV3(x=x, scale=one, offset=zero, mean=[], variance=[], is_training=True).y
            ),
            "joined": lambda: joined_statistics(x),
        },
    }


def patches() -> dict[str, Ways]:
    """What a patch of 1024 px costs beside decoding."""
    rng = np.random.default_rng(0)
    image_BHWC = rng.integers(0, 256, (2, 1024, 1024, 3), dtype=np.uint8)
    levels_BHWC, copied = tf.constant(image_BHWC), np.empty(image_BHWC.shape, np.float32)
    floats = copied.copy()
    mask_HW1 = cv2.blur(rng.integers(0, 256, (512, 512), dtype=np.uint8), (31, 31))[..., None] > 127
    steps_HW1 = np.diff(mask_HW1.astype(np.uint8), axis=1, prepend=np.uint8(0))
    stream = zlib.compress(steps_HW1.tobytes(), 6)
    tile_N = np.empty(steps_HW1.size, np.uint8)
    image_HWC = image_BHWC[0]
    return {
        "float32 of two patches": {
            "dequantize": lambda: scaled(levels_BHWC),
            "cast, multiply, add": tf.function(lambda: tf.cast(levels_BHWC, tf.float32) * (2.0 / 255.0) - 1.0),
            "a copy of that size": lambda: np.copyto(copied, floats),
        },
        "Deflate of a mask's tile": {
            "zlib": lambda: zlib.decompress(stream),
            "ISA-L": lambda: isal_zlib.decompress(stream),
            "imagecodecs": lambda: imagecodecs.deflate_decode(stream, out=tile_N),
        },
        "horizontal predictor of a tile": {
            "np.add.accumulate": lambda: np.add.accumulate(steps_HW1, axis=1, dtype=np.uint8),
            "imagecodecs": lambda: imagecodecs.delta_decode(steps_HW1, axis=1),
        },
        "every eighth px of a patch": {
            "NumPy stride": lambda: np.ascontiguousarray(image_HWC[::8, ::8]),
            "OpenCV resize": lambda: artefacts.spread(image_HWC),
        },
        "quality checks of a patch": {"all": lambda: quality.fault(image_HWC, 0.25)},
    }


def main() -> None:
    """Print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description="time the alternatives that docs/performance.md compares")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    opts = parser.parse_args()
    rows = []
    print("what                              way                      ms   low    high")
    for what, ways in (elementwise() | patches()).items():
        taken: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(opts.rounds + 2):  # the first two trace and warm up
            for way, run in ways.items():
                start = time.perf_counter()
                tf.nest.map_structure(np.asarray, run())
                if number >= 2:
                    taken[way].append((time.perf_counter() - start) * 1e3)
        for way, ms in taken.items():
            row = {"what": what, "way": way, "ms": float(np.median(ms)), "low": min(ms), "high": max(ms)}
            rows.append(row)
            print(f"{what:<33} {way:<20} {row['ms']:>6.2f} {row['low']:>6.2f} {row['high']:>6.2f}", flush=True)
    if opts.json:
        report.write(opts.json, {"rows": rows})


if __name__ == "__main__":
    main()
