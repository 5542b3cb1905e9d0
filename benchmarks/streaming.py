"""A training step of a streamed network against the step of the whole image: seconds and peak memory.

    python -m benchmarks.streaming --size 2048 --arms whole 2048 1024,512 --json FILE

An arm is `whole`, or tiles of a stream: one number for one segment, several for as many segments, cut behind the stages
of the network (`--keep`). Every arm runs in a process of its own, one after the other: a first step that also traces,
then timed ones. The image is random, in a memory-mapped file. The network is one of `models.resnet` with frozen
statistics and a head of a maximum; a stream ends at the late map. Peak memory is the process's, with TensorFlow and the
network in it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import report
from models.resnet import VARIANTS

WHOLE = "whole"


def late_layer(network: str) -> str:
    """The last block of a network."""
    return f"layer4_{VARIANTS[network].blocks[3] - 1}"


def built(network: str) -> Any:
    """The network with frozen statistics; its gammas and betas learn."""
    import keras

    from models import resnet

    keras.utils.set_random_seed(3)
    return resnet.build(network, 2)


def whole_step(network: Any, head: Any, image: Any) -> Any:
    """A function that does one step of the whole image and returns the gradients of all variables."""
    import tensorflow as tf

    variables = [v.value for v in [*network.trainable_variables, *head.trainable_variables]]

    @tf.function(autograph=False)
    def step(image_BHWC: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(head(network(image_BHWC, training=False)) ** 2)
        return tape.gradient(loss, variables)

    return lambda: step(tf.constant(np.asarray(image[None])))


def streamed_step(stream: Any, head: Any, image: Any) -> Any:
    """The same step by a stream."""
    import tensorflow as tf

    def step() -> Any:
        late = tf.constant(stream.forward(image))
        with tf.GradientTape() as tape:
            tape.watch(late)
            loss = tf.reduce_sum(head(late) ** 2)
        slope, *of_head = tape.gradient(loss, [late, *(v.value for v in head.trainable_variables)])
        return [*stream.backward(slope).variables, *of_head]

    return step


def measure(network: str, arm: str, keep: list[str], path: str, steps: int) -> dict[str, Any]:
    """One arm, in this process."""
    import keras

    from streaming import Streamed

    model = built(network)
    image = np.load(path, mmap_mode="r")
    late = keras.Model(model.input, model.get_layer(late_layer(network)).output)
    head = keras.Sequential([keras.Input(late.output_shape[1:]), model.get_layer("pool"), model.get_layer("fc")])
    found: dict[str, Any] = {"arm": arm}
    if arm == WHOLE:
        step = whole_step(late, head, image)
    else:
        tiles = [int(side) for side in arm.split(",")]
        stream = Streamed(model, late_layer(network), tiles, keep[: len(tiles) - 1])
        layout = stream.layout(image.shape[:2])
        found["tiles"] = [[len(part.rows), len(part.columns)] for part in layout.parts]
        step = streamed_step(stream, head, image)
    before = report.peak_resident_bytes()
    taken = []
    for _ in range(1 + steps):
        start = time.perf_counter()
        gradients = step()
        norm = float(np.sqrt(sum(np.sum(np.asarray(g, np.float64) ** 2) for g in gradients)))
        taken.append(time.perf_counter() - start)
    found |= {"first_s": taken[0], "step_s": min(taken[1:] or taken), "steps_s": taken[1:]}
    found |= {"peak_bytes": report.peak_resident_bytes(), "before_bytes": before, "gradient_norm": norm}
    if arm != WHOLE:
        found["counts"] = vars(stream.counts)
    return found


def main() -> None:
    """Print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description="a streamed training step against that of the whole image")
    parser.add_argument("--network", choices=sorted(VARIANTS), default="resnet34")
    parser.add_argument("--size", type=int, default=2048, help="rows and columns of the image, px")
    parser.add_argument("--arms", nargs="+", default=[WHOLE, "2048", "1024"], help="whole, or tiles: 1024 or 1024,512")
    parser.add_argument("--keep", nargs="+", default=["layer2_3", "layer3_5"], help="maps between segments")
    parser.add_argument("--steps", type=int, default=1, help="timed steps behind the first one")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    opts = parser.parse_args()
    if opts.worker is not None:
        print(json.dumps(measure(opts.network, opts.arms[0], opts.keep, opts.worker, opts.steps)))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image.npy"
        image = np.lib.format.open_memmap(path, "w+", np.float32, (opts.size, opts.size, 3))
        for row in range(opts.size):
            image[row] = np.random.default_rng(row).uniform(-1, 1, image.shape[1:])
        image.flush()
        for arm in opts.arms:
            command = [sys.executable, "-m", "benchmarks.streaming", "--worker", str(path), "--arms", arm]
            command += ["--network", opts.network, "--keep", *opts.keep, "--steps", str(opts.steps)]
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
            if done.returncode:
                last = done.stderr.strip().splitlines()[-1:]
                print(f"{arm:>12}  failed with exit code {done.returncode}: {' '.join(last)}", flush=True)
                continue
            rows.append(json.loads(done.stdout.strip().splitlines()[-1]))
            step = rows[-1]
            print(
                f"{arm:>12}  {step['step_s']:8.1f} s  {step['peak_bytes'] / 2**30:6.2f} GiB  "
                f"tiles {step.get('tiles', '-')}  |gradient| {step['gradient_norm']:.6g}",
                flush=True,
            )
    if opts.json:
        report.write(opts.json, {"network": opts.network, "size_px": opts.size, "arms": rows})


if __name__ == "__main__":
    main()
