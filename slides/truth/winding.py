"""Outlines that cross themselves, filled as ASAP fills them: by the non-zero winding rule.

A place is inside where the outline goes around it a number of times other than 0, counted with its direction. So an
outline traced twice is one filled area, and so is a loop that overlaps itself; the even-odd rule would leave only the
space between the two tracings. Source: ASAP, annotation/AnnotationToMask.cpp.
"""

from __future__ import annotations

import numpy as np
import shapely
from numpy.typing import NDArray

from slides.truth.raster import polygons_of

# Most numbers that one step of the count holds.
_CHUNK = 2**22


def filled(ring_xy: NDArray[np.float64]) -> list[shapely.Polygon]:
    """Return the areas of a ring (N, 2), N >= 3, closed or not; none where it has no area."""
    closed_xy = np.concatenate([ring_xy, ring_xy[:1]])
    # Cut at every crossing, parts that lie on each other once; the faces between the parts have one number each.
    parts = shapely.get_parts(shapely.unary_union(shapely.LineString(closed_xy)))
    faces = shapely.get_parts(shapely.polygonize(parts))
    if not len(faces):
        return []
    inside = winding(closed_xy, shapely.get_coordinates(shapely.point_on_surface(faces))) != 0
    return polygons_of(shapely.union_all(faces[inside]))


def winding(closed_xy: NDArray[np.float64], points_xy: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return how many times a closed ring (N, 2) goes around each point (P, 2), with the sign of its direction."""
    (x0, y0), (x1, y1) = closed_xy[:-1].T, closed_xy[1:].T
    counts = np.zeros(len(points_xy), np.int64)
    step = max(1, _CHUNK // len(x0))
    for start in range(0, len(points_xy), step):
        x, y = points_xy[start : start + step].T[:, :, None]
        side = (x1 - x0) * (y - y0) - (x - x0) * (y1 - y0)
        up = ((y0 <= y) & (y1 > y) & (side > 0)).sum(axis=1)
        down = ((y0 > y) & (y1 <= y) & (side < 0)).sum(axis=1)
        counts[start : start + step] = up - down
    return counts
