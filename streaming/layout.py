"""A network laid out for one size of image: segments, their tiles, and what a forward pass leaves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from streaming.costs import Costs, kinds
from streaming.images import Source, alike
from streaming.nodes import Graph, multiplications
from streaming.regions import Interval
from streaming.segments import Segment
from streaming.storage import wide
from streaming.tiles import Band, Sizes
from streaming.trace import Record

Array = NDArray[Any]


@dataclass
class Counts:
    """Tiles of the passes over the last image.

    Attributes:
        forward: tiles computed.
        forward_reused: tiles whose result was that of another one: all inputs of one value, the same sides.
        backward: tiles computed.
        backward_reused: tiles whose gradient was added to that of another one before it was computed.
        skipped: tiles whose gradient is zero everywhere.
        kept: tiles of `backward` that were not computed forward again, since their intermediate results were kept.
    """

    forward: int = 0
    forward_reused: int = 0
    backward: int = 0
    backward_reused: int = 0
    skipped: int = 0
    kept: int = 0


@dataclass(eq=False)
class Part:
    """A segment laid out for one size of image.

    Attributes:
        segment: what is done.
        rows: bands of rows.
        columns: bands of columns.
        costs: of its tiles.
    """

    segment: Segment
    rows: Sequence[Band]
    columns: Sequence[Band]
    costs: Costs

    def tiles(self) -> Iterator[tuple[tuple[int, int], tuple[Band, Band]]]:
        """Every tile: a key that is equal for tiles in which operations do the same, and its bands."""
        keys = [kinds(bands) for bands in (self.rows, self.columns)]
        for row, row_key in zip(self.rows, keys[0], strict=True):
            for column, column_key in zip(self.columns, keys[1], strict=True):
                yield (row_key, column_key), (row, column)

    def work(self) -> list[int]:
        """Multiplications of every tile, and one for every number that is made."""
        return [
            sum(
                (row.held[at][1] - row.held[at][0]) * (column.held[at][1] - column.held[at][0]) * each
                for at, each in self._each()
            )
            for row in self.rows
            for column in self.columns
        ]

    def _each(self) -> list[tuple[int, int]]:
        nodes = self.segment.nodes
        return [(node.output.index, multiplications(node) + node.output.channels) for node in nodes]


@dataclass(eq=False)
class Layout:
    """A network laid out for one size of image.

    Attributes:
        graph: the network.
        parts: its segments in order.
        sizes: rows and columns of every value.
    """

    graph: Graph
    parts: list[Part]
    sizes: tuple[Sizes, Sizes]


@dataclass(eq=False)
class State:
    """What a forward pass leaves for the backward pass.

    Attributes:
        image: the source.
        known: value's index -> kept map (B, H, W, C) or small value.
        counts: tiles done by this rank.
        records: segment's index and tile's number -> intermediate results that were kept.
        labels: segment's index -> for every tile, what is equal for those with one result; only if ranks share it.
    """

    image: Source
    known: dict[int, Any] = field(default_factory=dict)
    counts: Counts = field(default_factory=Counts)
    records: dict[tuple[int, int], Record] = field(default_factory=dict)
    labels: dict[int, list[Any]] = field(default_factory=dict)


class Sink(Protocol):
    """What takes the output of a forward pass box by box, where the whole map is too large to be kept."""

    def wants(self, rows: Interval, columns: Interval) -> bool:
        """Whether a box of the output is of use; the others are not computed."""
        ...

    def take(self, rows: Interval, columns: Interval, box_BHWC: NDArray[Any]) -> None:
        """Takes a box; boxes cover what is wanted once."""
        ...


class Windows(Protocol):
    """What takes a gradient of an image window by window, as `place[:, rows, columns] += window`.

    Windows of the last segment come in rows of tiles from top to bottom, and overlap.

    Attributes:
        shape: B, H, W and C.
    """

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """B, H, W and C."""
        ...

    def __getitem__(self, key: tuple[slice, slice, slice]) -> Array:
        """A window; what it holds may be changed."""
        ...

    def __setitem__(self, key: tuple[slice, slice, slice], window: Array) -> None:
        """Store a window."""
        ...


def likeness(key: tuple[int, int], segment: Segment, inputs: Sequence[Any]) -> Any:
    """Equal for tiles of one value with one result; None for others."""
    windows = [x for value, x in zip(segment.inputs, inputs, strict=True) if not value.small]
    if not windows or not all(alike(window) for window in windows):
        return None
    return (*key, *(window[:, 0, 0].tobytes() for window in windows))


def boxes_of(slopes: Mapping[int, Any], segment: Segment, bands: tuple[Band, Band], state: State) -> list[NDArray[Any]]:
    """The part of every map's gradient that belongs to a tile; zeros where there is none."""
    boxes = []
    for place, value in enumerate(segment.maps):
        (top, bottom), (left, right) = bands[0].boxes[place], bands[1].boxes[place]
        if value.index in slopes:
            boxes.append(slopes[value.index][:, top:bottom, left:right])
        else:
            shape = (state.image.shape[0], bottom - top, right - left, value.channels)
            boxes.append(np.zeros(shape, wide(value.dtype)))
    return boxes
