"""A source whose px are made once, however often the tiles of a stream overlap and come again for the gradients.

Shapes: H rows, W columns, C = 3 channels (RGB, uint8).
"""

from __future__ import annotations

import tempfile
import threading
from pathlib import Path
from typing import Protocol

import numpy as np

from classification.image_files import IN_MEMORY_BYTES, Interval, Pixels

BLOCK_PX = 512  # side of the parts that are made at once


class Read(Protocol):
    """What is kept: `augment.View` or `images.WholeImage`."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """1, H, W and C."""
        ...

    def read(self, rows: Interval, columns: Interval) -> Pixels:
        """The px (1, rows, columns, C) in two intervals."""
        ...


class Kept:
    """A source that keeps its px, up to 64 MiB in memory, else in a scratch file without a name.

    For views: decoding and augmentation then cost once per px. One thread at a time makes px.

    Args:
        source: what to keep.
        scratch: folder for the file; None: that of the system for temporary files.

    Raises:
        OSError: the file cannot be made.
    """

    def __init__(self, source: Read, scratch: Path | None = None) -> None:
        self.source = source
        _, height, width, channels = source.shape
        shape = height, width, channels
        if height * width * channels <= IN_MEMORY_BYTES:
            self._px_HWC: Pixels = np.empty(shape, np.uint8)
        else:
            with tempfile.TemporaryFile(dir=scratch, prefix="widefov-view-") as file:
                # The mapping outlives the closed file, which has no name: nothing is left behind.
                self._px_HWC = np.memmap(file, np.uint8, "w+", shape=shape)
        self._made = np.zeros((-(-height // BLOCK_PX), -(-width // BLOCK_PX)), np.bool_)
        self._lock = threading.Lock()

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """1, H, W and C."""
        return self.source.shape

    def read(self, rows: Interval, columns: Interval) -> Pixels:
        """The source (1, rows, columns, C) in two intervals of px inside it.

        Raises:
            SlideError: the image cannot be decoded; the message names the file.
        """
        blocks = [(first // BLOCK_PX, -(-end // BLOCK_PX)) for first, end in (rows, columns)]
        with self._lock:
            for row in range(*blocks[0]):
                for column in range(*blocks[1]):
                    if not self._made[row, column]:
                        self._make(row, column)
        return np.array(self._px_HWC[None, slice(*rows), slice(*columns)])

    def _make(self, row: int, column: int) -> None:
        _, height, width, _ = self.shape
        rows = row * BLOCK_PX, min((row + 1) * BLOCK_PX, height)
        columns = column * BLOCK_PX, min((column + 1) * BLOCK_PX, width)
        self._px_HWC[slice(*rows), slice(*columns)] = self.source.read(rows, columns)[0]
        self._made[row, column] = True
