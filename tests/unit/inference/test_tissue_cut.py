"""Maps are cut to the tissue that was looked for, whatever a network says of the glass beside it."""

import itertools
import json

import numpy as np
import pytest

from inference.blending import Weights
from inference.finish import PredictionInfo, finish_slide
from inference.maps import Maps
from inference.outputs import OutputOptions
from inference.plan import plan_slide
from inference.predict import WindowOptions, predict_run
from inference.windows import MapGrid, Run, TissueCells
from slides.reader import Slide
from slides.synthetic.demo import write_pyramid
from slides.tissue import cells_mm2

NAMES = {0: "normal", 1: "tumor"}


def sees_tumor_everywhere(image_BHWC):
    p_BHWK = np.empty((*image_BHWC.shape[:3], 2), np.float32)
    p_BHWK[..., 0], p_BHWK[..., 1] = 0.2, 0.8
    return p_BHWK


def finished(tmp_path, path, tissue_only, runs):
    """Predict a slide with windows of 128 px at 2 um/px, in as many runs; its folder and the plan."""
    planned = plan_slide(path, None, 128, 2.0, 0.25, 7, tissue_only, 2)
    cuts = np.linspace(0, len(planned.windows), runs + 1).astype(int)
    for first, last in itertools.pairwise(cuts):
        predict_run(
            Slide(path), planned.weights(), planned.windows, Run(0, int(first), int(last)), sees_tumor_everywhere,
            WindowOptions(1, 2), tmp_path / "scratch", lambda _: None,
        )  # fmt: skip
    common = PredictionInfo(tmp_path / "out", NAMES, "m", {}, OutputOptions())
    finish_slide(Slide(path), planned, [int(first) for first in cuts[:-1]], tmp_path / "scratch", common)
    return tmp_path / "out" / path.stem, planned


@pytest.mark.parametrize("runs", [1, 3])
def test_there_is_no_prediction_on_glass(tmp_path, runs):
    """Tissue at x 600 to 1000, y 100 to 500 level-0 px of 1 um: px 300 to 500, 50 to 250 of the maps."""
    image_HWC = np.full((900, 1400, 3), 245, np.uint8)
    image_HWC[100:500, 600:1000] = (190, 90, 160)
    write_pyramid(tmp_path / "s.tif", image_HWC, 1.0)
    folder, planned = finished(tmp_path, tmp_path / "s.tif", True, runs)
    maps = Maps(folder, (1400, 900), (1.0, 1.0), (2.0, 2.0), NAMES)
    inside_HW = np.zeros((450, 700), bool)
    inside_HW[50:250, 300:500] = True
    for pyramid, value in ((maps.probability, 204), (maps.label, 1)):
        found_HW = pyramid.whole(pyramid.levels[0])
        assert set(np.unique(found_HW).tolist()) == {0, value}
        # The search grid is coarser than the map, and rounds corners.
        assert np.count_nonzero((found_HW > 0) != inside_HW) < 0.1 * inside_HW.sum()
    # What is drawn and measured follows from the maps.
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["area_mm2"]["1"] == pytest.approx(0.16, rel=0.1)
    assert summary["area_mm2"]["1"] == pytest.approx(planned.tissue_mm2, rel=0.01)
    (feature,) = json.loads((folder / "polygons.geojson").read_text())["features"]
    outline = np.array(feature["geometry"]["coordinates"][0])
    assert outline.min(axis=0) == pytest.approx((600, 100), abs=16)
    assert outline.max(axis=0) == pytest.approx((1000, 500), abs=16)


def test_whole_slides_are_not_cut(tmp_path):
    image_HWC = np.full((300, 400, 3), 245, np.uint8)
    write_pyramid(tmp_path / "s.tif", image_HWC, 1.0)
    folder, _ = finished(tmp_path, tmp_path / "s.tif", False, 1)
    maps = Maps(folder, (400, 300), (1.0, 1.0), (2.0, 2.0), NAMES)
    assert (maps.label.whole(maps.label.levels[0]) == 1).all()


def test_each_px_takes_the_cell_under_its_center():
    """Map px of 4 level-0 px, cells of 10: px 0 1 (centers 2, 6) are in cell 0, 2 3 4 in cell 1, 5 6 in cell 2."""
    grid = MapGrid((7, 5), (4.0, 4.0), 8, 6)
    tissue = TissueCells(np.array([[0, 1, 0], [1, 0, 1]], bool), 10)
    assert tissue.under(grid, 0, 0).astype(int).tolist() == [[0, 0, 1, 1, 1, 0]] * 2 + [[1, 1, 0, 0, 0, 1]] * 3
    assert tissue.under(grid, 0, 1).astype(int).tolist() == [[0]] * 2 + [[1]] * 3
    weights = Weights(grid, [(0, 0)], tissue)
    p_HW = weights.probabilities(0, 0, np.ones((1, 6, 6), np.float32))[0]
    assert ((p_HW > 0) == tissue.under(grid, 0, 0)).all()


def test_tissue_is_never_larger_than_the_slide(tmp_path):
    """25 x 17 level-0 px of 2 um in cells of 10 px: three columns, the last of 5 px, and two rows, the last of 7."""
    write_pyramid(tmp_path / "s.tif", np.full((17, 25, 3), 245, np.uint8), 2.0)
    slide = Slide(tmp_path / "s.tif")
    assert cells_mm2(np.ones((2, 3), bool), 10, slide) == pytest.approx(25 * 17 * 4e-6, rel=1e-12)
    last = np.zeros((2, 3), bool)
    last[1, 2] = True
    assert cells_mm2(last, 10, slide) == pytest.approx(5 * 7 * 4e-6, rel=1e-12)


def test_a_field_full_of_tissue_is_as_large_as_it_is(tmp_path):
    """A cut-out without levels: its last cells reach beyond it."""
    write_pyramid(tmp_path / "s.tif", np.full((301, 403, 3), (190, 90, 160), np.uint8), 0.5)
    planned = plan_slide(tmp_path / "s.tif", None, 128, 1.0, 0.25, 7, True, 2)
    assert planned.tissue_mm2 == pytest.approx(301 * 403 * 0.25e-6, rel=1e-9)
