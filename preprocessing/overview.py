"""Slides as a whole: small pictures with outlines, and masks of cells such as tissue.

Tensor legend: H rows, W columns, C = 3 (RGB).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray

from preprocessing import store
from preprocessing.patch_writers import png
from slides.geometry import Window
from slides.reader import Slide
from slides.tiff.tags import read_pages
from slides.tissue import fewer_cells

OVERVIEW_PX = 1024  # longer side of the pictures
TILE = 256


def cell_side_l0(slide: Slide, um_px: float) -> int:
    """Side of a cell in whole level-0 px, close to `um_px` micrometers; larger if there would be too many cells."""
    return fewer_cells(slide, max(1, round(um_px / max(slide.um_px_xy_l0))))


def overview(slide: Slide, longer: int = OVERVIEW_PX) -> tuple[NDArray[np.uint8], float]:
    """Return a small rgb_HWC of the whole slide and its step, level-0 px per px.

    Args:
        slide: the slide.
        longer: longer side of the picture, px.
    """
    step = max(1.0, max(slide.size_xy_l0) / longer)
    rows, columns = (max(1, math.ceil(size / step)) for size in reversed(slide.size_xy_l0))
    return slide.read(Window((0.0, 0.0), (rows, columns), (step, step))), step


def draw_outline(
    picture_HWC: NDArray[np.uint8],
    cells_HW: NDArray[np.bool_],
    cells_per_px: float,
    color: Sequence[int],
    width: int = 2,
) -> None:
    """Draw the outlines of True cells into a picture.

    Args:
        picture_HWC: modified in place.
        cells_HW: cell [r, c] starts at px (c / cells_per_px, r / cells_per_px).
        cells_per_px: cells per px of the picture.
        color: channels in the order of the picture.
        width: width of the line, px.
    """
    seen_HW = cells_HW.astype(np.uint8)
    if cells_per_px > 1:
        # Cells narrower than a px of the picture must not fall between the sampled ones.
        seen_HW = cv2.dilate(seen_HW, np.ones((int(cells_per_px),) * 2, np.uint8)).astype(np.uint8)
    row, column = (
        np.minimum(((np.arange(px) + 0.5) * cells_per_px).astype(np.int64), cells - 1)
        for px, cells in zip(picture_HWC.shape[:2], cells_HW.shape, strict=True)
    )
    scaled_HW = np.ascontiguousarray(seen_HW[row][:, column])
    contours, _ = cv2.findContours(scaled_HW, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture_HWC, contours, -1, tuple(color), width)


def write_png(path: Path, rgb_HWC: NDArray[np.uint8]) -> None:
    """Write a picture as PNG.

    Raises:
        OSError: the file could not be written.
    """
    store.write_bytes(path, png(rgb_HWC))


def write_cells(path: Path, cells_HW: NDArray[np.bool_], um_px: float) -> None:
    """Write cells as a tiled one-channel TIFF of 0 and 255, with their spacing (um per px) in its tags.

    Raises:
        OSError: the file could not be written.
    """
    memory = BytesIO()
    per_cm = 10_000 / um_px
    tifffile.imwrite(
        memory, cells_HW.astype(np.uint8) * 255, photometric="minisblack", tile=(TILE, TILE), compression="zlib",
        resolution=(per_cm, per_cm), resolutionunit="centimeter", metadata=None, software=False,
    )  # fmt: skip
    store.write_bytes(path, memory.getvalue())


def read_cells(path: Path, slide: Slide) -> tuple[NDArray[np.bool_], int]:
    """Read cells written by `write_cells` (every value but 0 is True), and their side in level-0 px.

    Raises:
        ValueError: the file is missing or damaged, or belongs to another slide or spacing.
    """
    try:
        page = read_pages(path)[0]
        cells_HW: NDArray[np.bool_] = tifffile.imread(path, key=0) > 0
    except (OSError, ValueError, tifffile.TiffFileError) as error:
        raise ValueError(
            f"tissue mask {path} cannot be read: {error}; run the step tissue with the same --out"
        ) from error
    width, height = slide.size_xy_l0
    cell_l0 = 0 if page.um_px_xy is None else round(page.um_px_xy[0] / max(slide.um_px_xy_l0))
    if cell_l0 < 1 or cells_HW.shape != (-(-height // cell_l0), -(-width // cell_l0)):
        raise ValueError(
            f"tissue mask {path} of {cells_HW.shape} rows and columns does not cover slide {slide.path} of {width} x "
            f"{height} px; run the step tissue with the same --out and --mpp"
        )
    return cells_HW, cell_l0
