"""Where tissue is on a thumbnail. Tensor legend: H rows, W columns, C = 3 channels (RGB, uint8)."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

# HSV saturation (0..255) of stained tissue; glass and JPEG noise stay below it.
MIN_SATURATION = 18
# HSV value: darker is a scanner's black border or an unstained (fluorescence) slide; brighter and pale is glass.
MIN_VALUE = 30
MEDIAN_UM = 12.0
CLOSE_UM = 60.0
OPEN_UM = 30.0
# What stays below this area after closing and opening is dust, um2.
MIN_AREA_UM2 = 10_000.0


def tissue_mask(rgb_HWC: NDArray[np.uint8], um_px: float) -> NDArray[np.bool_]:
    """Return tissue_HW: where stained tissue is.

    HSV threshold, median against noise, closing over fat and lumina, opening against dust; sizes are in micrometres,
    so the answer hardly depends on the level the thumbnail came from. Meant for 2 to 32 um/px. Holes of glass wider
    than `CLOSE_UM` stay holes. Pen marks are not told from tissue.

    Args:
        rgb_HWC: Thumbnail.
        um_px: Micrometres per px of the thumbnail.
    """
    hsv_HWC = cv2.cvtColor(np.ascontiguousarray(rgb_HWC), cv2.COLOR_RGB2HSV)
    saturation, value = hsv_HWC[..., 1], hsv_HWC[..., 2]
    stained: NDArray[np.integer[Any] | np.floating[Any]]
    stained = ((saturation >= MIN_SATURATION) & (value >= MIN_VALUE)).astype(np.uint8)
    # An 8-bit median of OpenCV takes any odd width; 1 leaves the image as it is.
    stained = cv2.medianBlur(stained, min(_odd(MEDIAN_UM / um_px), 255))
    for operation, um in ((cv2.MORPH_CLOSE, CLOSE_UM), (cv2.MORPH_OPEN, OPEN_UM)):
        side = _odd(um / um_px)
        if side > 1:
            kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
            # Closing near the border must not lose tissue there: pad with the border's own px.
            padded = cv2.copyMakeBorder(stained, side, side, side, side, cv2.BORDER_REPLICATE)
            stained = cv2.morphologyEx(padded, operation, kernel)[side:-side, side:-side]
    count, group_HW, stats, _ = cv2.connectedComponentsWithStats(stained, connectivity=8)
    large = stats[:, cv2.CC_STAT_AREA] * um_px**2 >= MIN_AREA_UM2
    large[0] = False
    assert large.size == count
    tissue_HW: NDArray[np.bool_] = large[group_HW]
    return tissue_HW


def _odd(size: float) -> int:
    """Nearest odd number of px, at least 1."""
    return max(1, 2 * int(size // 2) + 1)
