"""Which page of a TIFF is the slide: never a thumbnail, label or macro, wherever it stands."""

import numpy as np
import pytest
import tifffile

from slides.reader import Slide
from slides.tiff.backends import tiff_levels

SLIDE_HW = 400, 600


def write(path, *pages):
    """Pages (rows and columns, options), each of one value: its number."""
    with tifffile.TiffWriter(path) as tiff:
        for number, (hw, options) in enumerate(pages):
            values = np.full((*hw, 3), number, np.uint8)
            tiff.write(values, **({"photometric": "rgb", "metadata": None} | options))
    return path


def page(hw, um_px=None, tile=(64, 64), **options):
    """A page; `um_px` in its tags, tiles unless `tile` is None."""
    resolution = {} if um_px is None else {"resolution": (10_000 / um_px,) * 2, "resolutionunit": "centimeter"}
    return hw, {"tile": tile} | resolution | options


SLIDE = (page(SLIDE_HW, 0.5), page((200, 300), 1.0, subfiletype=1))
THUMBNAIL = (40, 60)
LABEL = (300, 310)
MACRO = (500, 1400)


@pytest.mark.parametrize(
    "before",
    [
        page(THUMBNAIL, tile=None),
        page(THUMBNAIL, 5.0, tile=None),
        page(THUMBNAIL, 0.5, tile=None),  # the slide's resolution, copied
        page(THUMBNAIL, 5.0, subfiletype=1),
        page(THUMBNAIL, 5.0),
        page(THUMBNAIL),
        page(LABEL),
        page(LABEL, subfiletype=1),
        page(LABEL, description="label 310x300"),
        page(MACRO, tile=None),
        page(MACRO, subfiletype=9),
        page(MACRO, description="Macro"),
    ],
)
def test_what_stands_before_the_slide_is_no_slide(tmp_path, before):
    slide = Slide(write(tmp_path / "a.tif", before, *SLIDE))
    assert slide.size_xy_l0 == (600, 400)
    assert slide.um_px_xy_l0 == (0.5, 0.5)
    assert slide.levels[1].size_xy == (300, 200)
    assert slide.read_level(0, (5, 6), (1, 1)).tolist() == [[[1, 1, 1]]]
    assert slide.read_level(1, (5, 6), (1, 1)).tolist() == [[[2, 2, 2]]]
    # A macro photograph is no level of it.
    assert MACRO[::-1] not in [level.size_xy for level in slide.levels]


@pytest.mark.parametrize(
    "behind",
    [page(MACRO), page(MACRO, 20.0), page(MACRO, subfiletype=9), page(MACRO, description="Macro"), page((40, 60))],
)
def test_what_stands_behind_the_slide_is_no_slide(tmp_path, behind):
    slide = Slide(write(tmp_path / "a.tif", *SLIDE, behind))
    assert slide.size_xy_l0 == (600, 400)
    assert slide.levels[1].size_xy == (300, 200)


def test_levels_in_any_order(tmp_path):
    pages = page((200, 300), 1.0), page(SLIDE_HW, 0.5), page((100, 150), 2.0)
    levels = tiff_levels(write(tmp_path / "a.tif", *pages))
    assert [level.page for level in levels] == [1, 0, 2]


def test_a_file_of_reduced_pages_only_is_read(tmp_path):
    pages = page(SLIDE_HW, 0.5, subfiletype=1), page((200, 300), 1.0, subfiletype=1)
    assert Slide(write(tmp_path / "a.tif", *pages)).size_xy_l0 == (600, 400)


def test_a_mask_called_label_is_read(tmp_path):
    levels = tiff_levels(write(tmp_path / "a.tif", page(SLIDE_HW, 0.5, description="label"), page((200, 300))))
    assert [level.size_xy for level in levels] == [(600, 400), (300, 200)]


def test_the_old_tag_of_reduced_copies_counts(tmp_path):
    old = page((800, 1201), extratags=[(255, 3, 1, 2, True)])
    assert Slide(write(tmp_path / "a.tif", old, *SLIDE)).size_xy_l0 == (600, 400)
