"""Slides as large as CAMELYON's in a few hundred kB: no tile was ever written, so all is white."""

from collections.abc import Iterator
from pathlib import Path

import tifffile


def write_sparse(path: Path, size_xy: tuple[int, int], um_px: float = 0.243, levels: int = 9, tile: int = 512) -> None:
    """Write a pyramid of halved levels, RGB."""

    def unwritten(count: int) -> Iterator[bytes]:
        for _ in range(count):
            yield b""

    path.parent.mkdir(parents=True, exist_ok=True)
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for level in range(levels):
            width, height = (max(1, size >> level) for size in size_xy)
            tiff.write(
                unwritten(-(-width // tile) * -(-height // tile)), shape=(height, width, 3), dtype="uint8",
                tile=(tile, tile), photometric="rgb", compression="zlib", subfiletype=1 if level else 0, metadata=None,
                resolution=(10_000 / um_px / 2**level,) * 2, resolutionunit="centimeter",
            )  # fmt: skip
