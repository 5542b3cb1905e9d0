"""Lesions of a truth mask: what is joined, filled, left out, and how long it is."""

import math

import numpy as np
import pytest

from metrics.lesions import MAP_UM_PX, lesion_map, longest_diameters_um, major_axes_px

# 75 um at 7.776 um/px: px nearer than 4.82 px join, so foci with up to 8 px between them become one.
NOTHING_LEFT_OUT = 0.0


def two_squares(gap: int) -> np.ndarray:
    """Two foci of 3 x 3 px in a row, `gap` px of background between them."""
    tumor_HW = np.zeros((31, 40), np.bool_)
    tumor_HW[14:17, 8:11] = True
    tumor_HW[14:17, 11 + gap : 14 + gap] = True
    return tumor_HW


def test_the_organizers_spacing() -> None:
    assert pytest.approx(7.776) == MAP_UM_PX


def test_foci_within_75_um_are_one_lesion_and_beyond_two() -> None:
    # each side grows by 4 px (5 > 4.82): 8 px between them are covered, of 9 one stays, and of those two, touching by
    # a side, none: px next to each other join
    joined = lesion_map(two_squares(8), MAP_UM_PX, itc_um=NOTHING_LEFT_OUT)
    assert (joined.count, joined.label_HW.max()) == (1, 1)
    apart = lesion_map(two_squares(9), MAP_UM_PX, itc_um=NOTHING_LEFT_OUT)
    assert apart.count == 2
    assert apart.label_HW[15].tolist() == [0] * 4 + [1] * 11 + [0] + [2] * 11 + [0] * 13
    # 69 and 70 um: the limit is a parameter. 70 / (2 * 7) is a radius of 5 px, which takes px nearer than 5.
    assert lesion_map(two_squares(9), 7.0, 70.0, NOTHING_LEFT_OUT).count == 2
    assert lesion_map(two_squares(9), 7.0, 71.0, NOTHING_LEFT_OUT).count == 1


def test_growth_is_round_and_counts_whole_distances() -> None:
    tumor_HW = np.zeros((9, 11), np.bool_)
    tumor_HW[4, 5] = True
    # radius 2 px exactly: nearer than 2 is 1 and sqrt(2), not 2
    grown = lesion_map(tumor_HW, 1.0, 4.0, NOTHING_LEFT_OUT).label_HW
    assert np.argwhere(grown).tolist() == [[r, c] for r in (3, 4, 5) for c in (4, 5, 6)]
    # radius 2.1: 2 as well, but not sqrt(5)
    assert (lesion_map(tumor_HW, 1.0, 4.2, NOTHING_LEFT_OUT).label_HW > 0).sum() == 13


def test_growth_does_not_depend_on_the_bands_it_is_taken_in() -> None:
    tumor_HW = np.zeros((1100, 13), np.bool_)
    tumor_HW[[511, 530, 1023], [6, 2, 12]] = True
    label_HW = lesion_map(tumor_HW, 1.0, 10.0, NOTHING_LEFT_OUT).label_HW
    rows, columns = np.indices(tumor_HW.shape)
    near = [np.hypot(rows - r, columns - c) < 5 for r, c in ((511, 6), (530, 2), (1023, 12))]
    assert np.array_equal(label_HW, near[0] + 2 * near[1] + 3 * near[2])


def test_touching_by_a_corner_is_one_lesion() -> None:
    tumor_HW = np.array([[1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 1]], np.bool_)
    assert lesion_map(tumor_HW, 1.0, 0.0, NOTHING_LEFT_OUT).label_HW.tolist() == [
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 0, 0, 2],
    ]


def test_holes_are_filled_where_no_side_leads_out() -> None:
    ring_HW = np.zeros((7, 9), np.bool_)
    ring_HW[1:6, 2:7] = True
    ring_HW[2:5, 3:6] = False
    assert lesion_map(ring_HW, 1.0, 0.0, NOTHING_LEFT_OUT).label_HW.sum() == 25
    # a corner of the ring missing: background meets by a corner only, so the hole stays one
    ring_HW[1, 2] = False
    assert lesion_map(ring_HW, 1.0, 0.0, NOTHING_LEFT_OUT).label_HW.sum() == 24
    # a side of it open: no hole
    ring_HW[1, 4] = False
    assert lesion_map(ring_HW, 1.0, 0.0, NOTHING_LEFT_OUT).label_HW.sum() == 14
    # closed by the map's border only: no hole either
    cup_HW = np.array([[1, 0, 0, 1], [1, 0, 0, 1], [1, 1, 1, 1]], np.bool_)
    assert lesion_map(cup_HW, 1.0, 0.0, NOTHING_LEFT_OUT).label_HW.sum() == 8


def test_a_lesion_inside_the_hole_of_another_belongs_to_it() -> None:
    tumor_HW = np.ones((9, 11), np.bool_)
    tumor_HW[1:8, 1:10] = False
    tumor_HW[4, 5] = True
    lesions = lesion_map(np.pad(tumor_HW, 2), 1.0, 0.0, NOTHING_LEFT_OUT)
    assert (lesions.count, (lesions.label_HW == 1).sum()) == (1, 99)


# Lengths from scikit-image 0.26, regionprops(...)[i].axis_major_length.
def test_major_axes_are_those_of_scikit_image() -> None:
    label_HW = np.zeros((12, 23), np.int32)
    label_HW[2, 3:15] = 1
    label_HW[4:11, 2:4] = label_HW[9:11, 2:9] = 2
    label_HW[[4, 5, 6, 7, 7], [20, 19, 18, 17, 16]] = 4
    label_HW[11, 22] = 5
    # 3 is a number that no px has
    assert major_axes_px(label_HW) == pytest.approx(
        [13.808210118139, 9.8657657246325, 0.0, 7.2792156108742, 0.0], rel=1e-12
    )


def test_isolated_tumor_cells_are_shorter_than_the_limit() -> None:
    tumor_HW = np.zeros((7, 30), np.bool_)
    tumor_HW[1, 2:14] = tumor_HW[5, 3:16] = True
    # rows of n px have 4 * sqrt((n^2 - 1) / 12): 13.808 and 14.967 px
    lengths = lesion_map(tumor_HW, 2.0, 0.0, 0.0).major_axis_um_L
    assert lengths == pytest.approx([8 * math.sqrt(143 / 12), 8 * math.sqrt(14)])
    assert lesion_map(tumor_HW, 2.0, 0.0, 27.61).is_itc_L.tolist() == [False, False]
    middle = lesion_map(tumor_HW, 2.0, 0.0, 27.62)
    assert (middle.is_itc_L.tolist(), middle.count) == ([True, False], 1)
    # at the limit is not shorter than it
    assert lesion_map(tumor_HW, 2.0, 0.0, 8 * math.sqrt(14)).is_itc_L.tolist() == [True, False]


def test_the_limit_is_taken_of_the_grown_lesion() -> None:
    # lines of 179 and 187 um, with 4 px more on every side: 267.4 and 276.4 um
    for length, is_itc in ((23, True), (24, False)):
        tumor_HW = np.zeros((21, 60), np.bool_)
        tumor_HW[10, 10 : 10 + length] = True
        assert lesion_map(tumor_HW, MAP_UM_PX).is_itc_L.tolist() == [is_itc]


def test_without_tumor_there_is_no_lesion() -> None:
    lesions = lesion_map(np.zeros((3, 5), np.bool_), MAP_UM_PX)
    assert (lesions.count, lesions.label_HW.sum(), len(lesions.major_axis_um_L)) == (0, 0, 0)
    assert lesion_map(np.ones((3, 5), np.bool_), MAP_UM_PX, itc_um=0.0).label_HW.tolist() == [[1] * 5] * 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0,), "um_px 0.0: must be a number above 0"),
        ((math.nan,), "um_px nan"),
        ((1.0, -1.0), "grow_um -1.0: must be a number of at least 0"),
        ((1.0, 75.0, math.inf), "itc_um inf"),
    ],
)
def test_impossible_lengths_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lesion_map(np.zeros((3, 5), np.bool_), *arguments)
    with pytest.raises(ValueError, match=r"shape \(3,\); must be a map of \(rows, columns\)"):
        lesion_map(np.zeros(3, np.bool_), 1.0)


def test_longest_diameter_is_between_corners_of_tumor_px() -> None:
    tumor_HW = two_squares(8)
    lesions = lesion_map(tumor_HW, MAP_UM_PX)
    # 14 columns and 3 rows, of 0.5 and 2 um
    diameters = longest_diameters_um(tumor_HW, lesions.label_HW, (0.5, 2.0))
    assert diameters == pytest.approx([math.hypot(7, 6)])
    apart = two_squares(9)
    label_HW = lesion_map(apart, MAP_UM_PX).label_HW
    assert longest_diameters_um(apart, label_HW, (1.0, 1.0)) == pytest.approx([math.sqrt(18)] * 2)


def test_longest_diameter_of_a_disc_a_diagonal_and_a_px() -> None:
    rows, columns = np.indices((101, 120))
    label_HW = (np.hypot(rows - 50, columns - 60) <= 40).astype(np.int32)
    # 81 px from side to side; a px's half diagonal more at most
    disc = longest_diameters_um(label_HW > 0, label_HW, (1.0, 1.0))[0]
    assert 81.0 < disc < 82.0
    line_HW = np.eye(5, 7, dtype=np.int32)
    line_HW[4, 6] = 3
    assert longest_diameters_um(line_HW > 0, line_HW, (1.0, 1.0)) == pytest.approx([math.sqrt(50), 0, math.sqrt(2)])
    # a lesion whose tumor is elsewhere has no length
    assert longest_diameters_um(line_HW == 1, line_HW, (1.0, 1.0)).tolist()[2] == 0.0
