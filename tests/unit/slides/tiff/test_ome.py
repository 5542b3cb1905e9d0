"""OME-TIFF: every layout of brightfield is read px by px, with its levels and its spacing."""

import math
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import pyvips
import tifffile

from slides.reader import Slide, SlideError
from slides.tiff import tiled_tiff
from tests.support.ome_files import (
    APERIO_YCBCR,
    JPEG,
    JPEG_2000,
    LAYOUTS,
    LZW,
    TILE,
    UM,
    ZSTD,
    check,
    edited,
    levels_of,
    picture,
    smooth,
    write,
)
from tests.support.paths import SHARED

KIDNEY = SHARED / "slides" / "kidney-48-5.tif"


@pytest.mark.parametrize("compression", [None, "zlib", LZW, ZSTD])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_tiles_in_every_layout(tmp_path, layout, compression):
    slide = check(write(tmp_path / "a.ome.tif", picture(), layout, compression=compression, subifds=True), picture(), 3)
    assert slide.id == "a.ome"
    assert slide.um_px_xy_l0 == (0.25, 0.5)
    if compression in (None, "zlib"):
        with tifffile.TiffFile(slide.path) as tiff:
            for level, read in enumerate(tiff.series[0].levels):
                expected = read.asarray() if layout == "together" else read.asarray().transpose(1, 2, 0)
                np.testing.assert_array_equal(slide.read_level(level, (0, 0), expected.shape[:2]), expected)


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_strips_in_every_layout(tmp_path, layout, compression):
    path = write(tmp_path / "a.ome.tif", picture(), layout, tile=False, compression=compression, rowsperstrip=16)
    check(path, picture())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("bigtiff", "byteorder"), [(True, "<"), (True, ">"), (False, ">")])
def test_big_files_and_both_byte_orders(tmp_path, layout, bigtiff, byteorder):
    path = write(tmp_path / "a.ome.tif", picture(), layout, subifds=True, bigtiff=bigtiff, byteorder=byteorder)
    assert path.read_bytes()[:3] == (b"II" if byteorder == "<" else b"MM") + (
        b"+" if bigtiff and byteorder == "<" else b"\0"
    )
    check(path, picture(), 3)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_horizontal_differences(tmp_path, layout):
    check(write(tmp_path / "a.ome.tif", picture(), layout, compression="zlib", predictor=True), picture())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_jpeg_with_the_tags_of_bio_formats(tmp_path, layout):
    # It calls RGB what its streams hold as YCbCr: libtiff would show green and pink. QuPath exports such files.
    path = write(tmp_path / "a.ome.tif", smooth(), layout, compression=JPEG, subifds=True)
    with tifffile.TiffFile(path) as tiff:
        assert tiff.pages[0].photometric == (1 if layout == "pages" else 2)
    check(path, smooth(), 3, tolerance=6)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("compression", [APERIO_YCBCR, JPEG_2000])
def test_jpeg_2000(tmp_path, layout, compression):
    check(write(tmp_path / "a.ome.tif", picture(), layout, compression=compression, subifds=True), picture(), 3)


def test_levels_as_series_and_as_bare_pages(tmp_path):
    options = {"photometric": "rgb", "tile": (TILE, TILE)}
    with tifffile.TiffWriter(tmp_path / "series.ome.tif", ome=True) as tiff:
        for level in levels_of(picture()):
            tiff.write(level, metadata={"axes": "YXS"} | UM, **options)
    check(tmp_path / "series.ome.tif", picture(), 3)
    with tifffile.TiffWriter(tmp_path / "pages.ome.tif", ome=True) as tiff:
        for level in levels_of(picture()):
            tiff.write(np.ascontiguousarray(level.transpose(2, 0, 1)), photometric="minisblack", tile=(TILE, TILE),
                       metadata={"axes": "CYX"} | UM)  # fmt: skip
    check(tmp_path / "pages.ome.tif", picture(), 3)
    write(tmp_path / "one.ome.tif", picture())
    xml = tifffile.tiffcomment(tmp_path / "one.ome.tif")
    with tifffile.TiffWriter(tmp_path / "bare.tif") as tiff:
        for number, level in enumerate(levels_of(picture())):
            tiff.write(level, description=xml if number == 0 else None, metadata=None, **options)
    check(tmp_path / "bare.tif", picture(), 3)


@pytest.mark.parametrize("first", [True, False])
def test_label_and_macro_are_no_slides(tmp_path, first):
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as tiff:
        images = [("slide.svs", picture()), ("label image", picture(60, 45)), ("macro image", picture(300, 175))]
        for name, image in images if first else images[::-1]:
            tiff.write(image, photometric="rgb", tile=(TILE, TILE), metadata={"axes": "YXS", "Name": name} | UM)
    check(tmp_path / "a.ome.tif", picture())


@pytest.mark.parametrize(
    ("unit", "value", "um"),
    [(None, 0.25, 0.25), ("\u00b5m", 0.25, 0.25), ("\u03bcm", 0.3, 0.3), ("nm", 250, 0.25), ("mm", 0.0005, 0.5),
     ("\u00c5", 2500, 0.25)],
)  # fmt: skip
def test_units_of_the_spacing(tmp_path, unit, value, um):
    units = {"PhysicalSizeXUnit": unit, "PhysicalSizeYUnit": unit} if unit else {}
    metadata = {"PhysicalSizeX": value, "PhysicalSizeY": value} | units
    # The resolution tags say 1 um/px: the OME-XML goes first.
    options = {"resolution": (10_000, 10_000), "resolutionunit": "centimeter"}
    path = write(tmp_path / "a.ome.tif", picture(), metadata=metadata, **options)
    assert Slide(path).um_px_xy_l0 == pytest.approx((um, um))
    assert Slide(path, um_px=0.4).um_px_xy_l0 == (0.4, 0.4)


@pytest.mark.parametrize("old", [' PhysicalSizeX="0.25"', ' PhysicalSize.="[0-9.]*"', '(?<=SizeX=)"0.25"'])
def test_without_a_spacing_in_the_xml_the_tags_count(tmp_path, old):
    new = '"NaN"' if old.startswith("(") else ""
    options = {"resolution": (20_000, 20_000), "resolutionunit": "centimeter"}
    path = edited(write(tmp_path / "a.ome.tif", picture(), **options), old, new)
    assert Slide(path).um_px_xy_l0 == (0.5, 0.5)
    path = edited(write(tmp_path / "b.ome.tif", picture()), old, new)
    with pytest.raises(SlideError, match=r"b\.ome\.tif: its spacing is unknown.*--mpp"):
        Slide(path)


def test_pixels_as_unit_are_no_spacing(tmp_path):
    units = {"PhysicalSizeXUnit": "pixel", "PhysicalSizeYUnit": "pixel"}
    with pytest.raises(SlideError, match="spacing is unknown"):
        Slide(write(tmp_path / "a.ome.tif", picture(), metadata=units))


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_alpha_is_laid_on_white(tmp_path, planar):
    image = picture(channels=4)
    image[..., 3] = 255
    image[:, 100:, 3] = 0
    data, axes = (image, "YXS") if planar == "contig" else (np.ascontiguousarray(image.transpose(2, 0, 1)), "SYX")
    options = {"photometric": "rgb", "planarconfig": planar, "extrasamples": ["unassalpha"], "tile": (TILE, TILE)}
    tifffile.imwrite(tmp_path / "a.ome.tif", data, ome=True, metadata={"axes": axes} | UM, **options)
    check(tmp_path / "a.ome.tif", np.where(image[..., 3:] > 0, image[..., :3], np.uint8(255)))


def test_one_channel_is_gray(tmp_path):
    options = {"ome": True, "photometric": "minisblack", "tile": (TILE, TILE), "metadata": {"axes": "YX"} | UM}
    tifffile.imwrite(tmp_path / "a.ome.tif", picture()[..., 1], **options)
    check(tmp_path / "a.ome.tif", np.repeat(picture()[..., 1:2], 3, axis=2))


def test_pages_of_channels_may_stand_in_any_order(tmp_path):
    path = write(tmp_path / "a.ome.tif", picture()[..., [2, 0, 1]], "pages")
    blocks = "".join(f'<TiffData FirstC="{channel}" IFD="{page}"/>' for channel, page in enumerate((1, 2, 0)))
    check(edited(path, "<TiffData[^>]*>", blocks), picture())


LIBVIPS = """<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">
<Image ID="Image:0"><Pixels DimensionOrder="XYCZT" ID="Pixels:0" SizeC="3" SizeT="1" SizeX="201" SizeY="150" SizeZ="1"
Type="uint8"/></Image></OME>"""


@pytest.mark.parametrize("layout", ["together", "pages"])
@pytest.mark.parametrize("compression", ["none", "deflate", "lzw", "jpeg"])
def test_files_that_libvips_wrote(tmp_path, layout, compression):
    image = pyvips.Image.new_from_array(smooth())
    if layout == "pages":
        image = pyvips.Image.arrayjoin(image.bandsplit(), across=1).copy(interpretation="b-w")
    image = image.copy(xres=4000, yres=2000)
    image.set_type(pyvips.GValue.gstr_type, "image-description", LIBVIPS)
    options = {"page_height": 150, "tile": True, "tile_width": TILE, "tile_height": TILE, "Q": 95}
    image.tiffsave(str(tmp_path / "a.ome.tif"), compression=compression, subifd=True, pyramid=True, **options)
    slide = Slide(tmp_path / "a.ome.tif")
    assert [level.size_xy for level in slide.levels][:2] == [(201, 150), (100, 75)]
    assert slide.um_px_xy_l0 == pytest.approx((0.25, 0.5))
    tolerance = 5 if compression == "jpeg" else 0
    assert np.abs(slide.read_level(0, (0, 0), (150, 201)).astype(int) - smooth()).max() <= tolerance
    assert np.abs(slide.read_level(1, (0, 0), (75, 100)).astype(int) - smooth()[::2, :200:2]).max() <= 5


def test_only_the_tiles_of_a_window_are_decoded(tmp_path):
    slide = Slide(write(tmp_path / "a.ome.tif", picture(), "planes", compression=LZW))
    tiled_tiff.tile_cache.resize(0)
    tiled_tiff.tile_cache.resize(tiled_tiff.CACHE_BYTES)
    before = tiled_tiff.tile_cache.misses
    slide.read_level(0, (70, 70), (8, 8))
    assert tiled_tiff.tile_cache.misses - before == 3
    slide.read_level(0, (120, 70), (8, 16))
    assert tiled_tiff.tile_cache.misses - before == 6


def test_slides_of_planes_pickle_and_are_shared_by_threads(tmp_path):
    slide = pickle.loads(pickle.dumps(Slide(write(tmp_path / "a.ome.tif", picture(), "pages", subifds=True))))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: slide.read_level(0, (0, 0), (150, 201)), range(8)))
    assert len(found) == 8
    assert all((image == picture()).all() for image in found)


def test_a_file_without_ome_xml_whose_planes_lie_apart(tmp_path):
    options = {"photometric": "rgb", "planarconfig": "separate", "tile": (TILE, TILE), "metadata": None}
    tifffile.imwrite(tmp_path / "a.tif", np.ascontiguousarray(picture().transpose(2, 0, 1)), **options)
    np.testing.assert_array_equal(Slide(tmp_path / "a.tif", 0.25).read_level(0, (0, 0), (150, 201)), picture())


@pytest.mark.skipif(not KIDNEY.is_file(), reason=f"the slide is not at {KIDNEY}")
def test_kidney_without_spacing_asks_for_it_and_is_read():
    with pytest.raises(SlideError, match=r"kidney-48-5\.tif: its spacing is unknown.*--mpp"):
        Slide(KIDNEY)
    slide = Slide(KIDNEY, um_px=0.25)
    expected = tifffile.imread(KIDNEY)
    assert expected.shape == (901, 1493, 3)
    np.testing.assert_array_equal(slide.thumbnail(0), expected)
    half = slide.read(slide.window((700.0, 400.0), (100, 120), 0.5))
    mean = expected[300:500, 580:820].reshape(100, 2, 120, 2, 3).mean((1, 3))
    assert math.isclose(float(half.mean()), float(mean.mean()), abs_tol=0.5)
