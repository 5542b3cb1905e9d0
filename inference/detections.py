"""Detections for FROC: the best places of a probability map, no two close together.

Tensor legend: H rows, W columns of one level of the map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from inference.maps import MapLevel, MapPyramid
from slides.geometry import Pair, Points, l0_from_lv
from system.atomic_files import write_bytes

# A tumor cell is 10 to 20 um wide: a level of about half a cell, smoothed over about one cell.
UM_PX = 8.0
SMOOTH_UM = 10.0
# FROC covers all thresholds and a slide's score is its best detection: doubtful places are ranked, not dropped.
MIN_PROBABILITY = 0.1
# CAMELYON16 joins foci closer than 75 um into one lesion; two hits so close would be one.
RADIUS_UM = 75.0
MAX_DETECTIONS = 1000
# Probabilities are kept as 16-bit numbers; 255 becomes the largest.
SCALE = 257


@dataclass(frozen=True)
class DetectionOptions:
    """Parameters of detections.

    Attributes:
        um_px: approximate spacing of the searched level.
        smooth_um: standard deviation of the Gaussian, um; 0 for none.
        min_probability: lowest smoothed probability, more than 0.
        radius_um: if two places are at most this far apart, only the better one is kept.
        max_detections: largest number of detections of a slide.
    """

    um_px: float = UM_PX
    smooth_um: float = SMOOTH_UM
    min_probability: float = MIN_PROBABILITY
    radius_um: float = RADIUS_UM
    max_detections: int = MAX_DETECTIONS

    def __post_init__(self) -> None:
        """Refuse impossible values.

        Raises:
            ValueError: a value is out of range.
        """
        if not (self.um_px > 0 and self.smooth_um >= 0 and self.radius_um >= 0 and self.max_detections >= 1):
            raise ValueError(f"{self}: um_px must be > 0, smooth_um and radius_um >= 0, max_detections >= 1")
        if not 0 < self.min_probability <= 1:
            raise ValueError(f"min_probability {self.min_probability}: must be more than 0, at most 1")


@dataclass(frozen=True)
class Detection:
    """One place.

    Attributes:
        probability: smoothed tumor probability there, 0 to 1.
        xy_l0: center of its px of the searched level, level-0 px, on the slide.
    """

    probability: float
    xy_l0: Pair


def detections(
    probability: MapPyramid, size_xy_l0: tuple[int, int], options: DetectionOptions | None = None
) -> list[Detection]:
    """Find local maxima of the smoothed probability, then drop those near a better one.

    A maximum is a px, or a patch of equal px, that no neighbor of eight exceeds; of a patch the px nearest to its
    middle is taken. Greedy suppression: the best is kept, all within `radius_um` of it are dropped, and so on; of
    equals the first in reading order wins. Memory: some bytes per px of a level of at most 64 Mpx.

    Args:
        probability: the map.
        size_xy_l0: width and height of the slide, level-0 px.
        options: see `DetectionOptions`.

    Returns:
        Best first.
    """
    options = DetectionOptions() if options is None else options
    level = probability.nearest(options.um_px)
    smooth_HW = _smoothed(probability.whole(level), level, options.smooth_um)
    lowest = max(1, int(np.ceil(options.min_probability * 255 * SCALE - 1e-6)))
    rows, columns = _maxima(smooth_HW, lowest)
    values = smooth_HW[rows, columns].astype(np.int64)
    order = np.argsort(-values, kind="stable")
    xy_lv = np.stack([columns, rows], axis=1)[order] + 0.5
    kept = _apart(xy_lv * np.asarray(level.um_px_xy), options.radius_um, options.max_detections)
    # The last px may reach beyond the border, and its center too: half a level-0 px inside is the last place.
    xy_l0 = np.minimum(l0_from_lv(xy_lv[kept], level.step_xy_l0), np.asarray(size_xy_l0) - 0.5)
    best = values[order][kept] / (255 * SCALE)
    return [Detection(float(p), (float(x), float(y))) for p, (x, y) in zip(best, xy_l0, strict=True)]


def write_csv(path: Path, found: Sequence[Detection]) -> None:
    """Write `probability,x,y`; x and y are the column and the row, level-0 px.

    Args:
        path: file to write, completely or not at all.
        found: best first.
    """
    lines = [f"{item.probability:.6f},{item.xy_l0[0]:.1f},{item.xy_l0[1]:.1f}" for item in found]
    write_bytes(path, "\n".join(["probability,x,y", *lines, ""]).encode("ascii"))


def _smoothed(value_HW: NDArray[np.uint8], level: MapLevel, smooth_um: float) -> NDArray[np.uint16]:
    """Gaussian of a map, as 16-bit numbers: equal px stay exactly equal, which floats would not."""
    wide_HW = np.multiply(value_HW, SCALE, dtype=np.uint16)
    if smooth_um <= 0:
        return wide_HW
    sigma_x, sigma_y = (smooth_um / um for um in level.um_px_xy)
    # The kernel covers four standard deviations; beyond the border the last px is repeated.
    side_x, side_y = (2 * int(np.ceil(4 * sigma)) + 1 for sigma in (sigma_x, sigma_y))
    smooth_HW = cv2.GaussianBlur(wide_HW, (side_x, side_y), sigma_x, sigmaY=sigma_y, borderType=cv2.BORDER_REPLICATE)
    return np.asarray(smooth_HW, np.uint16)


def _maxima(smooth_HW: NDArray[np.uint16], lowest: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and columns of the local maxima of at least `lowest`, one of each patch of equal px, in reading order."""
    highest_HW = cv2.dilate(smooth_HW, np.ones((3, 3), np.uint8))  # beyond the border: nothing
    peak_HW = ((smooth_HW == highest_HW) & (smooth_HW >= lowest)).astype(np.uint8)
    del highest_HW
    count, group_HW = cv2.connectedComponents(peak_HW, connectivity=8)
    rows, columns = (axis.astype(np.int64) for axis in np.nonzero(peak_HW))
    group = group_HW[rows, columns]
    # A flat patch next to a higher px is not a maximum: only its px there are missing from `peak_HW`.
    flat = _rising(smooth_HW, peak_HW, group_HW, count)
    keep = ~flat[group]
    rows, columns, group = rows[keep], columns[keep], group[keep]
    px = np.maximum(np.bincount(group, minlength=count), 1)
    middle_row = np.bincount(group, rows, count) / px
    middle_column = np.bincount(group, columns, count) / px
    distance = np.hypot(rows - middle_row[group], columns - middle_column[group])
    order = np.lexsort((np.arange(group.size), distance, group))
    first = order[np.diff(group[order], prepend=-1) != 0]
    first = first[np.lexsort((columns[first], rows[first]))]
    return rows[first], columns[first]


def _rising(
    smooth_HW: NDArray[np.uint16], peak_HW: NDArray[np.uint8], group_HW: NDArray[np.int32], count: int
) -> NDArray[np.bool_]:
    """Which groups of px have an equal neighbor that itself has a higher one."""
    flat = np.zeros(count, np.bool_)
    height, width = smooth_HW.shape
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            ours = (
                slice(max(0, -down), height - max(0, down)),
                slice(max(0, -right), width - max(0, right)),
            )
            theirs = (
                slice(max(0, down), height - max(0, -down)),
                slice(max(0, right), width - max(0, -right)),
            )
            equal = (smooth_HW[ours] == smooth_HW[theirs]) & (peak_HW[ours] > 0) & (peak_HW[theirs] == 0)
            flat[np.unique(group_HW[ours][equal])] = True
    return flat


def _apart(xy_um: Points, radius_um: float, most: int) -> NDArray[np.int64]:
    """Which points to keep, given best first: none within the radius of a better one that is kept."""
    if not len(xy_um):
        return np.empty(0, np.int64)
    tree = cKDTree(xy_um)
    dropped = np.zeros(len(xy_um), np.bool_)
    kept: list[int] = []
    for number in range(len(xy_um)):
        if not dropped[number]:
            kept.append(number)
            if len(kept) == most:
                break
            dropped[tree.query_ball_point(xy_um[number], radius_um)] = True
    return np.asarray(kept, np.int64)
