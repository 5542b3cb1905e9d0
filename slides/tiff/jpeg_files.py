"""Writing an RGB image strip by strip as one JPEG: memory does not grow with the height.

Strips are rows of the whole width, top down. Colors are not subsampled. Own code: libraries want all rows at once, or
ask for them from a thread of their own.

Tensor legend: H rows, W columns, C = 3 channels (RGB, uint8).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from slides.geometry import Pair
from system.atomic_files import written_whole

STRIP_ROWS = 256
JPEG_MAX_PX = 65_500  # a side: libjpeg's limit; the format's own is 65,535
# Rows encoded at a time in one JPEG: 8 rows of blocks, so that the blocks between two restart markers, at most
# 8 * 65,504 / 8, can be counted in the 16 bits that the format has for them.
RESTART_ROWS = 64
_BLOCK = 8

Image = NDArray[np.uint8]


def write_jpeg(path: Path, size_xy: tuple[int, int], um_px_xy: Pair, strips: Iterable[Image], quality: int) -> None:
    """Write one JPEG, as a whole or not at all; its px are those of the whole image encoded at once.

    Runs of `RESTART_ROWS` rows are encoded alone and put behind each other with restart markers between them, where
    the format has every decoder start again (ITU-T T.81, B.2.1 and F.1.1.5).

    Args:
        path: File to write; its folder must exist. Held in memory: one strip.
        size_xy: Width and height, px, at most `JPEG_MAX_PX` each.
        um_px_xy: Micrometers per px; the file holds them as whole px per cm.
        strips: image_HWC of `STRIP_ROWS` rows each, the last of what is left.
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
        for strip_HWC in checked_strips(strips, size_xy):
            for top in range(0, strip_HWC.shape[0], RESTART_ROWS):
                data = encoded(strip_HWC[top : top + RESTART_ROWS], quality)
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


def encoded(image_HWC: Image, quality: int) -> bytes:
    """Encode an image without subsampling; by simplejpeg, for imagecodecs lacks the fast DCT and gives other px."""
    data: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(image_HWC), quality, "RGB", "444")
    return data


def checked_strips(strips: Iterable[Image], size_xy: tuple[int, int]) -> Iterator[Image]:
    """The strips, each with the rows it must have.

    Raises:
        ValueError: A strip of another shape, too few or too many.
    """
    width, height = size_xy
    done = 0
    for strip_HWC in strips:
        wanted = min(STRIP_ROWS, height - done), width, 3
        if strip_HWC.shape != wanted or strip_HWC.dtype != np.uint8:
            raise ValueError(
                f"strip at row {done}: {strip_HWC.dtype} of shape {strip_HWC.shape}; wanted uint8 {wanted}"
            )
        done += wanted[0]
        yield strip_HWC
    if done < height:
        raise ValueError(f"strips end at row {done} of {height}")
