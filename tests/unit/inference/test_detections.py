"""Detections: local maxima, suppression, the file; centers of px at level 0."""

import csv
import errno
import io
import os

import numpy as np
import pytest

from inference.detections import Detection, DetectionOptions, detections, write_csv
from tests.support.maps_on_disk import write_maps

# No smoothing, every px for itself, a level of 2 um/px: the map as it is.
PLAIN = DetectionOptions(um_px=2.0, smooth_um=0.0, min_probability=0.1, radius_um=0.0)


def maps_of(tmp_path, value_HW, **options):
    """Steps of 8 level-0 px of 0.25 um."""
    value_HW = np.asarray(value_HW, np.uint8)
    return write_maps(tmp_path, value_HW >= 128, value_HW, step_xy=(8.0, 8.0), **options)


def found_in(tmp_path, value_HW, options=PLAIN, **more):
    maps = maps_of(tmp_path, value_HW, **more)
    return [(round(d.probability * 255, 6), *d.xy_l0) for d in detections(maps.probability, maps.size_xy_l0, options)]


def spots(hw, *places):
    value = np.zeros(hw, np.uint8)
    for row, column, probability in places:
        value[row, column] = probability
    return value


def test_maxima_are_centers_of_px_best_first(tmp_path):
    """Px (row 2, column 5) covers x 40 to 48 and y 16 to 24."""
    assert found_in(tmp_path, spots((9, 12), (2, 5, 100), (7, 1, 200), (7, 2, 150))) == [
        (200, 12.0, 60.0),
        (100, 44.0, 20.0),
    ]


def test_centers_of_a_coarser_level(tmp_path):
    """At 8 um/px a px is 4 x 4 px of the map, 32 x 32 level-0 px; its value their mean of means."""
    value = np.zeros((40, 52), np.uint8)
    value[8:12, 20:24] = 240
    options = DetectionOptions(smooth_um=0.0, min_probability=0.1)
    assert found_in(tmp_path, value, options) == [(240, 5.5 * 32, 2.5 * 32)]


def test_centers_along_both_axes_of_unequal_spacing(tmp_path):
    value = spots((9, 12), (2, 5, 100))
    maps = write_maps(tmp_path, value >= 128, value, step_xy=(8.0, 4.0), um_px_xy_l0=(0.25, 0.5))
    assert [d.xy_l0 for d in detections(maps.probability, maps.size_xy_l0, PLAIN)] == [(44.0, 10.0)]


def test_centers_beyond_the_border_are_moved_onto_the_slide(tmp_path):
    """12 px of 8 cover 89 level-0 px: the center of the last is 92."""
    assert found_in(tmp_path, spots((9, 12), (8, 11, 100)), size_xy_l0=(89, 65)) == [(100, 88.5, 64.5)]


def test_corners_and_borders_count(tmp_path):
    value = spots((9, 12), (0, 0, 100), (8, 11, 90), (0, 11, 80), (8, 0, 70))
    assert [item[1:] for item in found_in(tmp_path, value)] == [(4, 4), (92, 68), (92, 4), (4, 68)]


def test_of_equal_px_the_middle_one_is_taken(tmp_path):
    value = np.zeros((9, 12), np.uint8)
    value[2:5, 3:8] = 255
    assert found_in(tmp_path, value) == [(255, 5.5 * 8, 3.5 * 8)]


def test_a_ring_of_equal_px_gives_one_of_its_own(tmp_path):
    value = np.zeros((9, 12), np.uint8)
    value[2:7, 3:8] = 255
    value[3:6, 4:7] = 50
    found = found_in(tmp_path, value)
    assert len(found) == 1
    column, row = (int(v // 8) for v in found[0][1:])
    assert value[row, column] == 255


def test_flat_px_beside_a_higher_one_are_no_maximum(tmp_path):
    value = np.zeros((9, 12), np.uint8)
    value[4, 2:10] = 100
    value[4, 10] = 101
    assert found_in(tmp_path, value) == [(101, 84.0, 36.0)]


def test_nothing_predicted_nothing_found(tmp_path):
    assert found_in(tmp_path, np.zeros((9, 12)), DetectionOptions()) == []


def test_everything_tumor_is_one_place_in_the_middle(tmp_path):
    assert found_in(tmp_path, np.full((45, 61), 255), DetectionOptions()) == [(255, 7.5 * 32, 5.5 * 32)]


def test_the_least_probability_is_kept(tmp_path):
    value = spots((9, 12), (2, 5, 128), (6, 5, 127))
    half = DetectionOptions(2.0, 0.0, 128 / 255, 0.0)
    assert [item[0] for item in found_in(tmp_path, value, half)] == [128]


def test_worse_places_within_the_radius_are_dropped(tmp_path):
    """A row of spots 4 um apart. 8 um: the best takes both on each side; a spot a dropped one would reach stays."""
    value = np.zeros((5, 40), np.uint8)
    value[2, 2:38:2] = np.arange(200, 182, -1)
    at = [item[1] for item in found_in(tmp_path, value, DetectionOptions(2.0, 0.0, 0.1, 8.0))]
    assert at == [(column + 0.5) * 8 for column in (2, 8, 14, 20, 26, 32)]
    at = [item[1] for item in found_in(tmp_path, value, DetectionOptions(2.0, 0.0, 0.1, 7.99))]
    assert at == [(column + 0.5) * 8 for column in range(2, 38, 4)]


def test_the_radius_is_in_um_along_both_axes(tmp_path):
    """Px of 2 um by 4 um: two rows are 8 um, two columns 4 um apart."""
    value = spots((9, 12), (2, 2, 200), (4, 2, 150), (2, 4, 140))
    maps = write_maps(tmp_path, value >= 128, value, step_xy=(8.0, 8.0), um_px_xy_l0=(0.25, 0.5))
    options = DetectionOptions(um_px=4.0, smooth_um=0.0, radius_um=5.0)
    assert [d.xy_l0 for d in detections(maps.probability, maps.size_xy_l0, options)] == [(20, 20), (20, 36)]


def test_of_equals_the_first_in_reading_order_wins(tmp_path):
    value = spots((9, 12), (2, 7, 200), (2, 3, 200), (6, 3, 200))
    assert found_in(tmp_path, value, DetectionOptions(2.0, 0.0, 0.1, 1000.0)) == [(200, 28.0, 20.0)]


def test_only_the_best_are_kept(tmp_path):
    value = spots((9, 12), (2, 7, 200), (2, 3, 210), (6, 3, 220))
    options = DetectionOptions(2.0, 0.0, 0.1, 0.0, max_detections=2)
    assert [item[0] for item in found_in(tmp_path, value, options)] == [220, 210]


def test_smoothing_is_a_gaussian_of_um(tmp_path):
    """One px of 255 and deviation 2 px: at its center the squared middle weight of the kernel."""
    value = spots((41, 41), (20, 20, 255))
    options = DetectionOptions(um_px=2.0, smooth_um=4.0, min_probability=0.01)
    weights = np.exp(-(np.arange(-8, 9) ** 2) / (2 * 2.0**2))
    expected = (weights[8] / weights.sum()) ** 2 * 255
    found = found_in(tmp_path, value, options)
    assert len(found) == 1
    assert found[0][0] == pytest.approx(expected, abs=0.03)
    assert found[0][1:] == (164.0, 164.0)


def test_smoothing_follows_the_spacing_of_each_axis(tmp_path):
    """Spots 16 um apart along y and along x; px of 2 x 4 um. Smoothed alike, both pairs look alike."""
    values = []
    for name, places in (("x", [(20, 16), (20, 24)]), ("y", [(18, 20), (22, 20)])):
        value = spots((41, 41), *((row, column, 255) for row, column in places))
        maps = write_maps(tmp_path / name, value >= 128, value, step_xy=(8.0, 8.0), um_px_xy_l0=(0.25, 0.5))
        options = DetectionOptions(um_px=4.0, smooth_um=6.0, min_probability=0.01, radius_um=1.0)
        values.append([d.probability for d in detections(maps.probability, maps.size_xy_l0, options)])
    assert len(values[0]) == len(values[1]) > 0
    assert values[0] == pytest.approx(values[1], rel=0.03)


def test_equal_px_stay_equal_when_smoothed(tmp_path):
    value = np.zeros((90, 70), np.uint8)
    value[10:80, 10:60] = 177
    found = found_in(tmp_path, value, DetectionOptions(2.0, 4.0, 0.5, 1.0))
    assert len(found) == 1
    assert found[0][0] == pytest.approx(177, abs=0.01)


def test_memory_is_that_of_a_coarse_level(tmp_path, monkeypatch):
    """A level that is too large is not read, whatever spacing is asked for."""
    maps = maps_of(tmp_path, np.full((100, 60), 255))
    assert [level.size_xy for level in maps.probability.levels] == [(60, 100), (30, 50), (15, 25), (8, 13)]
    assert maps.probability.nearest(2.0).index == 0
    assert maps.probability.nearest(2.0, max_px=1000).index == 2
    assert maps.probability.nearest(2.0, max_px=1).index == 3
    assert maps.probability.nearest(8.0).index == 2


def test_the_file(tmp_path):
    path = tmp_path / "detections.csv"
    write_csv(path, [Detection(0.98765432, (123456.75, 7.04)), Detection(0.1, (2.0, 99999.96))])
    assert path.read_bytes() == b"probability,x,y\n0.987654,123456.8,7.0\n0.100000,2.0,100000.0\n"
    assert list(csv.DictReader(io.StringIO(path.read_text())))[1]["x"] == "2.0"
    write_csv(path, [])
    assert path.read_text() == "probability,x,y\n"


def test_nothing_is_left_on_a_full_disk(tmp_path, monkeypatch):
    def full(_descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_csv(tmp_path / "a.csv", [])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options",
    [{"um_px": 0.0}, {"smooth_um": -1.0}, {"radius_um": -1.0}, {"max_detections": 0}, {"min_probability": 0.0}],
)
def test_impossible_options_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        DetectionOptions(**options)
