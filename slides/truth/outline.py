"""Pixels to polygons: the exact outer edges of a boolean grid.

Own code: OpenCV's contours run through the centers of pixels, not along their edges.
"""

from __future__ import annotations

import cv2
import numpy as np
import shapely
from numpy.typing import NDArray

Ints = NDArray[np.int64]


def outlines(grid_HW: NDArray[np.bool_], cell_l0: float) -> list[shapely.Polygon]:
    """Return the outer edges of True cells as disjoint valid polygons with holes, level-0 px.

    One polygon per 4-connected group of cells; its area is exactly that of the cells. (Contour functions that run
    through the centers of pixels lose half a pixel all round.)

    Args:
        grid_HW: Cells; [r, c] covers [c, c + 1) x [r, r + 1) cells.
        cell_l0: Side of a cell, level-0 px.
    """
    if not grid_HW.any():
        return []
    group_HW = np.asarray(cv2.connectedComponents(grid_HW.astype(np.uint8), connectivity=4)[1], np.int32)
    rings: dict[int, list[Ints]] = {}
    for ring in _rings(grid_HW, group_HW):
        # The first side is horizontal, its cells lie above and below; one of them is True.
        (x, y), left = ring[0], int(min(ring[0, 0], ring[1, 0]))
        assert x in ring[:2, 0], "a ring starts with a horizontal side"
        below = y < grid_HW.shape[0] and grid_HW[y, left]
        rings.setdefault(int(group_HW[y if below else y - 1, left]), []).append(ring)
    polygons = []
    for parts in rings.values():
        parts.sort(key=_area, reverse=True)
        shell, *holes = (part * float(cell_l0) for part in parts)
        polygons.append(shapely.Polygon(shell, holes))
    return polygons


def _rings(grid_HW: NDArray[np.bool_], group_HW: NDArray[np.int32]) -> list[Ints]:
    """Closed boundary lines as corners (x, y) in cells, shape (N, 2) each, starting with a horizontal side."""
    across = _corners(grid_HW)
    down = _corners(grid_HW.T)[:, ::-1]
    # The ends of horizontal and of vertical sides are the same corners; both in reading order they match one to one.
    down_of = np.lexsort((down[:, 0], down[:, 1]))
    first = np.flatnonzero((across[1:] == across[:-1]).all(axis=1))
    # Four sides meet where cells touch at a corner. In reading order `across` has (left, right), `down` (up, down).
    x, y = across[first].T
    falling = grid_HW[y - 1, x - 1]
    ours, other = group_HW[y - 1, x - np.where(falling, 1, 0)], group_HW[y, x - np.where(falling, 0, 1)]
    # Separate groups: each side turns around its own cell. One group: the gaps are separated instead, so that a hole
    # and a shell, or two holes, touch at a point but are rings of their own, as valid polygons need.
    crossed = first[falling == (ours == other)]
    down_of[crossed], down_of[crossed + 1] = down_of[crossed + 1].copy(), down_of[crossed].copy()
    across_of = np.empty_like(down_of)
    across_of[down_of] = np.arange(down_of.size)
    # Corners 2k and 2k + 1 are the ends of side k, horizontal in `across`, vertical in `down`.
    onward = across_of[down_of ^ 1].tolist()
    left_over = bytearray(b"\1") * len(onward)
    rings = []
    for start in range(len(onward)):
        ring: list[int] = []
        at = start
        while left_over[at]:
            left_over[at] = left_over[at ^ 1] = 0
            ring += (at, at ^ 1)
            at = onward[at ^ 1]
        if ring:
            rings.append(across[ring])
    return rings


def _corners(grid_HW: NDArray[np.bool_]) -> Ints:
    """Ends of the horizontal sides of the boundary, (x, y) in reading order, shape (2 * sides, 2)."""
    side = np.diff(np.pad(grid_HW, 1).astype(np.int8), axis=0)
    # A side ends where the boundary ends or where True changes from above to below.
    y, x = np.nonzero(np.diff(side, axis=1))
    twice = np.where(np.abs(np.diff(side, axis=1)[y, x]) == 2, 2, 1)
    return np.repeat(np.stack([x, y], axis=1), twice, axis=0).astype(np.int64)


def _area(ring: Ints) -> int:
    x, y = ring[:, 0], ring[:, 1]
    return abs(int(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))))
