"""Writing pyramids tile by tile, masks and maps (one channel, Deflate) or slides (RGB, JPEG), in constant memory.

Level 0 goes straight to the file; tiles of lower levels, made while it passes, wait encoded in a nameless file beside
it. Held in memory: one row of tiles of each lower level, and of these only tiles that show more than one value.

tifffile writes the file. What makes the tiles is ours: libvips wants the whole image or a callback for any part of it,
and tifffile makes no levels.

Tensor legend: h, w rows and columns of one tile (less than `tile` at the right and lower border), C = 3 channels (RGB).
"""

from __future__ import annotations

import itertools
import math
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal, Protocol

import numpy as np
import tifffile
from isal import isal_zlib

from slides.geometry import Pair, level_downsample_xy
from slides.tiff.jpeg_files import STRIP_ROWS, checked_strips, encoded
from slides.tiff.shrink import Halving, Piece, Pixels, Shrinking
from system.atomic_files import written_whole

Shrink = Literal["max", "mean"]
TileOf = Callable[[int, int], Piece]
Sizes = Sequence[tuple[int, int]]

# Deflate by isal: levels above 1 are slower and make masks and maps 1-5 % smaller.
DEFLATE_LEVEL = 1
THREADS = 2
# Tiles that wait for their turn in the file, while the threads encode.
WAITING = 4 * THREADS
# Classic TIFF has 32-bit offsets; the directories and what Deflate may add come on top of the px.
CLASSIC_BYTES = 2**32 - 2**26
UM_PER_CM = 10000


def halved_sizes(size_xy: tuple[int, int], tile: int) -> list[tuple[int, int]]:
    """Sizes of all levels, finest first: halves, rounded up, until one tile holds a level or a side is 1 px.

    Args:
        size_xy: Width and height of level 0, px.
        tile: Side of the tiles, px.
    """
    sizes = [size_xy]
    while max(sizes[-1]) > tile and min(sizes[-1]) > 1:
        # Of level 0, not of the level before: the same number, but the rule of a reader is plain to see.
        factor = 2 ** len(sizes)
        sizes.append((-(-size_xy[0] // factor), -(-size_xy[1] // factor)))
    return sizes


def write_mask_pyramid(
    path: str | Path,
    size_xy: tuple[int, int],
    um_px_xy: Pair,
    tile_of: TileOf,
    sizes_lv: Sizes | None = None,
    shrink: Shrink = "max",
    tile: int = 512,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a tiled Deflate pyramid of one 8-bit channel, completely or not at all.

    Lower levels come from the level above. A px of a lower level stands for the px whose centers lie in it; where a
    size was rounded down, the last px also stands for the rest. With `shrink="max"` it is the largest value below 255,
    and 255 ("ignore", outside the slide) only where all of them are 255: "ignore" never hides a class, and of two
    classes the larger number stays, however small the spot. With "mean" it is their mean, halves rounded up; 255 is
    a value like any other.

    Args:
        path: TIFF to write; BigTIFF where the px could fill 4 GB.
        size_xy: Width and height of level 0, px.
        um_px_xy: Micrometers per px of level 0 along x and y, for the resolution tags.
        tile_of: Called with row and column of each tile of level 0, row by row, in the calling thread. Returns uint8
            px of shape (tile, tile), of which those beyond the border are dropped, or (h, w); or one int where the
            whole tile has that value, which costs next to nothing. The array may be filled again in the next call.
        sizes_lv: Sizes of all levels, `size_xy` first, e.g. those of a slide; default `halved_sizes`.
        shrink: How lower levels are made.
        tile: Side of the tiles, px, a multiple of 16.
        progress: Called with the rows of tiles done and their number, after each row.

    Raises:
        ValueError: An impossible size, spacing or tile, or `tile_of` returned something else.
        OSError: The file cannot be written.
    """
    sizes = halved_sizes(size_xy, tile) if sizes_lv is None else [(int(w), int(h)) for w, h in sizes_lv]
    _check(size_xy, um_px_xy, sizes, tile)
    big = sum(_tiles(size, tile) for size in sizes) * tile * tile > CLASSIC_BYTES
    shrinkings = [Shrinking(sizes[0], finer, coarser, tile, shrink) for finer, coarser in itertools.pairwise(sizes)]
    source = _Source(tile_of, shrinkings, _deflate, progress)
    _write(Path(path), sizes, um_px_xy, tile, source, _Tags("adobe_deflate", "minisblack", big=big))


def write_jpeg_pyramid(
    path: str | Path, size_xy: tuple[int, int], um_px_xy: Pair, strips: Iterable[Pixels], quality: int
) -> None:
    """Write a pyramid of JPEG tiles (BigTIFF) with halved levels, completely or not at all.

    A px of a lower level is the mean of the 2 x 2 px above it, before compression, halves rounded up; at an odd border
    the last px counts twice. Colors are not subsampled.

    Args:
        path: TIFF to write; its folder must exist.
        size_xy: Width and height, px.
        um_px_xy: Micrometers per px, for the resolution tags.
        strips: image_HWC of `STRIP_ROWS` rows each, the last of what is left.
        quality: Of JPEG, 1 to 100.

    Raises:
        ValueError: A strip of another shape, too few or too many.
        OSError: The file cannot be written; nothing is left behind.
    """
    tile = STRIP_ROWS
    sizes = halved_sizes(size_xy, tile)
    halvings = [Halving(finer, tile) for finer in sizes[:-1]]
    source = _Source(
        _tiles_of_strips(checked_strips(strips, size_xy), size_xy), halvings, partial(_jpeg, quality=quality)
    )
    tags = _Tags("jpeg", "ycbcr", {"subsampling": (1, 1)}, big=True, channels=(3,))
    _write(Path(path), sizes, um_px_xy, tile, source, tags)


def _tiles_of_strips(strips: Iterator[Pixels], size_xy: tuple[int, int]) -> TileOf:
    """The tiles of strips as high as they are; the last tile of all asks whether there are more strips."""
    strip = np.empty((0, 0, 3), np.uint8)
    rows = -(-size_xy[1] // STRIP_ROWS)

    def tile_of(row: int, column: int) -> Pixels:
        nonlocal strip
        if column == 0:
            strip = next(strips)
            if row + 1 == rows:
                extra = next(strips, None)
                assert extra is None, "checked_strips raises where there are more"
        return strip[:, column * STRIP_ROWS : (column + 1) * STRIP_ROWS]

    return tile_of


# ---------------------------------------------------------------------------------------------------------- both kinds


class _Smaller(Protocol):
    """Makes the tiles of a level: `Shrinking`, or `Halving`."""

    def add(self, row: int, column: int, piece: Piece) -> Iterator[tuple[int, int, Piece]]:
        """See `Shrinking.add`."""


@dataclass(frozen=True)
class _Source:
    """What a pyramid is made of.

    Attributes:
        tile_of: Gives the tiles of level 0.
        shrinkings: Makes the tiles of each lower level.
        encode: Makes the bytes of a tile from its px and its side.
        progress: See `write_mask_pyramid`.
    """

    tile_of: TileOf
    shrinkings: Sequence[_Smaller]
    encode: Callable[[Pixels, int], bytes]
    progress: Callable[[int, int], None] | None = None


@dataclass(frozen=True)
class _Tags:
    """Arguments of tifffile that all levels share."""

    compression: str
    photometric: str
    more: Mapping[str, Any] = field(default_factory=dict)
    big: bool = False
    channels: tuple[int, ...] = ()


def _write(path: Path, sizes: Sizes, um_px_xy: Pair, tile: int, source: _Source, tags: _Tags) -> None:
    with written_whole(path) as part, tempfile.TemporaryFile(dir=path.parent) as store:
        stream = _Stream(source, sizes, tile, store, tags.channels)
        with stream, tifffile.TiffWriter(part, bigtiff=tags.big) as tiff:
            for level, (width, height) in enumerate(sizes):
                tiff.write(
                    stream.finest() if level == 0 else stream.stored(level),
                    shape=(height, width, *tags.channels),
                    dtype=np.uint8,
                    tile=(tile, tile),
                    compression=tags.compression,
                    photometric=tags.photometric,
                    subfiletype=1 if level else 0,
                    resolution=px_per_cm(um_px_xy, level_downsample_xy(sizes[0], (width, height))),
                    resolutionunit="centimeter",
                    metadata=None,
                    **tags.more,
                )


class _Stream:
    """Tiles of level 0 as they are encoded; those of the other levels are made and stored on the way."""

    def __init__(self, source: _Source, sizes: Sizes, tile: int, store: IO[bytes], channels: tuple[int, ...]) -> None:
        self._source, self._sizes, self._tile, self._store, self._channels = source, sizes, tile, store, channels
        # Offset and length in the store, by level and number of the tile; level 0 is not stored.
        self._places = [np.zeros((_tiles(size, tile), 2), np.int64) for size in sizes]
        self._waiting: deque[tuple[int, int, Future[bytes] | bytes]] = deque()
        self._plain: dict[int, bytes] = {}
        # No more threads than cores we may use: encoding competes with `tile_of`.
        self._threads = ThreadPoolExecutor(min(THREADS, len(os.sched_getaffinity(0))))

    def __enter__(self) -> None:
        """Start."""

    def __exit__(self, *_: object) -> None:
        """Wait for the threads."""
        self._threads.shutdown(cancel_futures=True)

    def finest(self) -> Iterator[bytes]:
        """Encoded tiles of level 0 in order."""
        width, height = self._sizes[0]
        rows, columns = -(-height // self._tile), -(-width // self._tile)
        for row in range(rows):
            for column in range(columns):
                hw = min(self._tile, height - row * self._tile), min(self._tile, width - column * self._tile)
                given = self._source.tile_of(row, column)
                shapes = (*hw, *self._channels), (self._tile, self._tile, *self._channels)
                self._deliver(0, row, column, _checked(given, shapes, (row, column)))
                if self._source.progress is not None and column + 1 == columns:
                    # Before the last `yield`, after which nobody may ask again.
                    self._source.progress(row + 1, rows)
                yield from self._encoded(WAITING)
        yield from self._encoded(0)

    def stored(self, level: int) -> Iterator[bytes]:
        """Encoded tiles of another level in order, after all of `finest`."""
        # Tiles of lower levels may be left behind the last one of level 0.
        left = list(self._encoded(0))
        assert not left, "level 0 is written first"
        for offset, length in self._places[level].tolist():
            self._store.seek(offset)
            yield self._store.read(length)

    def _deliver(self, level: int, row: int, column: int, piece: Piece) -> None:
        """Queue a tile to be encoded and add it to the level below."""
        columns = -(-self._sizes[level][0] // self._tile)
        if isinstance(piece, int):
            if piece not in self._plain:
                whole = np.full((self._tile, self._tile, *self._channels), piece, np.uint8)
                self._plain[piece] = self._source.encode(whole, self._tile)
            self._waiting.append((level, row * columns + column, self._plain[piece]))
        else:
            # A copy where it is a part of something: the caller may fill its array again while a thread encodes it.
            own = piece if piece.flags.owndata and piece.flags.c_contiguous else piece.copy()
            encoded = self._threads.submit(self._source.encode, own, self._tile)
            self._waiting.append((level, row * columns + column, encoded))
        if level + 1 < len(self._sizes):
            for lower_row, lower_column, lower in self._source.shrinkings[level].add(row, column, piece):
                self._deliver(level + 1, lower_row, lower_column, lower)

    def _encoded(self, keep: int) -> Iterator[bytes]:
        """Take encoded tiles off the queue until `keep` are left; give those of level 0, store the others."""
        while len(self._waiting) > keep:
            level, number, encoded = self._waiting.popleft()
            data = encoded if isinstance(encoded, bytes) else encoded.result()
            if level == 0:
                yield data
            else:
                self._places[level][number] = self._store.seek(0, os.SEEK_END), len(data)
                self._store.write(data)


def _deflate(pixels: Pixels, tile: int) -> bytes:
    if pixels.shape != (tile, tile):
        whole = np.zeros((tile, tile), np.uint8)
        whole[: pixels.shape[0], : pixels.shape[1]] = pixels
        pixels = whole
    data: bytes = isal_zlib.compress(pixels, DEFLATE_LEVEL)
    return data


def _jpeg(pixels_hwC: Pixels, tile: int, quality: int) -> bytes:
    missing = tile - pixels_hwC.shape[0], tile - pixels_hwC.shape[1]
    if any(missing):
        # Px beyond the border are never shown: repeated, they cost least and blur nothing.
        pixels_hwC = np.pad(pixels_hwC, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="edge")
    return encoded(pixels_hwC, quality)


def _checked(given: object, shapes: tuple[tuple[int, ...], tuple[int, ...]], at: tuple[int, int]) -> Piece:
    """A tile as the px it shows, or as an int where all have one value.

    Args:
        given: What the caller gave for it.
        shapes: Allowed ones: of what it shows, and of a whole tile.
        at: Row and column of the tile.
    """
    if isinstance(given, (int, np.integer)):
        if not 0 <= given <= 255:
            raise ValueError(f"tile (row, column) {at}: value {given}; allowed are 0 to 255")
        return int(given)
    if not isinstance(given, np.ndarray) or given.dtype != np.uint8 or given.shape not in shapes:
        got = f"{given.dtype} of shape {given.shape}" if isinstance(given, np.ndarray) else type(given).__name__
        raise ValueError(f"tile (row, column) {at}: {got}; wanted an int or uint8 of shape {shapes[0]} or {shapes[1]}")
    pixels: Pixels = given[: shapes[0][0], : shapes[0][1]]
    low, high = int(pixels.min()), int(pixels.max())
    return low if low == high else pixels


def _tiles(size_xy: tuple[int, int], tile: int) -> int:
    return -(-size_xy[0] // tile) * -(-size_xy[1] // tile)


def px_per_cm(um_px_xy: Pair, downsample_xy: Pair) -> tuple[tuple[int, int], tuple[int, int]]:
    """Px per cm of a level along x and y, each as numerator and denominator of 32 bits: what resolution tags hold."""
    most = 2**32 - 2
    exact = [UM_PER_CM / (um * down) for um, down in zip(um_px_xy, downsample_xy, strict=True)]
    x, y = (Fraction(value).limit_denominator(max(1, min(most, int(most / value)))) for value in exact)
    return (x.numerator, x.denominator), (y.numerator, y.denominator)


def _check(size_xy: tuple[int, int], um_px_xy: Pair, sizes: Sizes, tile: int) -> None:
    """Refuse what cannot be written.

    Raises:
        ValueError: See `write_mask_pyramid`.
    """
    if min(size_xy) < 1:
        raise ValueError(f"size {size_xy} (width, height): both must be at least 1 px")
    if tile < 16 or tile % 16:
        raise ValueError(f"tile {tile}: TIFF wants a multiple of 16 px")
    if not all(math.isfinite(um) and um > 0 and 1 <= UM_PER_CM / um < 2**32 for um in um_px_xy):
        raise ValueError(f"spacing {um_px_xy} um/px: allowed is more than 0, up to {UM_PER_CM} um")
    if not sizes or sizes[0] != tuple(size_xy):
        raise ValueError(f"levels {sizes}: the first must be that of level 0, {size_xy}")
    for (width, height), (lower_width, lower_height) in itertools.pairwise(sizes):
        if not (1 <= lower_width <= width and 1 <= lower_height <= height):
            raise ValueError(f"levels {sizes}: none may be empty or larger than the one before it")
