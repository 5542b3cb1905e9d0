"""Pictures that are part of a page: small JPEG files as data URIs. Legend: H rows, W columns, C = 3 channels (RGB)."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# A picture with more px is not opened.
MAX_PX = 64 * 2**20
QUALITIES = (85, 70, 55, 40, 20, 5)


def data_uri(image_HWC: NDArray[np.uint8], most_bytes: int) -> str:
    """Return a JPEG of an image as a data URI, of the best quality that takes at most `most_bytes`."""
    picture = Image.fromarray(np.ascontiguousarray(image_HWC))
    stored = b""
    for quality in QUALITIES:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=quality)
        stored = buffer.getvalue()
        if len(stored) <= most_bytes:
            break
    return "data:image/jpeg;base64," + base64.b64encode(stored).decode("ascii")


def file_uri(path: Path, side_px: int, most_bytes: int) -> str:
    """Return a small JPEG of an image file as a data URI; empty if the file is missing, unreadable or too large.

    Args:
        path: the file.
        side_px: longer side of the picture at most, px.
        most_bytes: of the JPEG.
    """
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PX:
                return ""
            image.thumbnail((side_px, side_px))
            image_HWC = np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return ""
    return data_uri(image_HWC, most_bytes)
