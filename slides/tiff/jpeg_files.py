"""Writing RGB images strip by strip: a tiled JPEG pyramid (BigTIFF), or one JPEG. Memory does not grow with the height.

Strips are rows of the whole width, top down. Colours are not subsampled.

Tensor legend: H rows, W columns, C = 3 channels (RGB, uint8).
"""

from __future__ import annotations

import os
import struct
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from slides.geometry import Pair, level_downsample_xy
from slides.tiff.pyramid import halved_sizes, px_per_cm
from system.atomic_files import written_whole

TILE = 256  # px, side of a tile, and rows of a strip
JPEG_MAX_PX = 65_500  # a side: libjpeg's limit; the format's own is 65,535
# Rows encoded at a time in one JPEG: 8 rows of blocks, so that the blocks between two restart markers, at most
# 8 * 65,504 / 8, can be counted in the 16 bits that the format has for them.
RESTART_ROWS = 64
_BLOCK = 8
_CENTIMETRE = 3
_SHORT, _LONG, _RATIONAL, _LONG8 = 3, 4, 5, 16
_FORMATS = {_SHORT: "H", _LONG: "I", _RATIONAL: "I", _LONG8: "Q"}

Image = NDArray[np.uint8]


def write_jpeg_pyramid(
    path: Path, size_xy: tuple[int, int], um_px_xy: Pair, strips: Iterable[Image], quality: int
) -> None:
    """Write a pyramid of JPEG tiles with halved levels, as a whole or not at all.

    A px of a lower level is the mean of the 2 x 2 px above it, before compression, halves rounded up; at an odd border
    the last px counts twice.

    Args:
        path: TIFF to write; its folder must exist. Held in memory: two strips per level.
        size_xy: Width and height, px.
        um_px_xy: Micrometres per px, for the resolution tags.
        strips: image_HWC of `TILE` rows each, the last of what is left.
        quality: Of JPEG, 1 to 100.

    Raises:
        ValueError: A strip of another shape, too few or too many.
        OSError: The file cannot be written; nothing is left behind.
    """
    sizes = halved_sizes(size_xy, TILE)
    with written_whole(path) as part, ExitStack() as stack:
        file = stack.enter_context(part.open("wb"))
        # Nameless: they vanish with the process, whatever ends it.
        lower = [stack.enter_context(tempfile.TemporaryFile(dir=path.parent)) for _ in sizes[1:]]
        # Little-endian BigTIFF: offsets of 8 bytes; the place of the first directory comes at the end.
        file.write(struct.pack("<2sHHHQ", b"II", 43, 8, 0, 0))
        levels = _Levels([file, *lower], quality)
        for strip_HWC in _checked(strips, size_xy, TILE):
            levels.add(0, strip_HWC)
        levels.finish()
        where = []
        for index, counts in enumerate(levels.counts):
            start = 16 if index == 0 else file.seek(0, os.SEEK_END)
            if index:
                lower[index - 1].seek(0)
                while block := lower[index - 1].read(2**20):
                    file.write(block)
            where.append(np.cumsum([start, *counts[:-1]]).tolist())
        previous = 8
        for size, offsets, counts in zip(sizes, where, levels.counts, strict=True):
            scale = px_per_cm(um_px_xy, level_downsample_xy(size_xy, size))
            previous = _write_directory(file, previous, size, scale, (offsets, counts))


class _Levels:
    """Tiles of all levels, made while the strips of level 0 pass; one after the other into one file per level."""

    def __init__(self, files: list[IO[bytes]], quality: int) -> None:
        self._files, self._quality = files, quality
        self.counts: list[list[int]] = [[] for _ in files]  # bytes of each tile
        self._halves: list[list[Image]] = [[] for _ in files]  # half strips that wait for their other half

    def add(self, level: int, strip_HWC: Image) -> None:
        """Write a strip's tiles and hand it on, halved."""
        height, width = strip_HWC.shape[:2]
        for left in range(0, width, TILE):
            tile_HWC = strip_HWC[:, left : left + TILE]
            missing = TILE - height, TILE - tile_HWC.shape[1]
            if any(missing):
                # Px beyond the border are never shown: repeated, they cost least and blur nothing.
                tile_HWC = np.pad(tile_HWC, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="edge")
            data = _encoded(tile_HWC, self._quality)
            self._files[level].write(data)
            self.counts[level].append(len(data))
        if level + 1 < len(self._files):
            self._halves[level + 1].append(_halved(strip_HWC))
            if len(self._halves[level + 1]) == 2:
                self._flush(level + 1)

    def finish(self) -> None:
        """Write what still waits for another half."""
        for level, halves in enumerate(self._halves):
            if halves:
                self._flush(level)

    def _flush(self, level: int) -> None:
        strip_HWC = np.concatenate(self._halves[level])
        self._halves[level].clear()
        self.add(level, strip_HWC)


def _halved(image_HWC: Image) -> Image:
    height, width = image_HWC.shape[:2]
    even_HWC = cv2.copyMakeBorder(image_HWC, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
    # Exactly 2 x 2 px each: OpenCV sums them, adds 2 and shifts.
    half_HWC: Image = cv2.resize(even_HWC, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA).astype(np.uint8)
    return half_HWC


def _write_directory(
    file: IO[bytes],
    previous: int,
    size_xy: tuple[int, int],
    px_per_cm_xy: tuple[tuple[int, int], tuple[int, int]],
    tiles: tuple[list[int], list[int]],
) -> int:
    """Write the directory of a level behind all else; returns the byte where the place of the next one goes.

    Args:
        file: Being written.
        previous: The byte where this one's place goes.
        size_xy: Width and height of the level, px.
        px_per_cm_xy: Numerators and denominators.
        tiles: Offsets and lengths of its tiles.
    """
    (x, y), (offsets, counts) = px_per_cm_xy, tiles
    entries: list[tuple[int, int, list[int]]] = [
        (254, _LONG, [0 if previous == 8 else 1]), (256, _LONG, [size_xy[0]]), (257, _LONG, [size_xy[1]]),
        (258, _SHORT, [8, 8, 8]), (259, _SHORT, [7]), (262, _SHORT, [6]), (277, _SHORT, [3]),
        (282, _RATIONAL, list(x)), (283, _RATIONAL, list(y)), (284, _SHORT, [1]), (296, _SHORT, [_CENTIMETRE]),
        (322, _LONG, [TILE]), (323, _LONG, [TILE]), (324, _LONG8, offsets), (325, _LONG8, counts),
        (530, _SHORT, [1, 1]),
    ]  # fmt: skip
    table = b""
    for tag, kind, values in entries:
        data = struct.pack(f"<{len(values)}{_FORMATS[kind]}", *values)
        if len(data) > 8:
            data = struct.pack("<Q", _append(file, data))
        table += struct.pack("<HHQ", tag, kind, len(values) // (2 if kind == _RATIONAL else 1)) + data.ljust(8, b"\0")
    start = _append(file, struct.pack("<Q", len(entries)) + table + bytes(8))
    file.seek(previous)
    file.write(struct.pack("<Q", start))
    return start + 8 + len(table)


def _append(file: IO[bytes], data: bytes) -> int:
    """Write behind all else, at an even byte as TIFF wants it; returns where."""
    end = file.seek(0, os.SEEK_END)
    file.write(bytes(end % 2) + data)
    return end + end % 2


# ------------------------------------------------------------------------------------------------------------ one JPEG


def write_jpeg(path: Path, size_xy: tuple[int, int], um_px_xy: Pair, strips: Iterable[Image], quality: int) -> None:
    """Write one JPEG, as a whole or not at all; its px are those of the whole image encoded at once.

    Runs of `RESTART_ROWS` rows are encoded alone and put behind each other with restart markers between them, where
    the format has every decoder start anew (ITU-T T.81, B.2.1 and F.1.1.5).

    Args:
        path: File to write; its folder must exist. Held in memory: one strip.
        size_xy: Width and height, px, at most `JPEG_MAX_PX` each.
        um_px_xy: Micrometres per px; the file holds them as whole px per cm.
        strips: As of `write_jpeg_pyramid`.
        quality: 1 to 100.

    Raises:
        ValueError: The image is too large, or a strip has another shape.
        OSError: The file cannot be written; nothing is left behind.
    """
    width, height = size_xy
    if max(size_xy) > JPEG_MAX_PX:
        raise ValueError(
            f"{width} x {height} px do not fit into one JPEG, which takes {JPEG_MAX_PX} a side: write a TIFF, or a "
            "coarser spacing"
        )
    with written_whole(path) as part, part.open("wb") as file:
        number = 0
        for strip_HWC in _checked(strips, size_xy, TILE):
            for top in range(0, strip_HWC.shape[0], RESTART_ROWS):
                data = _encoded(strip_HWC[top : top + RESTART_ROWS], quality)
                header, scan = _split(data)
                if number == 0:
                    file.write(_header(header, size_xy, um_px_xy))
                else:
                    file.write(bytes([0xFF, 0xD0 + (number - 1) % 8]))
                file.write(scan)
                number += 1
        file.write(b"\xff\xd9")


def _split(data: bytes) -> tuple[bytes, bytes]:
    """A JPEG stream up to the end of its scan header, and the scan without the end marker."""
    at = 2
    while data[at + 1] != 0xDA:
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return data[:at], data[at:-2]


def _header(header: bytes, size_xy: tuple[int, int], um_px_xy: Pair) -> bytes:
    """The header of the first rows as that of the whole image: its height, px per cm and restart interval."""
    whole = bytearray(header)
    assert whole[2:4] == b"\xff\xe0", "libjpeg begins with JFIF's segment"
    per_cm = [round(10_000 / um) for um in um_px_xy]
    if max(per_cm) < 2**16:
        whole[13:18] = struct.pack(">BHH", 2, *per_cm)
    frame = whole.index(b"\xff\xc0\x00\x11\x08")
    whole[frame + 5 : frame + 7] = size_xy[1].to_bytes(2, "big")
    blocks = -(-size_xy[0] // _BLOCK) * (RESTART_ROWS // _BLOCK)
    scan = whole.index(b"\xff\xda\x00\x0c\x03")
    whole[scan:scan] = struct.pack(">BBHH", 0xFF, 0xDD, 4, blocks)
    return bytes(whole)


def _encoded(image_HWC: Image, quality: int) -> bytes:
    data: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(image_HWC), quality, "RGB", "444")
    return data


def _checked(strips: Iterable[Image], size_xy: tuple[int, int], rows: int) -> Iterator[Image]:
    """The strips, each with the rows it must have."""
    width, height = size_xy
    done = 0
    for strip_HWC in strips:
        wanted = min(rows, height - done), width, 3
        if strip_HWC.shape != wanted or strip_HWC.dtype != np.uint8:
            raise ValueError(
                f"strip at row {done}: {strip_HWC.dtype} of shape {strip_HWC.shape}; wanted uint8 {wanted}"
            )
        done += wanted[0]
        yield strip_HWC
    if done < height:
        raise ValueError(f"strips end at row {done} of {height}")
