"""Overlapping windows over a slide, on the pixels of one prediction map.

Frames: `xy_map` are px of the map, which is anchored at the outer corner of level-0 px (0, 0): map px [r, c] covers
level-0 x from c * step to (c + 1) * step. Windows begin on whole map px, so that a window's output px are map px,
whatever its size. The map is cut into square cells of one stride; a window covers `reach` x `reach` of them, the last
ones perhaps in part.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slides.geometry import Pair, Window
from slides.reader import Slide

# The backbones halve their input five times: windows shifted by a multiple of 32 px see the same px in the same phase,
# which keeps a prediction from depending on where its window begins.
PHASE = 32
# Memory of the map part that is being blended; wider slides are processed in stripes.
LIVE_BYTES = 512 * 2**20


@dataclass(frozen=True)
class MapGrid:
    """The prediction map of one slide and the windows that cover it.

    Attributes:
        size_xy: width and height of the map, map px.
        step_xy_l0: level-0 px per map px.
        img_size: side of a window, map px.
        stride: from one window to the next, and side of a cell, map px.
    """

    size_xy: tuple[int, int]
    step_xy_l0: Pair
    img_size: int
    stride: int

    @property
    def hw(self) -> tuple[int, int]:
        """Rows and columns of windows."""
        columns, rows = (max(0, math.ceil((size - self.img_size) / self.stride)) + 1 for size in self.size_xy)
        return rows, columns

    @property
    def cells_hw(self) -> tuple[int, int]:
        """Rows and columns of cells."""
        return math.ceil(self.size_xy[1] / self.stride), math.ceil(self.size_xy[0] / self.stride)

    @property
    def reach(self) -> int:
        """How many cells a window covers along a side."""
        return math.ceil(self.img_size / self.stride)

    def window(self, row: int, column: int) -> Window:
        """The window in this row and column; it may reach beyond the slide."""
        corner_xy_l0 = (column * self.stride * self.step_xy_l0[0], row * self.stride * self.step_xy_l0[1])
        return Window(corner_xy_l0, (self.img_size, self.img_size), self.step_xy_l0)

    def cell_hw(self, row: int, column: int) -> tuple[int, int]:
        """Rows and columns of px of a cell; those at the far borders of the map are cut."""
        return (
            min(self.stride, self.size_xy[1] - row * self.stride),
            min(self.stride, self.size_xy[0] - column * self.stride),
        )


def map_grid(slide: Slide, img_size: int, um_px: float, overlap: float) -> MapGrid:
    """The map and windows of a slide.

    Args:
        slide: the slide.
        img_size: side of a window, map px.
        um_px: spacing of the map.
        overlap: share of a window's side that it has in common with its neighbor, at least 0 and below 1; rounded up
            so that windows begin at multiples of `PHASE`, where that changes it by less than a third.
    """
    step_xy_l0 = slide.step_xy_l0(um_px)
    size_xy = (
        math.ceil(slide.size_xy_l0[0] / step_xy_l0[0] - 1e-6),
        math.ceil(slide.size_xy_l0[1] / step_xy_l0[1] - 1e-6),
    )
    stride = max(1, int(img_size * (1 - overlap)))
    return MapGrid(size_xy, step_xy_l0, img_size, stride - stride % PHASE if stride >= 3 * PHASE else stride)


@dataclass(frozen=True)
class TissueCells:
    """Tissue of a slide.

    Attributes:
        tissue_HW: search cells with tissue.
        cell_l0: side of a search cell, level-0 px.
    """

    tissue_HW: NDArray[np.bool_]
    cell_l0: int

    def under(self, grid: MapGrid, row: int, column: int) -> NDArray[np.bool_]:
        """Return whether tissue is under the center of each px of a map's cell, shape `MapGrid.cell_hw`."""
        height, width = grid.cell_hw(row, column)
        top, left = row * grid.stride, column * grid.stride
        return self.at(grid.step_xy_l0, (top, top + height), (left, left + width))

    def at(self, step_xy_l0: Pair, rows: tuple[int, int], columns: tuple[int, int]) -> NDArray[np.bool_]:
        """Return whether tissue is under the center of each px of a box of a map.

        Args:
            step_xy_l0: level-0 px per px of the map.
            rows: of the box, px of the map.
            columns: of the box, px of the map.
        """
        row, column = (
            np.minimum(((np.arange(*box) + 0.5) * step // self.cell_l0).astype(np.int64), most - 1)
            for box, step, most in zip((rows, columns), step_xy_l0[::-1], self.tissue_HW.shape, strict=True)
        )
        under_HW: NDArray[np.bool_] = self.tissue_HW[np.ix_(row, column)]
        return under_HW


def with_tissue(grid: MapGrid, tissue: TissueCells | None) -> list[tuple[int, int]]:
    """Return rows and columns of windows with any tissue, in row-major order; of all windows without `tissue`."""
    rows, columns = grid.hw
    if tissue is None:
        return [(row, column) for row in range(rows) for column in range(columns)]
    total = np.pad(tissue.tissue_HW.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    (r0, r1), (c0, c1) = (_search_cells(grid, tissue, axis, count) for axis, count in ((1, rows), (0, columns)))
    held = total[np.ix_(r1, c1)] - total[np.ix_(r0, c1)] - total[np.ix_(r1, c0)] + total[np.ix_(r0, c0)]
    return [(int(row), int(column)) for row, column in zip(*np.nonzero(held), strict=True)]


def _search_cells(
    grid: MapGrid, tissue: TissueCells, axis: int, count: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and behind the last search cell that windows reach into, along x (0) or y (1)."""
    first_l0 = np.arange(count) * grid.stride * grid.step_xy_l0[axis]
    last_l0 = first_l0 + grid.img_size * grid.step_xy_l0[axis]
    most = tissue.tissue_HW.shape[1 - axis]
    ends = (np.floor(first_l0 / tissue.cell_l0), np.ceil(last_l0 / tissue.cell_l0 - 1e-9))
    begin, end = (np.clip(end.astype(np.int64), 0, most) for end in ends)
    return begin, end


@dataclass(frozen=True)
class Run:
    """Consecutive windows of one slide that one rank computes.

    Attributes:
        slide: position of the slide.
        first: position of the first window among the slide's windows.
        last: position after the last one.
    """

    slide: int
    first: int
    last: int


def in_stripes(
    windows: Sequence[tuple[int, int]], grid: MapGrid, planes: int
) -> tuple[list[tuple[int, int]], list[int]]:
    """Windows ordered by vertical stripes of the map, row by row in each.

    What is blended at a time is as wide as a stripe and as high as a window; stripes bound it to `LIVE_BYTES`.

    Args:
        windows: rows and columns of windows, in row-major order.
        grid: map and windows.
        planes: float32 numbers that are kept for a px.

    Returns:
        The windows, and where each stripe begins among them.
    """
    width = max(1, LIVE_BYTES // (4 * planes * grid.img_size * grid.stride))
    ordered = sorted(windows, key=lambda window: (window[1] // width, window))
    stripe = [column // width for _, column in ordered]
    return ordered, [i for i in range(len(ordered)) if i == 0 or stripe[i] != stripe[i - 1]]


def share_out(begins: Sequence[Sequence[int]], counts: Sequence[int], ranks: int) -> list[list[Run]]:
    """Share the windows of all slides among ranks: equal numbers to within one, in order, so that few slides are split.

    Args:
        begins: where the stripes of each slide begin; a run ends where its stripe does.
        counts: number of windows of each slide.
        ranks: number of ranks.

    Returns:
        The runs of each rank. Every slide is in at least one run, those without windows in an empty one.
    """
    ends = [int(end) for end in np.cumsum([0, *counts])]
    cuts = {ends[-1] * rank // ranks for rank in range(ranks)}
    shares: list[list[Run]] = [[] for _ in range(ranks)]
    for slide, (start, stop) in enumerate(itertools.pairwise(ends)):
        if start == stop:
            shares[slide % ranks].append(Run(slide, 0, 0))
            continue
        inner = {start + begin for begin in begins[slide]} | {cut for cut in cuts if start < cut < stop}
        for first, last in itertools.pairwise(sorted({start, stop, *inner})):
            # The rank of a window is the largest whose share begins at or before it.
            rank = max(rank for rank in range(ranks) if ends[-1] * rank // ranks <= first)
            shares[rank].append(Run(slide, first - start, last - start))
    return shares
