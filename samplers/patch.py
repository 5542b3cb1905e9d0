"""From a request for a place to its pixels: the only reader of pixels among the samplers.

Shapes: H, W patch rows and columns; C = 3 color channels, 6 with a context view.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from samplers import quality
from slides.geometry import Window, shifted_inside, window_centered
from slides.reader import Slide
from slides.stain import Normalization
from slides.truth.interface import Truth

UNREADABLE = "unreadable"
REASONS = (*quality.REASONS, UNREADABLE)  # why a draw was rejected
MAX_UNREADABLE = 10  # draws of one index that may be unreadable before the run stops
STREAM, HARD, GRID = "stream", "hard", "grid"
ORIGINS = (STREAM, HARD, GRID)


@dataclass(frozen=True)
class PatchRequest:
    """A place to look at, before any pixel is read.

    Attributes:
        index: position in the endless training stream, or in the validation grid.
        attempt: 0 for the first draw of this index, n for its n-th redraw.
        slide: position of the slide in the list of cases.
        cls: class that the draw aimed at; -1 if the place was not drawn for a class (grid).
        center_xy_l0: center of the patch, level-0 px.
        origin: `stream` (a sampler), `hard` (the hard-mining pool) or `grid` (validation).
        as_found: accept it whatever it shows: a place inside an annotation.
    """

    index: int
    attempt: int
    slide: int
    cls: int
    center_xy_l0: tuple[float, float]
    origin: str = STREAM
    as_found: bool = False


@dataclass(frozen=True)
class Rejected:
    """A rejected draw.

    Attributes:
        request: the request.
        reason: one of `REASONS`.
        message: the reader's message for `unreadable`; else empty.
    """

    request: PatchRequest
    reason: str
    message: str = ""


@dataclass(frozen=True)
class Patch:
    """Pixels and truth of one request.

    Attributes:
        request: the request that was read (of the accepted attempt).
        window: where the pixels come from; its center differs from the request's where it was shifted inside.
        image_HWC: uint8 RGB, white outside the slide; channels 3 to 5 are the context view, if any.
        label_HW: uint8 class per pixel, 255 = ignore.
        rejected: draws of the same index before this one.
        scanned_HWC: the pixels as they were scanned, where `image_HWC` has another stain; else None.
    """

    request: PatchRequest
    window: Window
    image_HWC: NDArray[np.uint8]
    label_HW: NDArray[np.uint8]
    rejected: tuple[Rejected, ...] = ()
    scanned_HWC: NDArray[np.uint8] | None = None


class NotYetError(Exception):
    """A request that depends on later training: ask again."""


class RequestSource(Protocol):
    """A sampler: a pure function from (index, attempt) to a request."""

    max_redraws: int

    def request(self, index: int, attempt: int = 0) -> PatchRequest:
        """Return the place to look at for this index; `NotYetError` if it depends on later training."""
        ...


class PatchReader:
    """Reads requests at one field of view.

    Args:
        slides: one per case, in the order that `PatchRequest.slide` counts.
        truths: truth of each slide, in the same order.
        img_size: side of the square patch, output px.
        um_px: spacing of the patch, um per px.
        context_um_px: spacing of a second, coarser view around the same center, of the same `img_size`; None: none.
        stains: normalization of each slide's stain, None for a slide that is left as it is; without it, all are.
    """

    def __init__(
        self,
        slides: Sequence[Slide],
        truths: Sequence[Truth],
        img_size: int,
        um_px: float,
        context_um_px: float | None = None,
        stains: Sequence[Normalization | None] | None = None,
    ) -> None:
        self.slides = slides
        self.truths = truths
        self.img_size = img_size
        self.um_px = um_px
        self._context_um_px = context_um_px
        self._stains = stains or [None] * len(slides)

    @property
    def channels(self) -> int:
        """Channels C of `Patch.image_HWC`."""
        return 3 if self._context_um_px is None else 6

    def window(self, request: PatchRequest) -> Window:
        """Return the window of a request: centered on it and, for drawn places, moved inside the slide if it fits.

        Grid windows are not moved: each validation pixel must be counted once.
        """
        slide = self.slides[request.slide]
        window = slide.window(request.center_xy_l0, (self.img_size, self.img_size), self.um_px)
        return window if request.origin == GRID else shifted_inside(window, slide.size_xy_l0)

    def read(self, request: PatchRequest) -> Patch:
        """Read pixels and truth of a request, cut from the same window.

        Raises:
            SlideError: the slide or its truth cannot be read there; the message names both.
        """
        window = self.window(request)
        slide = self.slides[request.slide]
        image_HWC = slide.read(window)
        if self._context_um_px is not None:
            # Not aligned to the px of a level: both views must have the same center.
            step_x, step_y = (self._context_um_px / um for um in slide.um_px_xy_l0)
            around = window_centered(window.center_xy_l0, window.hw_out, (step_x, step_y))
            image_HWC = np.concatenate([image_HWC, slide.read(around)], axis=2)
        label_HW = self.truths[request.slide].label(window)
        normalized = self._stains[request.slide]
        if normalized is None:
            return Patch(request, window, image_HWC, label_HW)
        return Patch(request, window, normalized(image_HWC), label_HW, scanned_HWC=image_HWC)


def draw(source: RequestSource, reader: PatchReader, index: int, judge: bool = True) -> Patch:
    """Draw the patch of a stream index; again where it is not usable tissue, or cannot be read.

    At most `source.max_redraws` draws are rejected for what they show, and the next is kept whatever it shows; at most
    `MAX_UNREADABLE` because slide or truth cannot be read there. So no index is lost, and the result depends only on
    (seed, index) and the files, on every rank.

    Args:
        source: sampler.
        reader: reads its requests.
        index: which patch of the stream.
        judge: also reject pen marks and tissue out of focus; else only glass.

    Raises:
        ValueError: the last draw could not be read either.
    """
    rejected: list[Rejected] = []
    shown = unread = 0  # draws rejected for what they show, and for being unreadable
    while True:
        request = source.request(index, len(rejected))
        try:
            patch = reader.read(request)
        except ValueError as error:
            if unread == MAX_UNREADABLE:
                raise
            unread += 1
            rejected.append(Rejected(request, UNREADABLE, str(error)))
            continue
        fault = None
        if shown < source.max_redraws and not request.as_found:
            # Only the first three channels: a context view is not judged. By the colors of the scan, as pens have them.
            seen_HWC = patch.image_HWC if patch.scanned_HWC is None else patch.scanned_HWC
            fault = quality.fault(seen_HWC[..., :3], reader.um_px, judge)
        if fault is None:
            return replace(patch, rejected=tuple(rejected), scanned_HWC=None)
        shown += 1
        rejected.append(Rejected(request, fault))
