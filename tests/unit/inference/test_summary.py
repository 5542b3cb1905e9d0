"""Areas, lesions and diameters on paper; the record of a slide; all outputs together."""

import json
import math
import os
import time

import numpy as np
import pytest

from inference import outputs
from inference.detections import Detection
from inference.lesions import LesionSizes, areas_mm2, lesion_sizes
from inference.maps import MapPyramid, Maps
from inference.outputs import OutputOptions, write_outputs
from inference.summary import Predicted, summary, write_summary
from slides.reader import Slide
from slides.synthetic.demo import position_coded
from slides.truth.mask_truth import MaskTruth
from system.version import __version__
from tests.support.maps_on_disk import write_maps

RUN = Predicted("runs/a/final.keras", windows=12, windows_unreadable=1, tissue_mm2=0.5, um_px=2.0, options={"batch": 4})


def drawn(text):
    return np.array([[int(px) if px.isdigit() else 0 for px in row] for row in text.split()], np.uint8)


# Areas and lesions


def test_areas_count_px_as_far_as_they_are_on_the_slide(tmp_path):
    """Px of 4 x 4 level-0 px of 0.25 x 0.5 um: 2 um2. Half of the last column and a quarter of the last row count."""
    label = drawn("1...1 ..22. ....1")
    maps = write_maps(tmp_path, label, um_px_xy_l0=(0.25, 0.5), size_xy_l0=(18, 9), classes=4)
    assert areas_mm2(maps) == pytest.approx({1: (1 + 0.5 + 0.5 * 0.25) * 2e-6, 2: 4e-6, 3: 0.0})
    # And where the last row is full of it.
    maps = write_maps(tmp_path, np.ones((3, 5)), um_px_xy_l0=(0.25, 0.5), size_xy_l0=(18, 9))
    assert areas_mm2(maps) == pytest.approx({1: 18 * 9 * 0.125e-6})


def test_areas_are_summed_over_bands(tmp_path, monkeypatch):
    monkeypatch.setattr("inference.maps.BAND_PX", 16 * 61)
    label = (np.random.default_rng(0).random((70, 61)) < 0.3).astype(np.uint8)
    maps = write_maps(tmp_path, label, size_xy_l0=(242, 277))
    assert [top for top, _ in maps.label.bands(maps.label.levels[0])] == [0, 16, 32, 48, 64]
    expected = np.where(np.arange(61) == 60, 0.5, 1)[None] * np.where(np.arange(70) == 69, 0.25, 1)[:, None]
    assert areas_mm2(maps)[1] == pytest.approx((label * expected).sum() * 1e-6)


def test_lesions_join_at_corners_and_are_measured_on_the_finest_level(tmp_path):
    """Px of 1 um; the searched level of 8 um/px has 8 x 8 of them."""
    label = np.zeros((200, 300))
    label[100, 16:140] = 1
    label[101:104, 139] = 1  # 124 wide, 4 high
    label[10:20, 10:20] = 2  # another class
    label[15, 290] = 1
    maps = write_maps(tmp_path, label, classes=3)
    found = lesion_sizes(maps)
    assert found.count == 3
    assert found.longest_diameter_mm == pytest.approx(math.hypot(124, 4) / 1000)
    label[96, 144] = 1  # its px of 8 um touches the other at a corner
    assert lesion_sizes(write_maps(tmp_path, label, classes=3)).count == 3
    label[96, 144], label[96, 152] = 0, 1
    assert lesion_sizes(write_maps(tmp_path, label, classes=3)).count == 4


def test_diameters_follow_the_spacing_of_each_axis(tmp_path):
    label = np.zeros((60, 60))
    label[10:20, 5:45] = 1
    maps = write_maps(tmp_path, label, um_px_xy_l0=(0.25, 0.75))  # 40 um by 30 um
    assert lesion_sizes(maps).longest_diameter_mm == pytest.approx(0.05)


def test_one_px_is_as_long_as_its_diagonal(tmp_path):
    label = np.zeros((60, 60))
    label[59, 59] = 1
    assert lesion_sizes(write_maps(tmp_path, label)) == LesionSizes(1, pytest.approx(math.sqrt(2) / 1000))


def test_a_long_thin_lesion_counts_although_another_has_the_larger_box(tmp_path):
    """An L has a box as large as a diagonal line, but its ends are as far apart as that; a U is shorter."""
    label = np.zeros((200, 200))
    label[8:16, 8:100] = label[100:108, 8:100] = label[8:108, 8:16] = 1  # box of 92 x 100
    label[150, 40:170] = 1
    assert lesion_sizes(write_maps(tmp_path, label)).longest_diameter_mm == pytest.approx(math.hypot(92, 100) / 1000)
    label[8:16, 50:100] = label[100:108, 50:100] = 0
    assert lesion_sizes(write_maps(tmp_path, label)).longest_diameter_mm == pytest.approx(math.hypot(130, 1) / 1000)


def test_nothing_predicted(tmp_path):
    maps = write_maps(tmp_path, np.zeros((5, 7)))
    assert lesion_sizes(maps) == LesionSizes(0, 0.0)
    assert areas_mm2(maps) == {1: 0.0}


# Maps


@pytest.mark.parametrize("size_xy_l0", [(28, 21), (28, 15), (29, 20), (23, 20)])
def test_maps_of_another_slide_are_refused(tmp_path, size_xy_l0):
    maps = write_maps(tmp_path, np.zeros((5, 7)), size_xy_l0=(25, 17))
    with pytest.raises(ValueError, match="do not cover a slide of"):
        MapPyramid(maps.label.path, size_xy_l0, (0.25, 0.25), (4.0, 4.0))


def test_sizes_that_are_whole_but_for_the_last_bit_are_accepted(tmp_path):
    step = 0.7 / 0.1  # a little more than 7
    assert step != 7
    write_maps(tmp_path, np.zeros((5, 7)), step_xy=(7.0, 7.0))
    with pytest.raises(ValueError, match="do not cover"):
        MapPyramid(tmp_path / "label.tif", (50, 35), (0.25, 0.25), (step, step))
    assert MapPyramid(tmp_path / "label.tif", (49, 35), (0.25, 0.25), (step, step)).levels[0].size_xy == (7, 5)


def test_unusable_maps_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"label\.tif cannot be opened"):
        Maps(tmp_path, (28, 20), (0.25, 0.25), (4.0, 4.0), {0: "normal", 1: "tumor"})
    with pytest.raises(ValueError, match="wanted a name for every class"):
        Maps(tmp_path, (28, 20), (0.25, 0.25), (4.0, 4.0), {1: "tumor"})


# The record


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    path = tmp_path_factory.mktemp("slides") / "ä 'b' \"c\".tif"
    position_coded(path, (300, 200), tile=16)
    return Slide(path)


def some_label():
    label = np.zeros((50, 75), np.uint8)
    label[10:30, 20:50] = 1
    label[15:20, 25:30] = 0
    return label


def test_the_record_has_what_was_agreed(tmp_path, slide):
    maps = write_maps(tmp_path, some_label(), size_xy_l0=slide.size_xy_l0)
    record = summary(slide, maps, [Detection(0.75, (3.0, 4.0)), Detection(0.5, (9.0, 9.0))], RUN, 12.3456)
    write_summary(tmp_path / "summary.json", record)
    assert json.loads((tmp_path / "summary.json").read_text()) == {
        "widefov_version": __version__,
        "slide_id": "ä 'b' \"c\"",
        "slide_path": str(slide.path),
        "size_xy_l0": [300, 200],
        "um_px_xy_l0": [0.25, 0.25],
        "um_px": 2.0,
        "step_xy_l0": [4.0, 4.0],
        "size_xy": [75, 50],
        "classes": 2,
        "class_names": {"0": "normal", "1": "tumor"},
        "model": "runs/a/final.keras",
        "windows": 12,
        "windows_unreadable": 1,
        "tissue_mm2": 0.5,
        "brightfield": True,
        "area_mm2": {"1": 0.000575},
        "tumor_probability": 0.75,
        "longest_diameter_mm": round(math.hypot(30, 20) / 1000, 6),
        "lesions": 1,
        "seconds": 12.346,
        "stain": None,
        "options": {"batch": 4},
        "bounds_xy_l0": [0, 0],
        "geojson_frame": "qupath",
        "geojson_offset_xy_l0": [0, 0],
    }
    assert summary(slide, maps, [], RUN, 0.0)["tumor_probability"] == 0.0


def test_names_that_are_no_text_are_written(tmp_path):
    write_summary(tmp_path / "a.json", {"slide_path": os.fsdecode(b"/a/\xff.tif")})
    assert os.fsencode(json.loads((tmp_path / "a.json").read_text())["slide_path"]) == b"/a/\xff.tif"


def test_numbers_that_json_lacks_are_refused_and_leave_nothing(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_summary(tmp_path / "a.json", {"seconds": float("nan")})
    assert list(tmp_path.iterdir()) == []


# All outputs


def test_all_outputs_of_a_slide(tmp_path, slide):
    maps = write_maps(tmp_path, some_label(), size_xy_l0=slide.size_xy_l0)
    truth = MaskTruth(write_truth(tmp_path / "truth.tif", slide), slide)
    (tmp_path / "truth.tif").rename(tmp_path.parent / "truth.tif")
    truth.path = tmp_path.parent / "truth.tif"
    started = time.monotonic() - 5
    assert write_outputs(tmp_path, slide, maps, RUN, started, truth) == []
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {
        "label.tif", "probability.tif", "polygons.geojson", "polygons.xml", "detections.csv", "overlay.png",
        "summary.json",
    }  # fmt: skip
    record = json.loads((tmp_path / "summary.json").read_text())
    assert record["lesions"] == 1
    assert record["seconds"] >= 5
    best = (tmp_path / "detections.csv").read_text().splitlines()[1].split(",")
    assert record["tumor_probability"] == float(best[0]) > 0.5
    assert len(json.loads((tmp_path / "polygons.geojson").read_text())["features"]) == 1


def write_truth(path, slide):
    from tests.support.maps_on_disk import write_map

    truth = np.zeros(slide.size_xy_l0[::-1], np.uint8)
    truth[40:120, 80:180] = 1
    write_map(path, truth, slide.um_px_xy_l0, "max")
    return path


def test_a_slide_without_finding_is_reported(tmp_path, slide):
    maps = write_maps(tmp_path, np.zeros((50, 75)), size_xy_l0=slide.size_xy_l0)
    expected = ["no finding (no tumor predicted, no detection)"]
    assert write_outputs(tmp_path, slide, maps, RUN, time.monotonic()) == expected


def test_small_regions_are_counted_in_a_note(tmp_path, slide):
    label = some_label()
    label[40, 60] = 1
    maps = write_maps(tmp_path, label, size_xy_l0=slide.size_xy_l0)
    notes = write_outputs(tmp_path, slide, maps, RUN, time.monotonic(), options=OutputOptions(min_area_um2=20.0))
    assert notes == ["no outline of 1 region below 20 um2"]


def test_there_is_no_summary_when_something_before_it_fails(tmp_path, slide, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    maps = write_maps(tmp_path, some_label(), size_xy_l0=slide.size_xy_l0)
    monkeypatch.setattr(outputs, "write_overlay", full)
    with pytest.raises(OSError, match="No space left"):
        write_outputs(tmp_path, slide, maps, RUN, time.monotonic())
    assert not (tmp_path / "summary.json").exists()
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]
