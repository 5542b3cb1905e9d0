"""Slides with places that cannot be decoded: px there are white, and are counted, instead of losing the slide.

Tensor legend: H rows, W columns, C = 3 channels (RGB, uint8).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from slides.geometry import Pair, Window
from slides.reader import WHITE, Slide, SlideError

# Side of the smallest squares of a damaged window that are tried alone: px of the level that they are made from, and px
# of the window at least.
FILL_PX, LEAST_PX = 64, 4
MOST_FILLED = 0.5  # share of the px read; a slide with more is unreadable

Image = NDArray[np.uint8]


def read_or_fill(read: Callable[[Window], Image], window: Window, least: int = FILL_PX) -> tuple[Image, str, int]:
    """Read a window; squares of it that cannot be decoded are white.

    Args:
        read: `Slide.read` of a slide.
        window: the window.
        least: side of the squares, px.

    Returns:
        image_HWC; what could not be read, empty if everything was; number of white px instead.
    """
    try:
        return read(window), "", 0
    except SlideError as error:
        fault = str(error)
    height, width = window.hw_out
    image_HWC = np.full((height, width, 3), WHITE, np.uint8)
    if max(height, width) <= least:
        return image_HWC, fault, height * width
    (x, y), (step_x, step_y) = window.corner_xy_l0, window.step_xy_l0
    down, across = _half(height, least), _half(width, least)
    filled = 0
    for top, bottom in ((0, down), (down, height)):
        for left, right in ((0, across), (across, width)):
            if top < bottom and left < right:
                corner_xy_l0 = x + left * step_x, y + top * step_y
                part = Window(corner_xy_l0, (bottom - top, right - left), window.step_xy_l0)
                image_HWC[top:bottom, left:right], _, lost = read_or_fill(read, part, least)
                filled += lost
    return image_HWC, fault, filled


def least_side(slide: Slide, window: Window) -> int:
    """Side of the squares of a window that are worth trying alone, px: about `FILL_PX` of the level they come from."""
    downsample = slide.level_for(window.step_xy_l0).downsample_xy
    scale = max(step / down for step, down in zip(window.step_xy_l0, downsample, strict=True))
    return min(FILL_PX, max(LEAST_PX, math.ceil(FILL_PX / scale)))


def _half(side: int, least: int) -> int:
    """About half a side, in whole squares; all of it where it is one square."""
    return min(side, math.ceil(math.ceil(side / least) / 2) * least)


class FilledSlide(Slide):
    """A slide of which `read` gives white px where it cannot be decoded; belongs to one thread.

    Args:
        path: See `Slide`.
        um_px: See `Slide`.
    """

    def __init__(self, path: str | Path, um_px: float | Pair | None = None) -> None:
        super().__init__(path, um_px)
        self._first = ""
        self._read = self._filled = 0

    def read(self, window: Window) -> Image:
        """See `Slide.read`; never raises for damage."""
        image_HWC, fault, filled = read_or_fill(super().read, window, least_side(self, window))
        self._first = self._first or fault
        self._read += image_HWC.shape[0] * image_HWC.shape[1]
        self._filled += filled
        return image_HWC

    def damage(self) -> str:
        """What could not be decoded so far, as a message; empty if nothing.

        Raises:
            SlideError: More than half of the px could not.
        """
        if not self._first:
            return ""
        if self._filled > MOST_FILLED * self._read:
            raise SlideError(self._first)
        return (
            f"places that cannot be decoded are white ({self._filled / self._read:.2%} of the px read): {self._first}"
        )
