"""What a stream will need, before anything starts: memory and multiplications, and the tiles that fit into a memory.

Peak memory of a training step = the process before it + kept maps and their gradients + gradients of variables + the
largest tile. Of a tile the backward pass keeps the inputs of convolutions and poolings (with their padding, where the
tile is at a side), the inputs of normalizations and the outputs of activations; while it goes back, some maps more of
the largest size are at work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from streaming.layout import Layout, Part
from streaming.nodes import Node, Value, multiplications
from streaming.rules import Kernel, Transposed
from streaming.segments import Segment
from streaming.storage import wide
from streaming.stream import Streamed
from streaming.tiles import Band, bands, placed, sizes

# Maps of the size of the largest that are at work beside those that are kept: the gradient that comes in, the one
# that goes out, and a copy in the layout of the convolution.
AT_WORK = 3
# Resident over counted bytes of a tile: what the allocator holds in pieces and kernels need besides. Measured with
# ResNet-34 (docs/results/2026-12-01-streaming.md).
RESIDENT = 1.33
FORWARD, BACKWARD = 1, 3  # multiplications of a pass over those of forward; backward computes forward again


@dataclass(frozen=True)
class Estimate:
    """What one training step of an image needs.

    Attributes:
        tile: of `Streamed`.
        segments: of `Streamed`.
        tiles: numbers along rows and columns, for each segment.
        bytes: memory on top of the process before the step.
        multiplications: of all tiles, forward and backward.
        whole: of the whole image's own step.
    """

    tile: tuple[int, ...]
    segments: tuple[str, ...]
    tiles: tuple[tuple[int, int], ...]
    bytes: int
    multiplications: int
    whole: int

    @property
    def factor(self) -> float:
        """Multiplications over those of the whole image's own step."""
        return self.multiplications / self.whole

    def seconds(self, rate: float) -> float:
        """Time of a step at a rate of multiplications per second, for convolutions as large as the network's."""
        return self.multiplications / rate

    def __str__(self) -> str:
        cut = f", kept: {', '.join(self.segments)}" if self.segments else ""
        tiles = " + ".join(f"{rows} x {columns}" for rows, columns in self.tiles)
        return (
            f"tile {','.join(map(str, self.tile))}{cut}: {tiles} tiles, {self.bytes / 2**30:.2f} GiB, "
            f"{self.factor:.2f} times the multiplications of the whole image"
        )


def estimate(stream: Streamed, hw: tuple[int, int], images: int = 1) -> Estimate:
    """What a training step of a stream needs.

    Args:
        stream: the streamed network, with its tiles and segments.
        hw: rows and columns of the image, px.
        images: B.

    Raises:
        ValueError: a tile is too small, see `Streamed.layout`.
    """
    layout = stream.layout(hw)
    parts = [part for part in layout.parts if part.segment.targets]
    kept = images * sum(_kept_bytes(layout, value) for part in parts for value in part.segment.maps)
    variables = 2 * sum(_bytes(v.dtype) * int(np.prod(v.shape)) for v in stream.variables)
    tile = images * max(_tile_bytes(part) for part in parts)
    whole = sum(_multiplications(node, layout.sizes[0], layout.sizes[1]) for node in layout.graph.nodes)
    done = sum(_part_multiplications(part) for part in parts)
    return Estimate(
        tile=(stream.tile,) if isinstance(stream.tile, int) else tuple(stream.tile),
        segments=tuple(stream.segments),
        tiles=tuple((len(part.rows), len(part.columns)) for part in parts),
        bytes=kept + variables + tile,
        multiplications=done * (FORWARD + BACKWARD) * images,
        whole=whole * 3 * images,
    )


def plan(
    model: keras.Model,
    hw: tuple[int, int],
    memory: int,
    cut: str | Sequence[str] | None = None,
    segments: Sequence[Sequence[str]] = ((),),
    tiles: Sequence[int] = (256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192),
    **options: Any,
) -> Estimate:
    """The stream with the fewest multiplications that fits into a memory.

    Args:
        model: see `Streamed`.
        hw: rows and columns of the image, px.
        memory: bytes for a step, on top of those of the process before it.
        cut: see `Streamed`.
        segments: choices of maps that may be kept, such as `[(), ("layer2_3",)]`.
        tiles: sides to choose from, for every segment by itself.
        options: of `Streamed`.

    Raises:
        ValueError: nothing fits; says the least that would.
    """
    fitting: list[Estimate] = []
    least: list[Estimate] = []
    for keep in segments:
        stream = Streamed(model, cut, max(tiles), keep, **options)
        ways = [_ways(stream, segment, hw, sorted(tiles)) for segment in stream.segments_of(hw) if segment.targets]
        if not all(ways):
            continue
        least.append(estimate(stream.with_tile([min(w, key=lambda t: t[1])[0] for w in ways]), hw))
        rest = memory - least[-1].bytes + max(min(size for _, size, _ in w) for w in ways)
        good = [[way for way in w if way[1] <= rest] for w in ways]
        if all(good):
            fitting.append(estimate(stream.with_tile([min(w, key=lambda t: (t[2], t[1]))[0] for w in good]), hw))
    if not least:
        raise ValueError(f"no tile of {min(tiles)} to {max(tiles)} px is large enough; give larger ones")
    if not fitting:
        smallest = min(least, key=lambda e: e.bytes)
        raise ValueError(
            f"nothing fits into {memory / 2**30:.2f} GiB; the least is {smallest}. Give more memory, keep other maps, "
            "or take a coarser image"
        )
    return min(fitting, key=lambda e: (e.multiplications, e.bytes))


def _ways(stream: Streamed, segment: Segment, hw: tuple[int, int], tiles: Sequence[int]) -> list[tuple[int, int, int]]:
    """Tiles of a segment that work, each with the bytes of a tile and the multiplications of all."""
    found = []
    cells = sizes(stream.graph, hw)
    for side in tiles:
        try:
            part = Part(segment, *bands(segment, cells, side))
        except ValueError:
            continue
        found.append((side, _tile_bytes(part), _part_multiplications(part)))
    return found


def _bytes(dtype: Any) -> int:
    return int(tf.as_dtype(dtype).size)


def _kept_bytes(layout: Layout, value: Value) -> int:
    """A kept map and its gradient."""
    cells = layout.sizes[0][value.index] * layout.sizes[1][value.index]
    return cells * value.channels * (_bytes(value.dtype) + _bytes(wide(value.dtype)))


def _tile_bytes(part: Part) -> int:
    """Memory of the largest tile in the backward pass."""
    return max(_band_bytes(part, row, column) for row, column in product(_distinct(part.rows), _distinct(part.columns)))


def _distinct(bands: Sequence[Band]) -> list[Band]:
    """One band of each kind."""
    found: list[Band] = []
    for band in bands:
        if not any(band.same(other) for other in found):
            found.append(band)
    return found


def _band_bytes(part: Part, row: Band, column: Band) -> int:
    """Memory of one tile in the backward pass."""

    def size(value: Value) -> int:
        cells = np.prod([band.held[value.index][1] - band.held[value.index][0] for band in (row, column)])
        return int(cells) * value.channels * _bytes(value.dtype)

    kept: dict[Any, int] = {}
    largest = 0
    edge = 0
    for node in part.segment.nodes:
        inputs = placed(node)
        largest = max(largest, size(node.output))
        cuts = [(row.cuts[edge + i], column.cuts[edge + i]) for i in range(len(inputs))]
        edge += len(inputs)
        if isinstance(node.rule, (Kernel, Transposed)):
            (value,), ((rows, columns),) = inputs, cuts
            if rows[2:].any() or columns[2:].any():
                kept[node, "padded"] = int(sum(rows[1:]) * sum(columns[1:])) * value.channels * _bytes(value.dtype)
            else:
                kept[value] = size(value)
        elif isinstance(node.layer, keras.layers.BatchNormalization) or len(inputs) == 1:
            kept[inputs[0]] = size(inputs[0])
        activation = getattr(node.layer, "activation", None)
        if activation is not None and getattr(activation, "__name__", activation) != "linear":
            kept[node.output] = size(node.output)
    return int(RESIDENT * (sum(kept.values()) + AT_WORK * largest))


def _part_multiplications(part: Part) -> int:
    """Multiplications of one forward pass over all tiles of a segment."""
    total = 0
    for node in part.segment.nodes:
        at = node.output.index
        rows, columns = (sum(b.held[at][1] - b.held[at][0] for b in axis) for axis in (part.rows, part.columns))
        total += rows * columns * multiplications(node)
    return total


def _multiplications(node: Node, rows: Any, columns: Any) -> int:
    return int(rows[node.output.index] * columns[node.output.index] * multiplications(node))
