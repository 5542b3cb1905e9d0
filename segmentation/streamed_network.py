"""A segmentation network as a stream: its tiles, and what a step of it needs before anything starts.

Shapes: H, W pixels of a patch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import models
from parallel.comm import AgreedError, Comm
from streaming import Streamed
from streaming.planner import alike, estimate
from system.gpus import Gpu
from training import planner
from training.planner import BATCH_BYTES_PER_PX, BATCHES_AHEAD, GIB, MARGIN, PIPELINE_GIB

PROCESS_GIB = 1.5  # of a network that was not measured


def streamed(model: Any, tile: int, batch_statistics: bool = False) -> Streamed:
    """The stream of a network for patches of its size, dropout inactive.

    Args:
        model: of `models.build`, for one size.
        tile: largest side of a tile, px; those of maps kept between segments take as much memory.
        batch_statistics: see `Streamed`.

    Raises:
        ValueError: a layer cannot be streamed, or the tile is too small for the network: names the smallest.
    """
    hw = (model.input_shape[1], model.input_shape[2])
    keep = models.kept_when_streamed(model, training=True)
    stream = Streamed(model, None, tile, keep, batch_statistics, "inactive")
    return stream.with_tile(alike(stream, hw, tile))


@dataclass(frozen=True)
class StreamedCost:
    """Cost of a training step of a streamed network.

    Attributes:
        model: its name.
        img_size: side of a patch, px.
        batch: patches of a rank in one pass.
        tiles: rows and columns of tiles, for each segment.
        fixed: bytes that do not grow with the patch: the largest tile, gradients of variables.
        kept: bytes that do: maps between segments.
        factor: multiplications over those of a step of the whole patch.
    """

    model: str
    img_size: int
    batch: int
    tiles: tuple[tuple[int, int], ...]
    fixed: int
    kept: int
    factor: float

    def gib(self, img_size: int | None = None) -> float:
        """Peak resident memory of one rank's process, GiB, at this or another size of patch."""
        size = img_size or self.img_size
        mpx = self.batch * size**2 / 1e6
        known = planner.costs(self.model).get("none")
        process = (PROCESS_GIB if known is None else known.gib.fixed) + PIPELINE_GIB
        ahead = mpx * 1e6 * BATCHES_AHEAD * BATCH_BYTES_PER_PX
        return process + (self.fixed + self.kept * (size / self.img_size) ** 2 + ahead) / GIB

    def seconds(self, product_gflop_s: float) -> float:
        """Seconds of a pass on a machine with this rate of a float32 matrix product; NaN for an unknown network."""
        known = planner.costs(self.model).get("none")
        whole = math.nan if known is None else known.step_s(self.img_size, self.batch, product_gflop_s)
        return whole * self.factor

    def largest_size(self, gib: float, multiple: int) -> int:
        """The largest side of a patch that fits a memory, GiB; 0 if none does."""
        size = 0
        while self.gib(size + multiple) <= gib:
            size += multiple
        return size


def cost(stream: Streamed, model: Any, batch: int, finish: bool) -> StreamedCost:
    """What a step of a stream needs.

    Args:
        stream: of `streamed`.
        model: its network.
        batch: patches of a rank in one pass.
        finish: whether the loss is a mean of pixels, whose logits are never kept.
    """
    side = model.input_shape[1]
    together = batch if stream.batch_statistics else 1
    found = estimate(stream, (side, side), together, finish)
    return StreamedCost(model.name, side, batch, found.tiles, found.bytes - found.maps, found.maps, found.factor)


def require_memory(need: StreamedCost, multiple: int, comm: Comm, refuse: bool, gpu: Gpu | None = None) -> list[str]:
    """Check the memory of a step before it runs; every rank must call it.

    Args:
        need: of the step.
        multiple: img_size must be a multiple of it, px.
        comm: the ranks, whose machines and GPUs may differ.
        refuse: whether a step that cannot fit is an error.
        gpu: that this rank computes on; None for the CPU.

    Returns:
        Lines to print.

    Raises:
        AgreedError: on all ranks, when the step does not fit one of the machines or GPUs and `refuse` is set.
    """
    memories, local_sizes = zip(*comm.gather((planner.memory(gpu), comm.local_size)), strict=True)
    ranks = planner.sharing(memories, local_sizes)
    tightest = min(range(comm.size), key=lambda rank: memories[rank].total / ranks[rank])
    here, sharers = memories[tightest], ranks[tightest]
    if refuse and need.gib() / (1 + MARGIN) > here.total / sharers:
        largest = need.largest_size(here.total / sharers, multiple)
        way = f"Up to --img_size {largest} fits with these tiles" if largest else "Give a smaller --stream"
        raise AgreedError(
            f"a streamed step needs about {need.gib():.1f} GiB per rank, {here.total / sharers:.1f} are available. "
            f"{way} (train.py --plan). --no-memory_check starts it anyway"
        )
    return [
        f"memory      about {need.gib():.1f} GiB per rank; {here.owner} {here.total:.1f} GiB, {here.free:.1f} free, "
        f"for {sharers} rank{'s' if sharers > 1 else ''}"
    ]


def plan(need: StreamedCost, tile: int, multiple: int, ranks: int = 1, gpu: Gpu | None = None) -> Sequence[str]:
    """Lines of `--plan`: memory and time of a streamed step, and the largest patch that fits.

    Args:
        need: of the step.
        tile: as given, px.
        multiple: see `require_memory`.
        ranks: that share the memory.
        gpu: that this rank computes on; None for the CPU.
    """
    here, rate = planner.memory(gpu), planner.product_rate()
    gib, seconds, available = need.gib(), need.seconds(rate), here.total / ranks
    fits = "no" if gib > available else "just" if gib * (1 + MARGIN) > min(available, here.free / ranks) else "yes"
    place = "GPU" if here.owner == "GPU" else "machine"
    return [
        f"{need.model}, {need.img_size} px, batch {need.batch}; {ranks} rank{'s' if ranks > 1 else ''} on this {place}",
        f"{here.owner}: {here.total:.1f} GiB, {here.free:.1f} free; float32 matrix product {rate:.0f} GFLOP/s",
        f"tiles {' + '.join(f'{rows} x {columns}' for rows, columns in need.tiles)}; {need.factor:.2f} times the "
        "multiplications of a step of the whole patch",
        "",
        "  --stream  memory/rank      step  images/s  fits  largest --img_size",
        f"  {tile:<8} {gib:>8.1f} GiB {seconds:>7.0f} s  {need.batch / seconds:>8.4f}  {fits:<4}  "
        f"{need.largest_size(available, multiple)}",
    ]
