"""Polygons to pixels, by one rule, in NumPy.

A pixel belongs to a polygon when its center does; ties on an edge are half-open (the left and upper edge are inside).
So windows put together equal the whole, and neighbors with a common edge neither share nor lose a pixel. Own code:
OpenCV and rasterio round corners, or paint every pixel that an edge touches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from slides.geometry import Window

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Edges:
    """Edges of disjoint polygons, all directed downwards, so that a common edge gives the same crossings twice.

    Attributes:
        x0, y0, x1, y1: Ends in level-0 px, y0 <= y1, shape (N,); sorted by y0.
        reach_y: Largest y1 up to and including each edge.
    """

    x0: Floats
    y0: Floats
    x1: Floats
    y1: Floats
    reach_y: Floats

    def between(self, top: float, bottom: float) -> slice:
        """A run of edges with all those that touch the rows between two level-0 coordinates, found by bisection."""
        return slice(int(np.searchsorted(self.reach_y, top, "right")), int(np.searchsorted(self.y0, bottom, "left")))


def edges_of(polygons: Sequence[shapely.Polygon]) -> Edges:
    """Collect the edges of polygons (level-0 px), holes included."""
    rings = shapely.get_rings(np.asarray(polygons, object)) if len(polygons) else np.empty(0, object)
    starts = [shapely.get_coordinates(ring)[:-1] for ring in rings]
    ends = [shapely.get_coordinates(ring)[1:] for ring in rings]
    if not starts:
        empty = np.empty(0)
        return Edges(empty, empty, empty, empty, empty)
    a, b = np.concatenate(starts), np.concatenate(ends)
    up = (a[:, 1] > b[:, 1]) | ((a[:, 1] == b[:, 1]) & (a[:, 0] > b[:, 0]))
    a[up], b[up] = b[up].copy(), a[up].copy()
    order = np.argsort(a[:, 1], kind="stable")
    x0, y0, x1, y1 = np.concatenate([a, b], axis=1)[order].T.copy()
    return Edges(x0, y0, x1, y1, np.maximum.accumulate(y1))


def rasterize(edges: Edges, window: Window) -> NDArray[np.bool_]:
    """Return inside_HW of shape `window.hw_out`: whether each pixel center lies inside the polygons (even-odd).

    Every edge crosses the row of centers y at most once, when y0 <= y < y1, and toggles all pixels whose center is at
    or right of the crossing. Cost, inside the window's rows: a few comparisons per edge, and one step per crossing of
    the edges that are not wholly left or right of it.
    """
    height, width = window.hw_out
    (corner_x, corner_y), (step_x, step_y) = window.corner_xy_l0, window.step_xy_l0
    run = edges.between(corner_y, corner_y + height * step_y)
    x0, y0, x1, y1 = edges.x0[run], edges.y0[run], edges.x1[run], edges.y1[run]
    # Right of the window nothing is toggled.
    near = (y1 > corner_y) & (np.minimum(x0, x1) < corner_x + width * step_x)
    x0, y0, x1, y1 = x0[near], y0[near], x1[near], y1[near]
    first = np.clip(np.ceil((y0 - corner_y) / step_y - 0.5), 0, height).astype(np.int64)
    last = np.clip(np.ceil((y1 - corner_y) / step_y - 0.5), 0, height).astype(np.int64)
    # Left of it each edge toggles whole rows: told by counting those that begin and end above, without a step per row.
    left = np.maximum(x0, x1) <= corner_x
    ends = np.concatenate([first[left], last[left]])
    whole_rows = np.flatnonzero(np.bincount(ends, minlength=height)[:height].cumsum() & 1)
    crossed = (last > first) & ~left
    first, count = first[crossed], (last - first)[crossed]
    x0, y0, x1, y1 = x0[crossed], y0[crossed], x1[crossed], y1[crossed]
    if not count.size and not whole_rows.size:
        return np.zeros((height, width), np.bool_)
    edge = np.repeat(np.arange(count.size), count)
    row = np.arange(edge.size) - np.repeat(np.cumsum(count) - count, count) + first[edge]
    y = corner_y + (row + 0.5) * step_y
    x = x0[edge] + (y - y0[edge]) * ((x1 - x0) / (y1 - y0))[edge]
    column = np.clip(np.ceil((x - corner_x) / step_x - 0.5), 0, width).astype(np.int64)
    # Edges left out above toggle column `width`, which is outside: an odd row is closed there.
    crossings = np.bincount(row, minlength=height)
    crossings[whole_rows] += 1
    open_rows = np.flatnonzero(crossings & 1)
    starts = row * (width + 1) + column, whole_rows * (width + 1), open_rows * (width + 1) + width
    toggles = np.sort(np.concatenate(starts))
    runs = np.diff(toggles, prepend=0, append=height * (width + 1))
    # Repeated as bytes: twenty times faster than repeating integers.
    inside = np.repeat((np.arange(runs.size) & 1).astype(np.uint8), runs).view(np.bool_)
    return inside.reshape(height, width + 1)[:, :width]


def touched_cells(edges: Edges, cell_l0: int, hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Return touched_HW of shape `hw`: whether an edge passes through the open interior of a cell.

    Args:
        edges: Level-0 px.
        cell_l0: Side of a cell, level-0 px; cell [r, c] starts at (c * cell_l0, r * cell_l0).
        hw: Rows and columns of cells; edges outside are left out.
    """
    touched = np.zeros(hw, np.bool_)
    ends = np.stack([edges.x0, edges.y0, edges.x1, edges.y1], axis=1) / cell_l0
    low, high = np.minimum(ends[:, :2], ends[:, 2:]), np.maximum(ends[:, :2], ends[:, 2:])
    # An edge along a grid line lies in no open cell.
    along = ((low == high) & (low == np.floor(low))).any(axis=1)
    ends, low, high = ends[~along], low[~along], high[~along]
    first = np.floor(low).astype(np.int64) + 1
    count = np.maximum(np.ceil(high).astype(np.int64) - first, 0)
    # Cut every edge where it crosses a grid line: the middle of each piece lies in one open cell.
    edge = [np.arange(len(ends))] * 2
    part = [np.zeros(len(ends)), np.ones(len(ends))]
    for axis in (0, 1):
        crossing = np.repeat(np.arange(len(ends)), count[:, axis])
        line = np.arange(crossing.size) - np.repeat(np.cumsum(count[:, axis]) - count[:, axis], count[:, axis])
        start, stop = ends[crossing, axis], ends[crossing, axis + 2]
        edge.append(crossing)
        part.append((line + first[crossing, axis] - start) / (stop - start))
    all_edges, all_parts = np.concatenate(edge), np.concatenate(part)
    order = np.lexsort((all_parts, all_edges))
    all_edges, all_parts = all_edges[order], all_parts[order]
    # Pieces of length 0 come from edges through the corner of a cell.
    piece = (all_edges[1:] == all_edges[:-1]) & (np.diff(all_parts) > 1e-12)
    index, middle = all_edges[1:][piece], ((all_parts[1:] + all_parts[:-1]) / 2)[piece]
    xy = np.floor(ends[index, :2] + middle[:, None] * (ends[index, 2:] - ends[index, :2])).astype(np.int64)
    inside = (xy >= 0).all(axis=1) & (xy[:, 0] < hw[1]) & (xy[:, 1] < hw[0])
    touched[xy[inside, 1], xy[inside, 0]] = True
    return touched


def polygons_of(geometry: shapely.Geometry) -> list[shapely.Polygon]:
    """Return the polygons of a geometry; points, lines and empty parts are left out."""
    parts = shapely.get_parts(shapely.get_parts(shapely.get_parts(geometry)))
    return [part for part in parts if part.geom_type == "Polygon" and part.area > 0]
