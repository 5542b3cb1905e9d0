"""Truth beside prediction: each kind in its color at its place, missed lesions in a ring, on slides of any size."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import evaluate
from evaluation.pictures import FALSE, FOUND, IGNORED, ITC, MISSED, PREDICTED, Scene, beside, window_of
from evaluation.slide import Measured, measure
from slides.geometry import Window
from slides.reader import Slide
from slides.synthetic.demo import write_pyramid
from slides.truth.reading import Reading
from tests.support.predictions import TUMOR, prediction, slide

NONE = np.empty((0, 2))


def near(image_HWC: np.ndarray, color: tuple[int, int, int], x: int, y: int, reach: int = 3) -> bool:
    """Whether a px of nearly that color is near a place."""
    part = image_HWC[max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1].astype(int)
    return bool((np.abs(part - color).sum(axis=2) < 60).any())


def drawn(path: Path, step: float, **changed: object) -> tuple[np.ndarray, np.ndarray]:
    """A white slide of 600 x 400 px with three lesions of 40 px, and tumor predicted at one more place."""
    write_pyramid(path, np.full((400, 600, 3), 255, np.uint8), 1.0)
    hw = round(400 / step), round(600 / step)
    true_HW, ignored_HW, predicted_HW = (np.zeros(hw, bool) for _ in range(3))
    lesion_HW = np.zeros(hw, np.int32)
    boxes = {1: (100, 100), 2: (300, 100), 3: (100, 300)}
    for lesion, (x, y) in boxes.items():
        at = slice(round(y / step), round((y + 40) / step)), slice(round(x / step), round((x + 40) / step))
        true_HW[at], lesion_HW[at] = True, lesion
    ignored_HW[round(300 / step) : round(340 / step), round(500 / step) : round(540 / step)] = True
    predicted_HW[round(200 / step) : round(240 / step), round(400 / step) : round(440 / step)] = True
    scene = {
        "grid": Window((0.0, 0.0), hw, (step, step)), "true_HW": true_HW, "ignored_HW": ignored_HW,
        "predicted_HW": predicted_HW, "lesion_HW": lesion_HW, "missed": np.array([2]), "itc": np.array([3]),
        "hits_xy_l0": np.array([[120.0, 120.0]]), "false_xy_l0": np.array([[560.0, 40.0]]),
    }  # fmt: skip
    opened = Slide(path)
    return beside(opened, window_of(opened), Scene(**(scene | changed)))


@pytest.mark.parametrize("step", [1.0, 8.0])
def test_every_kind_has_its_color_at_its_place(tmp_path: Path, step: float) -> None:
    truth_HWC, predicted_HWC = drawn(tmp_path / "s.tif", step)
    assert truth_HWC.shape == predicted_HWC.shape == (400, 600, 3)
    for image_HWC, color, x, y in (
        (truth_HWC, FOUND, 100, 120), (truth_HWC, MISSED, 300, 120), (truth_HWC, ITC, 100, 320),
        (truth_HWC, IGNORED, 500, 320), (predicted_HWC, PREDICTED, 400, 220), (predicted_HWC, FOUND, 120, 120),
        (predicted_HWC, FALSE, 560, 40),
    ):  # fmt: skip
        assert near(image_HWC, color, x, y, 3 + round(step / 2))
    # Each picture has only its own.
    assert (truth_HWC[190:250, 390:450] == 255).all()
    assert (predicted_HWC[90:150, 290:350] == 255).all()
    # A ring of 28 + 4 px around the middle of the missed lesion, none around the found one.
    assert near(truth_HWC, MISSED, 320 + 32, 120, 2 + round(step / 2))
    assert not near(truth_HWC, MISSED, 120 + 32, 120, 8)
    assert not near(truth_HWC, FOUND, 120 + 32, 120, 8)


def test_a_speck_that_was_missed_is_seen(tmp_path: Path) -> None:
    """One cell of 8 px on a slide that is drawn at a tenth of its size."""
    write_pyramid(tmp_path / "s.tif", np.full((400, 600, 3), 255, np.uint8), 1.0)
    cells_HW = np.zeros((50, 75), bool)
    cells_HW[25, 40] = True
    scene = Scene(
        Window((0.0, 0.0), (50, 75), (8.0, 8.0)), cells_HW, ~cells_HW & False, ~cells_HW & False,
        cells_HW.astype(np.int32), np.array([1]), np.empty(0, int), NONE, NONE,
    )  # fmt: skip
    opened = Slide(tmp_path / "s.tif")
    truth_HWC, predicted_HWC = beside(opened, window_of(opened, 60), scene)
    assert truth_HWC.shape == (40, 60, 3)
    # At (32.4, 20.4), and 12 px beside it.
    assert near(truth_HWC, MISSED, 32, 20, 1)
    assert near(truth_HWC, MISSED, 44, 20, 1)
    assert (predicted_HWC >= 250).all()


def pictures(measured: Measured) -> list[np.ndarray]:
    stored = (base64.b64decode(uri.split(",")[1]) for uri in (measured.truth, measured.predicted))
    return [np.asarray(Image.open(io.BytesIO(one))).astype(int) for one in stored]


@pytest.mark.parametrize("side", [640, 90])
def test_an_evaluation_draws_what_it_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: int) -> None:
    """Finer than the cells of lesions (4 px) and coarser; the predicted box lies beside the tumor, which is missed."""
    monkeypatch.setattr("evaluation.slide.window_of", lambda one: window_of(one, side))
    path = slide(tmp_path, "tumor_001", (TUMOR,))
    folder = prediction(tmp_path / "p", path, ((280, 200, 320, 240),), ((0.9, 300.0, 220.0),))
    (found,) = evaluate_pairs(tmp_path, folder)
    truth_HWC, predicted_HWC = pictures(found)
    step = max(1.0, 400 / side)
    reddish = (truth_HWC[..., 0] - truth_HWC[..., 1] > 120) & (truth_HWC[..., 0] > 160)
    rows, columns = np.nonzero(reddish)
    # The tumor, and the ring around it; not colors of JPEG at the edge of the tissue.
    assert reddish.sum() > 20
    assert abs(np.median(columns) * step - 100) < 20
    assert abs(np.median(rows) * step - 80) < 20
    orange = (predicted_HWC[..., 0] > 180) & (predicted_HWC[..., 2] < 90)
    rows, columns = np.nonzero(orange)
    assert (abs(columns.mean() * step - 300) < 20, abs(rows.mean() * step - 220) < 20) == (True, True)


def evaluate_pairs(tmp_path: Path, folder: Path) -> list[Measured]:
    from evaluation.predictions import pair_predictions

    pairs = pair_predictions(folder.parent, None, tmp_path / "masks", "tif", "tif", 2).pairs
    return [measure(one, case, Reading(), tissue_only=True) for one, case in pairs]


def test_predictions_of_an_earlier_version_are_cut_to_their_tissue(tmp_path: Path) -> None:
    """Glass is left of x 20: half of a false box, and one of two detections lie on it."""
    path = slide(tmp_path, "normal_001")
    slide(tmp_path, "tumor_001", (TUMOR,))
    glass, boxes = ((0.95, 5.0, 100.0), (0.6, 100.0, 100.0)), ((0, 60, 40, 140),)
    areas = {}
    for name, options in {
        "earlier": {"tissue_only": True, "bb_downsample": 7},
        "now": {"tissue_only": True, "bb_downsample": 7, "cut_to_tissue": True},
        "whole": {"tissue_only": False, "bb_downsample": 7},
    }.items():
        folder = prediction(tmp_path / name, path, boxes, glass, options=options)
        (found,) = evaluate_pairs(tmp_path, folder)
        one = found.scores
        assert len(one.hits.false) == (1 if name == "earlier" else 2)
        assert one.tumor_probability == (0.6 if name == "earlier" else 0.95)
        assert any("earlier version" in note for note in one.notes) == (name == "earlier")
        areas[name] = int(one.whole[0][0, 1])
    assert areas["now"] == areas["whole"] == 20 * 40
    assert areas["earlier"] == pytest.approx(10 * 40, abs=2 * 40)


def test_an_evaluation_among_the_predictions_is_no_prediction(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = tmp_path / "p"
    prediction(folder, slide(tmp_path, "tumor_001", (TUMOR,)), (TUMOR,), ((0.9, 90.0, 80.0),))
    words = ["--predictions", folder, "--label_path", tmp_path / "masks", "--out", folder / "scores", "--bootstrap", 0]
    for _ in range(2):
        assert evaluate.main([str(word) for word in words]) == 0
        assert "left out" not in capsys.readouterr().err
        assert json.loads((folder / "scores" / "metrics.json").read_text())["left_out"] == {}
    # What was not finished is named all the same.
    (folder / "tumor_001" / "summary.json").unlink()
    assert evaluate.main([str(word) for word in words]) == 2
    assert "tumor_001 has no summary.json: its prediction was not finished" in capsys.readouterr().err
