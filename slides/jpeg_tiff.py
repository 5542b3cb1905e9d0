"""JPEG tiles of a TIFF, decoded one by one by libjpeg-turbo: the format of nearly all large slides.

libvips decodes the same tiles to the same pixels, but takes 1.5 times as long for a window (it moves them through
caches of its own) and passes damaged tiles on as grey; here a tile that is not whole is an error.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from pathlib import Path

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from slides.tags import Page, TileLayout, tile_layout

JPEG = 7
CACHE_BYTES = 128 * 2**20
_GREY, _RGB, _YCBCR = 1, 2, 6  # PhotometricInterpretation
_START, _END = b"\xff\xd8", b"\xff\xd9"  # markers of a JPEG stream
Image = NDArray[np.uint8]


def readable(page: Page) -> bool:
    """Whether `JpegTiff` reads this page: 8-bit grey, RGB or YCbCr in JPEG tiles."""
    colours = page.samples, page.photometric
    return (
        page.tiled
        and (page.compression, page.planar, page.bits) == (JPEG, 1, 8)
        and colours in ((1, _GREY), (3, _RGB), (3, _YCBCR))
    )


class TileCache:
    """Decoded tiles shared by the threads of a process, least recently used dropped first.

    Args:
        max_bytes: Most bytes of pixels kept; 0 keeps none.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._forget()
        # A child that is forked while another thread holds the lock would wait for it forever.
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._tiles: OrderedDict[object, Image] = OrderedDict()
        self.held_bytes = self.hits = self.misses = 0

    def resize(self, max_bytes: int) -> None:
        """Keep at most `max_bytes` from now on."""
        with self._lock:
            self._max_bytes = max_bytes
            self._shrink()

    def get(self, key: object) -> Image | None:
        """Return a tile, None where it is not held; nobody may write into it."""
        with self._lock:
            tile = self._tiles.get(key)
            if tile is None:
                self.misses += 1
            else:
                self.hits += 1
                self._tiles.move_to_end(key)
            return tile

    def put(self, key: object, tile: Image) -> None:
        """Keep a tile."""
        with self._lock:
            if key not in self._tiles:
                self._tiles[key] = tile
                self.held_bytes += tile.nbytes
                self._shrink()

    def _shrink(self) -> None:
        while self.held_bytes > self._max_bytes:
            self.held_bytes -= self._tiles.popitem(last=False)[1].nbytes


tile_cache = TileCache(CACHE_BYTES)


class JpegTiff:
    """Levels of a TIFF with JPEG tiles; see `backends.Backend`.

    Args:
        path: The file.
        key: Names the file in `tile_cache`.
        pages: Its levels, all `readable`.
    """

    held_bytes = 0  # decoded tiles are in `tile_cache`, which has a bound of its own

    def __init__(self, path: Path, key: object, pages: tuple[Page, ...]) -> None:
        self._path = path
        self._key = key
        self._pages = pages
        self._file = path.open("rb", buffering=0)
        self._layouts: dict[int, tuple[TileLayout, bytes]] = {}

    def fetch(self, level: int, corner_xy_lv: tuple[int, int], hw: tuple[int, int]) -> tuple[Image, float, float]:
        """See `Backend.fetch`; tiles that were never written are white."""
        (x, y), (height, width) = corner_xy_lv, hw
        page = self._pages[level]
        tile_width, tile_height = page.tile_xy
        image_HWC = np.empty((height, width, page.samples), np.uint8)
        for row in range(y // tile_height, (y + height - 1) // tile_height + 1):
            top = row * tile_height
            y0, y1 = max(y, top), min(y + height, top + tile_height)
            for column in range(x // tile_width, (x + width - 1) // tile_width + 1):
                left = column * tile_width
                x0, x1 = max(x, left), min(x + width, left + tile_width)
                tile_HWC = self._tile(level, row, column)
                image_HWC[y0 - y : y1 - y, x0 - x : x1 - x] = tile_HWC[y0 - top : y1 - top, x0 - left : x1 - left]
        return image_HWC, 0.0, 0.0

    def close(self) -> None:
        """See `Backend.close`."""
        self._file.close()

    def _tile(self, level: int, row: int, column: int) -> Image:
        key = self._key, level, row, column
        tile_HWC = tile_cache.get(key)
        if tile_HWC is None:
            tile_HWC = self._decoded(level, row, column)
            tile_cache.put(key, tile_HWC)
        return tile_HWC

    def _decoded(self, level: int, row: int, column: int) -> Image:
        page = self._pages[level]
        layout, head = self._layout(level)
        number = row * -(-page.size_xy[0] // page.tile_xy[0]) + column
        shape = (page.tile_xy[1], page.tile_xy[0], page.samples)
        count = int(layout.counts[number])
        if count == 0:
            return np.full(shape, 255, np.uint8)
        data = os.pread(self._file.fileno(), count, int(layout.offsets[number]))
        where = f"level {level}, tile in row {row}, column {column}"
        if len(data) < count:
            raise OSError(f"{where}: the file ends inside it")
        if not data.startswith(_START):
            raise ValueError(f"{where}: is no JPEG stream")
        try:
            tile_HWC: Image = simplejpeg.decode_jpeg(head + data[2:], "GRAY" if page.samples == 1 else "RGB")
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        if tile_HWC.shape != shape:
            raise ValueError(f"{where}: is of shape {tile_HWC.shape}, not {shape}")
        return tile_HWC

    def _layout(self, level: int) -> tuple[TileLayout, bytes]:
        """Where tiles are, and what to put before a tile's own bytes: shared tables, and which colours these are."""
        if level not in self._layouts:
            layout = tile_layout(self._path, self._pages[level])
            # Adobe's marker: 0 no transform, 1 YCbCr. Without it libjpeg guesses, and TIFF says it in a tag instead.
            transform = bytes([self._pages[level].photometric == _YCBCR])
            adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + transform
            tables = layout.jpeg_tables.removeprefix(_START).removesuffix(_END)
            self._layouts[level] = layout, _START + tables + (b"" if self._pages[level].samples == 1 else adobe)
        return self._layouts[level]
