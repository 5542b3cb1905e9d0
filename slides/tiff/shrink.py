"""Tiles of one pyramid level from those of the level above, one at a time.

Own code: it takes tiles in any order, "ignore" px, sizes that do not halve, and tiles of one value at no cost, none of
which a library does.

Tensor legend: h, w rows and columns of px; tiles are smaller at the right and lower border; C = 3 channels (RGB).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from slides.geometry import level_downsample_xy

Pixels = NDArray[np.uint8]
Piece = Pixels | int  # px of a tile, or the one value they all have
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class _Span:
    """Where the px of one tile go, along one axis.

    Attributes:
        first: First px of the coarser level.
        starts: First px of the tile that goes to each px of the coarser level from `first` on.
        counts: How many px of the tile go there.
        factor: The count where all are equal, else 0.
    """

    first: int
    starts: Counts
    counts: Counts
    factor: int


@dataclass
class _Pending:
    """A tile of the coarser level of which not all parts have come.

    Attributes:
        left: Tiles of the finer level still to come.
        value: The one value of all parts so far, None before the first.
        plain: The parts so far, as long as they have one value: rows, columns and counts along both.
        held: Largest value + 1, or sum, per px, once there were two values.
    """

    left: int
    value: int | None = None
    plain: list[tuple[slice, slice, Counts, Counts]] = field(default_factory=list)
    held: NDArray[np.uint8] | NDArray[np.uint32] | None = None


class Shrinking:
    """Makes the tiles of a level while those of the level above arrive, in any order.

    The rules are those of `pyramid.write_mask_pyramid`.

    Args:
        size_xy_l0: Width and height of level 0: what the factors of both levels refer to.
        finer_xy, coarser_xy: Width and height of the two levels, px.
        tile: Side of the tiles of both, px.
        shrink: "max" or "mean".
    """

    def __init__(
        self,
        size_xy_l0: tuple[int, int],
        finer_xy: tuple[int, int],
        coarser_xy: tuple[int, int],
        tile: int,
        shrink: Literal["max", "mean"],
    ) -> None:
        if shrink not in ("max", "mean"):
            raise ValueError(f"shrink {shrink!r}: allowed are 'max' and 'mean'")
        self._tile, self._mean = tile, shrink == "mean"
        self._size_xy = coarser_xy
        fine, coarse = level_downsample_xy(size_xy_l0, finer_xy), level_downsample_xy(size_xy_l0, coarser_xy)
        indices = [_coarser_px(finer_xy[axis], coarser_xy[axis], fine[axis] / coarse[axis]) for axis in (0, 1)]
        self._totals = [np.bincount(index, minlength=size) for index, size in zip(indices, coarser_xy, strict=True)]
        self._spans = [_spans(index, tile) for index in indices]
        # How many columns, and rows, of finer tiles reach into each column, and row, of coarser ones.
        self._parts = [_reaching(spans, tile, size) for spans, size in zip(self._spans, coarser_xy, strict=True)]
        self._pending: dict[tuple[int, int], _Pending] = {}

    def add(self, row: int, column: int, piece: Piece) -> Iterator[tuple[int, int, Piece]]:
        """Add a tile of the finer level.

        Args:
            row: Its place among the tiles of its level.
            column: See `row`.
            piece: Its px (h, w), or their one value.

        Yields:
            Row, column and px (or one value) of every tile of the coarser level that is now whole.
        """
        across, down = self._spans[0][column], self._spans[1][row]
        if not isinstance(piece, int):
            reduced = _summed(piece, down, across) if self._mean else _largest(piece + np.uint8(1), down, across)
        side = self._tile
        for lower_row in range(down.first // side, (down.first + down.counts.size - 1) // side + 1):
            rows, from_rows = _overlap(down, lower_row, side)
            for lower_column in range(across.first // side, (across.first + across.counts.size - 1) // side + 1):
                columns, from_columns = _overlap(across, lower_column, side)
                at = lower_row, lower_column
                if at not in self._pending:
                    self._pending[at] = _Pending(int(self._parts[1][lower_row] * self._parts[0][lower_column]))
                pending = self._pending[at]
                counts = down.counts[from_rows], across.counts[from_columns]
                if isinstance(piece, int):
                    self._add_plain(at, pending, piece, (rows, columns, *counts))
                else:
                    self._combine(self._opened(at, pending)[rows, columns], reduced[from_rows, from_columns])
                pending.left -= 1
                if not pending.left:
                    yield (*at, self._finished(at, self._pending.pop(at)))

    def _add_plain(
        self, at: tuple[int, int], pending: _Pending, value: int, part: tuple[slice, slice, Counts, Counts]
    ) -> None:
        if pending.held is None and pending.value in (None, value):
            pending.value = value
            pending.plain.append(part)
        else:
            self._fill(self._opened(at, pending), value, part)

    def _opened(self, at: tuple[int, int], pending: _Pending) -> NDArray[np.uint8] | NDArray[np.uint32]:
        """The px so far, (h, w)."""
        if pending.held is None:
            hw = self._hw(at)
            held = np.zeros(hw, np.uint32) if self._mean else np.zeros(hw, np.uint8)
            for part in pending.plain:
                assert pending.value is not None
                self._fill(held, pending.value, part)
            pending.held = held
            pending.plain = []
        return pending.held

    def _fill(
        self,
        held: NDArray[np.uint8] | NDArray[np.uint32],
        value: int,
        part: tuple[slice, slice, Counts, Counts],
    ) -> None:
        rows, columns, rows_of, columns_of = part
        if self._mean:
            self._combine(held[rows, columns], (value * np.outer(rows_of, columns_of)).astype(np.uint32))
        else:
            self._combine(held[rows, columns], np.uint8((value + 1) % 256))

    def _combine(self, held: NDArray[np.generic], new: NDArray[np.uint8] | NDArray[np.uint32] | np.uint8) -> None:
        """Change px that are held."""
        if self._mean:
            np.add(held, new, out=held)
        else:
            np.maximum(held, new, out=held)

    def _finished(self, at: tuple[int, int], pending: _Pending) -> Piece:
        if pending.held is None:
            assert pending.value is not None
            return pending.value
        if not self._mean:
            # Values are held plus 1, so that 255 is 0, below all others, until here.
            values: Pixels = np.subtract(pending.held, 1, dtype=np.uint8)
            return values
        corner = at[0] * self._tile, at[1] * self._tile
        height, width = pending.held.shape
        rows = self._totals[1][corner[0] : corner[0] + height].astype(np.uint32)
        columns = self._totals[0][corner[1] : corner[1] + width].astype(np.uint32)
        # One number where it can be: NumPy divides by that five times as fast.
        equal = (rows == rows[0]).all() and (columns == columns[0]).all()
        count = rows[0] * columns[0] if equal else np.outer(rows, columns)
        means: Pixels = ((2 * pending.held + count) // (2 * count)).astype(np.uint8)
        return means

    def _hw(self, at: tuple[int, int]) -> tuple[int, int]:
        width, height = self._size_xy
        return min(self._tile, height - at[0] * self._tile), min(self._tile, width - at[1] * self._tile)


class Halving:
    """Makes RGB tiles of half the size while those above arrive; by OpenCV, several times as fast as `Shrinking`.

    Args:
        finer_xy: Width and height of the finer level, px.
        tile: Side of the tiles, px, even.
    """

    def __init__(self, finer_xy: tuple[int, int], tile: int) -> None:
        self._tile = tile
        self._size_xy = -(-finer_xy[0] // 2), -(-finer_xy[1] // 2)
        self._parts_xy = -(-finer_xy[0] // tile), -(-finer_xy[1] // tile)
        self._pending: dict[tuple[int, int], tuple[Pixels, set[tuple[int, int]]]] = {}

    def add(self, row: int, column: int, piece: Piece) -> Iterator[tuple[int, int, Piece]]:
        """See `Shrinking.add`."""
        at, tile = (row // 2, column // 2), self._tile
        if at not in self._pending:
            height, width = (
                min(tile, size - tile * index) for size, index in zip(self._size_xy[::-1], at, strict=True)
            )
            missing = {
                (r, c)
                for r in range(2 * at[0], min(2 * at[0] + 2, self._parts_xy[1]))
                for c in range(2 * at[1], min(2 * at[1] + 2, self._parts_xy[0]))
            }
            self._pending[at] = np.empty((height, width, 3), np.uint8), missing
        held_hwC, missing = self._pending[at]
        top, left = row % 2 * tile // 2, column % 2 * tile // 2
        part_hwC = held_hwC[top : top + tile // 2, left : left + tile // 2]
        part_hwC[:] = piece if isinstance(piece, int) else halved(piece)
        missing.remove((row, column))
        if not missing:
            del self._pending[at]
            low, high = int(held_hwC.min()), int(held_hwC.max())
            yield (*at, low if low == high else held_hwC)


def halved(image_hwC: Pixels) -> Pixels:
    """Means of 2 x 2 px, halves rounded up; the last row and column count twice where their number is odd."""
    height, width = image_hwC.shape[:2]
    even_hwC = cv2.copyMakeBorder(image_hwC, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
    # Exactly 2 x 2 px each: OpenCV sums them, adds 2 and shifts.
    half_hwC: Pixels = cv2.resize(even_hwC, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA).astype(np.uint8)
    return half_hwC


def _coarser_px(finer: int, coarser: int, ratio: float) -> Counts:
    """Px of the coarser level in which the center of each px of the finer one lies, along one axis."""
    centers = np.arange(finer) + 0.5
    index = np.minimum((centers * ratio).astype(np.int64), coarser - 1)
    if np.bincount(index, minlength=coarser).all():
        return index
    # Sizes that were rounded in different directions: the last px would stand for none. Spread evenly instead.
    return np.minimum((centers * (coarser / finer)).astype(np.int64), coarser - 1)


def _spans(index: Counts, tile: int) -> list[_Span]:
    """For each tile along an axis, where its px go."""
    spans = []
    for start in range(0, index.size, tile):
        part = index[start : start + tile]
        starts = np.flatnonzero(np.diff(part, prepend=-1))
        counts = np.diff(starts, append=part.size)
        equal = bool((counts == counts[0]).all())
        spans.append(_Span(int(part[0]), starts, counts, int(counts[0]) if equal else 0))
    return spans


def _reaching(spans: list[_Span], tile: int, size: int) -> Counts:
    """How many of the spans reach into each tile of the coarser level, along one axis."""
    count = np.zeros(-(-size // tile), np.int64)
    for span in spans:
        count[span.first // tile : (span.first + span.counts.size - 1) // tile + 1] += 1
    return count


def _overlap(span: _Span, number: int, tile: int) -> tuple[slice, slice]:
    """Px of coarser tile `number` that a span reaches, within that tile and within the span."""
    start, stop = max(span.first, number * tile), min(span.first + span.counts.size, (number + 1) * tile)
    return slice(start - number * tile, stop - number * tile), slice(start - span.first, stop - span.first)


def _largest(pixels: Pixels, down: _Span, across: _Span) -> Pixels:
    """Largest value of each group of px."""
    if down.factor:
        rows = pixels[:: down.factor]
        for row in range(1, down.factor):
            rows = np.maximum(rows, pixels[row :: down.factor])
    else:
        rows = np.maximum.reduceat(pixels, down.starts, axis=0)
    if not across.factor:
        return np.maximum.reduceat(rows, across.starts, axis=1)
    columns = rows[:, :: across.factor]
    for column in range(1, across.factor):
        columns = np.maximum(columns, rows[:, column :: across.factor])
    return columns


def _summed(pixels: Pixels, down: _Span, across: _Span) -> NDArray[np.uint32]:
    """Sum of each group of px."""
    if down.factor:
        rows = pixels[:: down.factor].astype(np.uint32)
        for row in range(1, down.factor):
            rows += pixels[row :: down.factor]
    else:
        rows = np.add.reduceat(pixels, down.starts, axis=0, dtype=np.uint32)
    if not across.factor:
        return np.add.reduceat(rows, across.starts, axis=1, dtype=np.uint32)
    columns = rows[:, :: across.factor].copy()
    for column in range(1, across.factor):
        columns += rows[:, column :: across.factor]
    return columns
