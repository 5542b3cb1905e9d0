"""Where a training step spends its time, by kind of operation, from TensorFlow's profiler.

python -m benchmarks.profile_step --model effdetd0 --img_size 512 [--batch 1] [--variant widefov] [--top 25]

Seconds and calls are those of one step, the mean of `--steps`; seconds are summed over the threads that run operations,
`share` is of all of them.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections import Counter
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tensorflow as tf
from tensorflow.tsl.profiler.protobuf import xplane_pb2

from benchmarks.step import CLASSES, VARIANTS, Case, prepared


def operation_times(folder: Path) -> tuple[Counter[str], Counter[str]]:
    """Seconds and number of calls by kind of operation, of the only trace in a folder."""
    (file,) = folder.rglob("*.xplane.pb")
    space = xplane_pb2.XSpace()
    space.ParseFromString(file.read_bytes())
    seconds: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for plane in space.planes:
        if plane.name != "/host:CPU":
            continue
        for line in plane.lines:
            for event in line.events:
                name, colon, kind = plane.event_metadata[event.metadata_id].name.rpartition(":")
                # Operations are recorded as NAME:KIND; anything else is the runtime's own.
                if colon and name and not name.endswith(":") and kind.isidentifier():
                    seconds[kind] += event.duration_ps / 1e12
                    calls[kind] += 1
    return seconds, calls


def main() -> None:
    """Print the kinds of operations that take longest."""
    parser = argparse.ArgumentParser(description="profile a training step by kind of operation")
    parser.add_argument("--model", default="effdetd0")
    parser.add_argument("--img_size", type=int, default=512)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--variant", choices=VARIANTS, default="widefov")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--top", type=int, default=25)
    opts = parser.parse_args()
    run, image_BHWC, label_BHW, _ = prepared(Case(opts.model, opts.img_size, opts.batch, opts.variant))
    for _ in range(3):
        run(image_BHWC, label_BHW)
    with tempfile.TemporaryDirectory() as folder:
        tf.profiler.experimental.start(folder)
        for _ in range(opts.steps):
            run(image_BHWC, label_BHW)
        tf.profiler.experimental.stop()
        seconds, calls = operation_times(Path(folder))
    total = sum(seconds.values())
    print(f"{opts.model} {opts.img_size} px, batch {opts.batch}, {opts.variant}, {CLASSES} classes")
    print(f"{total / opts.steps:.3f} s and {sum(calls.values()) // opts.steps} operations a step")
    print("operation                                calls       s   share")
    for kind, spent in seconds.most_common(opts.top):
        print(f"{kind:<38} {calls[kind] // opts.steps:>7} {spent / opts.steps:>7.3f}  {spent / total:>6.1%}")


if __name__ == "__main__":
    main()
