"""A mask as a file: its levels, and the numbers stored in it, whatever TIFF and PNG do to them.

Tensor legend: H rows, W columns.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from slides.tiff.backends import READ_ERRORS, Backend, Value, drop_handle, file_key, handle, tiff_levels
from slides.tiff.tags import Page, is_tiff
from slides.tiff.tiled_tiff import open_tiff
from slides.truth.png_mask import PngMask, is_png, read_page

# Compression tags of codecs that change values: JPEG (old and new), WebP, JPEG XR and Aperio's lossy JPEG 2000.
LOSSY = {6: "JPEG", 7: "JPEG", 50001: "WebP", 34927: "WebP", 22610: "JPEG XR", 34934: "JPEG XR", 33003: "JPEG 2000"}
LOSSY |= {33004: "JPEG 2000"}
THRESHOLD = "vips relational_const MASK 'OUT.tif[tile,pyramid,compression=deflate,region_shrink=nearest]' moreeq 128"


class MaskFile:
    """A TIFF or PNG of one channel and at most 8 bits.

    The values of a mask are the stored numbers; of a palette, the stored index, not the color. Only 1-bit masks that
    are "white is zero" are turned round: every viewer shows their zeros as the white areas of a mask.

    Args:
        path: The mask.

    Raises:
        ValueError: Unreadable, truncated, lossy, or not one channel of at most 8 bits.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self._key = "mask", *file_key(self.path)
            self._png = is_png(self.path)
            if not self._png and not is_tiff(self.path):
                raise ValueError("neither a TIFF nor a PNG")
            self.pages = (read_page(self.path),) if self._png else tiff_levels(self.path)
        except READ_ERRORS as error:
            raise ValueError(f"mask {self.path} cannot be opened: {error}") from error
        first = self.pages[0]
        if first.samples != 1 or first.bits not in (1, 2, 4, 8):
            raise ValueError(
                f"mask {self.path} has {first.samples} channels of {first.bits} bits; masks have one of at most 8 bits"
            )
        for page in self.pages:
            if page.compression in LOSSY:
                raise ValueError(
                    f"mask {self.path} is compressed as {LOSSY[page.compression]}, which changes values beside every "
                    "edge; export it again without loss (Deflate, LZW), or, if it holds 0 and 255, restore it: "
                    f"{THRESHOLD}"
                )
        self._loaded, self._stored = _stored_values(first)

    @property
    def unsure(self) -> bool:
        """Whether it has more than 1 bit and calls white zero: viewers show its numbers turned round."""
        return self.pages[0].photometric == 0 and self.pages[0].bits > 1

    def read(self, level: int, corner_xy_lv: tuple[int, int], hw: tuple[int, int]) -> NDArray[np.uint8]:
        """Return stored_HW, the values of a rectangle inside a level.

        Raises:
            ValueError: It cannot be decoded.
        """
        try:
            backend = handle(self._key, self._open)
            pixels = backend.fetch(level, corner_xy_lv, hw)[0]
        except READ_ERRORS as error:
            drop_handle(self._key)
            reason = "; ".join(str(error).strip().splitlines()[:2])
            where = f"level {level}, corner {corner_xy_lv}, rows and columns {hw}"
            raise ValueError(f"mask {self.path} cannot be read in {where}: {reason}") from error
        return self._stored_of(pixels)

    def _open(self) -> Backend:
        """Open the file; tiles that were never written hold the value 0, whatever libvips makes of it."""
        if self._png:
            return PngMask(self.path)
        unwritten: Value = int(self._loaded[np.argmin(self._stored)])
        palette = self.pages[0].colormap
        if palette is not None and (palette != palette[:, :1]).any():
            unwritten = tuple(palette[0].tolist())
        return open_tiff(self.path, self._key, self.pages, unwritten)

    def _stored_of(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Undo what libvips does to samples on loading; (H, W, bands) to (H, W)."""
        if pixels.shape[2] == 1 and np.array_equal(self._loaded, self._stored):
            return pixels[..., 0]
        keys = _color_key(pixels)
        at = np.minimum(np.searchsorted(self._loaded, keys), self._loaded.size - 1)
        if (self._loaded[at] != keys).any():
            raise ValueError(f"mask {self.path} shows colors that its palette does not have")
        stored: NDArray[np.uint8] = self._stored[at]
        return stored


def _stored_values(page: Page) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Sorted sample (or 0xRRGGBB) as libvips loads it, and the value of a mask that it stands for.

    libvips stretches samples of 1, 2 and 4 bits to 0..255, turns "white is zero" round and replaces a palette's
    indices by its colors. Of two indices of one color the smaller is taken.
    """
    top = 2**page.bits - 1
    stored = np.arange(top + 1)
    if page.colormap is not None:
        loaded = _color_key(page.colormap[None, : top + 1])[0]
        if (page.colormap == page.colormap[:, :1]).all():
            loaded = page.colormap[: top + 1, 0].astype(np.int64)
    else:
        loaded = stored * (255 // top)
        if page.photometric == 0 and page.bits > 1:
            loaded = 255 - loaded
    keys, first = np.unique(loaded, return_index=True)
    return keys, stored[first].astype(np.uint8)


def _color_key(pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
    if pixels.shape[2] == 1:
        return pixels[..., 0].astype(np.int64)
    rgb = pixels.astype(np.int64)
    key: NDArray[np.int64] = rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2]
    return key
