"""evaluate.py from predictions to files, on slides whose every number fits on paper."""

import csv
import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import evaluate
from slides.synthetic.demo import write_pyramid
from tests.support.paths import ROOT
from tests.support.predictions import TUMOR, UM_PX, prediction, slide

FALSE = (280, 200, 320, 220)
PX_UM2 = (2 * UM_PX) ** 2


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two slides and their predictions: of the tumor 5/6 is found, and a region beside it is false."""
    predicted = ((40, 40, 140, 120), FALSE)
    detections = ((0.9, 90.0, 80.0), (0.7, 300.0, 210.0))
    prediction(tmp_path / "p", slide(tmp_path, "tumor_001", (TUMOR,)), predicted, detections)
    prediction(tmp_path / "p", slide(tmp_path, "normal_001"))
    return tmp_path


def run(data: Path, *more: object, labels: str = "masks") -> dict:
    """Run evaluate.py; the numbers it wrote."""
    out = data / "out"
    arguments = ["--predictions", data / "p", "--label_path", data / labels, "--out", out, "--bootstrap", 50, *more]
    assert evaluate.main([str(argument) for argument in arguments]) == 0
    return json.loads((out / "metrics.json").read_text())


def refused(capsys: pytest.CaptureFixture, data: Path, *more: object) -> str:
    """Run evaluate.py on what it must refuse; its one line."""
    arguments = ["--predictions", data / "p", "--label_path", data / "masks", "--out", data / "out", *more]
    assert evaluate.main([str(argument) for argument in arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("evaluate.py: error: ")
    return lines[-1]


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("labels", ["masks", "annotations"])
def test_every_number(data: Path, labels: str) -> None:
    metrics = run(data, "--pixels", "all", "--label_format", "xml" if labels == "annotations" else "tif", labels=labels)
    # maps of 200 x 150 px; 60 x 40 px of tumor, 10 columns of it missed; 20 x 10 px false; the other slide right
    pixels = metrics["pixels"]
    assert pixels["confusion"] == [[57400, 200], [400, 2000]]
    assert pixels["iou"]["tumor"]["value"] == pytest.approx(2000 / 2600)
    assert pixels["dice"]["tumor"]["value"] == pytest.approx(4000 / 4600)
    assert pixels["miou"]["value"] == pytest.approx((57400 / 58000 + 2000 / 2600) / 2)
    # two probabilities: pairs won 2000 x 57400, ties 2000 x 200 and 400 x 57400
    assert pixels["auc"]["value"] == pytest.approx((2000 * 57400 + (2000 * 200 + 400 * 57400) / 2) / (2400 * 57600))
    lesions = metrics["lesions"]
    assert (lesions["lesions"], lesions["found"], lesions["false_positives"]) == (1, 1, 1)
    # found before the false one; thresholds 0.9 only, since everything is found
    assert (lesions["froc"]["value"], lesions["froc_every_threshold"]) == (1.0, 1.0)
    assert metrics["slide_auc"]["value"] == 1.0
    # 120 x 80 px of 1.944 um: 0.28 mm, and 100 x 80: 0.249 mm; false regions lie far from it
    assert metrics["nodes"]["confusion"] == [[1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert metrics["patients"] is None
    assert (metrics["slides"], metrics["left_out"]) == (2, {})
    low, high = (pixels["dice"]["tumor"][end] for end in ("low", "high"))
    # resamples with the tumor slide, once or twice, all have its Dice
    assert (low, high) == (pytest.approx(4000 / 4600),) * 2
    rows = read_csv(data / "out" / "slides.csv")
    assert [row["slide_id"] for row in rows] == ["tumor_001", "normal_001"]
    assert [row["node_truth"] for row in rows] == ["micro", "negative"]
    assert float(rows[0]["truth_mm"]) == pytest.approx(np.hypot(120, 80) * UM_PX / 1000, rel=1e-5)
    assert float(rows[0]["predicted_mm"]) == pytest.approx(np.hypot(100, 80) * UM_PX / 1000, rel=1e-5)
    assert rows[1]["tumor_dice"] == ""
    assert not (data / "out" / "submission.csv").exists()


def test_false_regions_are_listed_biggest_first(data: Path) -> None:
    small = (200, 240, 204, 244)
    folder = prediction(data / "p", data / "images" / "normal_001.tif", (small,), probability=0.6)
    assert folder.name == "normal_001"
    run(data)
    regions = read_csv(data / "out" / "false_positives.csv")
    assert list(regions[0]) == ["slide_id", "x", "y", "probability", "area_um2"]
    assert [row["slide_id"] for row in regions] == ["tumor_001", "normal_001"]
    # what touches true tumor is not among them, though a part of it may be false
    assert [float(row["area_um2"]) for row in regions] == pytest.approx([200 * PX_UM2, 4 * PX_UM2], abs=0.06)
    assert [float(row["probability"]) for row in regions] == pytest.approx([230 / 255, 153 / 255], abs=1e-6)
    x, y = float(regions[0]["x"]), float(regions[0]["y"])
    assert (abs(x - 300) <= 2, abs(y - 210) <= 2) == (True, True)


def test_a_prediction_beside_a_tumor_that_it_touches_is_no_false_region(data: Path) -> None:
    prediction(data / "p", data / "images" / "tumor_001.tif", ((150, 40, 220, 120),), ((0.9, 150.0, 80.0),))
    run(data)
    assert read_csv(data / "out" / "false_positives.csv") == []


def test_only_tissue_and_annotations_count(data: Path) -> None:
    # tumor that reaches beyond the tissue counts there, too: x 0 to 40 is half glass
    path = slide(data, "tumor_002", ((0, 100, 40, 200),))
    prediction(data / "p", path)
    (data / "p" / "normal_001" / "summary.json").unlink()
    metrics = run(data)
    confusion_KK = np.array(metrics["pixels"]["confusion"])
    assert confusion_KK[1].sum() == 2400 + 20 * 50
    # 180 x 130 px of tissue in each slide, its border not sharper than a few px
    assert confusion_KK[0].sum() == pytest.approx(2 * 180 * 130 - 2400 - 10 * 50, rel=0.03)


def test_intervals_need_two_slides_and_follow_the_seed(data: Path) -> None:
    path = slide(data, "tumor_003", (TUMOR,))
    prediction(data / "p", path, ((40, 40, 80, 120),))
    one, again, other = (run(data, "--seed", seed)["pixels"]["miou"] for seed in (1, 1, 2))
    assert one == again
    assert one["low"] < one["value"] < one["high"]
    assert (other["value"], other != one) == (one["value"], True)
    none = run(data, "--bootstrap", 0)["pixels"]["miou"]
    assert (none["value"], none["low"], none["high"]) == (one["value"], None, None)


def test_a_prediction_coarser_than_the_cells_of_lesions(data: Path) -> None:
    # maps of 50 x 38 px of 15.6 um; a false region of 5 x 3 of them is one region
    tumors = ((40, 40, 136, 120), (280, 200, 320, 224))
    prediction(data / "p", data / "images" / "tumor_001.tif", tumors, ((0.9, 90.0, 80.0),), step=8)
    metrics = run(data, "--pixels", "all")
    # the other slide's maps have 200 x 150 px
    assert metrics["pixels"]["confusion"] == [[30000 + 50 * 38 - 50 - 150 - 15, 15], [30, 120]]
    regions = read_csv(data / "out" / "false_positives.csv")
    assert [float(row["area_um2"]) for row in regions] == pytest.approx([15 * (8 * UM_PX) ** 2], abs=0.06)
    rows = read_csv(data / "out" / "slides.csv")
    assert float(rows[0]["predicted_mm"]) == pytest.approx(np.hypot(96, 80) * UM_PX / 1000, rel=1e-5)


def test_froc_is_read_where_asked(data: Path) -> None:
    prediction(data / "p", data / "images" / "normal_001.tif", (), ((0.95, 50.0, 50.0), (0.2, 70.0, 50.0)))
    lesions = run(data, "--froc_threshold", 0.25, 1)["lesions"]
    # 0.95 false, 0.9 the lesion: found at half a false positive per slide
    assert lesions["sensitivity_at"] == {"0.25": 0.0, "1": 1.0}
    assert lesions["froc"]["value"] == 0.5


def test_patients_of_camelyon17(tmp_path: Path) -> None:
    truths = {"patient_010_node_0": (TUMOR,), "patient_010_node_1": (), "patient_011_node_0": ()}
    guesses = {"patient_010_node_0": (TUMOR,), "patient_010_node_1": (), "patient_011_node_0": ((60, 60, 70, 70),)}
    for name, tumors in truths.items():
        prediction(tmp_path / "p", slide(tmp_path, name, tumors), guesses[name])
    patients = run(tmp_path)["patients"]
    assert patients["stages"] == {
        "patient_010": {"truth": "pN1mi", "prediction": "pN1mi", "nodes": 2},
        "patient_011": {"truth": "pN0", "prediction": "pN0(i+)", "nodes": 1},
    }
    # ranks 2 and 0 called 2 and 1: observed 1, expected (0 + 1 + 4 + 1) / 2
    assert patients["kappa"]["value"] == pytest.approx(1 - 1 / 3)
    assert (tmp_path / "out" / "submission.csv").read_text().splitlines() == [
        "patient,stage",
        "patient_010.zip,pN1mi",
        "patient_010_node_0.tif,micro",
        "patient_010_node_1.tif,negative",
        "patient_011.zip,pN0(i+)",
        "patient_011_node_0.tif,itc",
    ]


def test_a_bad_slide_is_left_out_and_named_everywhere(data: Path, capsys: pytest.CaptureFixture) -> None:
    names = ("tumor_002", "tumor_003", "tumor_004", "tumor_005", "tumor_006", "tumor_007")
    paths = {name: slide(data, name, (TUMOR,)) for name in names}
    for name in names[1:]:
        prediction(data / "p", paths[name])
    (data / "p" / "tumor_003" / "summary.json").write_text('{"slide_id": "tumor_003", "cla')
    wrong_HW = np.ones((140, 200), np.uint8)
    write_pyramid(data / "masks" / "tumor_004_Mask.tif", wrong_HW, UM_PX, lossless=True)
    write_pyramid(data / "p" / "tumor_005" / "label.tif", wrong_HW, UM_PX, lossless=True)
    (data / "p" / "tumor_006" / "detections.csv").write_text("x,y,probability\n1,2,0.5\n")
    prediction(data / "p", paths["tumor_007"], size_xy_l0=[402, 300], size_xy=[201, 150])
    (data / "p" / ".tumor_008.part").mkdir()
    metrics = run(data)
    assert metrics["slides"] == 2
    expected = {
        "tumor_002": "no prediction in",
        "tumor_003": "summary.json cannot be read",
        "tumor_004": "has 200 x 140 px, its slide",
        "tumor_005": "label.tif: (200, 140) px of",
        "tumor_006": "the header is 'x,y,probability', not 'probability,x,y'",
        "tumor_007": "has (400, 300) px, its prediction",
    }
    assert set(metrics["left_out"]) == set(expected)
    said = capsys.readouterr().err
    report = (data / "out" / "report.html").read_text()
    assert "6 slides not evaluated" in report
    for name, reason in expected.items():
        assert reason in metrics["left_out"][name]
        assert f"left out    {name}: " in said
        assert f"<b>{name}</b>" in report


def test_slides_may_have_moved(data: Path, capsys: pytest.CaptureFixture) -> None:
    (data / "images").rename(data / "elsewhere")
    assert "does not exist: give --slide_path" in refused(capsys, data)
    assert run(data, "--slide_path", data / "elsewhere")["slides"] == 2
    prediction(data / "p", slide(data / "other", "normal_009"))
    metrics = run(data, "--slide_path", data / "elsewhere")
    assert metrics["notes"] == ["predictions of slides that are not in --slide_path, left alone: normal_009"]


def test_a_slide_with_tumor_by_name_needs_its_label(data: Path, capsys: pytest.CaptureFixture) -> None:
    prediction(data / "p", slide(data, "tumor_009"))
    assert "tumor slides without a label" in refused(capsys, data)


def test_a_slide_without_tissue_is_noted(data: Path) -> None:
    prediction(data / "p", slide(data, "normal_002", tissue=None))
    metrics = run(data)
    assert metrics["notes"] == ["normal_002: no tissue found"]
    assert metrics["slides"] == 3


def test_masks_beside_slides_are_labels_and_slides_are_not(data: Path) -> None:
    for path in (data / "masks").iterdir():
        path.rename(data / "images" / path.name)
    slide(data, "normal_005")
    assert run(data, labels="images")["pixels"]["confusion"][1] == [400, 2000]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--classes", 3), "the model has 2 classes (normal, tumor), the truth 3: give the --label_map"),
        (("--mask_values", "0:0", "1:2"), "the model has 2 classes (normal, tumor), the truth 3"),
        (("--mask_values", "0:0", "2:1"), "holds values [1] at level 0, not in --mask_values"),
        (("--label_path", "nowhere"), "label_path nowhere does not exist"),
        (("--predictions", "nowhere"), "--predictions nowhere is not a folder"),
        (("--label_format", "xml"), "has no .xml file"),
    ],
)
def test_what_does_not_fit_ends_with_one_line(
    data: Path, capsys: pytest.CaptureFixture, more: tuple, message: str
) -> None:
    # without the normal slide, which has no mask that could be wrong
    shutil.rmtree(data / "p" / "normal_001")
    assert message in refused(capsys, data, *more)
    assert not (data / "out" / "metrics.json").exists()


def test_predictions_made_before_0_1_0_give_the_same_numbers(data: Path) -> None:
    now = run(data)
    for path in (data / "p").glob("*/summary.json"):
        stored = json.loads(path.read_text())
        stored["tumour_probability"] = stored.pop("tumor_probability")  # old spelling
        stored["class_names"]["1"] = "tumour"  # old spelling
        path.write_text(json.dumps(stored))
    before = run(data)
    for metrics in (now, before):
        del metrics["seconds"]
    assert before == now
    assert before["pixels"]["classes"] == ["normal", "tumor"]


def test_models_of_different_classes_are_not_mixed(data: Path, capsys: pytest.CaptureFixture) -> None:
    prediction(data / "p", slide(data, "normal_007"), classes=3)
    assert "predictions of different models" in refused(capsys, data)


def test_an_empty_folder_of_predictions(data: Path, capsys: pytest.CaptureFixture) -> None:
    (data / "empty").mkdir()
    assert "has no folder with a summary.json" in refused(capsys, data, "--predictions", data / "empty")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"size_xy": [150, 200]}, "maps of (150, 200) px, but slide and step give (200, 150)"),
        ({"tumor_probability": 1.5}, "tumor_probability 1.5 is not within"),
        ({"classes": 1}, "1 classes, at least 2"),
        ({"step_xy_l0": [2.0]}, "cannot be read"),
        ({"step_xy_l0": [2.0, 0.0]}, "two numbers above 0"),
        ({"class_names": {"0": "a", "1": "a"}}, "two classes of one name"),
    ],
)
def test_a_summary_that_contradicts_itself(
    data: Path, capsys: pytest.CaptureFixture, changed: dict, message: str
) -> None:
    prediction(data / "p", data / "images" / "tumor_001.tif", **changed)
    assert message in run(data)["left_out"]["tumor_001"]


def test_a_full_disk_leaves_what_was_there(
    data: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(data)
    before = (data / "out" / "metrics.json").read_text()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    line = refused(capsys, data, "--seed", 3)
    assert "metrics.json cannot be written: No space left on device; free space" in line
    assert (data / "out" / "metrics.json").read_text() == before
    assert sorted(path.name for path in (data / "out").iterdir()) == [
        "false_positives.csv", "metrics.json", "report.html", "slides.csv",
    ]  # fmt: skip


def test_tables_of_stages(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    reference, submission = tmp_path / "r.csv", tmp_path / "s.csv"
    reference.write_text("patient,stage\npatient_001.zip,pN0\npatient_002.zip,pN1\npatient_003.zip,pN2\n")
    submission.write_text("patient,stage\npatient_003.zip,pN1\npatient_001.zip,pN0\npatient_002.zip,pn1\n")
    arguments = ["--submission", str(submission), "--reference", str(reference)]
    assert evaluate.main(arguments) == 0
    # ranks 0 3 4 called 0 3 3: observed 1, expected (2 * 9 + 9 + 16 + 2 * 1) / 3
    assert f"kappa       {1 - 3 / 45!r} " in capsys.readouterr().out
    submission.write_text("patient,stage\npatient_001.zip,pN0\n")
    assert evaluate.main(arguments) == 2
    assert capsys.readouterr().err == (
        "evaluate.py: error: the submission lacks patient_002, patient_003; give every patient of the reference a "
        "stage\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--predictions is missing"),
        (["--predictions", "p", "--out", "o"], "--label_path is missing"),
        (["--submission", "s"], "--submission and --reference must be given together"),
        (["--submission", "s", "--reference", "r", "--predictions", "p"], "omit the other paths"),
        (["--predictions", "p", "--label_path", "l", "--out", "o", "--froc_threshold", "2", "1"], "rising order"),
        (["--predictions", "p", "--label_path", "l", "--out", "o", "--mask_values", "x:1"], "--mask_values x"),
    ],
)
def test_wrong_command_lines(arguments: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as ended:
        evaluate.main(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[0]


def test_nothing_needs_tensorflow(data: Path) -> None:
    arguments = ["--predictions", str(data / "p"), "--label_path", str(data / "masks"), "--out", str(data / "out")]
    code = f"import sys, evaluate; print(evaluate.main({arguments!r}), {{'tensorflow', 'keras'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 set()"


def test_blocks_and_one_read_give_the_same(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from evaluation import slide

    whole = run(data)
    regions = (data / "out" / "false_positives.csv").read_text()
    monkeypatch.setattr(slide, "BLOCK_PX", 37)
    parts = run(data)
    for metrics in (whole, parts):
        del metrics["seconds"]
    assert parts == whole
    assert (data / "out" / "false_positives.csv").read_text() == regions


def test_the_precision_of_froc_can_be_theirs(data: Path) -> None:
    prediction(data / "p", data / "images" / "tumor_001.tif", (), ((0.3, 90.0, 80.0), (0.3, 300.0, 210.0)))
    prediction(data / "p", data / "images" / "normal_001.tif", (), ((0.1, 50.0, 50.0),))
    at = ("--froc_threshold", 0.25)
    double = run(data, *at)["lesions"]
    theirs = run(data, *at, "--froc", "organisers")["lesions"]
    # The lesion ties with a false positive of half a one per slide; float32(0.3) is above 0.3.
    assert (double["froc"]["value"], double["froc_rule"], double["froc_organisers"]) == (0.5, "double", 1.0)
    assert (theirs["froc"]["value"], theirs["froc_rule"]) == (1.0, "organisers")
