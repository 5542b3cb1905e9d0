"""What is streamed: an array, a memory-mapped file, or a slide, read window by window.

Shapes: B images, H rows, W columns, C channels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from slides.geometry import Window, l0_from_out
from slides.reader import Slide
from streaming.regions import Interval

Pixels = NDArray[Any]


class Source(Protocol):
    """An image that is read in windows; any object with these two can be streamed.

    Attributes:
        shape: B, H, W and C.
    """

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """B, H, W and C."""
        ...

    def read(self, rows: Interval, columns: Interval) -> Pixels:
        """The image (B, rows, columns, C) in two intervals of px."""
        ...


@dataclass(frozen=True, eq=False)
class ArrayImage:
    """An array or a memory-mapped file as a source.

    Attributes:
        image_BHWC: px of any type.
        prepare: from px to what the network takes, for every px by itself.
    """

    image_BHWC: Pixels
    prepare: Callable[[Pixels], Pixels] | None = None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """See `Source.shape`."""
        b, h, w, c = self.image_BHWC.shape
        return b, h, w, c

    def read(self, rows: Interval, columns: Interval) -> Pixels:
        """See `Source.read`."""
        window = np.asarray(self.image_BHWC[:, rows[0] : rows[1], columns[0] : columns[1]])
        return window if self.prepare is None else self.prepare(window)


def in_unit_range(image_BHWC: Pixels) -> Pixels:
    """From 8 bit to [-1, 1], float32: what the networks of `models` take."""
    return image_BHWC.astype(np.float32) / np.float32(127.5) - np.float32(1.0)


@dataclass(frozen=True, eq=False)
class SlideImage:
    """A region of a slide as a source; px are read when a tile needs them.

    Attributes:
        slide: the file.
        window: the region and its spacing, see `Slide.window`.
        prepare: from 8-bit px to what the network takes, for every px by itself.
    """

    slide: Slide
    window: Window
    prepare: Callable[[Pixels], Pixels] = in_unit_range

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """See `Source.shape`."""
        return 1, *self.window.hw_out, 3

    def read(self, rows: Interval, columns: Interval) -> Pixels:
        """See `Source.read`."""
        x, y = (float(v) for v in l0_from_out(self.window, (columns[0], rows[0])))
        part = Window((x, y), (rows[1] - rows[0], columns[1] - columns[0]), self.window.step_xy_l0)
        return self.prepare(self.slide.read(part)[None])


def source(image: Any) -> Source:
    """The image as a source.

    Args:
        image: (H, W, C) or (B, H, W, C), in memory or in a file, or a source.

    Raises:
        ValueError: it is neither.
    """
    if hasattr(image, "read") and hasattr(image, "shape"):
        found: Source = image
        return found
    array = image if isinstance(image, np.ndarray) else np.asarray(image)
    if array.ndim == 3:
        array = array[None]
    if array.ndim != 4 or 0 in array.shape:
        raise ValueError(
            f"the image has shape {array.shape}; streaming takes (rows, columns, channels) or a batch of it"
        )
    return ArrayImage(array)


def alike(window_BHWC: Pixels) -> bool:
    """Whether all px of every image of a window have one value."""
    first = window_BHWC[:, :1, :1]
    corners = window_BHWC[:, :: max(1, window_BHWC.shape[1] - 1), :: max(1, window_BHWC.shape[2] - 1)]
    return bool(np.all(corners == first)) and bool(np.all(window_BHWC == first))
