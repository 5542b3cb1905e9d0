"""Files of images and masks, in a folder or in a tar: opened, checked, read in windows.

Shapes: H rows, W columns, C = 3 channels (RGB, uint8); R, S rows and columns of a sampling mask.
"""

from __future__ import annotations

import io
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyvips
import tifffile
from numpy.typing import NDArray

from cohorts.pairing import ALL_SLIDE_SUFFIXES
from slides.geometry import Pair
from slides.packed import PackedFiles, PackError
from slides.reader import Slide, SlideError
from slides.tiff.backends import READ_ERRORS, file_key, handle, tiff_levels
from slides.tiff.tags import Page, Span
from slides.tiff.tiled_tiff import TiledTiff, readable

WHOLE_SUFFIXES = (".jpg", ".jpeg", ".png")  # no tiles: decoded once
SUFFIXES = (".tif", ".tiff", *WHOLE_SUFFIXES, *(one for one in ALL_SLIDE_SUFFIXES if not one.endswith(("tif", "tiff"))))
TIFF_SUFFIXES = (".tif", ".tiff")
PACKED_SUFFIXES = (*TIFF_SUFFIXES, ".svs")  # tiles that are read within a tar
SMALL_PX = 4 * 2**20  # TIFFs up to this size may be decoded at once
MOST_CELLS = 64 * 2**20  # of a sampling mask
IN_MEMORY_BYTES = 64 * 2**20  # decoded images up to this size are kept in memory

Interval = tuple[int, int]
Pixels = NDArray[np.uint8]
Read = Callable[[Interval, Interval], Pixels]


@dataclass(frozen=True)
class Place:
    """Where a file is.

    Attributes:
        path: the file, or the tar that holds it.
        member: its name in the tar; empty if it is a file of its own.
    """

    path: Path
    member: str = ""

    def __str__(self) -> str:
        return f"{self.path}: {self.member}" if self.member else str(self.path)

    @property
    def stem(self) -> str:
        """File name without its last suffix."""
        return PurePosixPath(self.member).stem if self.member else self.path.stem

    @property
    def suffix(self) -> str:
        """Its last suffix, in lower case."""
        return PurePosixPath(self.member or self.path.name).suffix.lower()

    def data(self) -> bytes:
        """All of it."""
        return _pack(self.path).read(self.member) if self.member else self.path.read_bytes()

    def text(self) -> str:
        """All of it.

        Raises:
            ValueError: it cannot be read, or is not UTF-8.
        """
        try:
            return self.data().decode("utf-8")
        except (OSError, ValueError) as error:
            raise ValueError(f"{self} cannot be read: {error}") from error

    def vips(self, **options: Any) -> pyvips.Image:
        """Open it by libvips; damage raises."""
        if self.member:
            return _pack(self.path).vips(self.member, fail_on="warning", **options)
        return pyvips.Image.new_from_file(str(self.path), fail_on="warning", **options)

    def moved(self, path: Path) -> Place:
        """The same in a copy of the file or the tar."""
        return replace(self, path=path)


@dataclass(frozen=True, eq=False)
class Part:
    """An open image file.

    Attributes:
        hw: rows and columns.
        read: gives px (H, W, C) of rows and columns (first, end) inside.
        um_px_xy: um per px along x and y; None if the file does not say.
    """

    hw: tuple[int, int]
    read: Read
    um_px_xy: Pair | None


def opened(place: Place, scratch: Path | None = None) -> Part:
    """Open an image.

    Args:
        place: TIFF, slide, JPEG or PNG; in a tar, a TIFF, JPEG or PNG.
        scratch: folder for decoded JPEG and PNG larger than `IN_MEMORY_BYTES`; None: that for temporary files.

    Raises:
        SlideError: it cannot be opened; the message names it.
    """
    try:
        if place.suffix in WHOLE_SUFFIXES:
            image = place.vips(access="sequential")
            return Part((image.height, image.width), _Decoded(place, scratch).read, None)
        return _packed(place) if place.member else _slide(place.path)
    except (SlideError, PackError):
        raise
    except READ_ERRORS as error:
        raise SlideError(f"image {place} cannot be opened: {_reason(error)}") from error


def read_mask(place: Place) -> NDArray[np.float32]:
    """A sampling mask, as float32 (R, S): its first channel.

    Raises:
        SlideError: it cannot be read, or is 0 everywhere.
    """
    try:
        image = _opened_tiff(place) if place.suffix in TIFF_SUFFIXES else place.vips(access="sequential")
        if image.width * image.height > MOST_CELLS:
            raise ValueError(f"{image.width} x {image.height} cells; a sampling mask has a cell per 16 px or so")
        mask_RS: NDArray[np.float32] = image[0].numpy().astype(np.float32)
    except READ_ERRORS as error:
        raise SlideError(f"mask {place} cannot be read: {_reason(error)}") from error
    if not mask_RS.any():
        raise SlideError(f"mask {place} is 0 everywhere: there is nothing to look at; correct or remove it")
    return mask_RS


def _opened_tiff(place: Place) -> pyvips.Image:
    """The first page of a TIFF; libvips refuses tiles that are much larger than the image, as those of small masks."""
    try:
        return place.vips(access="random")
    except pyvips.Error:
        with tifffile.TiffFile(io.BytesIO(place.data())) as file:
            page = file.pages[0]
            if page.imagewidth * page.imagelength > SMALL_PX:
                raise
            return pyvips.Image.new_from_array(page.asarray())


def _slide(path: Path) -> Part:
    """Level 0 of a slide or TIFF."""
    um_px_xy: Pair | None
    try:
        slide = Slide(path)
        um_px_xy = slide.um_px_xy_l0
    except SlideError:
        # Px are taken as they are: a spacing is welcome, not needed. Any other error comes again.
        slide, um_px_xy = Slide(path, 1.0), None

    def read(rows: Interval, columns: Interval) -> Pixels:
        return slide.read_level(0, (columns[0], rows[0]), (rows[1] - rows[0], columns[1] - columns[0]))

    width, height = slide.size_xy_l0
    return Part((height, width), read, um_px_xy)


def _packed(place: Place) -> Part:
    """Level 0 of a TIFF in a tar, read in place."""
    if place.suffix not in PACKED_SUFFIXES:
        raise ValueError(f"in a tar {', '.join((*PACKED_SUFFIXES, *WHOLE_SUFFIXES))} are read; unpack it")
    path, span = place.path, _pack(place.path).members[place.member]
    page = tiff_levels(path, Span(span.offset, span.size))[0]
    width, height = page.size_xy
    if readable(page):
        windows: _Windows | _VipsWindows = _Windows(place, page, Span(span.offset, span.size))
    else:
        windows = _VipsWindows(place, _rgb(_opened_tiff(place)))
    # Damage may show only when the first px is decoded.
    windows.read((0, 1), (0, 1))
    return Part((height, width), windows.read, page.um_px_xy)


class _Windows:
    """Windows of a tiled TIFF in a tar, decoded tile by tile."""

    def __init__(self, place: Place, page: Page, span: Span) -> None:
        self._place, self._page, self._span = place, page, span
        self._key = file_key(place.path), place.member

    def _open(self) -> TiledTiff:
        return TiledTiff(self._place.path, self._key, (self._page,), span=self._span)

    def read(self, rows: Interval, columns: Interval) -> Pixels:
        """See `Part.read`."""
        corner_xy, hw = (columns[0], rows[0]), (rows[1] - rows[0], columns[1] - columns[0])
        try:
            image_HWC = handle(self._key, self._open).fetch(0, corner_xy, hw)[0]
        except READ_ERRORS as error:
            raise _unreadable(self._place, rows, columns, error) from error
        return image_HWC if image_HWC.shape[2] == 3 else np.repeat(image_HWC, 3, axis=2)


class _VipsWindows:
    """Windows of any other TIFF in a tar; one thread at a time."""

    def __init__(self, place: Place, image: pyvips.Image) -> None:
        self._place, self._image = place, image
        self._lock = threading.Lock()
        self._broken: SlideError | None = None

    def read(self, rows: Interval, columns: Interval) -> Pixels:
        """See `Part.read`."""
        height, width = rows[1] - rows[0], columns[1] - columns[0]
        with self._lock:
            # libvips says once that a tile is damaged, and gives other px for it from then on.
            if self._broken is not None:
                raise self._broken
            try:
                data = pyvips.Region.new(self._image).fetch(columns[0], rows[0], width, height)
            except READ_ERRORS as error:
                self._broken = _unreadable(self._place, rows, columns, error)
                raise self._broken from error
        return np.frombuffer(data, np.uint8).reshape(height, width, 3)


def _unreadable(place: Place, rows: Interval, columns: Interval, error: Exception) -> SlideError:
    return SlideError(f"image {place} cannot be read in rows {rows}, columns {columns}: {_reason(error)}")


class _Decoded:
    """An image without tiles: decoded when its first px is asked for, and kept."""

    def __init__(self, place: Place, scratch: Path | None) -> None:
        self._place, self._scratch = place, scratch
        self._image_HWC: Pixels | None = None
        self._lock = threading.Lock()

    def read(self, rows: Interval, columns: Interval) -> Pixels:
        """See `Part.read`."""
        with self._lock:
            if self._image_HWC is None:
                try:
                    self._image_HWC = self._decode()
                except READ_ERRORS as error:
                    raise SlideError(f"image {self._place} cannot be decoded: {_reason(error)}") from error
        return np.ascontiguousarray(self._image_HWC[slice(*rows), slice(*columns)])

    def _decode(self) -> Pixels:
        image = _rgb(self._place.vips(access="sequential"))
        shape = image.height, image.width, 3
        if image.height * image.width * 3 <= IN_MEMORY_BYTES:
            return np.frombuffer(image.write_to_memory(), np.uint8).reshape(shape)
        # The mapping outlives the file's name: nothing is left behind, however the job ends.
        with tempfile.NamedTemporaryFile(dir=self._scratch, prefix="widefov-image-", suffix=".raw") as file:
            image.rawsave(file.name)
            return np.memmap(file.name, np.uint8, "r", shape=shape)


def _rgb(image: pyvips.Image) -> pyvips.Image:
    """As 8-bit RGB; what is transparent is white."""
    if image.interpretation not in ("srgb", "rgb") or image.bands < 3:
        image = image.colourspace("srgb")  # libvips keeps the old spelling
    if image.hasalpha():
        image = image.flatten(background=[255, 255, 255])
    if image.format != "uchar" or image.bands != 3:
        raise ValueError(f"{image.bands} channels of {image.format}; images are 8-bit RGB or gray")
    return image


@lru_cache(maxsize=64)
def _open_pack(path: Path, _key: object) -> PackedFiles:
    return PackedFiles(path)


def _pack(path: Path) -> PackedFiles:
    """A tar, its index read once until it is replaced."""
    try:
        return _open_pack(path, file_key(path))
    except OSError as error:
        raise PackError(f"archive {path} cannot be read: {error.strerror}; give an uncompressed tar") from error


def pack_members(path: Path) -> list[str]:
    """Names of the files in a tar.

    Raises:
        ValueError: it cannot be read, is cut or damaged.
    """
    return list(_pack(path))


def _reason(error: Exception) -> str:
    lines = list(dict.fromkeys(line.strip() for line in str(error).splitlines() if line.strip()))
    return "; ".join(lines[:2]) or type(error).__name__
