"""Slides with bounds: GeoJSON counts from what QuPath shows, everything else from the corner of the whole slide."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import shapely

from inference.outputs import OutputOptions, write_outputs
from inference.summary import Predicted
from options.choices import GeojsonFrame
from samplers.replay import main as replay
from slides.geometry import bounds_from_l0, l0_from_bounds
from slides.reader import Slide
from slides.synthetic.demo import position_coded
from slides.truth.xml_truth import XmlTruth
from tests.support.maps_on_disk import write_maps
from tests.support.scn_files import write_scn

RUN = Predicted("final.keras", windows=1, windows_unreadable=0, tissue_mm2=0.5, um_px=2.0, options={})


@pytest.fixture
def slide(tmp_path: Path) -> Slide:
    write_scn(tmp_path / "a.scn")
    return Slide(tmp_path / "a.scn")


def test_bounds_are_read(slide: Slide, tmp_path: Path):
    assert (slide.bounds_xy_l0, slide.size_xy_l0) == ((200, 130), (700, 500))
    position_coded(tmp_path / "b.tif", (60, 40))
    assert Slide(tmp_path / "b.tif").bounds_xy_l0 == (0, 0)


def test_the_frames_convert_into_each_other():
    np.testing.assert_array_equal(bounds_from_l0([(210, 135)], (200, 130)), [(10, 5)])
    np.testing.assert_array_equal(l0_from_bounds([(10, 5)], (200, 130)), [(210, 135)])


def box(folder: Path) -> tuple[float, ...]:
    (feature,) = json.loads((folder / "polygons.geojson").read_text())["features"]
    return shapely.geometry.shape(feature["geometry"]).bounds


@pytest.mark.parametrize(
    ("frame", "expected", "said"),
    [
        ("qupath", (40, 30, 80, 50), "counts px from (200, 130), the corner of what QuPath shows (--geojson_frame)"),
        ("slide", (240, 160, 280, 180), "counts px from (0, 0), the corner of the whole slide, which QuPath crops"),
    ],
)
def test_outlines_lie_where_the_option_says(
    slide: Slide, tmp_path: Path, frame: GeojsonFrame, expected: tuple[int, ...], said: str
):
    label = np.zeros((50, 70))
    label[16:18, 24:28] = 1  # steps of 10 px: x 240 to 280, y 160 to 180
    maps = write_maps(tmp_path / "out", label, step_xy=(10.0, 10.0), um_px_xy_l0=(0.5, 0.5), size_xy_l0=(700, 500))
    options = OutputOptions(simplify_um=0.0, geojson_frame=frame)
    (note,) = write_outputs(tmp_path / "out", slide, maps, RUN, time.monotonic(), options=options)
    assert said in note
    assert box(tmp_path / "out") == expected
    record = json.loads((tmp_path / "out" / "summary.json").read_text())
    offset = {"qupath": [200, 130], "slide": [0, 0]}[frame]
    assert (record["bounds_xy_l0"], record["geojson_offset_xy_l0"]) == ([200, 130], offset)
    assert record["geojson_frame"] == frame
    # ASAP shows the whole slide.
    truth = XmlTruth(tmp_path / "out" / "polygons.xml", slide)
    assert truth.regions(1)[0].bounds == (240, 160, 280, 180)


@pytest.mark.parametrize(("words", "corner"), [((), (-50, -30)), (("--geojson_frame", "slide"), (150, 100))])
def test_replay_counts_alike(slide: Slide, tmp_path: Path, words: tuple[str, ...], corner: tuple[int, int]):
    run = tmp_path / "run"
    (run / "samples").mkdir(parents=True)
    options = {"data_sampler": "surf", "seed": 0, "img_size": 128, "resolution": 0.5, "batch_tumor_ratio": None}
    (run / "options.json").write_text(json.dumps(options))
    reading = {
        "label_map": {"_0": 1}, "ignore_groups": [], "mask_values": {}, "um_px_l0": None, "bb_downsample": 0,
        "classes": 2,
    }  # fmt: skip
    cases = [{"slide_path": str(slide.path), "label_path": None}]
    (run / "samples" / "slides.json").write_text(json.dumps({"reading": reading, "cases": cases}))
    columns = "index,slide,x_l0,y_l0,um_px,cls,origin,attempt,rejected,loss"
    (run / "samples" / "rank-0.csv").write_text(f"{columns}\n0,a,214.0,164.0,0.5,0,place,0,,0.5\n")
    assert replay([str(run), *words]) == 0
    (feature,) = json.loads((run / "replay" / "a.geojson").read_text())["features"]
    ring = feature["geometry"]["coordinates"][0]
    # 128 px around (214, 164) reach from (150, 100) on.
    assert ring[0] == ring[4] == list(corner)
    assert ring[2] == [corner[0] + 128, corner[1] + 128]
    assert '<Coordinate Order="0" X="150' in (run / "replay" / "a.xml").read_text()
