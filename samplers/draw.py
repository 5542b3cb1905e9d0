"""Shared by the samplers: exact class schedules, generators per index, and uniform points.

Everything here is a pure function of its arguments; the numbers of an index come from a generator seeded by
(seed, index, attempt), so no draw depends on another and any patch can be drawn again.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely import Polygon

from samplers.index import Places

_REJECTION_ROUNDS, _REJECTION_BATCH = 8, 64
# What a generator is for; SeedSequence pads with zeros, so (s, i) would equal (s, i, 0).
PATCHES, ROUNDS, HARD, AUGMENT = 1, 2, 3, 4


def generator(seed: int, index: int, attempt: int = 0, purpose: int = PATCHES) -> np.random.Generator:
    """Return the random numbers of one draw, independent of any other (seed, index, attempt, purpose)."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((purpose, seed, index, attempt))))


def share(index: int, ratio: Fraction) -> bool:
    """Return True for exactly `ratio` of all indices, as evenly as whole numbers allow.

    Every run of m consecutive indices holds floor(m * ratio) or ceil(m * ratio) True ones: the rounding of a straight
    line (Bresenham), in exact arithmetic.
    """
    return (index + 1) * ratio.numerator // ratio.denominator > index * ratio.numerator // ratio.denominator


def count_before(index: int, ratio: Fraction) -> int:
    """Return the number of True values of `share` among the indices 0 .. index-1."""
    return index * ratio.numerator // ratio.denominator


def round_member(seed: int, index: int, members: int) -> int:
    """Return the member (0 .. members-1) of `index` in balanced rounds.

    Indices come in rounds of `members`; every round is a permutation of all members, shuffled by (seed, round).
    """
    number, position = divmod(index, members)
    return int(generator(seed, number, purpose=ROUNDS).permutation(members)[position])


def point_in_places(places: Places, cell_l0: int, rng: np.random.Generator) -> tuple[float, float]:
    """Return a point (xy, level-0 px) uniform over the area of the cells: a uniform cell, then uniform inside it."""
    row, column = places.cell(int(rng.integers(len(places))))
    dx, dy = rng.random(2)
    return (column + float(dx)) * cell_l0, (row + float(dy)) * cell_l0


def point_in_polygon(polygon: Polygon, rng: np.random.Generator) -> tuple[float, float]:
    """Return a point uniform over the area of a valid polygon minus its holes, in the polygon's frame.

    Rejection from the bounding box first: nearly always a hit in the first batch. A polygon that fills less than about
    1 % of its box (a thin diagonal rim) is triangulated instead, so that the cost is bounded.
    """
    shapely.prepare(polygon)
    left, top, right, bottom = polygon.bounds
    for _ in range(_REJECTION_ROUNDS):
        uv = rng.random((_REJECTION_BATCH, 2))
        x = left + uv[:, 0] * (right - left)
        y = top + uv[:, 1] * (bottom - top)
        inside = np.flatnonzero(shapely.contains_xy(polygon, x, y))
        if len(inside):
            return float(x[inside[0]]), float(y[inside[0]])
    return _point_in_triangles(polygon, rng)


def _point_in_triangles(polygon: Polygon, rng: np.random.Generator) -> tuple[float, float]:
    """Uniform point by constrained Delaunay triangulation: a triangle by area, then uniform inside it."""
    triangles = shapely.get_parts(shapely.constrained_delaunay_triangles(polygon))
    ends: NDArray[np.float64] = np.cumsum(shapely.area(triangles))
    chosen = triangles[min(int(np.searchsorted(ends, rng.random() * ends[-1], side="right")), len(triangles) - 1)]
    a, b, c = shapely.get_coordinates(chosen)[:3]
    u, v = rng.random(2)
    if u + v > 1:  # reflect the far half of the parallelogram onto the triangle
        u, v = 1 - u, 1 - v
    point = a + u * (b - a) + v * (c - a)
    return float(point[0]), float(point[1])
