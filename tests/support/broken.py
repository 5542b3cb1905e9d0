"""Slides with tiles that cannot be decoded."""

from pathlib import Path

import numpy as np
import tifffile

SIDE, TILE = 1024, 128


def write_noise(path: Path) -> None:
    """Pink noise of one level, 0.5 um/px, 8 x 8 tiles of JPEG."""
    noise = np.random.default_rng(0).integers(-45, 46, (SIDE, SIDE, 1))
    image_HWC = np.clip(np.array((200, 140, 180)) + noise, 0, 255).astype(np.uint8)
    path.parent.mkdir(exist_ok=True)
    tifffile.imwrite(
        path, image_HWC, photometric="rgb", tile=(TILE, TILE), compression="jpeg", metadata=None,
        resolution=(20_000, 20_000), resolutionunit="centimeter",
    )  # fmt: skip


def damage(path: Path, *tiles: int) -> None:
    """Overwrite the bytes of tiles of level 0."""
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        places = [(page.dataoffsets[tile], page.databytecounts[tile]) for tile in tiles]
    with path.open("r+b") as file:
        for offset, count in places:
            file.seek(offset)
            file.write(b"\xaa" * count)
