"""Writing one-channel 8-bit pyramids (masks, maps) tile by tile: memory does not grow with the height of the image.

Level 0 goes straight to the file; tiles of lower levels, made while it passes, wait encoded in a nameless file beside
it. Held in memory: one row of tiles of each lower level, and of these only tiles that show more than one value.

Tensor legend: h, w rows and columns of one tile (less than `tile` at the right and lower border).
"""

from __future__ import annotations

import itertools
import math
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import IO, Literal

import numpy as np
import tifffile
from isal import isal_zlib

from slides.geometry import Pair, level_downsample_xy
from slides.tiff.shrink import Piece, Pixels, Shrinking
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
    """Write a tiled Deflate pyramid of one 8-bit channel, as a whole or not at all.

    Lower levels come from the level above. A px of a lower level stands for the px whose centres lie in it; where a
    size was rounded down, the last px also stands for the rest. With `shrink="max"` it is the largest value below 255,
    and 255 ("ignore", outside the slide) only where all of them are 255: "ignore" never hides a class, and of two
    classes the larger number stays, however small the spot. With "mean" it is their mean, halves rounded up; 255 is
    a value like any other.

    Args:
        path: TIFF to write; BigTIFF where the px could fill 4 GB.
        size_xy: Width and height of level 0, px.
        um_px_xy: Micrometres per px of level 0 along x and y, for the resolution tags.
        tile_of: Called with row and column of each tile of level 0, row by row, in the calling thread. Returns uint8
            px of shape (tile, tile), of which those beyond the border are dropped, or (h, w); or one int where the
            whole tile has that value, which costs next to nothing. The array may be filled anew in the next call.
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
    path = Path(path)
    big = sum(_tiles(size, tile) for size in sizes) * tile * tile > CLASSIC_BYTES
    with written_whole(path) as part, tempfile.TemporaryFile(dir=path.parent) as store:
        stream = _Stream(tile_of, sizes, shrink, tile, store, progress)
        with stream, tifffile.TiffWriter(part, bigtiff=big) as tiff:
            for level, (width, height) in enumerate(sizes):
                tiff.write(
                    stream.finest() if level == 0 else stream.stored(level),
                    shape=(height, width),
                    dtype=np.uint8,
                    tile=(tile, tile),
                    compression="adobe_deflate",
                    photometric="minisblack",
                    subfiletype=1 if level else 0,
                    resolution=px_per_cm(um_px_xy, level_downsample_xy(size_xy, (width, height))),
                    resolutionunit="centimeter",
                    metadata=None,
                )


def tiles_of_bands(bands: Iterable[Pixels], size_xy: tuple[int, int], tile: int = 512) -> TileOf:
    """Adapt whole rows, produced top down, to `write_mask_pyramid`; holds one row of tiles and one band.

    Args:
        bands: uint8 arrays (rows, width) of any number of rows, together the whole image.
        size_xy: Width and height of the image, px.
        tile: Side of the tiles, px; the same as given to `write_mask_pyramid`.

    Returns:
        The function for `tile_of`; it raises ValueError when the bands are of another width or end too early or late.
    """
    width, height = size_xy
    source = iter(bands)
    rest = np.empty((0, width), np.uint8)
    strip, strip_row = rest, -1

    def next_strip(row: int) -> Pixels:
        nonlocal rest
        wanted = min(tile, height - row * tile)
        parts, have = [rest], rest.shape[0]
        while have < wanted:
            band = next(source, None)
            if band is None or band.ndim != 2 or band.shape[1] != width or band.dtype != np.uint8:
                got = "nothing" if band is None else f"{band.dtype} of shape {band.shape}"
                raise ValueError(f"bands: {got} at row {row * tile + have} of {height}; wanted uint8 (rows, {width})")
            parts.append(band)
            have += band.shape[0]
        rows = np.concatenate(parts)
        # A copy: a view would keep the whole band alive.
        rest = rows[wanted:].copy()
        if (row + 1) * tile >= height and (rest.shape[0] or next(source, None) is not None):
            raise ValueError(f"bands: they have more than the {height} rows of the image")
        return rows[:wanted]

    def tile_of(row: int, column: int) -> Pixels:
        nonlocal strip, strip_row
        if row != strip_row:
            strip, strip_row = next_strip(row), row
        return strip[:, column * tile : (column + 1) * tile]

    return tile_of


class _Stream:
    """Tiles of level 0 as they are encoded; those of the other levels are made and stored on the way."""

    def __init__(
        self,
        tile_of: TileOf,
        sizes: Sizes,
        shrink: Shrink,
        tile: int,
        store: IO[bytes],
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self._tile_of, self._sizes, self._tile, self._store, self._progress = tile_of, sizes, tile, store, progress
        self._shrinkings = [
            Shrinking(sizes[0], finer, coarser, tile, shrink) for finer, coarser in itertools.pairwise(sizes)
        ]
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
                self._deliver(0, row, column, _checked(self._tile_of(row, column), hw, self._tile, (row, column)))
                if self._progress is not None and column + 1 == columns:
                    # Before the last `yield`, after which nobody may ask again.
                    self._progress(row + 1, rows)
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
                self._plain[piece] = _deflated(np.full((self._tile, self._tile), piece, np.uint8))
            self._waiting.append((level, row * columns + column, self._plain[piece]))
        else:
            padded = piece
            if piece.shape != (self._tile, self._tile) or not piece.flags.owndata or not piece.flags.c_contiguous:
                # Also a copy: the caller may fill its array anew while a thread encodes this one.
                padded = np.zeros((self._tile, self._tile), np.uint8)
                padded[: piece.shape[0], : piece.shape[1]] = piece
            self._waiting.append((level, row * columns + column, self._threads.submit(_deflated, padded)))
        if level + 1 < len(self._sizes):
            for lower_row, lower_column, lower in self._shrinkings[level].add(row, column, piece):
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


def _deflated(pixels: Pixels) -> bytes:
    data: bytes = isal_zlib.compress(pixels, DEFLATE_LEVEL)
    return data


def _checked(given: object, hw: tuple[int, int], tile: int, at: tuple[int, int]) -> Piece:
    """A tile as (h, w), or as an int where it has one value."""
    if isinstance(given, (int, np.integer)):
        if not 0 <= given <= 255:
            raise ValueError(f"tile (row, column) {at}: value {given}; allowed are 0 to 255")
        return int(given)
    if not isinstance(given, np.ndarray) or given.dtype != np.uint8 or given.shape not in (hw, (tile, tile)):
        got = f"{given.dtype} of shape {given.shape}" if isinstance(given, np.ndarray) else type(given).__name__
        raise ValueError(f"tile (row, column) {at}: {got}; wanted an int or uint8 of shape {hw} or {(tile, tile)}")
    pixels: Pixels = given[: hw[0], : hw[1]]
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
