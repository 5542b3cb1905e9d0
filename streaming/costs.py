"""What tiles cost: memory and multiplications, counted from their windows; and whose intermediate results are kept.

Of a tile the backward pass keeps the inputs of convolutions and poolings (with their padding, where the tile is at a
side), the inputs of normalizations and the outputs of activations; while it goes back, some maps more of the largest
size are at work.

The backward pass computes a tile forward again, unless the intermediate results of the forward pass were kept. Tiles go
back in the opposite order, so those of the last tiles are held for the shortest time: while they are, no other tile is
at work. They may take as much memory as the largest tile takes without making the peak higher.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from streaming.nodes import Graph, Node, Value, multiplications, variables_of
from streaming.rules import Kernel, Transposed
from streaming.segments import Segment
from streaming.tiles import Band, placed

# Maps of the size of the largest that are at work beside those that are kept: the gradient that comes in, the one
# that goes out, and a copy in the layout of the convolution.
AT_WORK = 3
# Resident over counted bytes of a tile: what the allocator holds in pieces and kernels need besides. Measured with
# ResNet-34 (docs/results/2026-12-01-streaming.md).
RESIDENT = 1.33

Numbers = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Costs:
    """Costs of the tiles of a segment, (T,) each, in the order of `Part.tiles`.

    Attributes:
        saved: bytes that the backward pass keeps.
        work: bytes at work besides.
        forward: multiplications of the forward pass.
        gradients: multiplications of the gradients of inputs and variables.
        back: the segment has a backward pass.
    """

    saved: Numbers
    work: Numbers
    forward: Numbers
    gradients: Numbers
    back: bool

    @property
    def peak(self) -> float:
        """Bytes of the largest tile."""
        return float((self.saved + self.work).max())

    def multiplications(self, kept: int) -> int:
        """Multiplications of a training step, with the intermediate results of the last `kept` tiles kept."""
        total = self.forward.sum() + (self.gradients.sum() if self.back else 0.0)
        again = self.forward[: len(self.forward) - kept].sum() if self.back else 0.0
        return int(total + again)


def wanted(graph: Graph, trained: Collection[int], image: bool) -> set[int]:
    """Indices of the values whose gradient somebody needs.

    Args:
        graph: the network.
        trained: ids of the variables whose gradient is wanted.
        image: whether that of the image is.
    """
    found = {0} if image else set()
    for node in graph.nodes:
        mine = any(id(v) in trained for v in variables_of([node]))
        if mine or any(value.index in found for value in node.inputs):
            found.add(node.output.index)
    return found


def costs(
    graph: Graph, segment: Segment, rows: Sequence[Band], columns: Sequence[Band], trained: Collection[int]
) -> Costs:
    """Costs of the tiles of a segment.

    Args:
        graph: the network.
        segment: one with targets.
        rows: its bands of rows.
        columns: its bands of columns.
        trained: ids of the variables whose gradient is wanted.
    """
    needed = wanted(graph, trained, False)
    back = any(v.index in needed for v in segment.inputs) or any(id(v) in trained for v in variables_of(segment.nodes))
    forward = np.array([multiplications(node) for node in segment.nodes], np.float64)
    times = np.array([_gradients(node, needed, trained) for node in segment.nodes], np.float64)
    cells = [np.array([[b.held[n.output.index][1] - b.held[n.output.index][0] for b in axis] for n in segment.nodes])
             for axis in (rows, columns)]  # fmt: skip
    if segment.nodes:
        forward_RC, gradients_RC = (np.einsum("n,nr,nc->rc", w, *cells) for w in (forward, forward * times))
    else:
        forward_RC = gradients_RC = np.zeros((len(rows), len(columns)))
    saved_RC, work_RC = np.zeros((2, len(rows), len(columns)))
    row_kinds, column_kinds = kinds(rows), kinds(columns)
    for row, column in product(sorted(set(row_kinds)), sorted(set(column_kinds))):
        where = np.ix_(np.equal(row_kinds, row), np.equal(column_kinds, column))
        saved, work_RC[where] = _bytes(segment, rows[row], columns[column])
        saved_RC[where] = saved if back else 0.0
    return Costs(saved_RC.ravel(), work_RC.ravel(), forward_RC.ravel(), gradients_RC.ravel(), back)


def kinds(bands: Sequence[Band]) -> list[int]:
    """For every band the place of the first in which operations do the same."""
    return [next(i for i, other in enumerate(bands) if band.same(other)) for band in bands]


def kept_tiles(costs: Sequence[Costs], spare: float) -> list[int]:
    """How many of the last tiles of every segment keep their intermediate results until the backward pass.

    Args:
        costs: of the segments in order, of the tiles that are computed here.
        spare: bytes, on top of those of the largest tile.
    """
    found = [0] * len(costs)
    limit = max((c.peak for c in costs if c.forward.size), default=0.0) + spare
    held = work = 0.0
    for number in reversed(range(len(costs))):
        cost = costs[number]
        if not cost.forward.size:
            continue
        if not cost.back:
            break
        works = np.maximum.accumulate([work, *cost.work[::-1]])[1:]
        fits = held + np.cumsum(cost.saved[::-1]) + works <= limit
        found[number] = len(fits) if fits.all() else int(np.argmin(fits))
        if not fits.all():
            break
        held, work = held + float(cost.saved.sum()), float(works[-1])
    return found


def peak_bytes(costs: Sequence[Costs], kept: Sequence[int]) -> float:
    """Memory of the tiles at the worst moment of a training step."""
    most = held = work = 0.0
    for cost, count in zip(reversed(costs), reversed(kept), strict=True):
        split = len(cost.saved) - count
        held += cost.saved[split:].sum()
        work = max([work, *cost.work[split:]])
        most = max([most, held + work, *(cost.saved + cost.work)[:split]])
    return most


def width(dtype: Any) -> int:
    """Bytes of a number."""
    return int(tf.as_dtype(dtype).size)


def _gradients(node: Node, needed: Collection[int], trained: Collection[int]) -> int:
    """Gradients of an operation, each of which costs its multiplications once more."""
    of_input = any(value.index in needed for value in node.inputs)
    return int(of_input) + int(any(id(v) in trained for v in variables_of([node])))


def whole_multiplications(node: Node, cells: int, needed: Collection[int], trained: Collection[int]) -> int:
    """Multiplications of an operation in the step of the whole image, forward and backward."""
    return cells * multiplications(node) * (1 + _gradients(node, needed, trained))


def _bytes(segment: Segment, row: Band, column: Band) -> tuple[float, float]:
    """Memory of one tile in the backward pass: what it keeps, and what is at work."""

    def size(value: Value) -> int:
        cells = np.prod([band.held[value.index][1] - band.held[value.index][0] for band in (row, column)])
        return int(cells) * value.channels * width(value.dtype)

    kept: dict[Any, int] = {}
    largest = 0
    edge = 0
    for node in segment.nodes:
        inputs = placed(node)
        largest = max(largest, size(node.output))
        cuts = [(row.cuts[edge + i], column.cuts[edge + i]) for i in range(len(inputs))]
        edge += len(inputs)
        if isinstance(node.rule, (Kernel, Transposed)):
            (value,), ((rows, columns),) = inputs, cuts
            if rows[2:].any() or columns[2:].any():
                kept[node, "padded"] = int(sum(rows[1:]) * sum(columns[1:])) * value.channels * width(value.dtype)
            else:
                kept[value] = size(value)
        elif isinstance(node.layer, keras.layers.BatchNormalization) or len(inputs) == 1:
            kept[inputs[0]] = size(inputs[0])
        activation = getattr(node.layer, "activation", None)
        if activation is not None and getattr(activation, "__name__", activation) != "linear":
            kept[node.output] = size(node.output)
    return RESIDENT * sum(kept.values()), RESIDENT * AT_WORK * largest
