"""Tiles of a TIFF decoded one by one: JPEG, the format of nearly all large slides, and Deflate.

Also what libvips as we have it cannot read: JPEG 2000, Zstandard, and tiles whose samples are in separate planes.

libvips decodes the same tiles to the same pixels, but takes 1.5 times as long for a window (it moves them through its
own caches) and passes damaged JPEG tiles on as gray; here a tile that is not complete is an error.

Codecs are imagecodecs', except two: it also passes damaged JPEG and JPEG 2000 on as pixels, without an error. JPEG is
decoded by simplejpeg and JPEG 2000 by Pillow, which stop there. The cache of tiles and the joining of tiles to windows
are ours: tifffile decodes whole images, and keeps no tiles for the next window.
"""

from __future__ import annotations

import io
import math
import os
import threading
import zlib
from collections import OrderedDict
from pathlib import Path

import imagecodecs
import numpy as np
import PIL.Image
import PIL.Jpeg2KImagePlugin
import simplejpeg
from numpy.typing import NDArray

from slides.memory import aligned
from slides.tiff.backends import Backend, NewArray, Value, VipsTiff
from slides.tiff.tags import Page, Span, TileLayout, split, tile_layout

JPEG, NONE = 7, 1  # Compression
# JPEG 2000: Aperio's number for YCbCr, that of Bio-Formats for lossy, Aperio's for RGB, the registered one.
JPEG_2000, JPEG_2000_UNSURE = (33003, 33004, 33005, 34712), (33003, 33004)
# Deflate and Zstandard each by the standard's number and by an old one.
DEFLATES, ZSTDS, LZW, PACKBITS = (8, 32946), (50000, 34926), 5, 32773
LOSSLESS = dict.fromkeys(DEFLATES, "deflate_decode") | dict.fromkeys(ZSTDS, "zstd_decode")
LOSSLESS |= {LZW: "lzw_decode", PACKBITS: "packbits_decode"}
CACHE_BYTES = 128 * 2**20
# Tiles of so few bytes may show one value only (glass; most of a mask): these are decoded once and kept as a number.
PLAIN_BYTES, PLAIN_TILES = 2048, 64
_GRAY, _RGB, _YCBCR = 1, 2, 6  # PhotometricInterpretation
_NO_PREDICTOR, _HORIZONTAL = 1, 2  # Predictor
# imagecodecs raises RuntimeErrors.
_DECODE_ERRORS = (ValueError, OSError, RuntimeError, PIL.Image.DecompressionBombError)
_START, _END = b"\xff\xd8", b"\xff\xd9"  # markers of a JPEG stream
Image = NDArray[np.uint8]


def readable(page: Page) -> bool:
    """Whether `TiledTiff` reads this page: 8 bits, in tiles, gray or RGB (JPEG: also YCbCr), compressed as above."""
    if not page.tiled or (page.planar, page.bits) != (1, 8):
        return False
    colors = page.samples, page.photometric
    if page.compression == JPEG:
        return colors in ((1, _GRAY), (3, _RGB), (3, _YCBCR))
    if colors not in ((1, _GRAY), (3, _RGB)) or page.predictor not in (_NO_PREDICTOR, _HORIZONTAL):
        return False
    if page.compression in (NONE, LZW, PACKBITS):
        return page.plane != (0, 1)  # libvips reads all others of these, and faster
    return page.compression in (*DEFLATES, *JPEG_2000, *ZSTDS)


class TileCache:
    """Decoded tiles shared by the threads of a process, least recently used dropped first.

    Args:
        max_bytes: Most bytes of pixels kept; 0 keeps none.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._forget()
        # A child that is forked while another thread holds the lock would wait for it forever.
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._tiles: OrderedDict[object, Image] = OrderedDict()
        self.held_bytes = self.hits = self.misses = 0

    def resize(self, max_bytes: int) -> None:
        """Keep at most `max_bytes` from now on."""
        with self._lock:
            self._max_bytes = max_bytes
            self._shrink()

    def get(self, key: object) -> Image | None:
        """Return a tile, None where it is not held; nobody may write into it."""
        with self._lock:
            tile = self._tiles.get(key)
            if tile is None:
                self.misses += 1
            else:
                self.hits += 1
                self._tiles.move_to_end(key)
            return tile

    def put(self, key: object, tile: Image) -> None:
        """Keep a tile."""
        with self._lock:
            if key not in self._tiles:
                self._tiles[key] = tile
                self.held_bytes += tile.nbytes
                self._shrink()

    def _shrink(self) -> None:
        while self.held_bytes > self._max_bytes:
            self.held_bytes -= self._tiles.popitem(last=False)[1].nbytes


tile_cache = TileCache(CACHE_BYTES)


class TiledTiff:
    """Levels of a TIFF with tiles; see `backends.Backend`.

    Args:
        path: The file.
        key: Names the file in `tile_cache`.
        pages: Its levels, all `readable`.
        unwritten: Value of px in tiles that were never written, as loaded: 255, white, for slides; 0 for masks.
        span: Where in the file the TIFF lies; None: it is the file.
    """

    held_bytes = 0  # decoded tiles are in `tile_cache`, which has a bound of its own

    def __init__(
        self, path: Path, key: object, pages: tuple[Page, ...], unwritten: Value = 255, span: Span | None = None
    ) -> None:
        self._path = path
        self._key = key
        self._span = span
        self._pages = pages
        self._unwritten = np.asarray(unwritten, np.uint8)
        self._file = path.open("rb", buffering=0)
        self._layouts: dict[int, tuple[TileLayout, bytes]] = {}
        self._plain: dict[tuple[int, bytes], Image] = {}  # (level, tile's bytes) -> tile of one value

    def fetch(
        self, level: int, corner_xy_lv: tuple[int, int], hw: tuple[int, int], new: NewArray = aligned
    ) -> tuple[Image, float, float]:
        """See `Backend.fetch`."""
        (x, y), (height, width) = corner_xy_lv, hw
        page = self._pages[level]
        tile_width, tile_height = page.tile_xy
        image_HWC = new((height, width, page.samples))
        for row in range(y // tile_height, (y + height - 1) // tile_height + 1):
            top = row * tile_height
            y0, y1 = max(y, top), min(y + height, top + tile_height)
            for column in range(x // tile_width, (x + width - 1) // tile_width + 1):
                left = column * tile_width
                x0, x1 = max(x, left), min(x + width, left + tile_width)
                tile_HWC = self._tile(level, row, column)
                image_HWC[y0 - y : y1 - y, x0 - x : x1 - x] = tile_HWC[y0 - top : y1 - top, x0 - left : x1 - left]
                # Not kept while the next is decoded, which gets the same memory while it is in the core's cache.
                del tile_HWC
        return image_HWC, 0.0, 0.0

    def close(self) -> None:
        """See `Backend.close`."""
        self._file.close()

    def _tile(self, level: int, row: int, column: int) -> Image:
        key = self._key, level, row, column
        tile_HWC = tile_cache.get(key)
        if tile_HWC is not None:
            return tile_HWC
        page = self._pages[level]
        shape = page.tile_xy[1], page.tile_xy[0], page.samples
        where = f"level {level}, tile in row {row}, column {column}"
        number = row * -(-page.size_xy[0] // page.tile_xy[0]) + column
        layout, head = self._layout(level)
        count = int(layout.counts[number])
        if count == 0:
            return np.broadcast_to(self._unwritten, shape)
        stream = self._stream(head, int(layout.offsets[number]), count, where)
        may_be_plain = count <= PLAIN_BYTES
        plain_HWC = self._plain.get((level, bytes(stream))) if may_be_plain else None
        if plain_HWC is not None:
            return plain_HWC
        try:
            tile_HWC = _decoded(stream, shape, page)
        except _DECODE_ERRORS as error:
            raise ValueError(f"{where}: {error}") from error
        if may_be_plain and len(self._plain) < PLAIN_TILES and (tile_HWC == tile_HWC[0, 0]).all():
            self._plain[level, bytes(stream)] = np.broadcast_to(tile_HWC[0, 0].copy(), shape)
        else:
            tile_cache.put(key, tile_HWC)
        return tile_HWC

    def _stream(self, head: bytes, offset: int, count: int, where: str) -> bytearray:
        """A tile's bytes behind `head`, read to where they are decoded from; `head` replaces the tile's own marker."""
        own = max(0, len(head) - len(_START))
        stream = bytearray(own + count)
        if self._span is not None:
            if offset + count > self._span.size:
                raise OSError(f"{where}: the file ends inside it")
            offset += self._span.offset
        if os.preadv(self._file.fileno(), [memoryview(stream)[own:]], offset) < count:
            raise OSError(f"{where}: the file ends inside it")
        if head and not stream.startswith(_START, own):
            raise ValueError(f"{where}: is no JPEG stream")
        stream[: len(head)] = head
        return stream

    def _layout(self, level: int) -> tuple[TileLayout, bytes]:
        """Where tiles are, and what stands before the bytes of each: nothing, or tables and colors of JPEG streams."""
        if level not in self._layouts:
            page = self._pages[level]
            layout = tile_layout(self._path, page, self._span)
            head = b""
            if page.compression == JPEG:
                head = _START + layout.jpeg_tables.removeprefix(_START).removesuffix(_END)
                if page.samples > 1:
                    # Adobe's marker: 0 no transform, 1 YCbCr. Without it libjpeg guesses; TIFF says it in a tag.
                    head += b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([page.photometric == _YCBCR])
            self._layouts[level] = layout, head
        return self._layouts[level]


def open_tiff(path: Path, key: object, pages: tuple[Page, ...], unwritten: Value = 255) -> Backend:
    """Open a TIFF by `TiledTiff` where that reads all its levels, else by libvips; arguments as of `TiledTiff`."""
    if all(map(readable, pages)):
        return TiledTiff(path, key, pages, unwritten)
    if all(page.tiled and page.planar == 2 and page.samples > 1 for page in pages):
        # libvips: "tiled separate planes not supported". YCbCr in planes would need a conversion nobody here does.
        planes = tuple(zip(*map(split, pages), strict=True))
        if all(page.photometric == _RGB for page in pages) and all(map(readable, planes[0])):
            return open_planes(path, key, planes, unwritten)
    return VipsTiff(path, pages, unwritten)


class Planes:
    """Channels of a slide that are stored one by one, joined; see `backends.Backend`.

    Args:
        parts: One backend per channel, all with the same levels, each giving one channel.
    """

    def __init__(self, parts: tuple[Backend, ...]) -> None:
        self._parts = parts

    @property
    def held_bytes(self) -> int:
        """See `backends.Backend`."""
        return sum(part.held_bytes for part in self._parts)

    def fetch(
        self, level: int, corner_xy_lv: tuple[int, int], hw: tuple[int, int], new: NewArray = aligned
    ) -> tuple[Image, float, float]:
        """See `Backend.fetch`."""
        image_HWC = new((*hw, len(self._parts)))
        for channel, part in enumerate(self._parts):
            image_HWC[..., channel] = part.fetch(level, corner_xy_lv, hw)[0][..., 0]
        return image_HWC, 0.0, 0.0

    def close(self) -> None:
        """See `Backend.close`."""
        for part in self._parts:
            part.close()


def open_planes(path: Path, key: object, planes: tuple[tuple[Page, ...], ...], unwritten: Value = 255) -> Backend:
    """Open a TIFF by `open_tiff`; where `planes` has several, each holds the levels of one channel of its own."""
    if len(planes) == 1:
        return open_tiff(path, key, planes[0], unwritten)
    # Keys: the tiles of one channel are not those of another.
    return Planes(tuple(open_tiff(path, (key, number), pages, unwritten) for number, pages in enumerate(planes)))


def _decoded(stream: bytearray, shape: tuple[int, int, int], page: Page) -> Image:
    if page.compression == JPEG:
        return _jpeg(stream, shape)
    if page.compression in JPEG_2000:
        return _jpeg_2000(stream, shape, page.compression in JPEG_2000_UNSURE)
    return _lossless(stream, shape, page)


def _jpeg(stream: bytearray, shape: tuple[int, int, int]) -> Image:
    # A buffer of our own: memory follows from what the TIFF says, not from the tile.
    buffer = np.empty(math.prod(shape), np.uint8)
    tile_HWC: Image = simplejpeg.decode_jpeg(stream, "GRAY" if shape[2] == 1 else "RGB", buffer=buffer)
    if tile_HWC.shape != shape:
        raise ValueError(f"is of shape {tile_HWC.shape}, not {shape}")
    return tile_HWC


def _jpeg_2000(stream: bytearray, shape: tuple[int, int, int], unsure: bool) -> Image:
    """Decode JPEG 2000.

    Args:
        stream: A codestream.
        shape: Of the tile.
        unsure: Its number in the TIFF is Aperio's for YCbCr, under which Bio-Formats writes RGB. The latter goes
            through the standard's transform, the former does not (https://openslide.org/formats/aperio), and a flag of
            the stream says which it is (ITU-T T.800, A.6.1).
    """
    coding = stream.find(b"\xff\x52")
    if unsure and shape[2] == 3 and (coding < 0 or stream[coding + 8 : coding + 9] != b"\1"):
        raise ValueError("JPEG 2000 that may be YCbCr or RGB; write the file again: bfconvert -compression LZW IN OUT")
    with PIL.Image.open(io.BytesIO(stream), formats=["JPEG2000"]) as image:
        # Before decoding: memory follows from what the TIFF says, not from the tile.
        if (image.height, image.width, len(image.getbands())) != shape or image.mode not in ("L", "RGB"):
            raise ValueError(f"is of {image.mode}, {image.width} x {image.height} px, not of shape {shape}")
        return np.asarray(image).reshape(shape)


def _lossless(stream: bytearray, shape: tuple[int, int, int], page: Page) -> Image:
    """Decode a tile to as many bytes as it must have, whatever the stream says, and undo the predictor."""
    size = math.prod(shape)
    if page.compression == NONE:
        pixels = np.frombuffer(stream, np.uint8)[:size]
    else:
        # By name: imagecodecs loads each codec when it is first asked for.
        decode = getattr(imagecodecs, LOSSLESS[page.compression])
        try:
            pixels = decode(stream, out=np.empty(size, np.uint8))
        except RuntimeError as error:
            if page.compression not in DEFLATES:
                raise
            pixels = _unusual_deflate(stream, size, error)
    if pixels.size < size:
        raise ValueError(f"holds {pixels.size} of {size} bytes")
    tile_HWC: Image = pixels.reshape(shape)
    if page.predictor == _HORIZONTAL:
        tile_HWC = imagecodecs.delta_decode(tile_HWC, axis=1, out=tile_HWC)
    return tile_HWC


def _unusual_deflate(stream: bytearray, size: int, error: RuntimeError) -> Image:
    """The bytes of a Deflate tile that holds more than it must, or has no end mark, as some writers leave it.

    Raises:
        RuntimeError: `error`, of the usual decoder: too few bytes, damaged, or a wrong checksum.
    """
    inflate = zlib.decompressobj()
    try:
        data = inflate.decompress(stream, size)
        more = inflate.decompress(inflate.unconsumed_tail, 1)  # reads the checksum where the data ends here
    except zlib.error:
        raise error from None
    if len(data) < size or (inflate.eof and not more):
        raise error
    return np.frombuffer(data, np.uint8)
