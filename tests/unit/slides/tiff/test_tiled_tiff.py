"""Tiles decoded one by one: the same pixels as libvips, damage, the cache."""

import threading
import tracemalloc
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import pyvips

from slides.reader import Slide, SlideError
from slides.synthetic.texture import STAINS, stained_tissue
from slides.tiff import backends, tiled_tiff
from slides.tiff.tags import read_pages, tile_layout
from slides.tiff.tiled_tiff import TileCache, TiledTiff


def tissue(hw=(301, 433)):
    everywhere = np.ones(hw, np.bool_)
    return stained_tissue(np.random.default_rng(1), everywhere, ~everywhere, STAINS["standard"])


def write(path, image, **options):
    options = {"tile": True, "tile_width": 64, "tile_height": 64, "pyramid": True, "compression": "jpeg"} | options
    pyvips.Image.new_from_array(image).copy(xres=4000, yres=4000).tiffsave(str(path), **options)
    return path


@pytest.fixture
def no_cache():
    tiled_tiff.tile_cache.resize(0)
    yield
    tiled_tiff.tile_cache.resize(tiled_tiff.CACHE_BYTES)


@pytest.mark.parametrize(
    "options",
    [
        {"Q": 80},
        {"Q": 95},  # libvips: no chroma subsampling, and RGB instead of YCbCr
        {"Q": 80, "bigtiff": True},
        {"Q": 80, "tile_width": 112, "tile_height": 48},
        {"Q": 80, "subifd": True},
        {"compression": "deflate", "predictor": "none"},
        {"compression": "deflate", "predictor": "horizontal"},
        {"compression": "deflate", "predictor": "horizontal", "tile_width": 112, "tile_height": 48},
    ],
)
def test_pixels_are_those_of_libvips(tmp_path, options):
    slide = Slide(write(tmp_path / "a.tif", tissue(), **options), um_px=0.25)
    assert isinstance(slide._open(), TiledTiff)
    pages = backends.tiff_levels(slide.path)
    vips = backends.VipsTiff(slide.path, pages)
    rng = np.random.default_rng(0)
    for level in slide.levels:
        width, height = level.size_xy
        for _ in range(8):
            w, h = int(rng.integers(1, width + 1)), int(rng.integers(1, height + 1))
            corner = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
            expected = vips.fetch(level.index, corner, (h, w))[0]
            np.testing.assert_array_equal(slide.read_level(level.index, corner, (h, w)), expected)


def test_gray_slides_are_read(tmp_path):
    gray = tissue()[..., 1]
    slide = Slide(write(tmp_path / "a.tif", gray, Q=90), um_px=0.25)
    assert isinstance(slide._open(), TiledTiff)
    read = slide.read_level(0, (0, 0), gray.shape)
    assert (read == read[..., :1]).all()
    assert abs(read[..., 0].astype(int) - gray).mean() < 4


def test_other_compressions_stay_with_libvips(tmp_path):
    slide = Slide(write(tmp_path / "a.tif", tissue(), compression="lzw"), um_px=0.25)
    assert isinstance(slide._open(), backends.VipsTiff)


@pytest.mark.parametrize("predictor", ["none", "horizontal"])
def test_masks_of_deflate_are_those_of_libvips_and_plain_tiles_are_decoded_once(tmp_path, no_cache, predictor):
    mask = np.zeros((256, 256), np.uint8)
    mask[64:, 64:] = 1
    mask[70:120, 10:50] = np.random.default_rng(0).integers(0, 256, (50, 40))
    path = write(tmp_path / "m.tif", mask, compression="deflate", predictor=predictor)
    pages = backends.tiff_levels(path)
    backend = TiledTiff(path, "mask", pages, unwritten=0)
    for level, page in enumerate(pages):
        hw = page.size_xy[::-1]
        expected = backends.VipsTiff(path, pages).fetch(level, (0, 0), hw)[0]
        np.testing.assert_array_equal(backend.fetch(level, (0, 0), hw)[0], expected)
    assert len([tile for at, tile in backend._plain.items() if at[0] == 0]) == 2  # of 16 tiles 15 are all 0 or all 1
    assert sum(tile.base.nbytes for tile in backend._plain.values()) < 100
    assert backend.fetch(0, (3, 5), (100, 99))[0].ctypes.data % 64 == 0


def damaged(path, number, change):
    """Overwrite bytes of one tile of level 0."""
    layout = tile_layout(path, read_pages(path)[0])
    offset, count = int(layout.offsets[number]), int(layout.counts[number])
    with path.open("r+b") as file:
        file.seek(offset)
        data = bytearray(file.read(count))
        change(data)
        file.seek(offset)
        file.write(data)


def half_lost(data):
    data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)


def one_bit(data):
    data[len(data) // 2] ^= 64


def head_lost(data):
    data[:2] = b"\0\0"


@pytest.mark.parametrize("change", [half_lost, head_lost])
@pytest.mark.parametrize("options", [{"Q": 80}, {"compression": "deflate"}])
def test_a_damaged_tile_is_an_error_there_and_only_there(tmp_path, no_cache, change, options):
    path = write(tmp_path / "a.tif", tissue(), pyramid=False, **options)
    slide = Slide(path, um_px=0.25)
    whole = slide.read_level(0, (0, 0), (301, 433))
    damaged(path, 8, change)  # 7 tiles a row: the second of the second row
    with pytest.raises(SlideError, match=r"a\.tif cannot be read.*tile in row 1, column 1"):
        slide.read_level(0, (100, 100), (8, 8))
    np.testing.assert_array_equal(slide.read_level(0, (128, 0), (301, 64)), whole[:, 128:192])


def huge(data):
    at = data.index(b"\xff\xc0\x00\x11\x08")
    data[at + 5 : at + 9] = b"\xff\xdc\xff\xdc"


def checksum_lost(data):
    data[-4:] = b"\1\2\3\4"


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [(huge, {"Q": 80}, "cannot reshape"), (checksum_lost, {"compression": "deflate"}, "BAD_DATA")],
)
def test_tiles_that_lie_about_their_size_or_content_are_errors(tmp_path, no_cache, change, options, message):
    path = write(tmp_path / "a.tif", tissue(), pyramid=False, **options)
    damaged(path, 8, change)
    tracemalloc.start()
    try:
        with pytest.raises(SlideError, match=rf"tile in row 1, column 1: .*{message}"):
            Slide(path, um_px=0.25).read_level(0, (100, 100), (8, 8))
        # 65,500 px a side would be 13 GB.
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()


def test_tiles_that_were_never_written_are_white(tmp_path, no_cache):
    path = write(tmp_path / "a.tif", tissue(), Q=80, pyramid=False)
    page = read_pages(path)[0]
    slide = Slide(path, um_px=0.25)
    backend = slide._open()
    layout, head = backend._layout(0)
    layout.counts[0] = 0
    backend._layouts[0] = (layout, head)
    read = backend.fetch(0, (60, 60), (8, 8))[0]
    assert page.tile_xy == (64, 64)
    assert (read[:4, :4] == 255).all()
    assert (read[4:, 4:] < 255).any()


def test_the_cache_is_bounded_and_keeps_what_was_used_last():
    cache = TileCache(100)
    for name in "abcd":
        cache.put(name, np.zeros(30, np.uint8))
        cache.get("a")
    assert cache.held_bytes == 90
    assert cache.get("b") is None
    assert cache.get("a") is not None
    cache.resize(30)
    assert cache.held_bytes == 30
    assert cache.get("a") is not None
    cache.put("huge", np.zeros(1000, np.uint8))
    assert cache.held_bytes == 0


def test_threads_share_tiles(tmp_path):
    slide = Slide(write(tmp_path / "a.tif", tissue(), Q=80, pyramid=False), um_px=0.25)
    first = slide.read_level(0, (0, 0), (301, 433))
    before = tiled_tiff.tile_cache.misses
    found = []
    threads = [threading.Thread(target=lambda: found.append(slide.read_level(0, (0, 0), (301, 433)))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert tiled_tiff.tile_cache.misses == before
    assert all((image == first).all() for image in found)
    found[0][:] = 0  # what was handed out is a copy
    np.testing.assert_array_equal(slide.read_level(0, (0, 0), (301, 433)), first)


def deflated(data: bytes, kind: str) -> bytearray:
    compressor = zlib.compressobj()
    if kind == "longer":
        data += b"more"
    stream = compressor.compress(data)
    stream += compressor.flush(zlib.Z_SYNC_FLUSH if kind == "without an end" else zlib.Z_FINISH)
    if kind == "checksum":
        stream = stream[:-1] + bytes([stream[-1] ^ 1])
    return bytearray(stream[:40] if kind == "cut" else stream)


def a_page() -> SimpleNamespace:
    """A page of tiles in Deflate; what else it says does not matter here."""
    return SimpleNamespace(compression=8, predictor=1)


@pytest.mark.parametrize("kind", ["", "longer", "without an end"])
def test_deflate_tiles_that_end_otherwise_are_read(kind):
    tile = np.random.default_rng(0).integers(0, 99, (16, 16, 3), np.uint8)
    read = tiled_tiff._lossless(deflated(tile.tobytes(), kind), tile.shape, a_page())
    np.testing.assert_array_equal(read, tile)


@pytest.mark.parametrize("kind", ["cut", "checksum"])
def test_damaged_deflate_tiles_are_refused(kind):
    tile = np.random.default_rng(0).integers(0, 99, (16, 16, 3), np.uint8)
    with pytest.raises(RuntimeError):
        tiled_tiff._lossless(deflated(tile.tobytes(), kind), tile.shape, a_page())
