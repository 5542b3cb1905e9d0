"""PNG masks: decoded once as a whole, kept as compressed tiles, read like a level of a TIFF.

Tensor legend: H rows, W columns.
"""

from __future__ import annotations

import os
import struct
import zlib
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
import PIL.Image
import PIL.PngImagePlugin
from numpy.typing import NDArray

from slides.memory import aligned
from slides.tiff.backends import Image, NewArray, file_key
from slides.tiff.tags import Page

# A PNG has no parts, so all of it is in memory while it is decoded.
MAX_PX = 2**26
TILE = 256
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Color type to channels: gray, RGB, palette, gray with alpha, RGB with alpha.
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_PALETTE = 3
_METER = 1


def is_png(path: Path) -> bool:
    """Whether the first bytes are those of a PNG."""
    with path.open("rb") as file:
        return file.read(len(_SIGNATURE)) == _SIGNATURE


def read_page(path: Path) -> Page:
    """Describe a PNG as the only level of a TIFF.

    Raises:
        ValueError: A damaged header, or too many px.
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        file.seek(len(_SIGNATURE))
        header = file.read(8 + 13 + 4)
        if len(header) < 25 or header[4:8] != b"IHDR":
            raise ValueError("a PNG with a damaged header; export it again")
        width, height, bits, color = struct.unpack(">IIBB", header[8:18])
        um_px_xy = _um_px(file)
    if width * height > MAX_PX:
        raise ValueError(
            f"a PNG of {width} x {height} px, at most {MAX_PX} px are read; write a pyramid: "
            f"vips copy {path.name} 'OUT.tif[tile,pyramid,compression=deflate,region_shrink=nearest]'"
        )
    return Page(
        page=0,
        subifd=-1,
        size_xy=(width, height),
        tile_xy=(0, 0),
        bits=bits,
        samples=_CHANNELS.get(color, 0),
        photometric=1,
        subfile=0,
        um_px_xy=um_px_xy,
        end=0,
        compression=8,
        predictor=1,
        planar=1,
        directory=0,
    )


class PngMask:
    """An open PNG of one channel (`slides.tiff.backends.Backend`); its only level is 0.

    Args:
        path: The mask.

    Raises:
        OSError: It cannot be decoded.
    """

    held_bytes = 0

    def __init__(self, path: Path) -> None:
        self._tiles = _tiles(file_key(path), path)

    def fetch(
        self,
        level: int,  # noqa: ARG002 - the interface's argument
        corner_xy_lv: tuple[int, int],
        hw: tuple[int, int],
        new: NewArray = aligned,
    ) -> tuple[Image, float, float]:
        """See `Backend.fetch`."""
        (left, top), (height, width) = corner_xy_lv, hw
        out_HW1 = new((height, width, 1))
        for row in range(top // TILE, (top + height - 1) // TILE + 1):
            for column in range(left // TILE, (left + width - 1) // TILE + 1):
                y, x = row * TILE, column * TILE
                tile_HW = _unpacked(self._tiles[row][column])
                rows = slice(max(top - y, 0), min(top + height - y, TILE))
                columns = slice(max(left - x, 0), min(left + width - x, TILE))
                at_y, at_x = y + rows.start - top, x + columns.start - left
                part_HW = tile_HW[rows, columns]
                out_HW1[at_y : at_y + part_HW.shape[0], at_x : at_x + part_HW.shape[1], 0] = part_HW
        return out_HW1, 0.0, 0.0

    def close(self) -> None:
        """See `Backend.close`; the tiles stay for the other threads."""


# A mask is a few kilobytes.
@lru_cache(maxsize=4096)
def _tiles(_key: tuple[object, ...], path: Path) -> tuple[tuple[bytes, ...], ...]:
    """Compressed tiles in rows and columns; those at the right and lower edge are padded with 0."""
    # Palettes give their index; gray of 1, 2 and 4 bits is stretched to 255, as libvips does.
    try:
        with PIL.Image.open(path, formats=["PNG"]) as image:
            stretch = 255 // (2 ** read_page(path).bits - 1) if image.mode == "P" else 1
            loaded_HW = np.asarray(image.convert("L") if image.mode == "1" else image, np.uint8) * np.uint8(stretch)
    except (SyntaxError, zlib.error) as error:  # of damaged chunks
        raise ValueError(f"damaged PNG: {error}") from error
    height, width = loaded_HW.shape
    padded_HW = np.pad(loaded_HW, ((0, -height % TILE), (0, -width % TILE)))
    bottom, right = padded_HW.shape
    return tuple(
        tuple(zlib.compress(padded_HW[y : y + TILE, x : x + TILE].tobytes(), 1) for x in range(0, right, TILE))
        for y in range(0, bottom, TILE)
    )


def _unpacked(tile: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(zlib.decompress(tile), np.uint8).reshape(TILE, TILE)


def _um_px(file: BinaryIO) -> tuple[float, float] | None:
    """Micrometers per px of the chunk pHYs, which stands before the pixels; None without it or without a unit."""
    while len(head := file.read(8)) == 8 and head[4:] != b"IDAT":
        (size,) = struct.unpack(">I", head[:4])
        if head[4:] == b"pHYs" and len(chunk := file.read(9)) == 9:
            x, y, unit = struct.unpack(">IIB", chunk)
            return (1e6 / x, 1e6 / y) if unit == _METER and x and y else None
        file.seek(size + 4, os.SEEK_CUR)
    return None
