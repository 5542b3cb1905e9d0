"""The picture of a prediction: every px at its place, colors, outlines, legend, what cannot be read."""

import errno
import os

import cv2
import numpy as np
import pytest
import shapely
from PIL import Image

from inference.annotations import rgb_of
from inference.overlay import MOST_OPAQUE, _colors, _outline, blend, legend, overlay, write_overlay
from inference.polygons import Region
from slides.geometry import Window
from slides.reader import Slide, SlideError
from slides.synthetic.demo import write_levels
from tests.support.maps_on_disk import write_maps


def white_slide(path, size_xy=(300, 200), um_px=0.25):
    write_levels(path, [np.full((size_xy[1], size_xy[0], 3), 255, np.uint8)], tile=16, um_px=um_px)
    return Slide(path)


def where_colored(image_HWC, height):
    """Bounds of what is not white above the legend: left, top, right, bottom (exclusive)."""
    rows, columns = np.nonzero((image_HWC[:height] != 255).any(axis=2))
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


def test_probability_lies_where_it_was_predicted(tmp_path):
    """Map px (rows 10-29, columns 20-49) of 4 level-0 px."""
    slide = white_slide(tmp_path / "s.tif")
    label = np.zeros((50, 75))
    label[10:30, 20:50] = 1
    picture = overlay(slide, write_maps(tmp_path / "maps", label), [], style="color")
    assert picture.shape[1] >= 300
    assert where_colored(picture, 200) == (80, 40, 200, 120)
    # The yellow end of the colors, over white.
    assert (np.abs(picture[41, 81].astype(int) - (253 * 0.55 + 115, 231 * 0.55 + 115, 37 * 0.55 + 115)) < 2).all()


@pytest.mark.parametrize("side", [150, 75, 60, 40])
def test_smaller_pictures_show_the_same_place(tmp_path, side):
    slide = white_slide(tmp_path / "s.tif")
    label = np.zeros((50, 75))
    label[10:30, 20:50] = 1
    picture = overlay(slide, write_maps(tmp_path / "maps", label), [], side_px=side, style="color")
    step = 300 / side
    expected = [np.ceil(v / step - 0.5) for v in (80, 40, 200, 120)]
    assert np.abs(np.subtract(where_colored(picture, round(200 / step)), expected)).max() <= 1


def test_a_map_coarser_than_the_picture(tmp_path):
    slide = white_slide(tmp_path / "s.tif")
    label = np.zeros((10, 15))
    label[2, 3] = 1
    picture = overlay(slide, write_maps(tmp_path / "maps", label, step_xy=(20.0, 20.0)), [], style="color")
    assert where_colored(picture, 200) == (60, 40, 80, 60)


def test_outlines_are_half_a_px_exact():
    """A box from 8 to 24 drawn 2 px wide covers one px on each side of its edges."""
    image = np.full((40, 40, 3), 255, np.uint8)
    _outline(image, [shapely.box(16, 32, 48, 64)], Window((0.0, 0.0), (40, 40), (2.0, 2.0)), "#000000")
    dark = 255 - image[..., 0].astype(int)
    across, down = dark[24], dark[:, 16]
    for line, low, high in ((across, 8, 24), (down, 16, 32)):
        for edge in (low, high):
            weights = line[edge - 4 : edge + 4]
            middle = (weights * (np.arange(edge - 4, edge + 4) + 0.5)).sum() / weights.sum()
            assert abs(middle - edge) < 0.2


def test_outlines_of_prediction_and_truth_have_their_colors(tmp_path):
    slide = white_slide(tmp_path / "s.tif")
    maps = write_maps(tmp_path / "maps", np.zeros((50, 75)), classes=3)
    ring = shapely.box(40, 40, 120, 120) - shapely.box(60, 60, 100, 100)
    found = [Region(1, ring, 1.0, 1.0), Region(2, shapely.box(200, 40, 260, 120), 1.0, 1.0)]
    picture = overlay(slide, maps, found, {1: [shapely.box(140, 140, 180, 180)]})
    above = picture[:200]
    for color, x, y in (("#D55E00", 40, 80), ("#D55E00", 60, 80), ("#0072B2", 200, 80), ("#000000", 140, 160)):
        near = above[y, x - 2 : x + 2].astype(int)
        assert np.abs(near - rgb_of(color)).sum(axis=1).min() < 60
    assert (above[:, :20] == 255).all()
    without = overlay(slide, maps, found)
    assert (without[150:190, 130:190] == 255).all()


def test_colors_rise_in_lightness_and_clear_where_there_is_nothing():
    colors = _colors(np.arange(256))
    lightness = cv2.cvtColor(colors[None], cv2.COLOR_RGB2LAB)[0, :, 0].astype(int)
    assert (np.diff(lightness) >= -1).all()
    assert lightness[-1] - lightness[0] > 150
    image = np.full((1, 4, 3), 200, np.uint8)
    blend(image, np.array([[0, 12, 128, 255]], np.uint8))
    assert image[0, :2].tolist() == [[200] * 3] * 2
    full = colors[[128, 255]] * MOST_OPAQUE + 200 * (1 - MOST_OPAQUE)
    assert np.abs(image[0, 2:] - full).max() < 2


def test_the_scale_bar_is_as_long_as_it_says():
    """0.01 mm per px, 800 px: the longest bar of at most 160 px is 1 mm = 100 px."""
    drawn = legend(800, [], [], 0.01)
    row = drawn[drawn.shape[0] // 2, :, 0]
    dark = np.flatnonzero(row[:126] == 0)
    assert (int(dark[0]), int(dark[-1]) - int(dark[0]) + 1) == (24, 100)


def test_the_legend_of_a_narrow_slide_is_not_cut(tmp_path):
    slide = white_slide(tmp_path / "s.tif", (40, 200))
    maps = write_maps(tmp_path / "maps", np.zeros((50, 10)), classes=4)
    picture = overlay(slide, maps, [], {}, style="color")
    assert picture.shape[1] > 350
    assert (picture[:, -10:] == 255).all()
    assert (picture[200:] != 255).any()


def test_one_px_slides_have_a_picture(tmp_path):
    slide = white_slide(tmp_path / "s.tif", (1, 1))
    picture = overlay(slide, write_maps(tmp_path / "maps", np.ones((1, 1)), size_xy_l0=(1, 1)), [], style="color")
    assert (picture[0, 0] != 255).any()


def test_a_slide_that_cannot_be_read_is_white_and_the_legend_says_so(tmp_path, monkeypatch):
    slide = white_slide(tmp_path / "s.tif")
    label = np.zeros((50, 75))
    label[10:30, 20:50] = 1
    maps = write_maps(tmp_path / "maps", label)
    whole = overlay(slide, maps, [], style="color")

    def unreadable(*_):
        raise SlideError("damaged")

    monkeypatch.setattr(Slide, "read", unreadable)
    picture = overlay(slide, maps, [], style="color")
    assert where_colored(picture, 200) == (80, 40, 200, 120)
    assert picture.shape[0] > whole.shape[0]  # one row of the legend more


def test_the_file_is_png_and_whole_or_not_there(tmp_path, monkeypatch):
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    write_overlay(tmp_path / "ä 'b'.png", picture)
    with Image.open(tmp_path / "ä 'b'.png") as image:
        assert image.format == "PNG"
        np.testing.assert_array_equal(np.asarray(image), picture)

    def full(_descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_overlay(tmp_path / "b.png", picture)
    assert [path.name for path in tmp_path.iterdir()] == ["ä 'b'.png"]


def picture_of(tmp_path, um_px, **more):
    """A white slide with tumor at x 80 to 200, y 40 to 120, outlined."""
    slide = white_slide(tmp_path / "s 1.tif", um_px=um_px)
    label = np.zeros((50, 75))
    label[10:30, 20:50] = 1
    maps = write_maps(tmp_path / "maps", label, um_px_xy_l0=(um_px, um_px))
    return overlay(slide, maps, [Region(1, shapely.box(80, 40, 200, 120), 1.0, 1.0)], **more)


@pytest.mark.parametrize(
    ("um_px", "style", "colored"),
    [(0.25, "auto", False), (1.0, "auto", False), (1.01, "auto", True), (0.25, "color", True), (8.0, "outline", False)],
)
def test_cells_are_outlined_and_large_slides_colored(tmp_path, um_px, style, colored):
    picture = picture_of(tmp_path, um_px, style=style)
    assert bool((picture[60:100, 100:180] != 255).any()) == colored
    # The outline is there in any case.
    assert np.abs(picture[80, 78:83].astype(int) - rgb_of("#D55E00")).sum(axis=1).min() < 60


def test_auto_looks_at_the_picture_and_not_at_the_slide(tmp_path):
    assert (picture_of(tmp_path, 0.5, side_px=100)[18:36, 32:62] != 255).any()


def test_colors_are_explained_where_they_are_used(tmp_path):
    colored, outlined = picture_of(tmp_path, 0.25, style="color"), picture_of(tmp_path, 0.25, style="outline")
    yellow = (253, 231, 37)
    near = [bool((np.abs(p[200:].astype(int) - yellow).sum(axis=2) < 12).any()) for p in (colored, outlined)]
    assert near == [True, False]


def test_the_name_of_the_slide_is_a_row_of_its_own(tmp_path):
    named = legend(800, [], [], 0.01, "patient_001_node_2")
    bare = legend(800, [], [], 0.01)
    assert named.shape[0] - bare.shape[0] == 44
    row = named[12:56]
    assert (row[:, 24:60] < 128).any()
    np.testing.assert_array_equal(named[56:], bare[12:])
    # Long names and bytes that are not text have a picture, too.
    long = legend(800, [], [], 0.01, "x" * 500 + os.fsdecode(b"\xff"))
    assert long.shape[1] < 1500
    assert picture_of(tmp_path, 0.25).shape[0] > 244


def test_nothing_found_is_stated(tmp_path):
    with_finding, without = picture_of(tmp_path, 0.25), picture_of(tmp_path, 0.25, finding=False)
    assert (without[:200, :300] == with_finding[:200, :300]).all()
    assert np.count_nonzero(without[200:] != 255) > np.count_nonzero(with_finding[200:] != 255)
