"""How much memory and time a training step needs, and what fits: predicted from measured steps (`costs.json`).

Memory and time of a network are proportional to the pixels of its batch, except for the program, the weights and the
optimizer. So a line is fitted to steps of two sizes for every network and recomputation (`python -m benchmarks.costs`).
Time is scaled by the rate of a matrix product on this machine and on the measured one.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from parallel.comm import Comm, MemoryRefusedError
from system.cgroups import least
from system.gpus import Gpu

COSTS = Path(__file__).with_name("costs.json")
PRODUCT_SIDE = 2048
GIB = 2**30
# Besides the step: slides, tiles and batches read ahead. Two batches wait and one is being made, 4 bytes per pixel.
PIPELINE_GIB, BATCHES_AHEAD, BATCH_BYTES_PER_PX = 0.4, 3, 4
# Predictions are correct to this share (docs/performance.md).
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
    """Cost of a step of one network: resident memory, GiB, and seconds at `product_gflop_s`."""

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
        """The largest img_size that fits this memory, GiB; 0 if none does."""
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
    """GFLOP/s of a float32 matrix product, the best of several repeats."""
    import tensorflow as tf

    a = tf.random.normal((PRODUCT_SIDE, PRODUCT_SIDE))
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        tf.matmul(a, a).numpy()
        seconds.append(time.perf_counter() - start)
    return 2 * PRODUCT_SIDE**3 / min(seconds) / 1e9


@dataclass(frozen=True)
class Memory:
    """Memory available to a rank, GiB: total and free, of the machine (or its control group) or of a GPU."""

    total: float
    free: float
    owner: str  # GPU, machine or control group
    gpu: str = ""  # which; ranks of the same share it


def memory(gpu: Gpu | None = None) -> Memory:
    """The memory of a rank's GPU, else of this machine or the control group this process runs in.

    Args:
        gpu: that the rank computes on; None for the CPU.
    """
    # A GPU that states none uses the machine's.
    if gpu is not None and gpu.gib is not None:
        return Memory(gpu.gib, gpu.gib, "GPU", f"{gpu.index} {gpu.uuid}")
    system = psutil.virtual_memory()
    total, free = system.total / GIB, system.available / GIB
    limit = _group_limit_gib()
    return Memory(min(total, limit), min(free, limit), "machine" if limit >= total else "control group")


def sharing(memories: Sequence[Memory], local_sizes: Sequence[int]) -> list[int]:
    """How many ranks share the memory of each rank.

    Args:
        memories: of all ranks.
        local_sizes: ranks on the node of each.
    """
    gpus = Counter(here.gpu for here in memories)
    return [gpus[here.gpu] if here.gpu else local for here, local in zip(memories, local_sizes, strict=True)]


def _group_limit_gib() -> float:
    """The least memory limit of the control groups of this process; infinite without one."""
    return least("memory", ("memory.max", "memory.limit_in_bytes")) / GIB


@dataclass(frozen=True)
class PlannedStep:
    """A training step whose cost is asked for.

    Attributes:
        model: network.
        img_size: side of the field of view, px.
        batch: patches of a rank in one pass.
        recompute: how the backward pass recomputes.
        precision: of the network.
        multiple: img_size must be a multiple of it, px.
    """

    model: str
    img_size: int
    batch: int
    recompute: str
    precision: str
    multiple: int


def advice(step: PlannedStep, ranks: int, gib: float) -> list[str]:
    """The largest img_size that fits in float32, for every way of recomputing.

    Args:
        step: network, batch and multiple of sizes.
        ranks: of one machine; they share its memory.
        gib: memory of the machine.
    """
    sizes = {
        recompute: cost.largest_size(step.batch, gib / ranks, step.multiple)
        for recompute, cost in costs(step.model).items()
    }
    return [f"--recompute {recompute}: up to --img_size {size}" for recompute, size in sizes.items() if size]


def out_of_memory_advice(step: PlannedStep, ranks: int, gpu: Gpu | None = None) -> str:
    """What to do where a step needs more memory than there is.

    Args:
        step: the step.
        ranks: that share the memory.
        gpu: that this rank computes on; None for the CPU.
    """
    here = memory(gpu)
    ways = advice(step, ranks, here.total)
    place = "GPU" if here.gpu else "machine"
    return f"On this {place} fit: {'; '.join(ways)} (train.py --plan)" if ways else "Try a smaller --img_size"


def require_memory(step: PlannedStep, comm: Comm, refuse: bool, gpu: Gpu | None = None) -> list[str]:
    """Check the memory of a float32 step before it runs; every rank must call it.

    Args:
        step: the step.
        comm: the ranks, whose machines and GPUs may differ.
        refuse: whether a step that cannot fit is an error.
        gpu: that this rank computes on; None for the CPU.

    Returns:
        A line to print; none for a network or a precision that was not measured.

    Raises:
        MemoryRefusedError: on all ranks, when the step does not fit one of the machines or GPUs and `refuse` is set.
    """
    cost = costs(step.model).get(step.recompute)
    if cost is None or step.precision != "float32":
        return []
    memories, local_sizes = zip(*comm.gather((memory(gpu), comm.local_size)), strict=True)
    ranks = sharing(memories, local_sizes)
    tightest = min(range(comm.size), key=lambda rank: memories[rank].total / ranks[rank])
    here, sharers, need = memories[tightest], ranks[tightest], cost.step_gib(step.img_size, step.batch)
    if refuse and need / (1 + MARGIN) > here.total / sharers:
        ways = "; ".join(advice(step, sharers, here.total))
        raise MemoryRefusedError(
            f"a step needs about {need:.1f} GiB per rank, {here.total / sharers:.1f} are available"
            f"{f' on the GPU of rank {tightest}' if here.gpu else ''}. On this {'GPU' if here.gpu else 'machine'} fit: "
            f"{ways or 'none'} (train.py --plan). --no-memory_check starts it anyway"
        )
    return [
        f"memory      about {need:.1f} GiB per rank; {here.owner} {here.total:.1f} GiB, {here.free:.1f} free, for "
        f"{sharers} rank{'s' if sharers > 1 else ''}"
    ]


def plan(step: PlannedStep, ranks: int = 1, gpu: Gpu | None = None) -> Sequence[str]:
    """Lines of `--plan`: memory and time of a step by recomputation, and the sizes that fit.

    Args:
        step: the step of the command line.
        ranks: that share the memory.
        gpu: that this rank computes on; None for the CPU.
    """
    here, rate, batch = memory(gpu), product_rate(), step.batch
    lines = [
        f"{step.model}, {step.img_size} px, batch {batch}, {step.precision}; {ranks} rank{'s' if ranks > 1 else ''} "
        f"on this {'GPU' if here.gpu else 'machine'}",
        f"{here.owner}: {here.total:.1f} GiB, {here.free:.1f} free; float32 matrix product {rate:.0f} GFLOP/s",
        "",
        "  --recompute  memory/rank    step  images/s  fits  largest --img_size",
    ]
    available = here.total / ranks
    for recompute, cost in costs(step.model).items():
        gib, seconds = cost.step_gib(step.img_size, batch), cost.step_s(step.img_size, batch, rate)
        fits = "no" if gib > available else "just" if gib * (1 + MARGIN) > min(available, here.free / ranks) else "yes"
        mark = "*" if recompute == step.recompute else " "
        lines.append(
            f"{mark} {recompute:<11} {gib:>7.1f} GiB {seconds:>6.1f} s  {batch / seconds:>8.3f}  {fits:<4}  "
            f"{cost.largest_size(batch, available, step.multiple)}"
        )
    lines += ["", f"* as given. Accurate to {MARGIN:.0%} where it was measured: docs/performance.md."]
    if step.precision != "float32":
        lines.append(f"Measured in float32: {step.precision} needs less memory, and the time does not apply.")
    if here.owner == "GPU":
        lines.append("Measured on CPUs: on a GPU memory is an estimate, and the time does not apply.")
    return lines
