"""Where patches lie on a slide: a regular grid, and the places of it to try. H rows, W columns (cells)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slides.geometry import Window
from slides.reader import Slide

STRIP = 16  # columns of places that are read row by row before the next strip, so that their tiles stay in the cache


@dataclass(frozen=True)
class Place:
    """One place of the grid.

    Attributes:
        window: window of its patch.
        tissue: share of tissue.
        near_tumor: whether a cell that it touches has tumor.
    """

    window: Window
    tissue: float
    near_tumor: bool

    @property
    def corner_xy_l0(self) -> tuple[int, int]:
        """Top-left corner, rounded to level-0 px."""
        x, y = self.window.corner_xy_l0
        return round(x), round(y)


@dataclass(frozen=True)
class Grid:
    """Patches on a regular grid that starts at the slide's top-left corner.

    Attributes:
        side_px: side of a patch, px of a patch.
        stride_px: distance between patches, px of a patch.
        um_px: um per px of a patch.
        min_tissue: smallest share of tissue of a place to try.
    """

    side_px: int
    stride_px: int
    um_px: float
    min_tissue: float

    def places(
        self, slide: Slide, tissue_HW: NDArray[np.bool_], tumor_HW: NDArray[np.bool_], cell_l0: int
    ) -> tuple[list[Place], int]:
        """Places with enough tissue or any tumor, in the order in which reading is fastest.

        The last place of a row or column may reach beyond the slide. If `um_px` is the spacing of a level, patches are
        aligned with its px.

        Args:
            slide: the slide.
            tissue_HW: cells with tissue.
            tumor_HW: cells with any tumor.
            cell_l0: side of a cell, level-0 px.

        Returns:
            The places, and the number of places in the whole grid.

        Raises:
            ValueError: patches would be less than one px of the slide apart.
        """
        hw = self.side_px, self.side_px
        step_xy_l0 = slide.window((0.0, 0.0), hw, self.um_px).step_xy_l0
        if self.stride_px * min(step_xy_l0) < 1:
            raise ValueError(
                f"patches every {self.stride_px} px of {self.um_px:g} um are less than one px of the slide "
                f"({min(slide.um_px_xy_l0):.4g} um) apart: choose a larger --stride or --resolution"
            )
        counts = []
        for size, step in zip(slide.size_xy_l0, step_xy_l0, strict=True):
            # A remainder below a thousandth of a px is a rounding error.
            counts.append(1 + max(0, math.ceil((size / step - self.side_px - 1e-3) / self.stride_px)))
        tissue, tumor = _sums(tissue_HW), _sums(tumor_HW)
        places = []
        for row, column in _in_strips(counts[1], counts[0]):
            corner_xy_l0 = column * self.stride_px * step_xy_l0[0], row * self.stride_px * step_xy_l0[1]
            window = Window(corner_xy_l0, hw, step_xy_l0)
            box = _cells(window, cell_l0, inner=True)
            share = _count(tissue, box) / ((box[1] - box[0]) * (box[3] - box[2]))
            near = _count(tumor, _cells(window, cell_l0, inner=False)) > 0
            if near or share >= max(self.min_tissue, 1e-9):
                places.append(Place(window, share, near))
        return places, counts[0] * counts[1]


def _in_strips(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    return (
        (row, column)
        for first in range(0, columns, STRIP)
        for row in range(rows)
        for column in range(first, min(first + STRIP, columns))
    )


def _cells(window: Window, cell_l0: int, inner: bool) -> tuple[int, int, int, int]:
    """First and last (exclusive) column and row of cells: cells with their center inside, or all cells touched.

    At least one of each: a patch smaller than a cell gets the cell under its center.
    """
    found: list[int] = []
    for corner, size in zip(window.corner_xy_l0, window.size_xy_l0, strict=True):
        low, high = corner / cell_l0, (corner + size) / cell_l0
        first, last = (math.ceil(low - 0.5), math.ceil(high - 0.5)) if inner else (math.floor(low), math.ceil(high))
        if last <= first:
            first = math.floor((low + high) / 2)
            last = first + 1
        found += [first, last]
    return found[0], found[1], found[2], found[3]


def _sums(cells_HW: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Summed-area table: sums over all cells above and to the left of a corner, (H + 1, W + 1)."""
    sums: NDArray[np.int64] = np.pad(cells_HW.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    return sums


def _count(sums: NDArray[np.int64], box: tuple[int, int, int, int]) -> int:
    """Number of True cells in a box of columns and rows; cells beyond the slide count as False."""
    rows, columns = sums.shape[0] - 1, sums.shape[1] - 1
    left, right, top, bottom = min(box[0], columns), min(box[1], columns), min(box[2], rows), min(box[3], rows)
    return int(sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left])
