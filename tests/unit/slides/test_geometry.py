"""Frames: corners against centers, snapping, and the true factor of a level."""

import numpy as np
import pytest

from slides.geometry import (
    Window,
    l0_from_lv,
    l0_from_out,
    level_downsample_xy,
    lv_from_l0,
    pixel_centers_l0,
    shifted_inside,
    window_centered,
)


def test_window_is_centered_and_x_goes_with_columns():
    window = window_centered((100.0, 50.0), (4, 6), (2.0, 3.0))
    assert window.corner_xy_l0 == (94.0, 44.0)
    assert window.size_xy_l0 == (12.0, 12.0)
    assert window.center_xy_l0 == (100.0, 50.0)


def test_conversions_are_inverse_and_keep_axes():
    window = Window((10.0, 20.0), (3, 5), (2.0, 4.0))
    assert l0_from_out(window, [[0.5, 0.5], [5, 3]]).tolist() == [[11.0, 22.0], [20.0, 32.0]]
    assert l0_from_lv([3, 5], (2.5, 4.0)).tolist() == [7.5, 20.0]
    assert lv_from_l0([7.5, 20.0], (2.5, 4.0)).tolist() == [3.0, 5.0]
    x, y = pixel_centers_l0(window)
    assert x.tolist() == [11.0, 13.0, 15.0, 17.0, 19.0]
    assert y.tolist() == [22.0, 26.0, 30.0]


@pytest.mark.parametrize(
    ("corner", "expected"),
    [((-7.0, 3.0), (0.0, 3.0)), ((95.0, 60.0), (80.0, 38.0)), ((11.5, 20.25), (11.5, 20.25))],
)
def test_shifted_inside_moves_only_what_sticks_out(corner, expected):
    assert shifted_inside(Window(corner, (4, 10), (2.0, 3.0)), (100, 50)).corner_xy_l0 == expected


def test_larger_than_the_slide_is_centered_on_it_along_that_axis_only():
    moved = shifted_inside(Window((70.0, 3.0), (4, 60), (2.0, 2.0)), (100, 50))
    assert moved.corner_xy_l0 == (-10.0, 3.0)
    assert (moved.hw_out, moved.step_xy_l0) == ((4, 60), (2.0, 2.0))


@pytest.mark.parametrize(
    ("size_l0", "size_lv", "expected"),
    [
        ((4443, 3567), (2221, 1783), (2.0, 2.0)),  # dropped partial pixels
        ((4443, 3567), (2222, 1784), (2.0, 2.0)),  # added ones
        ((4219, 3107), (263, 194), (16.0, 16.0)),
        ((1000, 700), (333, 234), (3.0, 3.0)),
        ((4000, 3000), (1600, 1200), (2.5, 2.5)),  # no integer fits: the ratio
        ((1000, 300), (500, 120), (2.0, 2.5)),
        ((100000, 200000), (48, 97), (2048.0, 2048.0)),  # 2041 to 2127 fit: the power of two
        ((37, 23), (37, 23), (1.0, 1.0)),
    ],
)
def test_level_factor(size_l0, size_lv, expected):
    assert level_downsample_xy(size_l0, size_lv) == expected


def test_level_larger_than_level_0_is_refused():
    with pytest.raises(ValueError, match="not grow"):
        level_downsample_xy((100, 50), (101, 50))


@pytest.mark.parametrize(
    ("corner", "hw", "step"),
    [((np.nan, 0.0), (2, 3), (1.0, 1.0)), ((0.0, 0.0), (0, 3), (1.0, 1.0)), ((0.0, 0.0), (2, 3), (1.0, 0.0))],
)
def test_impossible_windows_are_refused(corner, hw, step):
    with pytest.raises(ValueError, match="window"):
        Window(corner, hw, step)
