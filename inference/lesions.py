"""Sizes of the prediction: areas, number of lesions, longest diameter.

Tensor legend: H rows, W columns of one level of the label map.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import shapely
from numpy.typing import NDArray

from inference.maps import GRID_PX, MapLevel, Maps
from slides.geometry import Pair

# Lesions are separated on a level of about this spacing.
UM_PX = 8.0
UM_PER_MM = 1000.0


@dataclass(frozen=True)
class LesionSizes:
    """Regions of any class >= 1.

    Attributes:
        count: number of lesions; px that touch at a corner belong together.
        longest_diameter_mm: largest distance between two points of one lesion, 0 without any.
    """

    count: int
    longest_diameter_mm: float


def lesion_sizes(maps: Maps) -> LesionSizes:
    """Count lesions on the level of about 8 um/px, and measure the one of largest extent.

    Levels of the label map are made by maximum, so lesions less than a px of that level apart are one. The diameter is
    the largest Feret diameter: between the outermost corners of px of the finest level of the map (of the searched
    level, where a lesion is larger than 64 Mpx). The evaluation decides whether foci within 75 um are one lesion.
    """
    level = maps.label.nearest(UM_PX)
    tumor_HW = (maps.label.whole(level) > 0).astype(np.uint8)
    count, found_HW, stats, _ = cv2.connectedComponentsWithStats(tumor_HW, connectivity=8)
    group_HW = np.asarray(found_HW, np.int32)
    boxes = stats[1:, [cv2.CC_STAT_LEFT, cv2.CC_STAT_TOP, cv2.CC_STAT_WIDTH, cv2.CC_STAT_HEIGHT]].astype(np.int64)
    diagonals = np.hypot(*(boxes[:, 2:] * np.asarray(level.um_px_xy)).T)
    longest = 0.0
    for number in np.argsort(-diagonals, kind="stable").tolist():
        if diagonals[number] <= longest:
            break
        longest = max(longest, _diameter_um(maps, level, group_HW, number + 1, boxes[number].tolist()))
    return LesionSizes(count - 1, longest / UM_PER_MM)


def areas_mm2(maps: Maps) -> dict[int, float]:
    """Area of each class >= 1 on the slide, mm2, from the finest level; px count by the part of them on the slide."""
    level = maps.label.levels[0]
    px = np.zeros(256)
    share_x, share_y = (
        _shares(size, step, size_l0)
        for size, step, size_l0 in zip(level.size_xy, level.step_xy_l0, maps.size_xy_l0, strict=True)
    )
    for top, label_HW in maps.label.bands(level):
        if not label_HW.any():
            continue
        rows = share_y[top : top + label_HW.shape[0]]
        # Only the last column and row can be cut: sum whole px, then correct these.
        px += np.bincount(label_HW.ravel(), minlength=256)
        px -= (1 - share_x[-1]) * np.bincount(label_HW[:, -1], rows, 256)
        if top + label_HW.shape[0] == level.size_xy[1]:
            px -= (1 - share_y[-1]) * np.bincount(label_HW[-1], minlength=256)
    px_mm2 = level.um_px_xy[0] * level.um_px_xy[1] / UM_PER_MM**2
    return {cls: float(px[cls] * px_mm2) for cls in range(1, maps.classes)}


def _shares(size: int, step: float, size_l0: int) -> NDArray[np.float64]:
    """Return the part of each px along an axis that lies on the slide: 1 except for the last."""
    return np.clip((size_l0 - np.arange(size) * step) / step, 0.0, 1.0)


def _diameter_um(
    maps: Maps, level: MapLevel, group_HW: NDArray[np.int32], group: int, box: tuple[int, int, int, int]
) -> float:
    """Largest Feret diameter of one lesion, given its box (left, top, width, height; px of the level)."""
    left, top, width, height = box
    inside_HW = group_HW[top : top + height, left : left + width] == group
    finest = maps.label.levels[0]
    times_x, times_y = (round(a / b) for a, b in zip(level.step_xy_l0, finest.step_xy_l0, strict=True))
    um_px_xy = level.um_px_xy
    if width * times_x * height * times_y <= GRID_PX:
        x0, y0 = left * times_x, top * times_y
        x1, y1 = min(x0 + width * times_x, finest.size_xy[0]), min(y0 + height * times_y, finest.size_xy[1])
        fine_HW = np.repeat(np.repeat(inside_HW, times_y, axis=0), times_x, axis=1)[: y1 - y0, : x1 - x0]
        inside_HW = fine_HW & (maps.label.read(finest, (x0, y0), (y1 - y0, x1 - x0)) > 0)
        um_px_xy = finest.um_px_xy
    return _feret(inside_HW, um_px_xy)


def _feret(inside_HW: NDArray[np.bool_], um_px_xy: Pair) -> float:
    """Largest distance between corners of True px, um."""
    rows = np.flatnonzero(inside_HW.any(axis=1))
    part = inside_HW[rows]
    first, last = part.argmax(axis=1), part.shape[1] - part[:, ::-1].argmax(axis=1)
    # Only the outermost corners of each row, above and below.
    corners = np.concatenate([np.stack([x, y], axis=1) for x in (first, last) for y in (rows, rows + 1)])
    hull = shapely.convex_hull(shapely.multipoints(corners * np.asarray(um_px_xy)))
    points = shapely.get_coordinates(hull)
    return max(float(np.hypot(*(points - point).T).max()) for point in points)
