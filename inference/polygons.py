"""Outlines of the prediction: exact edges of the px of each class, simplified within a stated distance.

Tensor legend: H rows, W columns of one level of the label map.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
import shapely
from numpy.typing import NDArray

from inference.maps import MapLevel, MapPyramid, Maps
from inference.simplify import simplified
from slides.geometry import Points, l0_from_lv
from slides.truth.outline import outlines

# Of the written coordinates, level-0 px: four decimals, as ASAP XML has.
DECIMALS = 4
SIMPLIFY_PX = 2.0


@dataclass(frozen=True)
class Region:
    """One 4-connected region of a class.

    Attributes:
        cls: its class, 1 or more.
        polygon: its outline with holes, level-0 px, disjoint from all other regions.
        area_um2: area of its px, before the outline was simplified.
        probability: mean of the probability of its class over its px, 0 to 1.
    """

    cls: int
    polygon: shapely.Polygon
    area_um2: float
    probability: float


def regions(maps: Maps, simplify_um: float | None = None, min_area_um2: float = 0.0) -> tuple[list[Region], int]:
    """Outline every class >= 1 of the label map, on its finest level of at most 64 Mpx.

    The outlines run along the edges of px and are cut at the border of the slide. No point of the simplified outline is
    farther than `simplify_um` from the exact one, nor the other way round; outlines stay valid and disjoint, and
    where simplifying would break that, or change the area by more than a tenth, the exact outline stays. Regions that
    share a border keep it shared.

    Args:
        maps: the maps of the slide.
        simplify_um: see above; default two px of the label map, 0 keeps every corner.
        min_area_um2: smaller regions are left out.

    Returns:
        Regions by class, then in reading order of their first px; and the number of regions left out.
    """
    if simplify_um is None:
        simplify_um = SIMPLIFY_PX * min(maps.label.levels[0].um_px_xy)
    level = maps.label.finest()
    label_HW = maps.label.whole(level)
    found: list[tuple[Region, shapely.Polygon]] = []
    small = 0
    for cls in range(1, maps.classes):
        is_class_HW = label_HW == cls
        # The size may be rounded up by the last bit of a quotient: px of no width on the slide have no outline.
        for axis, start in enumerate(_on_slide(np.array(level.size_xy) - 1.0, level, maps.size_xy_l0)):
            if start >= maps.size_xy_l0[axis]:
                np.moveaxis(is_class_HW, 1 - axis, 0)[-1] = False
        of_class, left_out = _of_class(maps, level, is_class_HW, cls, min_area_um2)
        found += of_class
        small += left_out
    exact = [region for region, _ in found]
    if simplify_um <= 0:
        return exact, small
    outlines_lv = [outline for _, outline in found]
    simple = simplified(
        outlines_lv, label_HW, lambda xy: _on_slide(xy, level, maps.size_xy_l0), maps.um_px_xy_l0, simplify_um
    )
    return [replace(region, polygon=polygon) for region, polygon in zip(exact, simple, strict=True)], small


def _of_class(
    maps: Maps, level: MapLevel, is_class_HW: NDArray[np.bool_], cls: int, min_area_um2: float
) -> tuple[list[tuple[Region, shapely.Polygon]], int]:
    """Exact regions of one class with their outlines in px of the level, and the number of those that are too small."""
    rows, columns = (np.flatnonzero(is_class_HW.any(axis=axis)) for axis in (1, 0))
    if not rows.size:
        return [], 0
    # Only the box that contains the class is searched.
    corner = int(columns[0]), int(rows[0])
    grid_HW = is_class_HW[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    group_HW = np.asarray(cv2.connectedComponents(grid_HW.astype(np.uint8), connectivity=4)[1], np.int32)
    means = _means(maps.probability_of(cls), level, corner, group_HW)
    um2 = maps.um_px_xy_l0[0] * maps.um_px_xy_l0[1]
    found = []
    small = 0
    for outline in outlines(grid_HW, 1.0):
        x, y = _first_corner(outline)
        outline_lv = shapely.transform(outline, lambda xy: xy + np.array(corner))
        polygon = shapely.transform(outline_lv, lambda xy: _on_slide(xy, level, maps.size_xy_l0))
        area_um2 = polygon.area * um2
        if area_um2 < min_area_um2:
            small += 1
        else:
            found.append(((y, x), Region(cls, polygon, area_um2, float(means[group_HW[y, x]])), outline_lv))
    return [(region, outline_lv) for _, region, outline_lv in sorted(found, key=lambda item: item[0])], small


def _on_slide(xy_lv: Points, level: MapLevel, size_xy_l0: tuple[int, int]) -> Points:
    """Level-0 px of corners of px of a level, cut at the border, rounded as they will be written."""
    rounded: Points = np.round(np.minimum(l0_from_lv(xy_lv, level.step_xy_l0), size_xy_l0), DECIMALS)
    return rounded


def _first_corner(outline: shapely.Polygon) -> tuple[int, int]:
    """(x, y) of the px of a region that comes first in reading order: below and right of the first corner."""
    xy = shapely.get_coordinates(outline.exterior)
    x, y = xy[np.lexsort((xy[:, 0], xy[:, 1]))[0]]
    return int(x), int(y)


def _means(
    probability: MapPyramid, level: MapLevel, corner_xy: tuple[int, int], group_HW: NDArray[np.int32]
) -> NDArray[np.float64]:
    """Mean probability of each group of px, 0 to 1; group 0 is outside all regions."""
    count = int(group_HW.max()) + 1
    sums, px = np.zeros(count), np.zeros(count)
    height, width = group_HW.shape
    band = max(1, 2**20 // width)
    for top in range(0, height, band):
        part = group_HW[top : top + band]
        value_HW = probability.read(level, (corner_xy[0], corner_xy[1] + top), (part.shape[0], width))
        sums += np.bincount(part.ravel(), value_HW.ravel(), count)
        px += np.bincount(part.ravel(), minlength=count)
    means: NDArray[np.float64] = sums / np.maximum(px, 1) / 255
    return means
