"""A training step of a streamed network against the step of the whole image: seconds and peak memory.

    python -m benchmarks.streaming --size 2048 --arms whole 2048 1024,256 --json FILE         # memory, a process each
    python -m benchmarks.streaming --size 2048 --arms whole 1024,256 --together --steps 5     # time, in turns
    python -m benchmarks.streaming --size 8192 --arms 1024,256 --slide SLIDE.tif --steps 0    # from a file

An arm is `whole`, or tiles of a stream: one number for one segment, several for as many segments, cut behind the
stages of the network (`--keep`), and `+MIB` for spare memory (`Streamed`'s `spare`). Without `--together` every arm
runs in a process of its own: a first step that also traces, then timed ones; peak memory is the process's, with
TensorFlow and the network in it. With it all arms share a process and take turns, so that what else the machine does
falls on all alike; CPU seconds are those of all threads.

The image is 8-bit noise in memory, or is read from a slide when it is needed (`python -m benchmarks.big_slide` makes
one). The network is one of `models.resnet` with frozen statistics and a head of a maximum; a stream ends at the late
map.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
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


def opened(path: Path, size: int) -> Any:
    """The image as a source: an array in memory from a .npy file, else the middle of a slide at its finest level."""
    from slides.reader import Slide
    from streaming.images import ArrayImage, SlideImage, in_unit_range

    if path.suffix == ".npy":
        return ArrayImage(np.load(path)[None], in_unit_range)
    slide = Slide(path)
    width, height = slide.levels[0].size_xy
    return SlideImage(slide, slide.window((width / 2, height / 2), (size, size), slide.um_px_xy_l0[0]))


def whole_step(network: Any, head: Any, image: Any) -> Any:
    """A function that does one step of the whole image and returns the gradients of all variables."""
    import tensorflow as tf

    variables = [v.value for v in [*network.trainable_variables, *head.trainable_variables]]

    @tf.function(autograph=False)
    def step(image_BHWC: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(head(network(image_BHWC, training=False)) ** 2)
        return tape.gradient(loss, variables)

    return lambda: step(tf.constant(image.read((0, image.shape[1]), (0, image.shape[2]))))


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


def prepared(opts: argparse.Namespace, arm: str) -> tuple[Callable[[], Any], Any]:
    """A function that does a step of an arm, and its stream, None for the whole image."""
    import keras

    from streaming import Streamed

    model = built(opts.network)
    image = opened(opts.image, opts.size)
    late = keras.Model(model.input, model.get_layer(late_layer(opts.network)).output)
    head = keras.Sequential([keras.Input(late.output_shape[1:]), model.get_layer("pool"), model.get_layer("fc")])
    if arm == WHOLE:
        return whole_step(late, head, image), None
    sides, _, spare = arm.partition("+")
    tiles = [int(side) for side in sides.split(",")]
    keep = opts.keep[: len(tiles) - 1]
    stream = Streamed(model, late_layer(opts.network), tiles, keep, spare=int(spare or 0) * 2**20)
    return streamed_step(stream, head, image), stream


def timed(step: Callable[[], Any]) -> tuple[float, float, float]:
    """Wall and CPU seconds of a step, and the norm of its gradients."""
    wall, cpu = time.perf_counter(), time.process_time()
    norm = float(np.sqrt(sum(np.sum(np.asarray(g, np.float64) ** 2) for g in step())))
    return time.perf_counter() - wall, time.process_time() - cpu, norm


def measure(opts: argparse.Namespace, arm: str) -> dict[str, Any]:
    """One arm, in this process."""
    from streaming.planner import estimate

    step, stream = prepared(opts, arm)
    before = report.peak_resident_bytes()
    found: dict[str, Any] = {"arm": arm}
    if stream is not None:
        planned = estimate(stream, (opts.size, opts.size))
        found |= {"tiles": planned.tiles, "kept": planned.kept, "factor": planned.factor}
        found["predicted_bytes"] = before + planned.bytes
    runs = [timed(step) for _ in range(1 + opts.steps)]
    found |= {"first_s": runs[0][0], "wall_s": [w for w, _, _ in runs[1:]], "cpu_s": [c for _, c, _ in runs[1:]]}
    found |= {"peak_bytes": report.peak_resident_bytes(), "before_bytes": before, "gradient_norm": runs[-1][2]}
    if stream is not None:
        found["counts"] = vars(stream.counts)
    return found


def together(opts: argparse.Namespace) -> list[dict[str, Any]]:
    """All arms in this process, in turns."""
    steps = {arm: prepared(opts, arm)[0] for arm in opts.arms}
    rows: list[dict[str, Any]] = [{"arm": arm, "wall_s": [], "cpu_s": []} for arm in opts.arms]
    for turn in range(1 + opts.steps):
        for row in rows:
            wall, cpu, row["gradient_norm"] = timed(steps[row["arm"]])
            if turn:  # the first also traces
                row["wall_s"].append(wall)
                row["cpu_s"].append(cpu)
    return rows


def noise(path: Path, size: int) -> None:
    """An image of random 8-bit px in a .npy file."""
    image = np.lib.format.open_memmap(path, "w+", np.uint8, (size, size, 3))
    for row in range(size):
        image[row] = np.random.default_rng(row).integers(0, 256, image.shape[1:], np.uint8)
    image.flush()


def in_processes(opts: argparse.Namespace) -> list[dict[str, Any]]:
    """Every arm in a process of its own, one after the other."""
    rows = []
    for arm in opts.arms:
        command = [sys.executable, "-m", "benchmarks.streaming", "--worker", "--image", str(opts.image), "--arms", arm]
        command += ["--network", opts.network, "--keep", *opts.keep, "--steps", str(opts.steps)]
        command += ["--size", str(opts.size)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:]
            print(f"{arm:>12}  failed with exit code {done.returncode}: {' '.join(last)}", flush=True)
            continue
        rows.append(json.loads(done.stdout.strip().splitlines()[-1]))
        show(rows[-1])
    return rows


def show(row: dict[str, Any]) -> None:
    """One line."""
    wall, cpu = ((row[key] or [row.get("first_s", float("nan"))]) for key in ("wall_s", "cpu_s"))
    line = f"{row['arm']:>14}  {median(wall):8.2f} s"
    line += f"  {median(cpu):8.2f} s of CPU" if row["cpu_s"] else ""
    if "peak_bytes" in row:
        line += f"  {row['peak_bytes'] / 2**30:6.2f} GiB"
    if "tiles" in row:
        line += f"  {row['predicted_bytes'] / 2**30:.2f} predicted, x {row['factor']:.2f}, tiles {row['tiles']}"
    print(f"{line}  |gradient| {row['gradient_norm']:.6g}", flush=True)


def main() -> None:
    """Print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description="a streamed training step against that of the whole image")
    parser.add_argument("--network", choices=sorted(VARIANTS), default="resnet34")
    parser.add_argument("--size", type=int, default=2048, help="rows and columns of the image, px")
    parser.add_argument("--arms", nargs="+", default=[WHOLE, "2048", "1024"], help="whole, or tiles: 1024 or 1024,512")
    parser.add_argument("--keep", nargs="+", default=["layer2_3", "layer3_5"], help="maps between segments")
    parser.add_argument("--steps", type=int, default=1, help="timed steps behind the first one")
    parser.add_argument("--together", action="store_true", help="all arms in one process, in turns: for times")
    parser.add_argument("--slide", type=Path, dest="image", help="a slide to read from; noise in memory without one")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    parser.add_argument("--image", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    opts = parser.parse_args()
    if opts.worker:
        print(json.dumps(measure(opts, opts.arms[0])))
        return
    with tempfile.TemporaryDirectory() as folder:
        if opts.image is None:
            opts.image = Path(folder) / "image.npy"
            noise(opts.image, opts.size)
        rows = together(opts) if opts.together else in_processes(opts)
        if opts.together:
            for row in rows:
                show(row)
    if opts.json:
        report.write(opts.json, {"network": opts.network, "size_px": opts.size, "arms": rows})


if __name__ == "__main__":
    main()
