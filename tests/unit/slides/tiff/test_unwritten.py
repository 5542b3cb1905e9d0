"""Tiles that were never written (offset and byte count 0): white in slides, 0 in masks, whatever the compression."""

import itertools

import numpy as np
import pytest
import pyvips
import tifffile

from slides.geometry import Window
from slides.reader import Slide
from slides.tiff.tiled_tiff import TiledTiff
from slides.truth.mask_truth import MaskTruth

TILE = 64
SIZE_HW = 200, 300
# Rows and columns of tiles that are dropped from level 0; of the last level none is left.
DROPPED = ((0, 0), (1, 2), (3, 4))


def drop(path):
    """Remove tiles from the directories of a pyramid."""
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        for number, page in enumerate(tiff.pages):
            offsets, counts = list(page.dataoffsets), list(page.databytecounts)
            across = -(-page.imagewidth // TILE)
            places = [row * across + column for row, column in DROPPED] if number == 0 else []
            for place in range(len(counts)) if number == len(tiff.pages) - 1 else places:
                offsets[place] = counts[place] = 0
            page.tags["TileOffsets"].overwrite(offsets)
            page.tags["TileByteCounts"].overwrite(counts)


def write(path, image, **options):
    """A pyramid of libvips that lacks tiles."""
    pyvips.Image.new_from_array(image).copy(xres=2000, yres=2000).tiffsave(
        str(path), tile=True, tile_width=TILE, tile_height=TILE, pyramid=True, region_shrink="nearest", **options
    )
    drop(path)
    return path


def lacking(image, value):
    """The image with `value` where tiles were dropped."""
    image = image.copy()
    for row, column in DROPPED:
        image[row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE] = value
    return image


@pytest.mark.parametrize(
    ("compression", "bands"), [*itertools.product(("none", "lzw", "packbits", "deflate"), (1, 3, 4)), ("jpeg", 3)]
)
def test_slides_are_white_there(tmp_path, compression, bands):
    image = np.random.default_rng(0).integers(60, 160, (*SIZE_HW, bands), np.uint8)
    image[..., 3:] = 255
    if compression == "jpeg":
        image[:] = 100
    slide = Slide(write(tmp_path / "a.tif", image, compression=compression, Q=100))
    expected = lacking(np.repeat(image, 3, axis=2) if bands == 1 else image[..., :3], 255)
    read = slide.read_level(0, (0, 0), SIZE_HW)
    assert np.abs(read.astype(int) - expected).max() <= (1 if compression == "jpeg" else 0)
    # Windows inside a tile that is lacking, across its border, and over the border of the slide.
    for x, y, width, height in ((3, 5, 20, 30), (50, 60, 30, 20), (120, 50, 100, 90), (250, 180, 80, 40)):
        window = slide.read(Window((float(x), float(y)), (height, width), (1.0, 1.0)))
        inside = read[y : y + height, x : x + width]
        np.testing.assert_array_equal(window[: inside.shape[0], : inside.shape[1]], inside)
    assert (slide.thumbnail(len(slide.levels) - 1) == 255).all()


def test_both_readers_are_tested(tmp_path):
    image = np.full((*SIZE_HW, 3), 100, np.uint8)
    readers = [
        isinstance(Slide(write(tmp_path / f"{name}.tif", image, compression=name))._open(), TiledTiff)
        for name in ("lzw", "deflate")
    ]
    assert readers == [False, True]


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "lzw"},
        {"compression": "none"},
        {"compression": "packbits"},
        {"compression": "deflate"},
        {"compression": "lzw", "bitdepth": 1, "predictor": "none"},
        {"compression": "ccittfax4", "bitdepth": 1},
        {"compression": "deflate", "bitdepth": 4, "predictor": "none"},
    ],
)
def test_masks_are_0_there(tmp_path, options):
    slide = Slide(write(tmp_path / "a.tif", np.full((*SIZE_HW, 3), 100, np.uint8), compression="deflate"))
    mask = np.full(SIZE_HW, 255 if "bitdepth" in options else 1, np.uint8)
    mask[:10] = 0
    truth = MaskTruth(write(tmp_path / "a_mask.tif", mask, **options), slide)
    label = truth.label(Window((0.0, 0.0), SIZE_HW, (1.0, 1.0)))
    np.testing.assert_array_equal(label, lacking((mask > 0).astype(np.uint8), 0))
    assert truth.classes == {1}


def test_masks_of_colors_are_index_0_there(tmp_path):
    slide = Slide(write(tmp_path / "a.tif", np.full((*SIZE_HW, 3), 100, np.uint8), compression="deflate"))
    palette = np.zeros((3, 256), np.uint16)
    palette[:, 0] = 0, 0, 255 << 8  # Index 0 is blue.
    palette[:, 1] = 255 << 8, 0, 0
    mask = np.ones(SIZE_HW, np.uint8)
    path = tmp_path / "a_mask.tif"
    with tifffile.TiffWriter(path) as tiff:
        for level in (mask, mask[::2, ::2]):
            tiff.write(level, photometric="palette", colormap=palette, tile=(TILE, TILE), compression="lzw")
    drop(path)
    label = MaskTruth(path, slide).label(Window((0.0, 0.0), SIZE_HW, (1.0, 1.0)))
    np.testing.assert_array_equal(label, lacking(mask, 0))
