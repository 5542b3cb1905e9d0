"""How fast and how large a training step is, against what the machine can do.

python -m benchmarks.step --json FILE [--models effdetd0 deeplab] [--sizes 512] [--batch 1] [--variants plain widefov]
    [--recompute none|blocks|fine] [--precision float32|bfloat16|float16]

Variants:
    plain     the same network of Keras' own layers, Keras' Adam, one tf.function: what people use
    widefov   the step of train.py

Every case runs in a process of its own, the variants of a case one after the other in each round, so that they see the
same state of the machine. Each process measures the machine: the rate of a float32 matrix product (before and after
each step, the median), and the bandwidth of a copy (read and write). Forward FLOPs are counted in the graph (a multiply
and an add are 2); efficiency = 3 x forward FLOPs / (step x rate of the product): a backward pass is two forward passes.
Memory is the largest resident size of the process (everything, TensorFlow's 0.5 GB included).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import report

CLASSES = 2
COPY_BYTES = 2**28
VARIANTS = ("plain", "widefov")


@dataclass(frozen=True)
class Case:
    """What is measured in one process."""

    model: str
    img_size: int
    batch: int = 1
    variant: str = "widefov"
    recompute: str = "none"
    precision: str = "float32"


def copy_rate() -> float:
    """GB/s moved by a copy (read and write), best of several."""
    source, target = np.ones(COPY_BYTES // 4, np.float32), np.zeros(COPY_BYTES // 4, np.float32)
    taken = []
    for _ in range(5):
        start = time.perf_counter()
        np.copyto(target, source)
        taken.append(time.perf_counter() - start)
    return 2 * COPY_BYTES / min(taken) / 1e9


def forward_flops(model: Any) -> int:
    """FLOPs of one forward pass with batch 1, from the registered cost of each operation."""
    import tensorflow as tf

    shape = (1, *model.input_shape[1:])
    graph = tf.function(lambda x: model(x, training=False)).get_concrete_function(tf.TensorSpec(shape)).graph
    options = tf.compat.v1.profiler.ProfileOptionBuilder.float_operation()
    options["output"] = "none"
    return int(tf.compat.v1.profiler.profile(graph, options=options).total_float_ops)


def plain_step(model: Any) -> Any:
    """A training step as a tutorial would write it."""
    import keras
    import tensorflow as tf

    optimizer = keras.optimizers.Adam(1e-4)
    optimizer.build(model.trainable_variables)
    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    @tf.function
    def step(image_BHWC: Any, label_BHW: Any) -> Any:
        with tf.GradientTape() as tape:
            logits_BHWK = model(tf.cast(image_BHWC, tf.float32) / 127.5 - 1.0, training=True)
            loss = cross_entropy(label_BHW, logits_BHWK)
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        return loss

    return lambda image, label: float(step(image, label))


def prepared(c: Case) -> tuple[Any, Any, Any, Any]:
    """A training step (image, label) -> loss, a batch of noise for it, and the model."""
    import keras
    import tensorflow as tf

    from benchmarks.plain import plain_layers

    if c.variant == "plain":
        plain_layers()
    import models
    from parallel.comm import SoloComm
    from segmentation.losses import Loss
    from training.optimizer import Adam
    from training.precision import LossScale
    from training.step import TrainStep

    keras.utils.set_random_seed(0)
    model = models.build(c.model, c.img_size, CLASSES, precision=c.precision)
    if c.variant == "plain":
        run = plain_step(model)
    else:
        train_step = TrainStep(
            model, Adam(model.trainable_variables), SoloComm(), Loss("ce", [1.0] * CLASSES), False, None,
            loss_scale=LossScale() if c.precision == "float16" else None,
            training_pass=models.training_pass(model, c.recompute),
        )  # fmt: skip

        def run(image: Any, label: Any) -> float:
            return train_step(image, label, 1e-4).loss

    rng = np.random.default_rng(0)
    image_BHWC = tf.constant(rng.integers(0, 256, (c.batch, c.img_size, c.img_size, 3), dtype=np.uint8))
    label_BHW = tf.constant(rng.integers(0, CLASSES, (c.batch, c.img_size, c.img_size), dtype=np.uint8))
    return run, image_BHWC, label_BHW, model


def measured(c: Case, steps: int) -> dict[str, Any]:
    """Run one case in this process."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from system.allocator import give_back_memory
    from training.planner import product_rate

    if c.recompute == "fine":
        give_back_memory()
    products, copy = [product_rate()], copy_rate()
    run, image_BHWC, label_BHW, model = prepared(c)
    flops = forward_flops(model) * c.batch
    start = time.perf_counter()
    losses = [run(image_BHWC, label_BHW)]
    first = time.perf_counter() - start
    taken = []
    for _ in range(steps + 1 if steps else 0):
        start = time.perf_counter()
        losses.append(run(image_BHWC, label_BHW))
        taken.append(time.perf_counter() - start)
        products.append(product_rate(2))  # again and again: other work on the machine, and heat, change it
    taken = taken[1:] or [first]
    step_s, product = float(np.median(taken)), float(np.median(products))
    return asdict(c) | {
        "first_s": first, "step_s": step_s, "steps_s": taken, "gflop_forward": flops / 1e9,
        "product_gflop_s": product, "copy_gb_s": copy, "losses": losses,
        "efficiency": 3 * flops / 1e9 / (step_s * product),
        "resident_gib": report.peak_resident_bytes() / 2**30,
    }  # fmt: skip


def main() -> None:
    """Run all cases, print their table and write it as JSON."""
    parser = argparse.ArgumentParser(description="measure training steps against the machine's peak")
    parser.add_argument("--models", nargs="+", default=["effdetd0", "deeplab"])
    parser.add_argument("--sizes", type=int, nargs="+", default=[512])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--recompute", default="none", help="of widefov")
    parser.add_argument("--precision", default="float32")
    parser.add_argument(
        "--steps", type=int, default=5, help="timed steps per process; 0: only the first one, for memory"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    parser.add_argument("--case", help=argparse.SUPPRESS)  # in a process of its own
    opts = parser.parse_args()
    if opts.case:
        print(json.dumps(measured(Case(**json.loads(opts.case)), opts.steps)))
        return
    runs = []
    print("model       px  batch variant    step s  images/s  first s  GiB    GFLOP  peak GFLOP/s  GB/s  efficiency")
    for name in opts.models:
        for img_size in opts.sizes:
            for _ in range(opts.rounds):
                for variant in opts.variants:
                    recompute = opts.recompute if variant == "widefov" else "none"
                    runs.append(child(Case(name, img_size, opts.batch, variant, recompute, opts.precision), opts.steps))
                    print(_line(runs[-1]), flush=True)
            _compare([r for r in runs if (r["model"], r["img_size"]) == (name, img_size)])
    if opts.json:
        report.write(opts.json, {"runs": runs})


def child(c: Case, steps: int) -> dict[str, Any]:
    """`measured`, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.step", "--steps", str(steps), "--case", json.dumps(asdict(c))]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _line(r: dict[str, Any]) -> str:
    return (
        f"{r['model']:<9} {r['img_size']:>4} {r['batch']:>6} {r['variant']:<9} {r['step_s']:>7.3f} "
        f"{r['batch'] / r['step_s']:>9.2f} {r['first_s']:>8.1f} {r['resident_gib']:>5.2f} {r['gflop_forward']:>8.1f} "
        f"{r['product_gflop_s']:>13.0f} {r['copy_gb_s']:>5.1f} {r['efficiency']:>11.3f}"
    )


def _compare(runs: list[dict[str, Any]]) -> None:
    """Print the speed of `widefov` against `plain`, round by round."""
    steps = {v: np.array([r["step_s"] for r in runs if r["variant"] == v]) for v in VARIANTS}
    if all(len(s) for s in steps.values()):
        ratio = steps["plain"] / steps["widefov"]
        print(f"          widefov is {np.median(ratio):.2f} x as fast as plain ({ratio.min():.2f}-{ratio.max():.2f})")


if __name__ == "__main__":
    main()
