"""Areas with holes as ASAP annotations, which have none, so that `annotation` reads back what was written.

Class 1 is group `_0`, class C group `class_C`. A hole is an annotation of its own in the exclusion group `_2`, as in
CAMELYON. Exclusions cut everything; so a hole with another area in it is no exclusion: there the outline runs in to the
hole along a line of no width, around it against the direction of the outline, and back along the same line. That leaves
the hole out by the non-zero winding rule (ASAP's) and by the even-odd rule, and needs no second annotation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import shapely

from slides.geometry import Points
from slides.truth.asap import Outline

# CAMELYON's names; our default label map reads them.
TUMOR_GROUP, EXCLUSION_GROUP = "_0", "_2"
EXCLUSION_COLOR = "#000000"


@dataclass(frozen=True)
class Area:
    """One area to write.

    Attributes:
        polygon: Valid polygon with holes, level-0 px, disjoint from all others.
        name: Shown by ASAP.
        group: See `asap_group`.
        color: #RRGGBB.
    """

    polygon: shapely.Polygon
    name: str
    group: str
    color: str


def asap_group(cls: int) -> str:
    """Return the group of a class >= 1."""
    return TUMOR_GROUP if cls == 1 else f"class_{cls}"


def asap_label_map(classes: int) -> dict[str, int]:
    """Return the label map that reads areas back; with two classes the default one does as well.

    Args:
        classes: Number of classes K.
    """
    return {asap_group(cls): cls for cls in range(1, classes)} | {EXCLUSION_GROUP: 0}


def outlines_of(areas: Sequence[Area]) -> Iterator[Outline]:
    """Return what `asap.write_outlines` writes for all areas of a slide."""
    holes: list[Points] = []
    for area, filled in zip(areas, filled_holes([area.polygon for area in areas]), strict=True):
        rings = [shapely.get_coordinates(ring)[:-1] for ring in area.polygon.interiors]
        holes += [ring for ring, is_filled in zip(rings, filled, strict=True) if not is_filled]
        entered = [
            _against(area.polygon.exterior, ring) for ring, is_filled in zip(rings, filled, strict=True) if is_filled
        ]
        ring = _around(shapely.get_coordinates(area.polygon.exterior)[:-1], entered)
        yield Outline(area.name, area.group, ring.tolist(), area.color)
    for number, ring in enumerate(holes):
        yield Outline(f"hole {number}", EXCLUSION_GROUP, ring.tolist(), EXCLUSION_COLOR)


def filled_holes(disjoint: Sequence[shapely.Polygon]) -> list[list[bool]]:
    """Tell for each hole of each polygon whether another polygon lies in it."""
    polygons = np.array(disjoint, object)
    # Polygons are connected and disjoint: one point inside decides for all of it.
    tree = shapely.STRtree(shapely.point_on_surface(polygons))
    answers = []
    for polygon in polygons:
        holes = np.array([shapely.Polygon(ring) for ring in polygon.interiors], object)
        filled = np.zeros(len(holes), np.bool_)
        filled[tree.query(holes, predicate="contains")[0]] = True
        answers.append(filled.tolist())
    return answers


def _against(shell: shapely.LinearRing, hole: Points) -> Points:
    """A hole that turns the other way than the shell around it."""
    same = shapely.is_ccw(shell) == shapely.is_ccw(shapely.LinearRing(hole))
    return hole[::-1] if same else hole


def _around(shell: Points, holes: Sequence[Points]) -> Points:
    """One ring around a shell and into each hole, from corner to corner by the shortest way."""
    ring = shell
    for hole in sorted(holes, key=lambda hole: tuple(hole.min(axis=0))):
        tree = shapely.STRtree(shapely.points(ring))
        nearest, distance = tree.query_nearest(shapely.points(hole), return_distance=True, all_matches=False)
        best = int(np.argmin(distance))
        inner, outer = int(nearest[0, best]), int(nearest[1, best])
        # ring[outer] -> hole, all the way round -> back to ring[outer], and on.
        detour = np.concatenate([hole[inner:], hole[: inner + 1], ring[outer : outer + 1]])
        ring = np.concatenate([ring[: outer + 1], detour, ring[outer + 1 :]])
    return ring
