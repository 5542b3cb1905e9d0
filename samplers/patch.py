"""From a request for a place to its pixels: the only reader of pixels among the samplers.

Shapes: H, W patch rows and columns; C = 3 colour channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from slides.geometry import Window, shifted_inside
from slides.reader import Slide
from slides.truth import Truth

BLANK_STD = 15.0  # grey levels; below this in every channel a patch shows no tissue (rule of SURF's sampler)
STREAM, HARD, GRID = "stream", "hard", "grid"
ORIGINS = (STREAM, HARD, GRID)


@dataclass(frozen=True)
class PatchRequest:
    """A place to look at, before any pixel is read.

    Attributes:
        index: position in the endless training stream, or in the validation grid.
        attempt: 0 for the first draw of this index, n for its n-th redraw.
        slide: position of the slide in the list of cases.
        cls: class that the draw aimed at; -1 where the place was not drawn for a class (grid).
        center_xy_l0: centre of the patch, level-0 px.
        origin: who asked: `stream` (a sampler), `hard` (the hard-mining pool) or `grid` (validation).
    """

    index: int
    attempt: int
    slide: int
    cls: int
    center_xy_l0: tuple[float, float]
    origin: str = STREAM


@dataclass(frozen=True)
class Patch:
    """Pixels and truth of one request.

    Attributes:
        request: the request that was read (of the accepted attempt).
        window: where the pixels come from; its centre differs from the request's where it was shifted inside.
        image_HWC: uint8 RGB, white outside the slide.
        label_HW: uint8 class per pixel, 255 = ignore.
    """

    request: PatchRequest
    window: Window
    image_HWC: NDArray[np.uint8]
    label_HW: NDArray[np.uint8]


class NotYetError(Exception):
    """A request that depends on training which has not happened yet: ask again later."""


class RequestSource(Protocol):
    """A sampler: a pure function from (index, attempt) to a request."""

    max_redraws: int

    def request(self, index: int, attempt: int = 0) -> PatchRequest:
        """The place to look at for this index; `NotYetError` where only later training decides it."""
        ...


class PatchReader:
    """Reads requests at one field of view.

    Args:
        slides: one per case, in the order that `PatchRequest.slide` counts.
        truths: truth of each slide, same order.
        img_size: side of the square patch, output px.
        um_px: spacing of the patch, um per px.
    """

    def __init__(self, slides: Sequence[Slide], truths: Sequence[Truth], img_size: int, um_px: float) -> None:
        self.slides = slides
        self.truths = truths
        self.img_size = img_size
        self.um_px = um_px

    def window(self, request: PatchRequest) -> Window:
        """Window of a request: centred on it, and for drawn places moved inside the slide where it fits.

        Grid windows are not moved: each validation pixel must be counted once.
        """
        slide = self.slides[request.slide]
        window = slide.window(request.center_xy_l0, (self.img_size, self.img_size), self.um_px)
        return window if request.origin == GRID else shifted_inside(window, slide.size_xy_l0)

    def read(self, request: PatchRequest) -> Patch:
        """Pixels and truth of a request, cut from the same window.

        Raises:
            SlideError: the slide or its truth cannot be read there; the message names both.
        """
        window = self.window(request)
        image_HWC = self.slides[request.slide].read(window)
        return Patch(request, window, image_HWC, self.truths[request.slide].label(window))


def is_blank(image_HWC: NDArray[np.uint8]) -> bool:
    """True where no colour channel varies by `BLANK_STD` grey levels: glass, not tissue."""
    _, std_C1 = cv2.meanStdDev(image_HWC)
    return bool(std_C1.max() < BLANK_STD)


def draw(source: RequestSource, reader: PatchReader, index: int) -> Patch:
    """The patch of a stream index, redrawn while near-blank, at most `source.max_redraws` times.

    The last draw is kept whatever it shows (`request.attempt == max_redraws` marks it), so that no index is lost
    and the result depends on (seed, index) alone.
    """
    for attempt in range(source.max_redraws):
        patch = reader.read(source.request(index, attempt))
        if not is_blank(patch.image_HWC):
            return patch
    return reader.read(source.request(index, source.max_redraws))
