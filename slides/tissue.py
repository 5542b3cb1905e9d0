"""Where tissue is on a thumbnail. Tensor legend: H rows, W columns, C = 3 channels (RGB, uint8)."""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from options.choices import TISSUE_METHODS
from slides.artefacts import pen_px
from slides.geometry import Window
from slides.reader import Slide

# HSV saturation (0..255) of stained tissue; glass and JPEG noise stay below it.
MIN_SATURATION = 18
# HSV value: darker is a scanner's black border or an unstained (fluorescence) slide; brighter and pale is glass.
MIN_VALUE = 30
# Brightfield slides are bright on glass: 0.38 of the cells and more on our slides of three scanners and on 40
# overviews of CAMELYON16, where at most 0.01 are dark; on a DAPI slide 0.75 are dark and none is bright.
DARK_VALUE, DARK_SHARE = 60, 0.5  # largest channel, 0..255
BRIGHT_VALUE, BRIGHT_SHARE = 120, 0.02  # smallest channel
NOT_BRIGHTFIELD = "not a brightfield slide (dark, without bright glass, as fluorescence is): no tissue is looked for"
MEDIAN_UM = 12.0
CLOSE_UM = 60.0
OPEN_UM = 30.0
# What stays below this area after closing and opening is dust, um2.
MIN_AREA_UM2 = 10_000.0
# Otsu's threshold goes no lower: on a slide without tissue it would part the noise of the glass in two.
LEAST_OTSU = 8
# A pen mark is at least so large; a line of nuclei or a fold of that color is smaller. Its pale rim goes with it.
PEN_AREA_UM2 = 40_000.0
PEN_OPEN_UM = 20.0
PEN_RIM_UM = 60.0
MAX_CELLS = 64_000_000  # of a slide seen in cells; a larger slide gets larger ones
BAND_ROWS = 512  # rows of cells per read: bounds memory whatever the slide's size


def fewer_cells(slide: Slide, side_l0: int) -> int:
    """Return `side_l0`, or a larger side of cells (level-0 px) where the slide would have more than `MAX_CELLS`."""
    width, height = slide.size_xy_l0
    cells = (width / side_l0) * (height / side_l0)
    return side_l0 if cells <= MAX_CELLS else math.ceil(side_l0 * math.sqrt(cells / MAX_CELLS))


def in_cells(slide: Slide, cell_l0: int) -> NDArray[np.uint8]:
    """Return rgb_HWC of the whole slide, a px per cell, ceil(size / cell_l0) a side; white beyond its border.

    Raises:
        SlideError: The slide could not be read.
    """
    width, height = slide.size_xy_l0
    rows, columns = -(-height // cell_l0), -(-width // cell_l0)
    rgb_HWC = np.empty((rows, columns, 3), np.uint8)
    for top in range(0, rows, BAND_ROWS):
        count = min(BAND_ROWS, rows - top)
        window = Window((0.0, float(top * cell_l0)), (count, columns), (float(cell_l0), float(cell_l0)))
        rgb_HWC[top : top + count] = slide.read(window)
    return rgb_HWC


def cells_mm2(cells_HW: NDArray[np.bool_], cell_l0: int, slide: Slide) -> float:
    """Return the area of the slide (mm2) that the True cells cover; the last row and column may reach beyond it.

    Args:
        cells_HW: cells of the slide, as `in_cells` has them.
        cell_l0: side of a cell, level-0 px.
        slide: the slide.
    """
    width_mm, height_mm = (
        np.clip(size - np.arange(cells) * cell_l0, 0, cell_l0) * um_px / 1000
        for size, cells, um_px in zip(slide.size_xy_l0, reversed(cells_HW.shape), slide.um_px_xy_l0, strict=True)
    )
    # Row by row: as floats, all cells would take eight times their memory.
    return float(sum(height * width_mm[row].sum() for height, row in zip(height_mm, cells_HW, strict=True)))


def is_brightfield(rgb_HWC: NDArray[np.uint8]) -> bool:
    """False for a slide on black: fluorescence, darkfield. A scanner's black borders alone do not make a slide dark.

    Args:
        rgb_HWC: Thumbnail of the whole slide; the last row and column, partly beyond the slide, are not looked at.
    """
    inner_HWC = rgb_HWC[: max(1, rgb_HWC.shape[0] - 1), : max(1, rgb_HWC.shape[1] - 1)]
    dark = float((inner_HWC.max(axis=2) < DARK_VALUE).mean())
    bright = float((inner_HWC.min(axis=2) >= BRIGHT_VALUE).mean())
    return dark < DARK_SHARE or bright >= BRIGHT_SHARE


def tissue_mask(rgb_HWC: NDArray[np.uint8], um_px: float, method: str = "hsv") -> NDArray[np.bool_]:
    """Return tissue_HW: where stained tissue is.

    Threshold on saturation, median against noise, closing over fat and lumina, opening against dust; sizes are in
    micrometers, so the answer hardly depends on the level the thumbnail came from. Meant for 2 to 32 um/px. Holes of
    glass wider than `CLOSE_UM` stay holes. Pen marks are not told from tissue: see `pen_marks`. A slide that is not
    brightfield (`is_brightfield`) has no tissue, whatever the method: a haze of fluorescence would count as stained.

    Args:
        rgb_HWC: Thumbnail.
        um_px: Micrometers per px of the thumbnail.
        method: `hsv`, the same threshold for all slides; or `otsu`, the threshold that parts this thumbnail's
            saturations best, for stains that the fixed one does not fit.

    Raises:
        ValueError: Another method.
    """
    if method not in TISSUE_METHODS:
        raise ValueError(f"tissue method {method!r} is unknown; allowed are {', '.join(TISSUE_METHODS)}")
    if not is_brightfield(rgb_HWC):
        return np.zeros(rgb_HWC.shape[:2], bool)
    hsv_HWC = cv2.cvtColor(np.ascontiguousarray(rgb_HWC), cv2.COLOR_RGB2HSV)
    saturation, value = hsv_HWC[..., 1], hsv_HWC[..., 2]
    bright = value >= MIN_VALUE
    least = MIN_SATURATION if method == "hsv" else _otsu(saturation[bright])
    stained: NDArray[np.integer[Any] | np.floating[Any]]
    stained = ((saturation >= least) & bright).astype(np.uint8)
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


def pen_marks(rgb_HWC: NDArray[np.uint8], um_px: float) -> NDArray[np.bool_]:
    """Return pen_HW: marks of a pen and their rims, which `tissue_mask` takes for tissue.

    Args:
        rgb_HWC: Thumbnail.
        um_px: Micrometers per px of the thumbnail.
    """
    marked = pen_px(rgb_HWC).astype(np.uint8)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (_odd(PEN_OPEN_UM / um_px),) * 2)
    marked = cv2.morphologyEx(marked, cv2.MORPH_OPEN, kernel).astype(np.uint8)
    _, group_HW, stats, _ = cv2.connectedComponentsWithStats(marked, connectivity=8)
    large = stats[:, cv2.CC_STAT_AREA] * um_px**2 >= PEN_AREA_UM2
    large[0] = False
    rim = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (_odd(2 * PEN_RIM_UM / um_px),) * 2)
    pen_HW: NDArray[np.bool_] = cv2.dilate(large[group_HW].astype(np.uint8), rim) > 0
    return pen_HW


def _otsu(saturation: NDArray[Any]) -> int:
    """Least saturation of tissue by Otsu's rule, at least `LEAST_OTSU`."""
    if not saturation.size:
        return LEAST_OTSU
    # OpenCV's threshold is the largest value of the lower class.
    threshold, _ = cv2.threshold(saturation.reshape(1, -1), 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    return max(LEAST_OTSU, int(threshold) + 1)


def _odd(size: float) -> int:
    """Nearest odd number of px, at least 1."""
    return max(1, 2 * int(size // 2) + 1)
