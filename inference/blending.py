"""Overlapping predictions blended into one map, in memory that does not grow with the slide.

Every window's probabilities are weighted by a Hann window, sin^2 along both axes, and divided by the sum of the
weights at each px. A px near the border of one window, where the network saw little of its surroundings, therefore
counts little next to a window that has it in its middle, and no seam remains.

Shapes: K classes; P = K - 1 planes, one per class except 0, whose probability is the remainder to 1; H, W px of a
window.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inference.windows import MapGrid, TissueCells

Floats = NDArray[np.float32]


def hann(size: int) -> Floats:
    """Return the weights of a window's px along one axis, shape (size,): sin^2, symmetric, above 0."""
    weights: Floats = (np.sin(np.pi * (np.arange(size) + 0.5) / size) ** 2).astype(np.float32)
    return weights


@dataclass(frozen=True)
class Sums:
    """What a run of windows adds to one cell.

    Attributes:
        row, column: the cell.
        sums_PHW: weighted sums of probabilities, of the whole cell even if the map ends within it.
        complete: whether no window outside the run covers the cell.
    """

    row: int
    column: int
    sums_PHW: Floats
    complete: bool


class Weights:
    """The sums of weights of every cell of one slide.

    Args:
        grid: map and windows.
        windows: rows and columns of the predicted windows, in the order of prediction.
        tissue: outside of it probabilities are 0; None: anywhere they are what the windows give.
    """

    def __init__(self, grid: MapGrid, windows: Sequence[tuple[int, int]], tissue: TissueCells | None = None) -> None:
        self.grid = grid
        self._tissue = tissue
        # Position of every window in the order of prediction, -1 where none is predicted.
        self._position_HW = np.full(grid.hw, -1, np.int64)
        if windows:
            self._position_HW[tuple(np.array(windows).T)] = np.arange(len(windows))
        side = grid.reach * grid.stride
        self.profile = np.zeros(side, np.float32)
        self.profile[: grid.img_size] = hann(grid.img_size)
        self._parts = self.profile.reshape(grid.reach, grid.stride)

    def covering(self, row: int, column: int) -> NDArray[np.int64]:
        """Return the positions of the windows that cover a cell."""
        reach = self.grid.reach
        near = self._position_HW[max(0, row - reach + 1) : row + 1, max(0, column - reach + 1) : column + 1]
        found: NDArray[np.int64] = near[near >= 0]
        return found

    def of_cell(self, row: int, column: int) -> Floats:
        """Sum the weights of all windows over a cell, shape (stride, stride); 0 where none covers a px."""
        stride = self.grid.stride
        sum_HW = np.zeros((stride, stride), np.float32)
        rows, columns = self.grid.hw
        for a in range(self.grid.reach):
            across = np.zeros(stride, np.float32)
            for b in range(self.grid.reach):
                r, c = row - a, column - b
                if 0 <= r < rows and 0 <= c < columns and self._position_HW[r, c] >= 0:
                    across += self._parts[b]
            if across.any():
                sum_HW += np.outer(self._parts[a], across)
        return sum_HW

    def probabilities(self, row: int, column: int, sums_PHW: Floats) -> Floats:
        """Return p_PHW of a cell from the sums of all its windows, cut to the map; 0 off tissue and windows."""
        height, width = self.grid.cell_hw(row, column)
        weight_HW = self.of_cell(row, column)[:height, :width]
        if self._tissue is not None:
            # A window reaches beyond the tissue it was read for; what it says about the glass there is no prediction.
            weight_HW[~self._tissue.under(self.grid, row, column)] = 0
        p_PHW = np.zeros((len(sums_PHW), height, width), np.float32)
        np.divide(sums_PHW[:, :height, :width], weight_HW, out=p_PHW, where=weight_HW > 0)
        return p_PHW


class Blend:
    """Adds up one run of windows, in order, and returns the cells that are finished.

    It holds the cells that later windows of the run may still reach: as many rows as a window is high. Windows of a run
    are in row-major order.

    Args:
        weights: weights of the slide.
        planes: number of planes P.
        first: position of the run's first window.
        last: position after its last window.
    """

    def __init__(self, weights: Weights, planes: int, first: int, last: int) -> None:
        self._weights = weights
        self._grid = weights.grid
        self._shape = (planes, self._grid.stride, self._grid.stride)
        self._first, self._last = first, last
        self._cells: dict[tuple[int, int], Floats] = {}
        self._profile_HW = np.outer(*[weights.profile[: self._grid.img_size]] * 2)

    def add(self, row: int, column: int, p_PHW: Floats) -> None:
        """Add the probabilities of the window in this row and column."""
        stride, size = self._grid.stride, self._grid.img_size
        rows, columns = self._grid.cells_hw
        weighted_PHW = p_PHW * self._profile_HW
        for top in range(0, size, stride):
            for left in range(0, size, stride):
                cell = row + top // stride, column + left // stride
                if cell[0] >= rows or cell[1] >= columns:
                    continue
                part_PHW = weighted_PHW[:, top : top + stride, left : left + stride]
                sums_PHW = self._cells.get(cell)
                if sums_PHW is None:
                    sums_PHW = self._cells[cell] = np.zeros(self._shape, np.float32)
                sums_PHW[:, : part_PHW.shape[1], : part_PHW.shape[2]] += part_PHW

    def done(self, before_row: int | None = None) -> Iterator[Sums]:
        """Yield, and forget, the cells in rows above `before_row` (None: all), in row-major order."""
        ready = sorted(cell for cell in self._cells if before_row is None or cell[0] < before_row)
        for cell in ready:
            positions = self._weights.covering(*cell)
            complete = bool(((positions >= self._first) & (positions < self._last)).all())
            yield Sums(*cell, self._cells.pop(cell), complete)
