"""What is on a slide but no tissue: glass, black borders, pen marks. Cheap tests of a patch, and pen marks px by px.

Shapes: H, W rows and columns; C = 3 channels (RGB, uint8). Thresholds were set on real H&E (CAMELYON16, TCGA, Aperio)
at 0.25 to 2 um/px; see tests/unit/samplers/test_quality.py.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

# Gray levels; below this in every channel a patch shows no tissue (rule of SURF's sampler).
BLANK_STD = 15.0
# Share of a patch in the color of a marker; stained nuclei and blood reach 0.05.
PEN_SHARE = 0.1
# Share of a patch that is darker than any stain lets through: a scanner's border, a slide without transmitted light.
BLACK_SHARE = 0.5
BLACK_LEVEL = 30
COLOR_PX = 128  # colors are judged on this many rows and columns, evenly spaced: 16,384 px tell shares to 0.5 %
# Hue (0..179) from and to, least saturation (0..255): green, blue, red (both sides of 0). Haematoxylin's hue is above
# 121; eosin and blood are less saturated than 140.
_MARKERS = ((35, 89, 60), (90, 121, 90), (173, 179, 140), (0, 8, 140))
_BLACK_VALUE, _BLACK_SATURATION = 60, 80


def spread(image_HWC: NDArray[np.uint8]) -> NDArray[Any]:
    """Return the px (H, W, 3) that the tests look at: `COLOR_PX` or more rows and columns, evenly spaced.

    Its result is returned unchanged: to run several tests, spread a patch once and pass them that.
    """
    height, width = (size // max(1, size // COLOR_PX) for size in image_HWC.shape[:2])
    # n // (n // 128) is below 256 for every n, so that it is divided by 1 the next time.
    if (height, width) == image_HWC.shape[:2]:
        return image_HWC
    return cv2.resize(image_HWC, (width, height), interpolation=cv2.INTER_NEAREST)


def is_blank(image_HWC: NDArray[np.uint8]) -> bool:
    """True where no color channel varies by `BLANK_STD` gray levels: glass, not tissue."""
    _, std_C1 = cv2.meanStdDev(spread(image_HWC))
    return bool(std_C1.max() < BLANK_STD)


def is_black(image_HWC: NDArray[np.uint8]) -> bool:
    """True where at least `BLACK_SHARE` of the patch is below `BLACK_LEVEL` in every channel."""
    spread_HWC = spread(image_HWC)
    # OpenCV's count: twenty times faster than NumPy's maximum over three channels.
    dark = cv2.countNonZero(cv2.inRange(spread_HWC, (0, 0, 0), (BLACK_LEVEL - 1,) * 3))
    return bool(dark >= BLACK_SHARE * spread_HWC.shape[0] * spread_HWC.shape[1])


def has_pen(image_HWC: NDArray[np.uint8]) -> bool:
    """True where at least `PEN_SHARE` of the patch has the color of a marker pen: green, blue, red or black."""
    spread_HWC = spread(image_HWC)
    marked = cv2.countNonZero(pen_px(spread_HWC).view(np.uint8))
    return bool(marked >= PEN_SHARE * spread_HWC.shape[0] * spread_HWC.shape[1])


def pen_px(image_HWC: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return pen_HW: the px that have the color of a marker pen. Single px of nuclei and blood may have it, too."""
    hsv_HWC = cv2.cvtColor(np.ascontiguousarray(image_HWC), cv2.COLOR_RGB2HSV)
    ranges = [((first, saturation, 0), (last, 255, 255)) for first, last, saturation in _MARKERS]
    pen_HW = cv2.inRange(hsv_HWC, (0, 0, 0), (179, _BLACK_SATURATION, _BLACK_VALUE))
    for low, high in ranges:
        pen_HW = cv2.bitwise_or(pen_HW, cv2.inRange(hsv_HWC, low, high))
    marked_HW: NDArray[np.bool_] = pen_HW > 0
    return marked_HW
