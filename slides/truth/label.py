"""Values of a label: classes 0 to 254, and IGNORE. Tensor legend: H rows, W columns."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from slides.geometry import Window, pixel_centers_l0

# Files of outlines and masks.
MASK_SUFFIXES = (".tif", ".tiff", ".png")
OUTLINE_SUFFIXES = (".xml", ".geojson")
# Counted by no loss and no metric.
IGNORE = 255


def has_outlines(path: Path | None) -> bool:
    """Whether a label is a file of outlines (ASAP XML, QuPath GeoJSON), by its suffix."""
    return path is not None and path.suffix.lower() in OUTLINE_SUFFIXES


def check_classes(classes: Collection[int], option: str) -> None:
    """Refuse classes that a label cannot hold.

    Raises:
        ValueError: A class that is no integer from 0 to 255.
    """
    wrong = [cls for cls in classes if not 0 <= cls <= IGNORE or cls != int(cls)]
    if wrong:
        raise ValueError(f"{option}: classes {wrong}; allowed are 0 to 254, and 255 for areas to ignore")


def ignore_outside(label_HW: NDArray[np.uint8], window: Window, size_xy_l0: tuple[int, int]) -> NDArray[np.uint8]:
    """Set IGNORE where a pixel's center lies outside the slide; changes and returns `label_HW`."""
    x, y = pixel_centers_l0(window)
    label_HW[(y < 0) | (y >= size_xy_l0[1]), :] = IGNORE
    label_HW[:, (x < 0) | (x >= size_xy_l0[0])] = IGNORE
    return label_HW
