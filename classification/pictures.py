"""Small pictures of whole images, read in bands, so that a large one never is in memory.

Legend: H rows, W columns, C = 3 channels (RGB, uint8).
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from system.atomic_files import write_bytes

SIDE_PX = 1024
# Px read at once.
BAND_PX = 16 * 2**20
QUALITY = 85

Picture = NDArray[np.uint8]


class Pixels(Protocol):
    """What has rows and columns of px: a whole image or a view of one."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """1, H, W and 3."""
        ...

    def read(self, rows: tuple[int, int], columns: tuple[int, int]) -> NDArray[np.uint8]:
        """Px (1, rows, columns, 3) in two intervals."""
        ...


def reduction(hw: tuple[int, int], side_px: int = SIDE_PX) -> int:
    """Px of an image per px of its picture: the smallest whole number that makes no side longer than `side_px`."""
    return max(1, -(-max(hw) // side_px))


def small(image: Pixels, side_px: int = SIDE_PX) -> Picture:
    """Shrink an image to means of squares of px; those at the far borders may be of fewer.

    Args:
        image: read band by band.
        side_px: longer side of the picture at most, px.

    Returns:
        image_HWC, smaller by `reduction`.
    """
    _, height, width, channels = image.shape
    factor = reduction((height, width), side_px)
    columns = np.arange(0, width, factor)
    rows = max(1, BAND_PX // width // factor) * factor
    bands = []
    for top in range(0, height, rows):
        bottom = min(height, top + rows)
        band_HWC = image.read((top, bottom), (0, width))[0]
        starts = np.arange(0, bottom - top, factor)
        sums = np.add.reduceat(band_HWC.astype(np.float32), starts, axis=0)
        sums = np.add.reduceat(sums, columns, axis=1)
        count = np.outer(np.diff(np.append(starts, bottom - top)), np.diff(np.append(columns, width)))
        bands.append(np.rint(sums / count[..., None]).astype(np.uint8))
    assert channels == 3, channels
    return np.concatenate(bands)


def write_thumbnail(path: Path, image: Pixels, side_px: int = 640) -> None:
    """Write a small JPEG of an image, completely or not at all; its folder is made.

    Raises:
        OSError: the file cannot be written.
    """
    buffer = io.BytesIO()
    Image.fromarray(small(image, side_px)).save(buffer, "JPEG", quality=QUALITY)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, buffer.getvalue())
