"""Libraries that decode slides, behind one small interface; handles per thread and process, bounded in number.

TIFF goes through `tiled_tiff` if its tiles are JPEG, Deflate, JPEG 2000 or Zstandard, or else through libvips (about
three times as fast as OpenSlide); vendors' formats go through OpenSlide, which knows their geometry.
"""

from __future__ import annotations

import os
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

# One sampler is one core: libvips must not start a pool of its own. Read by libvips when it is loaded.
os.environ.setdefault("VIPS_CONCURRENCY", "1")

import numpy as np
import openslide
import pyvips
from numpy.typing import NDArray

from slides.memory import aligned
from slides.tiff.tags import MASK, REDUCED, Page, Span, is_tiff, read_pages, tile_layout

# libvips would keep the last 100 operations, slides included, alive and open; ours are bounded by the handle cache.
pyvips.cache_set_max(0)

# Per thread. A handle also keeps decoded tiles: libvips up to 2.5 rows of them, 300 MB on a slide 84,000 px wide.
MAX_HANDLES = 32
MAX_HELD_BYTES = 256 * 2**20
MAX_HELD_BYTES_PER_HANDLE = 64 * 2**20
MAX_STRIP_PX = 64 * 2**20
# White is zero, black is zero, RGB, palette, YCbCr.
PHOTOMETRICS = (0, 1, 2, 3, 6)
# A line of a page's description that names it, as in files of Aperio ("label 387x463") and Philips ("Macro").
_ASSOCIATED = re.compile(
    r"^[ \t]*(label|macro|overview|thumbnail|preview|barcode)( image)?([ \t]+\d+ ?x ?\d+)?[ \t]*\r?$",
    re.IGNORECASE | re.MULTILINE,
)
OPENSLIDE_CACHE_BYTES = 8 * 2**20
Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Value = int | tuple[int, ...]  # of a px: of all its samples, or of each
NewArray = Callable[[tuple[int, ...]], Image]  # by shape
READ_ERRORS = (OSError, ValueError, openslide.OpenSlideError, pyvips.Error)


class Backend(Protocol):
    """An open slide. Not thread-safe: get one through `handle`."""

    @property
    def held_bytes(self) -> int:
        """Upper bound of the decoded pixels it keeps for later reads."""

    def fetch(
        self, level: int, corner_xy_lv: tuple[int, int], hw: tuple[int, int], new: NewArray = aligned
    ) -> tuple[Image, float, float]:
        """Decode a rectangle that lies inside a level.

        Args:
            level: Index.
            corner_xy_lv: First column and row, px of the level.
            hw: Rows and columns.
            new: Gives the memory of the result, where the backend joins it of parts.

        Returns:
            Pixels (H, W, C), and how far along x and y, in level px, their true corner lies from the asked one. Only
            OpenSlide on a level whose size was rounded has a non-zero distance (at most half a level-0 px).
        """

    def close(self) -> None:
        """Release the file."""


class VipsTiff:
    """Levels of a TIFF, one page or sub-image each, decoded by libvips.

    Args:
        path: The file.
        pages: Its levels.
        unwritten: Value of px in tiles that were never written, as libvips would load them: one, or one per band.
            libvips itself refuses such tiles.
    """

    def __init__(self, path: Path, pages: tuple[Page, ...], unwritten: Value = 255) -> None:
        self._path = path
        self._pages = pages
        self._unwritten = unwritten
        self._images: dict[int, pyvips.Image] = {}
        self._written: dict[int, Mask | None] = {}
        self.held_bytes = 0

    def fetch(
        self,
        level: int,
        corner_xy_lv: tuple[int, int],
        hw: tuple[int, int],
        new: NewArray = aligned,  # noqa: ARG002  # libvips has memory of its own
    ) -> tuple[Image, float, float]:
        """See `Backend.fetch`."""
        if self.held_bytes > MAX_HELD_BYTES_PER_HANDLE:
            self.close()
        image = self._image(level)
        self.held_bytes += self._touched_bytes(level, corner_xy_lv, hw)
        written_HW = self._written_tiles(level)
        if written_HW is None:
            return _region(image, *corner_xy_lv, *hw), 0.0, 0.0
        return self._pieces(image, level, written_HW, corner_xy_lv, hw), 0.0, 0.0

    def close(self) -> None:
        """See `Backend.close`; libvips closes, and forgets tiles, with the last reference."""
        self._images.clear()
        self._written.clear()
        self.held_bytes = 0

    def _written_tiles(self, level: int) -> Mask | None:
        """Which tiles of a level were written, in rows and columns; None where all were, or there are no tiles."""
        if level not in self._written:
            page = self._pages[level]
            self._written[level] = None
            if page.tiled and page.planar == 1:
                written = tile_layout(self._path, page).counts > 0
                if not written.all():
                    self._written[level] = written.reshape(-1, -(-page.size_xy[0] // page.tile_xy[0]))
        return self._written[level]

    def _pieces(
        self, image: pyvips.Image, level: int, written_HW: Mask, corner_xy_lv: tuple[int, int], hw: tuple[int, int]
    ) -> Image:
        """A rectangle of a level that lacks tiles: the others one by one, for libvips refuses a lacking one."""
        (x, y), (height, width) = corner_xy_lv, hw
        across, down = self._pages[level].tile_xy
        image_HWC = np.full((height, width, image.bands), self._unwritten, np.uint8)
        for row in range(y // down, (y + height - 1) // down + 1):
            y0, y1 = max(y, row * down), min(y + height, (row + 1) * down)
            for column in range(x // across, (x + width - 1) // across + 1):
                x0, x1 = max(x, column * across), min(x + width, (column + 1) * across)
                if written_HW[row, column]:
                    image_HWC[y0 - y : y1 - y, x0 - x : x1 - x] = _region(image, x0, y0, y1 - y0, x1 - x0)
        return image_HWC

    def _touched_bytes(self, level: int, corner_xy_lv: tuple[int, int], hw: tuple[int, int]) -> int:
        """Bytes of the decoded tiles, or strips as wide as the image, under a rectangle."""
        page = self._pages[level]
        if not page.tiled:
            return page.size_xy[0] * page.size_xy[1] * page.samples
        tiles = 1
        for start, length, side in zip(corner_xy_lv, hw[::-1], page.tile_xy, strict=True):
            tiles *= (start + length - 1) // side - start // side + 1
        return tiles * page.tile_xy[0] * page.tile_xy[1] * page.samples

    def _image(self, level: int) -> pyvips.Image:
        if level not in self._images:
            page = self._pages[level]
            # Tiles that do not decode must raise: up to fail_on="error" libvips makes them black (private tags, which
            # libtiff also warns of, pass).
            image = pyvips.Image.tiffload(
                str(self._path), page=page.page, subifd=page.subifd, access="random", fail_on="warning"
            )
            if image.format != "uchar":
                raise ValueError(f"samples are {image.format}, only 8-bit images are read; convert the file to 8 bit")
            if (image.width, image.height) != page.size_xy:
                raise ValueError(f"libvips sees {image.width} x {image.height} px, the TIFF directory {page.size_xy}")
            self._images[level] = image
        return self._images[level]


def _region(image: pyvips.Image, x: int, y: int, height: int, width: int) -> Image:
    """Decode a rectangle."""
    buffer = pyvips.Region.new(image).fetch(x, y, width, height)
    return np.frombuffer(buffer, np.uint8).reshape(height, width, image.bands)


class OpenSlideFile:
    """Any format of OpenSlide."""

    def __init__(self, path: Path) -> None:
        self._slide = openslide.OpenSlide(str(path))
        self.held_bytes = OPENSLIDE_CACHE_BYTES
        # Its own default is 32 MB.
        self._slide.set_cache(openslide.OpenSlideCache(OPENSLIDE_CACHE_BYTES))

    def fetch(
        self,
        level: int,
        corner_xy_lv: tuple[int, int],
        hw: tuple[int, int],
        new: NewArray = aligned,  # noqa: ARG002  # OpenSlide has memory of its own
    ) -> tuple[Image, float, float]:
        """See `Backend.fetch`. Transparent pixels, that is places never scanned, become white."""
        # OpenSlide is asked in whole level-0 px, which it divides by its own (averaged) downsample.
        downsample = self._slide.level_downsamples[level]
        asked_xy_l0 = round(corner_xy_lv[0] * downsample), round(corner_xy_lv[1] * downsample)
        shift_x, shift_y = (at / downsample - want for at, want in zip(asked_xy_l0, corner_xy_lv, strict=True))
        rgba = np.asarray(self._slide.read_region(asked_xy_l0, level, (hw[1], hw[0])))
        rgb = rgba[..., :3]
        clear = rgba[..., 3:]
        if int(clear.min()) < 255:
            # openslide-python hands out straight alpha.
            mixed = rgb.astype(np.uint16) * clear + 255 * (255 - clear.astype(np.uint16))
            rgb = ((mixed + 127) // 255).astype(np.uint8)
        return np.ascontiguousarray(rgb), shift_x, shift_y

    def close(self) -> None:
        """See `Backend.close`."""
        self._slide.close()


def tiff_levels(path: Path, span: Span | None = None) -> tuple[Page, ...]:
    """Return the pages of a TIFF that form its pyramid, largest first.

    Level 0 is the largest image that is neither marked nor called a thumbnail, label or macro: see `_level_0`. Others
    count when they are tiled like it and show the same field at a smaller size (equal shrinking along both axes, to a
    pixel).

    Raises:
        TagError: See `tags.read_pages`.
        ValueError: A plain strip image too large to decode, or several images of the first one's size (channels or
            focal planes).
    """
    pages = read_pages(path, span)
    first = _level_0(pages)
    others = [page for page in pages if page is not first and not _associated(page, pages)]
    if not first.tiled and first.size_xy[0] * first.size_xy[1] > MAX_STRIP_PX:
        raise ValueError(
            f"the TIFF has no tiles and {first.size_xy[0]} x {first.size_xy[1]} px; up to 64 Mpx are decoded whole. "
            "Convert it: vips tiffsave IN OUT.tif --tile --pyramid --compression jpeg"
        )
    if first.photometric not in PHOTOMETRICS:
        raise ValueError(
            f"PhotometricInterpretation {first.photometric} (CMYK, Lab, ...); read are gray, RGB, YCbCr and palette"
        )
    if first.samples == 1 and any(page.size_xy == first.size_xy for page in others):
        raise ValueError("the TIFF holds several one-channel images of one size (channels or focal planes), not RGB")
    return pyramid(first, others)


def _level_0(pages: tuple[Page, ...]) -> Page:
    """The slide among the pages of a TIFF; programs also put a thumbnail, label or macro before it.

    Reduced copies, transparency masks, pages called label or the like, and pages without tiles beside tiled ones are no
    slides. Of what is left the first counts, unless a larger one follows that is not merely a photograph of the glass,
    that is another field at a coarser or unknown spacing. A rule that would leave nothing is not applied.
    """
    found = [page for page in pages if not page.subfile & (REDUCED | MASK)] or list(pages)
    found = [page for page in found if not _associated(page, pages)] or found
    found = [page for page in found if page.tiled] or found
    first = found[0]
    for page in found[1:]:
        larger = page.size_xy[0] * page.size_xy[1] > first.size_xy[0] * first.size_xy[1]
        if larger and not (_coarser(page, first) and not _shrinks(page, page, first)):
            first = page
    return first


def _associated(page: Page, pages: Iterable[Page]) -> bool:
    """Whether a page is called label or the like, and has no levels: a label image of tissue, a mask, has them."""
    if not _ASSOCIATED.search(page.description):
        return False
    return not any(other.tiled and _shrinks(page, page, other) for other in pages)


def _coarser(page: Page, other: Page) -> bool:
    """Whether px of `page` are larger than those of `other`, or of unknown size where those of `other` are known."""
    if other.um_px_xy is None:
        return False
    return page.um_px_xy is None or page.um_px_xy[0] > other.um_px_xy[0]


def pyramid(first: Page, others: Iterable[Page]) -> tuple[Page, ...]:
    """Return `first` and, largest first, those of `others` that show the same field: see `tiff_levels`."""
    levels = [first]
    for page in sorted(others, key=lambda page: -page.size_xy[0]):
        if page.tiled == first.tiled and page.samples == first.samples and _shrinks(levels[-1], first, page):
            levels.append(page)
    return tuple(levels)


def _shrinks(last: Page, first: Page, page: Page) -> bool:
    """Whether `page` is smaller than `last` and has the shape of `first` to within rounding of both sides."""
    (w0, h0), (w, h) = first.size_xy, page.size_xy
    if w >= last.size_xy[0] or h >= last.size_xy[1]:
        return False
    # Sides of a true level lie within one px of side / factor; the two intervals of factors must meet.
    low = max(w0 / (w + 1), h0 / (h + 1))
    high = min(w0 / max(w - 1, 0.5), h0 / max(h - 1, 0.5))
    return low <= high


def vendor_of(path: Path) -> str | None:
    """OpenSlide's name of the format, "tiff" for a TIFF that libvips shall read, None for anything else."""
    vendor = openslide.OpenSlide.detect_format(str(path))
    if vendor in (None, "generic-tiff"):
        return "tiff" if is_tiff(path) else None
    return str(vendor)


class _Handles(threading.local):
    """Open files of one thread."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.open: OrderedDict[object, Backend] = OrderedDict()
        self.inherited: list[object] = []


_handles = _Handles()


def file_key(path: Path) -> tuple[object, ...]:
    """Key of a file for `handle`; another one once the file was replaced."""
    status = path.stat()
    return str(path), status.st_ino, status.st_size, status.st_mtime_ns


def handle(key: object, opener: Callable[[], Backend]) -> Backend:
    """Return this thread's open file for `key`, opening it when needed.

    Every thread of every process has files of its own, at most `MAX_HANDLES` and about `MAX_HELD_BYTES` of decoded
    tiles, least recently used closed first.

    Args:
        key: Identifies the file (hashable).
        opener: Opens it.
    """
    if _handles.pid != os.getpid():
        # A forked child shares file positions and locks with its parent: it must neither use nor close these.
        _handles.inherited.append(_handles.open)
        _handles.open = OrderedDict()
        _handles.pid = os.getpid()
    found = _handles.open.get(key)
    if found is None:
        found = opener()
        _handles.open[key] = found
    _handles.open.move_to_end(key)
    held = sum(backend.held_bytes for backend in _handles.open.values())
    while len(_handles.open) > 1 and (len(_handles.open) > MAX_HANDLES or held > MAX_HELD_BYTES):
        oldest = _handles.open.popitem(last=False)[1]
        held -= oldest.held_bytes
        oldest.close()
    return found


def drop_handle(key: object) -> None:
    """Close this thread's file for `key`, if open; the next use opens it again."""
    found = _handles.open.pop(key, None) if _handles.pid == os.getpid() else None
    if found is not None:
        found.close()
