"""Truth beside prediction: two small pictures of a slide, with lesions that were missed marked.

H rows, W columns of a picture (or of a coarser grid that is drawn on it), C = 3 channels (RGB, uint8).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from slides.filled import least_side, read_or_fill
from slides.geometry import Window, lv_from_l0
from slides.reader import Slide

# Longer side of a picture.
SIDE_PX = 640
LINE_PX, HALO_PX = 2, 4
# A missed lesion has a ring around it that shows where a speck would not.
RING_PX = 12
DETECTION_PX = 4
# Sub-px places of OpenCV's lines: 1 / 16 px.
SHIFT = 4

Mask = NDArray[np.bool_]
Picture = NDArray[np.uint8]
Rgb = tuple[int, int, int]

# Okabe and Ito's colors, which nearly everybody can distinguish.
FOUND: Rgb = (0, 158, 115)
MISSED: Rgb = (213, 30, 0)
ITC: Rgb = (204, 121, 167)
IGNORED: Rgb = (120, 120, 120)
PREDICTED: Rgb = (0, 114, 178)
FALSE: Rgb = (230, 159, 0)


@dataclass(frozen=True)
class Scene:
    """What is drawn, on one grid over the slide.

    Attributes:
        grid: the grid, from level-0 (0, 0) on.
        true_HW: whether there is tumor.
        ignored_HW: whether the truth is unknown.
        predicted_HW: whether tumor was predicted.
        lesion_HW: 0, or the lesion (1 .. L) that a place belongs to.
        missed: lesions without a hit.
        itc: lesions that are isolated tumor cells.
        hits_xy_l0, false_xy_l0: detections on lesions, and false ones, level-0 px, (D, 2).
    """

    grid: Window
    true_HW: Mask
    ignored_HW: Mask
    predicted_HW: Mask
    lesion_HW: NDArray[np.int32]
    missed: NDArray[np.int64]
    itc: NDArray[np.int64]
    hits_xy_l0: NDArray[np.float64]
    false_xy_l0: NDArray[np.float64]


def window_of(slide: Slide, side_px: int = SIDE_PX) -> Window:
    """Return the window of a picture of the whole slide; small slides are not enlarged."""
    width, height = slide.size_xy_l0
    step = max(1.0, max(width, height) / side_px)
    return Window((0.0, 0.0), (max(1, round(height / step)), max(1, round(width / step))), (step, step))


def beside(slide: Slide, window: Window, scene: Scene) -> tuple[Picture, Picture]:
    """Draw truth and prediction.

    Args:
        slide: the slide; white where it cannot be read.
        window: the pictures, from `window_of`.
        scene: what is drawn.

    Returns:
        The picture of the truth and that of the prediction.
    """
    image_HWC, _, _ = read_or_fill(slide.read, window, least_side(slide, window))
    truth_HWC, predicted_HWC = image_HWC.copy(), image_HWC.copy()
    missed_HW = scene.true_HW & np.isin(scene.lesion_HW, scene.missed)
    itc_HW = scene.true_HW & np.isin(scene.lesion_HW, scene.itc)
    _outline(truth_HWC, scene.ignored_HW, scene.grid, window, IGNORED)
    _outline(truth_HWC, scene.true_HW & ~missed_HW & ~itc_HW, scene.grid, window, FOUND)
    _outline(truth_HWC, itc_HW, scene.grid, window, ITC)
    _outline(truth_HWC, missed_HW, scene.grid, window, MISSED)
    _rings(truth_HWC, np.where(missed_HW, scene.lesion_HW, 0), scene.grid, window)
    _outline(predicted_HWC, scene.predicted_HW, scene.grid, window, PREDICTED)
    for places_D2, color in ((scene.hits_xy_l0, FOUND), (scene.false_xy_l0, FALSE)):
        _dots(predicted_HWC, places_D2, window, color)
    return truth_HWC, predicted_HWC


def _outline(image_HWC: Picture, mask_HW: Mask, grid: Window, window: Window, color: Rgb) -> None:
    """Draw the outlines of a mask in place, with a white border so that they stand out on any color."""
    contours, _ = cv2.findContours(mask_HW.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    rings = []
    for contour in contours:
        # OpenCV's integer coordinates are centers of px, ours are their corners.
        xy_l0 = (contour[:, 0].astype(np.float64) + 0.5) * grid.step_xy_l0
        rings.append(_places(xy_l0, window))
    for rgb, thickness in (((255, 255, 255), HALO_PX), (color, LINE_PX)):
        cv2.polylines(image_HWC, rings, True, rgb, thickness, cv2.LINE_AA, SHIFT)


def _rings(image_HWC: Picture, lesion_HW: NDArray[np.int32], grid: Window, window: Window) -> None:
    """Draw a ring around every lesion of a map, in place."""
    for lesion in np.unique(lesion_HW[lesion_HW > 0]).tolist():
        rows, columns = np.nonzero(lesion_HW == lesion)
        ends = np.array([[columns.min(), rows.min()], [columns.max() + 1, rows.max() + 1]], np.float64)
        (left, top), (right, bottom) = lv_from_l0(ends * grid.step_xy_l0, window.step_xy_l0)
        center = np.array([(left + right) / 2, (top + bottom) / 2])
        radius = max(RING_PX, np.hypot(right - left, bottom - top) / 2 + HALO_PX)
        at = np.rint((center - 0.5) * 2**SHIFT).astype(int)
        for rgb, thickness in (((255, 255, 255), HALO_PX), (MISSED, LINE_PX)):
            cv2.circle(
                image_HWC, (int(at[0]), int(at[1])), round(radius * 2**SHIFT), rgb, thickness, cv2.LINE_AA, SHIFT
            )


def _dots(image_HWC: Picture, xy_l0: NDArray[np.float64], window: Window, color: Rgb) -> None:
    """Draw detections in place, the first (best) ones on top."""
    for place in _places(xy_l0, window)[::-1].tolist():
        for rgb, radius in (((255, 255, 255), DETECTION_PX + 1), (color, DETECTION_PX)):
            cv2.circle(image_HWC, (place[0], place[1]), radius << SHIFT, rgb, -1, cv2.LINE_AA, SHIFT)


def _places(xy_l0: NDArray[np.float64], window: Window) -> NDArray[np.int32]:
    """Return places (level-0 px) as OpenCV's fixed-point px of a picture."""
    places: NDArray[np.int32] = np.rint((lv_from_l0(xy_l0, window.step_xy_l0) - 0.5) * 2**SHIFT).astype(np.int32)
    return places
