"""Cells of a coarse grid under the px of another one."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from slides.geometry import Window, pixel_centers_l0

Value = TypeVar("Value", bound=np.generic)


def cells_under(
    window: Window, step_xy_l0: tuple[float, float], hw: tuple[int, ...]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the cell row at each row's centers, and the cell column at each column's; the last covers a remainder.

    Args:
        window: the px.
        step_xy_l0: side of a cell, level-0 px; cells begin at level-0 (0, 0).
        hw: rows and columns of cells.
    """
    x_l0, y_l0 = pixel_centers_l0(window)
    rows, columns = (
        np.floor(along / step).astype(np.int64).clip(0, size - 1)
        for along, step, size in zip((y_l0, x_l0), step_xy_l0[::-1], hw, strict=True)
    )
    return rows, columns


def under(cells_HW: NDArray[Value], step_xy_l0: tuple[float, float], window: Window) -> NDArray[Value]:
    """Return the value of the cell at the center of every px of a window, (H, W)."""
    rows, columns = cells_under(window, step_xy_l0, cells_HW.shape)
    under_HW: NDArray[Value] = cells_HW[np.ix_(rows, columns)]
    return under_HW
