"""Patches to learn nothing from: glass, pen marks and tissue out of focus, found by cheap tests.

Shapes: H, W patch rows and columns; C = 3 channels (RGB, uint8). Thresholds were set on real H&E (CAMELYON16, TCGA,
Aperio) at 0.25 to 2 um/px, sharp and blurred by 1 to 4 um; see tests/unit/samplers/test_quality.py.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from slides.artefacts import has_pen, is_blank

BLANK, PEN, BLURRED = "blank", "pen", "blurred"
REASONS = (BLANK, PEN, BLURRED)

# Standard deviation over tissue of the Laplacian by that of the gray levels, per um/px: pale stains count as others do.
# Measured at 0.5, 1 and 2 um/px: sharp tissue at least 1.17, 1.15 and 0.94 of three laboratories; the same
# tissue blurred by a Gaussian of 1.5 um at most 0.28, 0.48 and 0.55.
BLURRED_SHARE = 0.6
FOCUS_UM_PX = 0.5, 2.0  # finer patches are reduced to the first; coarser than the second shows nothing of the focus
GLASS_GRAY = 225  # brighter px are glass, where nothing can be sharp
MIN_TISSUE_PX = 64
# Side of the square in the middle that is judged, where the draw aimed: the whole patch would add 6 ms to the 12 ms of
# decoding.
FOCUS_PX = 512


def is_blurred(image_HWC: NDArray[np.uint8], um_px: float) -> bool:
    """Return whether neighboring pixels of tissue hardly differ: out of focus. Never true for coarse patches."""
    if um_px > FOCUS_UM_PX[1]:
        return False
    rows, columns = (slice(max(0, (size - FOCUS_PX) // 2), (size + FOCUS_PX) // 2) for size in image_HWC.shape[:2])
    gray_HW = cv2.cvtColor(image_HWC[rows, columns], cv2.COLOR_RGB2GRAY)
    factor = max(1, round(FOCUS_UM_PX[0] / um_px))
    if factor > 1:
        size_xy = gray_HW.shape[1] // factor, gray_HW.shape[0] // factor
        gray_HW = cv2.resize(gray_HW, size_xy, interpolation=cv2.INTER_AREA)
    tissue_HW = cv2.threshold(gray_HW, GLASS_GRAY - 1, 1, cv2.THRESH_BINARY_INV)[1]
    if cv2.countNonZero(tissue_HW) < MIN_TISSUE_PX:
        return False
    _, steps_11 = cv2.meanStdDev(cv2.Laplacian(gray_HW, cv2.CV_16S), mask=tissue_HW)
    _, levels_11 = cv2.meanStdDev(gray_HW, mask=tissue_HW)
    return bool(steps_11[0, 0] < BLURRED_SHARE * um_px * factor * levels_11[0, 0])


def fault(image_HWC: NDArray[np.uint8], um_px: float, judge: bool = True) -> str | None:
    """Return what is wrong with a patch, one of `REASONS`, or None.

    Args:
        image_HWC: the patch.
        um_px: its spacing, um per px.
        judge: also look for pen marks and blur; else only for glass.
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
