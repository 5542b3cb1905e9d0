"""How much memory and time a training step needs, and what fits: predicted from measured steps (`costs.json`).

Everything a segmentation network keeps or does is proportional to the pixels of its batch, but for the program, the
weights and what belongs to them. So a line is fitted to steps of two sizes for every network and recomputation
(`python -m benchmarks.costs`). Time is scaled by the rate of a matrix product, here against there.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from parallel.comm import AgreedError, Comm
from system.cgroups import least

COSTS = Path(__file__).with_name("costs.json")
PRODUCT_SIDE = 2048
GIB = 2**30
# Beside the step: slides, tiles and batches read ahead. Two batches wait and one is being made, of 4 bytes a pixel.
PIPELINE_GIB, BATCHES_AHEAD, BATCH_BYTES_PER_PX = 0.4, 3, 4
# Predictions are good to this share (docs/performance.md).
MARGIN = 0.15


@dataclass(frozen=True)
class Line:
    """fixed + slope x Mpx of the batch of a rank."""

    fixed: float
    slope: float

    def at(self, mpx: float) -> float:
        """The value for a batch of this many million pixels."""
        return self.fixed + self.slope * mpx


@dataclass(frozen=True)
class Cost:
    """What a step of one network needs: resident memory, GiB, and seconds at `product_gflop_s`."""

    gib: Line
    seconds: Line
    product_gflop_s: float

    def step_gib(self, img_size: int, batch: int) -> float:
        """Peak resident memory of one rank's process in training, GiB; `img_size` px, `batch` patches in a pass."""
        mpx = batch * img_size**2 / 1e6
        return self.gib.at(mpx) + PIPELINE_GIB + mpx * 1e6 * BATCHES_AHEAD * BATCH_BYTES_PER_PX / GIB

    def step_s(self, img_size: int, batch: int, product_gflop_s: float) -> float:
        """Seconds of a pass on a machine with this rate of a float32 matrix product."""
        return self.seconds.at(batch * img_size**2 / 1e6) * self.product_gflop_s / product_gflop_s

    def largest_size(self, batch: int, gib: float, multiple: int) -> int:
        """The largest img_size within this memory; 0 if none is."""
        size = 0
        while self.step_gib(size + multiple, batch) <= gib:
            size += multiple
        return size


def costs(model: str) -> dict[str, Cost]:
    """The measured costs of a network in float32, by recomputation; empty for an unknown network."""
    rows = json.loads(COSTS.read_text(encoding="utf-8"))["costs"]
    return {
        r["recompute"]: Cost(Line(*r["gib"]), Line(*r["seconds"]), r["product_gflop_s"])
        for r in rows
        if r["model"] == model
    }


def product_rate(repeats: int = 6) -> float:
    """GFLOP/s of a float32 matrix product, best of some."""
    import tensorflow as tf

    a = tf.random.normal((PRODUCT_SIDE, PRODUCT_SIDE))
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        tf.matmul(a, a).numpy()
        taken.append(time.perf_counter() - start)
    return 2 * PRODUCT_SIDE**3 / min(taken) / 1e9


@dataclass(frozen=True)
class Memory:
    """Memory that a job can have, GiB: of the machine (or its control group), and what of it is free; or of a GPU."""

    total: float
    free: float
    what: str


def memory() -> Memory:
    """The memory of the smallest visible GPU, else of this machine or the control group this process runs in."""
    gpus = _gpu_gib()
    if gpus:
        return Memory(min(gpus), min(gpus), "GPU")
    system = psutil.virtual_memory()
    total, free = system.total / GIB, system.available / GIB
    limit = _group_limit_gib()
    return Memory(min(total, limit), min(free, limit), "machine" if limit >= total else "control group")


def _gpu_gib() -> list[float]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return [float(line) / 1024 for line in done.stdout.split("\n") if line.strip().isdigit()]


def _group_limit_gib() -> float:
    """The least memory limit of the control groups of this process; infinite without one."""
    return least("memory", ("memory.max", "memory.limit_in_bytes")) / GIB


def advice(model: str, batch: int, ranks: int, multiple: int, gib: float) -> list[str]:
    """For every way of recomputing: the largest img_size that fits in float32.

    Args:
        model: network.
        batch: patches of a rank in one pass.
        ranks: of one machine, which share its memory.
        multiple: of which img_size must be one.
        gib: memory of the machine.
    """
    sizes = {recompute: cost.largest_size(batch, gib / ranks, multiple) for recompute, cost in costs(model).items()}
    return [f"--recompute {recompute}: up to --img_size {size}" for recompute, size in sizes.items() if size]


def require_memory(
    model: str, img_size: int, batch: int, recompute: str, multiple: int, comm: Comm, refuse: bool
) -> list[str]:
    """What a float32 step will need, said before it is taken; every rank must call it.

    Args:
        model: network.
        img_size: side of the field of view, px.
        batch: patches of a rank in one pass.
        recompute: how the backward pass recomputes.
        multiple: of which img_size must be one.
        comm: the ranks, whose machines may differ.
        refuse: whether what cannot fit is an error.

    Returns:
        A line to print; none for a network that was never measured.

    Raises:
        AgreedError: on all ranks, when one machine cannot hold it and `refuse` is set.
    """
    cost = costs(model).get(recompute)
    if cost is None:
        return []
    here, need = memory(), cost.step_gib(img_size, batch)
    smallest = min(comm.gather(here.total / comm.local_size))
    if refuse and need / (1 + MARGIN) > smallest:
        ways = "; ".join(advice(model, batch, comm.local_size, multiple, here.total))
        raise AgreedError(
            f"a step needs about {need:.1f} GiB per rank, there are {smallest:.1f}. On this machine fit: "
            f"{ways or 'none'} (train.py --plan). --no-memory_check starts it all the same"
        )
    return [
        f"memory      about {need:.1f} GiB per rank; {here.what} {here.total:.1f} GiB, {here.free:.1f} free, for "
        f"{comm.local_size} rank{'s' if comm.local_size > 1 else ''}"
    ]


def plan(
    model: str, img_size: int, batch: int, precision: str, chosen: str, multiple: int, ranks: int = 1
) -> Sequence[str]:
    """What `--plan` prints: memory and time of a step by recomputation, what fits, and what would.

    Args:
        model: network.
        img_size: side of the field of view, px.
        batch: patches of a rank in one pass.
        precision: of the network.
        chosen: the recomputation asked for.
        multiple: of which img_size must be one.
        ranks: of this machine, which share its memory.
    """
    here, rate = memory(), product_rate()
    lines = [
        f"{model}, {img_size} px, batch {batch}, {precision}; {ranks} rank{'s' if ranks > 1 else ''} on this machine",
        f"{here.what}: {here.total:.1f} GiB, {here.free:.1f} free; float32 matrix product {rate:.0f} GFLOP/s",
        "",
        "  --recompute  memory/rank    step  images/s  fits  largest --img_size",
    ]
    room = here.total / ranks
    for recompute, cost in costs(model).items():
        gib, seconds = cost.step_gib(img_size, batch), cost.step_s(img_size, batch, rate)
        fits = "no" if gib > room else "just" if gib * (1 + MARGIN) > min(room, here.free / ranks) else "yes"
        mark = "*" if recompute == chosen else " "
        lines.append(
            f"{mark} {recompute:<11} {gib:>7.1f} GiB {seconds:>6.1f} s  {batch / seconds:>8.3f}  {fits:<4}  "
            f"{cost.largest_size(batch, room, multiple)}"
        )
    lines += ["", f"* as given. Good to {MARGIN:.0%} where it was measured: docs/performance.md."]
    if precision != "float32":
        lines.append(f"Measured in float32: with {precision} less memory is needed, and the time does not apply.")
    if here.what == "GPU":
        lines.append("Measured on CPUs: on a GPU memory is an estimate, and the time does not apply.")
    return lines
