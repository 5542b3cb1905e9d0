"""What cannot be learnt from: glass, pen marks and tissue out of focus, told apart by cheap tests.

Shapes: H, W patch rows and columns; C = 3 channels (RGB, uint8). Thresholds were set on real H&E (CAMELYON16, TCGA,
Aperio) at 0.25 to 2 um/px, sharp and blurred by 1 to 4 um; see tests/single/test_quality.py.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

BLANK, PEN, BLURRED = "blank", "pen", "blurred"
REASONS = (BLANK, PEN, BLURRED)

# Grey levels; below this in every channel a patch shows no tissue (rule of SURF's sampler).
BLANK_STD = 15.0
# Standard deviation over tissue of the Laplacian by that of the grey levels, per um/px: pale stains count as others do.
# Measured at 0.5, 1 and 2 um/px: sharp tissue at least 1.17, 1.15 and 0.94 of three laboratories; the same
# tissue blurred by a Gaussian of 1.5 um at most 0.28, 0.48 and 0.55.
BLURRED_SHARE = 0.6
FOCUS_UM_PX = 0.5, 2.0  # finer patches are reduced to the first; coarser than the second shows nothing of the focus
GLASS_GREY = 225  # brighter is glass, where nothing can be sharp
MIN_TISSUE_PX = 64
# Share of a patch in the colour of a marker; stained nuclei and blood reach 0.05.
PEN_SHARE = 0.1
COLOUR_PX = 128  # colours are judged on so many rows and columns, evenly spaced: 16,384 px tell shares to 0.5 %
FOCUS_PX = 512  # focus on so many in the middle, where the draw aimed: a decode takes 12 ms, the whole patch would 6
# Hue (0..179) from and to, least saturation (0..255): green, blue, red (both sides of 0). Haematoxylin's hue is above
# 121; eosin and blood are less saturated than 140.
_MARKERS = ((35, 89, 60), (90, 121, 90), (173, 179, 140), (0, 8, 140))
_BLACK_VALUE, _BLACK_SATURATION = 60, 80


def is_blank(image_HWC: NDArray[np.uint8]) -> bool:
    """True where no colour channel varies by `BLANK_STD` grey levels: glass, not tissue."""
    _, std_C1 = cv2.meanStdDev(_spread(image_HWC))
    return bool(std_C1.max() < BLANK_STD)


def has_pen(image_HWC: NDArray[np.uint8]) -> bool:
    """True where at least `PEN_SHARE` of the patch has the colour of a marker pen: green, blue, red or black."""
    hsv_HWC = cv2.cvtColor(_spread(image_HWC), cv2.COLOR_RGB2HSV)
    ranges = [((first, saturation, 0), (last, 255, 255)) for first, last, saturation in _MARKERS]
    ranges.append(((0, 0, 0), (179, _BLACK_SATURATION, _BLACK_VALUE)))
    # No pixel is in two of them: black is less saturated than any marker.
    marked = sum(cv2.countNonZero(cv2.inRange(hsv_HWC, low, high)) for low, high in ranges)
    return marked >= PEN_SHARE * hsv_HWC.shape[0] * hsv_HWC.shape[1]


def _spread(image_HWC: NDArray[np.uint8]) -> NDArray[Any]:
    """At least `COLOUR_PX` rows and columns of a larger patch, evenly spaced."""
    height, width = (size // max(1, size // COLOUR_PX) for size in image_HWC.shape[:2])
    if (height, width) == image_HWC.shape[:2]:
        return image_HWC
    return cv2.resize(image_HWC, (width, height), interpolation=cv2.INTER_NEAREST)


def is_blurred(image_HWC: NDArray[np.uint8], um_px: float) -> bool:
    """True where neighbouring pixels of tissue hardly differ: out of focus. Coarse patches are never told so."""
    if um_px > FOCUS_UM_PX[1]:
        return False
    rows, columns = (slice(max(0, (size - FOCUS_PX) // 2), (size + FOCUS_PX) // 2) for size in image_HWC.shape[:2])
    grey_HW = cv2.cvtColor(image_HWC[rows, columns], cv2.COLOR_RGB2GRAY)
    factor = max(1, round(FOCUS_UM_PX[0] / um_px))
    if factor > 1:
        size_xy = grey_HW.shape[1] // factor, grey_HW.shape[0] // factor
        grey_HW = cv2.resize(grey_HW, size_xy, interpolation=cv2.INTER_AREA)
    tissue_HW = cv2.threshold(grey_HW, GLASS_GREY - 1, 1, cv2.THRESH_BINARY_INV)[1]
    if cv2.countNonZero(tissue_HW) < MIN_TISSUE_PX:
        return False
    _, steps_11 = cv2.meanStdDev(cv2.Laplacian(grey_HW, cv2.CV_16S), mask=tissue_HW)
    _, levels_11 = cv2.meanStdDev(grey_HW, mask=tissue_HW)
    return bool(steps_11[0, 0] < BLURRED_SHARE * um_px * factor * levels_11[0, 0])


def fault(image_HWC: NDArray[np.uint8], um_px: float, judge: bool = True) -> str | None:
    """Return what is wrong with a patch, one of `REASONS`, or None.

    Args:
        image_HWC: patch.
        um_px: its spacing, um per px.
        judge: look for pen marks and blur, too; else only for glass.
    """
    if is_blank(image_HWC):
        return BLANK
    if not judge:
        return None
    if has_pen(image_HWC):
        return PEN
    if is_blurred(image_HWC, um_px):
        return BLURRED
    return None
