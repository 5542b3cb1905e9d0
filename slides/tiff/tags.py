"""The few TIFF tags a slide reader needs: sizes, spacing, what each page is, and whether the file is complete.

libvips and OpenSlide hide the resolution unit "none", photometric interpretation and the byte ranges of tiles. Own code
and not tifffile, which logs damaged tags and passes over them, ends where the chain of pages is cut as if it were the
end, and never ends in a loop of more than 100 pages. Layout after the TIFF 6.0 specification and the BigTIFF proposal;
NDPI's private 64-bit variant is not read here.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from slides.tiff.spacing import INCH, um_px_xy

MAX_PAGES = 4096

_DTYPES = {1: "u1", 2: "u1", 3: "u2", 4: "u4", 5: "u4", 6: "i1", 7: "u1", 8: "i2", 9: "i4", 10: "i4", 11: "f4"}
_DTYPES |= {12: "f8", 13: "u4", 16: "u8", 17: "i8", 18: "u8"}
_SUBFILE, _OLD_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 254, 255, 256, 257, 258, 259, 262
_STRIP_OFFSETS, _SAMPLES, _STRIP_COUNTS, _XRES, _YRES, _UNIT = 273, 277, 279, 282, 283, 296
_COLORMAP, _TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_COUNTS, _SUBIFDS = 320, 322, 323, 324, 325, 330
_PLANAR, _PREDICTOR, _JPEG_TABLES, _DESCRIPTION = 284, 317, 347, 270
_WANTED = {_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _STRIP_OFFSETS, _SAMPLES, _STRIP_COUNTS}
_WANTED |= {_XRES, _YRES, _UNIT, _COLORMAP, _TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_COUNTS, _SUBIFDS}
_WANTED |= {_PLANAR, _PREDICTOR, _JPEG_TABLES, _DESCRIPTION, _OLD_SUBFILE}
# A page keeps the beginning of its ImageDescription only: OME-XML has megabytes.
_DESCRIPTION_BYTES = 4096
REDUCED, MASK = 1, 4  # bits of NewSubfileType

Values = NDArray[np.generic]


class TagError(ValueError):
    """The file is not a TIFF, or its directory is damaged."""


@dataclass(frozen=True)
class Page:
    """One image of a TIFF.

    Attributes:
        page: Index in the main chain.
        subifd: Index among the page's sub-images, -1 for the page itself.
        size_xy: Width and height, px.
        tile_xy: Width and height of its tiles, px; (0, 0) if it has none, so that parts cannot be read alone.
        bits: Bits per sample.
        samples: Samples per pixel.
        photometric: PhotometricInterpretation (0 white is zero, 1 black is zero, 2 RGB, 3 palette, 6 YCbCr).
        subfile: NewSubfileType; bit `REDUCED` set for a reduced copy of another image, `MASK` for its transparency.
        um_px_xy: Micrometers per px along x and y, None if the tags do not say.
        end: First byte after the last byte of its pixels.
        compression: TIFF's number of the compression; 7 is JPEG.
        predictor: 1 for none, 2 if a sample is stored as its difference to the px on its left.
        planar: 1 if the samples of a px are stored together, 2 if each has its own plane.
        directory: Byte where its directory starts.
        colormap: (2**bits, 3) uint8 RGB of a palette image, else None.
        plane: Which plane of samples this is, and of how many; (0, 1) unless `split`.
        description: The first 4096 bytes of its ImageDescription, as UTF-8 or else Latin-1.
    """

    page: int
    subifd: int
    size_xy: tuple[int, int]
    tile_xy: tuple[int, int]
    bits: int
    samples: int
    photometric: int
    subfile: int
    um_px_xy: tuple[float, float] | None
    end: int
    compression: int
    predictor: int
    planar: int
    directory: int
    colormap: NDArray[np.uint8] | None = None
    plane: tuple[int, int] = (0, 1)
    description: str = ""

    @property
    def tiled(self) -> bool:
        """Whether parts can be read without the rest."""
        return min(self.tile_xy) > 0


class Span(NamedTuple):
    """Where a TIFF lies in a larger file, e.g. a tar.

    Attributes:
        offset: Its first byte.
        size: Bytes.
    """

    offset: int
    size: int


def split(page: Page) -> tuple[Page, ...]:
    """Return the planes of a page whose samples have their own planes (`planar` 2) as gray pages, one per sample."""
    gray = replace(page, samples=1, planar=1, photometric=1)
    return tuple(replace(gray, plane=(number, page.samples)) for number in range(page.samples))


def description(path: Path) -> bytes:
    """Return the ImageDescription of a TIFF's first page; empty if it has none.

    Raises:
        TagError: As of `read_pages`.
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        text = _Directory(file).first({_DESCRIPTION}).get(_DESCRIPTION, np.empty(0, np.uint8))
    return text.tobytes().rstrip(b"\0")


def is_tiff(path: Path) -> bool:
    """Whether the first bytes are those of a TIFF or BigTIFF."""
    with path.open("rb") as file:
        return file.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def read_pages(path: Path, span: Span | None = None) -> tuple[Page, ...]:
    """Read the directory of a TIFF: every page, each followed by its sub-images.

    Args:
        path: The file.
        span: Where in the file the TIFF lies; None: it is the file.

    Raises:
        TagError: Not a TIFF, a directory that points outside the file or at itself, or pixels beyond the end of the
            file (a truncated copy).
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        pages = _Directory(file, span).pages()
    size = path.stat().st_size if span is None else span.size
    end = max(page.end for page in pages)
    if end > size:
        raise TagError(f"the file is truncated: its pixels reach to byte {end}, it has {size} bytes; copy it again")
    return pages


@dataclass(frozen=True)
class TileLayout:
    """Where the tiles of a page are in the file, row by row.

    Attributes:
        offsets: First byte of each tile, shape (N,).
        counts: Bytes of each tile, shape (N,); 0 for a tile that was never written.
        jpeg_tables: Tables that all JPEG tiles share, a stream of its own; empty if there are none.
    """

    offsets: NDArray[np.int64]
    counts: NDArray[np.int64]
    jpeg_tables: bytes


def tile_layout(path: Path, page: Page, span: Span | None = None) -> TileLayout:
    """Read where the tiles of a page are; megabytes for a large slide, so pages themselves do not keep it.

    Args:
        path: The file.
        page: One of `read_pages`.
        span: As there; places of tiles are counted from its first byte.

    Raises:
        TagError: Fewer tiles than the page's size needs, or a damaged directory.
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        tags, _ = _Directory(file, span).entries(page.directory, set())
    nothing = np.empty(0, np.int64)
    offsets, counts = (tags.get(tag, nothing).astype(np.int64) for tag in (_TILE_OFFSETS, _TILE_COUNTS))
    across, down = (-(-size // side) for size, side in zip(page.size_xy, page.tile_xy, strict=True))
    plane, planes = page.plane
    if not offsets.size == counts.size == across * down * planes:
        wanted = f"{across} x {down}" + (f" x {planes} planes" if planes > 1 else "")
        raise TagError(f"damaged directory: {offsets.size} tiles and {counts.size} lengths, not {wanted}")
    offsets, counts = (values.reshape(planes, -1)[plane] for values in (offsets, counts))
    return TileLayout(offsets, counts, bytes(tags.get(_JPEG_TABLES, np.empty(0, np.uint8)).astype(np.uint8)))


class _Directory:
    """Walks the chain of image file directories of one open file."""

    def __init__(self, file: BinaryIO, span: Span | None = None) -> None:
        self._file = file
        self._start, self._size = span or (0, os.fstat(file.fileno()).st_size)
        head = self._bytes(0, 8)
        if head[:2] not in (b"II", b"MM"):
            raise TagError("not a TIFF")
        self._order = "<" if head[:2] == b"II" else ">"
        version = struct.unpack(self._order + "H", head[2:4])[0]
        if version not in (42, 43):
            raise TagError(f"not a TIFF: version {version}")
        self._big = version == 43
        if self._big:
            self._first = self._number(8, "Q")
        else:
            self._first = struct.unpack(self._order + "I", head[4:8])[0]

    def pages(self) -> tuple[Page, ...]:
        pages: list[Page] = []
        seen: set[int] = set()
        offset, index = self._first, 0
        while offset:
            tags, following = self.entries(offset, seen)
            pages.append(self._page(tags, offset, index, -1))
            for sub, where in enumerate(tags.get(_SUBIFDS, np.empty(0, np.int64)).tolist()):
                pages.append(self._page(self.entries(int(where), seen)[0], int(where), index, sub))
            offset, index = following, index + 1
        if not pages:
            raise TagError("a TIFF without any image")
        return tuple(pages)

    def first(self, wanted: set[int]) -> dict[int, Values]:
        """Tags of the first page among `wanted`."""
        return self.entries(self._first, set(), wanted)[0]

    def _bytes(self, offset: int, count: int) -> bytes:
        if offset < 0 or offset + count > self._size:
            raise TagError(
                f"the file is truncated or damaged: its directory needs byte {offset + count}, it has {self._size}"
            )
        self._file.seek(self._start + offset)
        return self._file.read(count)

    def _number(self, offset: int, code: str) -> int:
        return int(struct.unpack(self._order + code, self._bytes(offset, struct.calcsize(code)))[0])

    def entries(self, offset: int, seen: set[int], wanted: set[int] = _WANTED) -> tuple[dict[int, Values], int]:
        if offset in seen or len(seen) >= MAX_PAGES:
            raise TagError(f"damaged directory: a loop or more than {MAX_PAGES} images")
        seen.add(offset)
        count_code, entry, word = ("Q", 20, "Q") if self._big else ("H", 12, "I")
        start = offset + struct.calcsize(count_code)
        count = self._number(offset, count_code)
        block = self._bytes(start, count * entry)
        tags: dict[int, Values] = {}
        for at in range(0, len(block), entry):
            tag, kind = struct.unpack(self._order + "HH", block[at : at + 4])
            if tag in wanted and kind in _DTYPES:
                tags[tag] = self._values(kind, block[at + 4 : at + entry], word)
        return tags, self._number(start + count * entry, word)

    def _values(self, kind: int, rest: bytes, word: str) -> Values:
        half = struct.calcsize(word)
        count = struct.unpack(self._order + word, rest[:half])[0]
        dtype = np.dtype(self._order + _DTYPES[kind])
        length = count * dtype.itemsize * (2 if kind in (5, 10) else 1)
        if length <= half:
            data = rest[half : half + length]
        else:
            data = self._bytes(struct.unpack(self._order + word, rest[half:])[0], length)
        values: Values = np.frombuffer(data, dtype)
        if kind in (5, 10):
            pairs = values.reshape(-1, 2).astype(np.float64)
            with np.errstate(divide="ignore", invalid="ignore"):
                values = pairs[:, 0] / pairs[:, 1]
        return values

    def _page(self, tags: dict[int, Values], directory: int, page: int, subifd: int) -> Page:
        def first(tag: int, default: int) -> int:
            return int(tags[tag][0]) if tag in tags and tags[tag].size else default

        size_xy = first(_WIDTH, 0), first(_HEIGHT, 0)
        if min(size_xy) < 1:
            raise TagError(f"damaged directory: image {page} of size {size_xy}")
        tile_xy = first(_TILE_WIDTH, 0), first(_TILE_HEIGHT, 0)
        tiled = min(tile_xy) > 0
        offsets = tags.get(_TILE_OFFSETS if tiled else _STRIP_OFFSETS, np.empty(0, np.int64))
        counts = tags.get(_TILE_COUNTS if tiled else _STRIP_COUNTS, np.empty(0, np.int64))
        end = 0
        if offsets.size and offsets.size == counts.size:
            # A part that was never written has no bytes, wherever its offset points.
            lengths = counts.astype(np.int64)
            end = int((offsets.astype(np.int64) + lengths)[lengths > 0].max(initial=0))
        colormap = None
        if first(_PHOTOMETRIC, 1) == 3 and _COLORMAP in tags:
            colormap = (tags[_COLORMAP].astype(np.int64) >> 8).astype(np.uint8).reshape(3, -1).T
        text = _text(tags.get(_DESCRIPTION, np.empty(0, np.uint8)))
        return Page(
            page,
            subifd,
            size_xy,
            tile_xy,
            bits=first(_BITS, 1),
            samples=first(_SAMPLES, 1),
            photometric=first(_PHOTOMETRIC, 1),
            subfile=first(_SUBFILE, REDUCED if first(_OLD_SUBFILE, 0) == 2 else 0),
            um_px_xy=um_px_xy(_resolution(tags), first(_UNIT, INCH), text),
            end=end,
            compression=first(_COMPRESSION, 1),
            predictor=first(_PREDICTOR, 1),
            planar=first(_PLANAR, 1),
            directory=directory,
            colormap=colormap,
            description=text,
        )


def _text(values: Values) -> str:
    data = values[:_DESCRIPTION_BYTES].tobytes().rstrip(b"\0")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        # A character may be cut at the end.
        return data[: error.start].decode() if error.start > _DESCRIPTION_BYTES - 4 else data.decode("latin-1")


def _resolution(tags: dict[int, Values]) -> tuple[float, float] | None:
    """XResolution and YResolution."""
    if not all(tag in tags and tags[tag].size for tag in (_XRES, _YRES)):
        return None
    return float(tags[_XRES][0]), float(tags[_YRES][0])
