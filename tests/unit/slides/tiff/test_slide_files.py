"""Files as they come: spacing tags, pages that are no levels, damage, and real slides."""

from pathlib import Path

import numpy as np
import pytest
import tifffile

from slides.geometry import Window
from slides.reader import Slide, SlideError
from slides.synthetic.demo import decode, position_coded, write_levels, write_pyramid
from slides.tiff import backends
from slides.tiff.tags import TagError, read_pages
from tests.support.paths import SHARED
from tests.support.sparse import write_sparse

needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason=f"real slides are not at {SHARED}")


@pytest.mark.parametrize(("unit", "um_px"), [("cm", 0.243), ("inch", 0.2271), ("cm", 4.032)])
def test_spacing_comes_from_the_tags(tmp_path, unit, um_px):
    write_levels(tmp_path / "a.tif", [np.zeros((40, 50, 3), np.uint8)], tile=16, um_px=um_px, unit=unit)
    assert Slide(tmp_path / "a.tif").um_px_xy_l0 == pytest.approx((um_px, um_px), rel=1e-5)


def test_spacing_along_x_and_y_is_not_mixed_up(tmp_path):
    options = {"tile": (16, 16), "photometric": "rgb", "resolutionunit": "centimeter", "metadata": None}
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((40, 50, 3), np.uint8), resolution=(40000.0, 20000.0), **options)
    assert Slide(tmp_path / "a.tif").um_px_xy_l0 == (0.25, 0.5)
    assert Slide(tmp_path / "a.tif").window((20.0, 20.0), (10, 8), 0.5).step_xy_l0 == (2.0, 1.0)


@pytest.mark.parametrize(
    ("resolution", "unit"), [((1, 1), "none"), ((72, 72), "inch"), ((118.11, 118.11), "centimeter"), ((0, 0), "inch")]
)
def test_print_resolutions_are_no_spacing(tmp_path, resolution, unit):
    options = {"tile": (16, 16), "photometric": "rgb", "metadata": None}
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((40, 50, 3), np.uint8), resolution=resolution, resolutionunit=unit, **options)
    with pytest.raises(SlideError, match=r"a\.tif.*--mpp"):
        Slide(path)
    assert Slide(path, um_px=0.25).um_px_xy_l0 == (0.25, 0.25)
    assert Slide(path, um_px=(0.25, 0.5)).um_px_xy_l0 == (0.25, 0.5)


@pytest.mark.parametrize("um_px", [0.0, -1.0, 0.01, 250.0, float("nan")])
def test_impossible_spacing_is_refused(tmp_path, um_px):
    position_coded(tmp_path / "exact.tif", (90, 70), tile=16)
    with pytest.raises(SlideError, match="impossible"):
        Slide(tmp_path / "exact.tif", um_px=um_px)


def test_label_and_macro_pages_are_no_levels(tmp_path):
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as tiff:
        pages = ((300, 401, 64), (150, 200, None), (120, 190, 64), (150, 200, 64), (75, 100, 64))
        for number, (height, width, tile) in enumerate(pages):
            tiff.write(
                np.full((height, width, 3), number, np.uint8),
                photometric="rgb",
                tile=(tile, tile) if tile else None,
                resolution=(40000, 40000),
                resolutionunit="centimeter",
                metadata=None,
            )
    slide = Slide(path)
    assert [level.size_xy for level in slide.levels] == [(401, 300), (200, 150), (100, 75)]
    # The strip image (1) of the same size is a thumbnail, page 3 the level.
    assert np.unique(slide.read_level(1, (0, 0), (150, 200))).tolist() == [3]
    assert np.unique(slide.read_level(2, (0, 0), (75, 100))).tolist() == [4]


def test_levels_in_sub_images_are_found(tmp_path):
    path = tmp_path / "a.tif"
    options = {"photometric": "rgb", "tile": (32, 32), "metadata": None, "resolutionunit": "centimeter"}
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(np.full((101, 150, 3), 10, np.uint8), subifds=1, resolution=(40000, 40000), **options)
        tiff.write(np.full((50, 75, 3), 20, np.uint8), subfiletype=1, resolution=(20000, 20000), **options)
    slide = Slide(path)
    assert [level.size_xy for level in slide.levels] == [(150, 101), (75, 50)]
    assert slide.read_level(1, (3, 4), (2, 2)).ravel().tolist() == [20] * 12


def test_gray_is_read_as_rgb_and_alpha_on_white(tmp_path):
    write_levels(tmp_path / "gray.tif", [np.full((40, 50), 77, np.uint8)], tile=16)
    assert Slide(tmp_path / "gray.tif").read_level(0, (1, 2), (1, 2)).tolist() == [[[77, 77, 77], [77, 77, 77]]]
    rgba = np.zeros((40, 50, 4), np.uint8)
    rgba[:, 25:, 3] = 255
    options = {"photometric": "rgb", "extrasamples": ["unassalpha"], "tile": (16, 16), "metadata": None}
    tifffile.imwrite(tmp_path / "rgba.tif", rgba, resolution=(40000, 40000), resolutionunit="centimeter", **options)
    assert Slide(tmp_path / "rgba.tif").read_level(0, (24, 2), (1, 2)).tolist() == [[[255, 255, 255], [0, 0, 0]]]


@pytest.mark.parametrize(("dtype", "message"), [(np.uint16, "8-bit"), (np.float32, "8-bit")])
def test_other_sample_types_are_refused(tmp_path, dtype, message):
    path = tmp_path / "deep.tif"
    tifffile.imwrite(path, np.zeros((40, 50, 3), dtype), tile=(16, 16), photometric="rgb", metadata=None)
    with pytest.raises(SlideError, match=message):
        Slide(path, um_px=0.25)


def test_channels_in_separate_pages_are_refused(tmp_path):
    path = tmp_path / "channels.tif"
    write_levels(path, [np.zeros((40, 50), np.uint8), np.ones((40, 50), np.uint8)], tile=16)
    with pytest.raises(SlideError, match="channels or focal planes"):
        Slide(path)


def test_large_images_without_tiles_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "strips.tif"
    tifffile.imwrite(path, np.zeros((40, 50, 3), np.uint8), photometric="rgb", metadata=None)
    assert Slide(path, um_px=0.25).size_xy_l0 == (50, 40)
    monkeypatch.setattr(backends, "MAX_STRIP_PX", 1999)
    with pytest.raises(SlideError, match="no tiles and 50 x 40 px"):
        Slide(path, um_px=0.25)


def test_missing_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(SlideError, match="no such file"):
        Slide(tmp_path / "none.tif")
    (tmp_path / "text.tif").write_text("I am no slide")
    with pytest.raises(SlideError, match=r"text\.tif.*neither a TIFF"):
        Slide(tmp_path / "text.tif")
    (tmp_path / "empty.tif").write_bytes(b"")
    with pytest.raises(SlideError, match=r"empty\.tif"):
        Slide(tmp_path / "empty.tif")


@pytest.fixture
def jpeg_slide(tmp_path):
    image = np.random.default_rng(3).integers(0, 256, (700, 900, 3), dtype=np.uint8)
    write_pyramid(tmp_path / "jpeg.tif", image, 0.25)
    return tmp_path / "jpeg.tif"


@pytest.mark.parametrize("share", [0.001, 0.3, 0.9, 0.999])
def test_truncated_slide_is_refused_when_opened(jpeg_slide, share):
    data = jpeg_slide.read_bytes()
    jpeg_slide.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(SlideError, match=r"jpeg\.tif"):
        Slide(jpeg_slide)


def test_truncated_behind_its_directory_is_refused_when_opened(tmp_path):
    path = tmp_path / "a.tif"
    position_coded(path, (500, 300), tile=64)
    data = path.read_bytes()
    with tifffile.TiffFile(path) as tiff:
        tail = tiff.pages[0].dataoffsets[-1]
    assert tail > 1000
    path.write_bytes(data[: tail + 3])
    with pytest.raises(SlideError, match="the file is truncated"):
        Slide(path)


def test_damaged_tile_raises_there_and_only_there(jpeg_slide):
    slide = Slide(jpeg_slide)
    with tifffile.TiffFile(jpeg_slide) as tiff:
        start, count = tiff.pages[0].dataoffsets[5], tiff.pages[0].databytecounts[5]
    data = bytearray(jpeg_slide.read_bytes())
    data[start : start + count] = bytes(count)
    jpeg_slide.write_bytes(bytes(data))
    # Tile 5 of 4 in a row: columns 256 to 511, rows 256 to 511.
    with pytest.raises(SlideError, match=r"jpeg\.tif cannot be read in Window"):
        slide.read(Window((300.0, 300.0), (20, 30), (1.0, 1.0)))
    assert slide.read(Window((600.0, 300.0), (20, 30), (1.0, 1.0))).shape == (20, 30, 3)


def test_damaged_lossless_tile_raises(tmp_path):
    path = tmp_path / "a.tif"
    position_coded(path, (300, 200), tile=64)
    with tifffile.TiffFile(path) as tiff:
        start, count = tiff.pages[0].dataoffsets[3], tiff.pages[0].databytecounts[3]
    data = bytearray(path.read_bytes())
    data[start : start + count] = bytes(count)
    path.write_bytes(bytes(data))
    with pytest.raises(SlideError, match=r"a\.tif cannot be read"):
        Slide(path).read_level(0, (200, 10), (20, 30))
    assert decode(Slide(path).read_level(0, (10, 10), (1, 2)))[0].tolist() == [[10, 11]]


def test_private_tags_do_no_harm(tmp_path):
    path = tmp_path / "a.tif"
    options = {"tile": (64, 64), "photometric": "rgb", "metadata": None, "extratags": [(50000, "I", 1, 5, True)]}
    tifffile.imwrite(path, np.full((200, 300, 3), 7, np.uint8), **options)
    assert np.unique(Slide(path, um_px=0.25).thumbnail(0)).tolist() == [7]


def test_directories_that_run_in_a_circle_are_refused(tmp_path):
    path = tmp_path / "a.tif"
    position_coded(path, (90, 70), (1.0, 2.0), tile=16)
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tiff:
        first, last = tiff.pages[0].offset, tiff.pages[1].offset
    entries = int.from_bytes(data[last : last + 2], "little")
    data[last + 2 + 12 * entries : last + 6 + 12 * entries] = first.to_bytes(4, "little")
    path.write_bytes(bytes(data))
    with pytest.raises(TagError, match="loop"):
        read_pages(path)


def test_names_with_brackets_blanks_and_other_letters(tmp_path):
    path = tmp_path / "a [page=1] 'b' \u00e9\u4e2d.tif"
    position_coded(path, (90, 70), (1.0, 2.0), tile=16)
    slide = Slide(path)
    assert slide.id == "a [page=1] 'b' \u00e9\u4e2d"
    assert decode(slide.read_level(0, (5, 6), (1, 2)))[0].tolist() == [[5, 6]]


def test_printers_colors_are_refused(tmp_path):
    path = tmp_path / "cmyk.tif"
    tifffile.imwrite(path, np.zeros((40, 50, 4), np.uint8), tile=(16, 16), photometric="separated", metadata=None)
    with pytest.raises(SlideError, match="CMYK"):
        Slide(path, um_px=0.25)


@needs_data
@pytest.mark.parametrize(
    ("name", "size", "levels", "um_px"),
    [
        ("CMU-1-Small-Region.svs", (2220, 2967), 1, 0.499),
        ("fluorescence-dapi.ndpi", (3968, 4864), 7, 0.228175),
        ("tissue-mask-mpp4.tif", (864, 800), 2, 4.031984),
    ],
)
def test_real_slides_open(name, size, levels, um_px):
    slide = Slide(SHARED / "slides" / name)
    assert slide.size_xy_l0 == size
    assert len(slide.levels) == levels
    assert slide.um_px_xy_l0 == pytest.approx((um_px, um_px), rel=1e-5)
    image = slide.read(slide.window((size[0] / 2, size[1] / 2), (120, 200), um_px * 1.7))
    assert image.shape == (120, 200, 3)
    assert len(np.unique(image)) >= 2


@needs_data
@pytest.mark.parametrize("name", ["tcga-cr-7395-01a-01-ts1.svs", "kidney-48-5.tif"])
def test_real_slides_without_spacing_need_it(name):
    with pytest.raises(SlideError, match=rf"{name}.*--mpp"):
        Slide(SHARED / "slides" / name)
    assert Slide(SHARED / "slides" / name, um_px=0.5).thumbnail(0).std() > 1


@needs_data
def test_damaged_svs_raises_there_and_can_be_read_elsewhere(tmp_path):
    path = tmp_path / "damaged.svs"
    data = bytearray((SHARED / "slides" / "CMU-1-Small-Region.svs").read_bytes())
    with tifffile.TiffFile(SHARED / "slides" / "CMU-1-Small-Region.svs") as tiff:
        start, count = tiff.pages[0].dataoffsets[12], tiff.pages[0].databytecounts[12]
    data[start : start + count] = bytes(count)
    path.write_bytes(bytes(data))
    slide = Slide(path)
    # Tiles of 240 px, 10 in a row: number 12 covers columns 480 to 719, rows 240 to 479.
    with pytest.raises(SlideError, match=r"damaged\.svs cannot be read in level 0, corner \(500, 300\)"):
        slide.read_level(0, (500, 300), (50, 60))
    assert slide.read_level(0, (900, 300), (50, 60)).shape == (50, 60, 3)


@needs_data
def test_truncated_svs_is_refused_when_opened(tmp_path):
    path = tmp_path / "cut.svs"
    data = (SHARED / "slides" / "CMU-1-Small-Region.svs").read_bytes()
    path.write_bytes(data)
    with tifffile.TiffFile(path, mode="r+") as tiff:
        counts = list(tiff.pages[0].databytecounts)
        tiff.pages[0].tags["TileByteCounts"].overwrite([*counts[:-1], counts[-1] + 10**6])
    # OpenSlide alone only speaks of tiles it cannot hash, and only for the last level.
    with pytest.raises(SlideError, match=r"cut\.svs.*the file is truncated"):
        Slide(path)
    path.write_bytes(data[:-20000])
    with pytest.raises(SlideError, match=r"cut\.svs"):
        Slide(path)


def test_tiles_that_were_never_written_are_white_and_no_truncation(tmp_path: Path) -> None:
    write_sparse(tmp_path / "a.tif", (1000, 700), levels=3, tile=512)
    slide = Slide(tmp_path / "a.tif")
    assert [level.size_xy for level in slide.levels] == [(1000, 700), (500, 350), (250, 175)]
    assert (slide.thumbnail(2) == 255).all()
