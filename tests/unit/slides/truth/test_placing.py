"""Masks of another size than their slide: where they lie, what is said, what is refused."""

import numpy as np
import pytest

from preprocessing.mask_to_xml import mask_to_xml
from slides.geometry import Window
from slides.reader import Slide
from slides.synthetic.demo import position_coded, write_levels
from slides.truth.mask_truth import MaskTruth
from slides.truth.placing import place
from slides.truth.xml_truth import XmlTruth


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    """90 x 70 px at 0.25 um/px, one level."""
    path = tmp_path_factory.mktemp("placing") / "slide.tif"
    position_coded(path, (90, 70), tile=16)
    return Slide(path)


def mask_of(tmp_path, hw, um_px, spot=(slice(None), slice(None)), levels=1):
    """A mask with 1 at a spot (rows, columns)."""
    mask = np.zeros(hw, np.uint8)
    mask[spot] = 1
    write_levels(tmp_path / "m.tif", [mask[:: 2**k, :: 2**k] for k in range(levels)], tile=16, um_px=um_px)
    return tmp_path / "m.tif"


def label(truth):
    return truth.label(Window((0.0, 0.0), (70, 90), (1.0, 1.0)))


@pytest.mark.parametrize(
    ("hw", "um_px", "step", "said"),
    [
        ((35, 45), 0.5, 2.0, "placed by um/px (0.5, the slide 0.25 um/px), one px is 2 x 2 px of the slide"),
        ((35, 45), None, 2.0, "placed by the ratio 1 to 2, one px is 2 x 2 px of the slide"),
        ((35, 45), 0.25, 2.0, "of the slide; its tags say 0.25 um/px, which is not used"),
        ((18, 23), 1.001, 4.0, "and it ends +2 px beside the right and +2 px beside the lower edge"),
        ((5, 6), 4.0, 16.0, "placed by um/px (4, the slide 0.25 um/px), one px is 16 x 16 px"),
        ((72, 89), 0.25, 1.0, "and it ends -1 px beside the right and +2 px beside the lower edge"),
        ((140, 180), 0.125, 0.5, "one px is 0.5 x 0.5 px of the slide"),
        ((20, 26), 0.875, 3.5, "one px is 3.5 x 3.5 px of the slide"),
    ],
)
def test_where_a_mask_lies(tmp_path, slide, hw, um_px, step, said):
    truth = MaskTruth(mask_of(tmp_path, hw, um_px), slide)
    assert truth.px_l0 == pytest.approx((step, step))
    (note,) = truth.notes
    assert note.startswith(
        f"mask {tmp_path}/m.tif has {hw[1]} x {hw[0]} px, its slide {slide.path} 90 x 70: placed by "
    )
    assert said in note


def test_a_mask_of_the_size_says_nothing(tmp_path, slide):
    assert place(tmp_path / "m.tif", (90, 70), (8.0, 8.0), slide) == ((1.0, 1.0), ())


def test_the_size_of_a_level_counts_first(tmp_path):
    image = np.full((700, 901, 3), 200, np.uint8)
    write_levels(tmp_path / "s.tif", [image, image[:100, :128]], tile=16)  # a factor of 7.04 and 7
    slide = Slide(tmp_path / "s.tif")
    step, (note,) = place(tmp_path / "m.tif", (128, 100), None, slide)
    assert step == slide.levels[1].downsample_xy
    assert "placed by the size of level 1" in note


@pytest.mark.parametrize("hw", [(70, 99), (79, 90), (90, 70), (30, 45), (41, 60)])
def test_what_is_too_far_off_is_refused(tmp_path, slide, hw):
    with pytest.raises(ValueError, match=r"no level and no whole ratio of it, and its tags say 0\.375 um/px"):
        MaskTruth(mask_of(tmp_path, hw, 0.375), slide)


def test_labels_are_the_px_under_each_center(tmp_path, slide):
    truth = MaskTruth(mask_of(tmp_path, (35, 45), 0.5, np.s_[10:15, 20:27]), slide)
    expected = np.zeros((70, 90), np.uint8)
    expected[20:30, 40:54] = 1
    np.testing.assert_array_equal(label(truth), expected)
    assert truth.classes == frozenset({1})
    (region,) = truth.regions(1)
    assert region.bounds == (40, 20, 54, 30)
    assert region.area == 140
    for cell, hits in ((1, 140), (4, 3 * 4), (16, 2 * 1)):
        assert int(truth.label_max(cell, 1).sum()) == hits
    # A coarse window reads the same place.
    coarse = truth.label(Window((0.0, 0.0), (7, 9), (10.0, 10.0)))
    assert np.argwhere(coarse == 1).tolist() == [[2, 4]]


def test_a_px_wider_than_cells_is_in_all_of_them(tmp_path, slide):
    truth = MaskTruth(mask_of(tmp_path, (5, 6), 4.0, np.s_[1, 2]), slide)
    occurs = truth.label_max(8, 1)
    assert np.argwhere(occurs).tolist() == [[2, 4], [2, 5], [3, 4], [3, 5]]
    assert [region.bounds for region in truth.regions(1)] == [(32, 16, 48, 32)]
    assert int((label(truth) == 1).sum()) == 256


def test_what_lies_outside_the_slide_is_no_tumor(tmp_path, slide):
    truth = MaskTruth(mask_of(tmp_path, (72, 92), 0.25, np.s_[70:, :]), slide)
    assert not (label(truth) == 1).any()
    assert not truth.label_max(8, 1).any()


def test_coarser_levels_follow(tmp_path, slide):
    truth = MaskTruth(mask_of(tmp_path, (35, 45), 0.5, np.s_[8:24, 8:32], levels=3), slide)
    assert [level.downsample_xy for level in truth._levels] == [(2.0, 2.0), (4.0, 4.0), (8.0, 8.0)]
    coarse = truth.label(Window((0.0, 0.0), (4, 5), (16.0, 16.0)))
    assert coarse.tolist() == [[0] * 5, [0, 1, 1, 1, 0], [0, 1, 1, 1, 0], [0] * 5]


def test_outlines_are_written_in_px_of_the_slide(tmp_path, slide):
    mask = mask_of(tmp_path, (5, 6), 4.0, np.s_[3:, 4:])  # from (64, 48) on, cut by the slide's edges
    assert mask_to_xml(mask, tmp_path / "m.xml", slide=slide) == 1
    (region,) = XmlTruth(tmp_path / "m.xml", slide).regions(1)
    assert region.bounds == (64, 48, 90, 70)
