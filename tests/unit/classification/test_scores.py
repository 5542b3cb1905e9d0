"""Scores of a set of slides, what is said where one does not exist, and predictions.csv."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics

from classification.predictions import predictions_csv
from classification.scores import scores, write_scores
from classification.targets import Labeled, Targets

BINARY = Targets("classes", ("normal", "tumor"))
GRADES = Targets("classes", ("1", "2", "3"))
LABELS = Targets("multilabel", ("0", "1", "2"))
NUMBER = Targets("regression", ("value",))


def classes(of: Targets, numbers: list[int], patients: str = "") -> list[Labeled]:
    eye = np.eye(len(of.names), dtype=np.float32)
    groups = patients or [""] * len(numbers)
    return [Labeled(f"s{n}", eye[cls], groups[n], of.names[cls]) for n, cls in enumerate(numbers)]


def labels(rows: list[list[int]]) -> list[Labeled]:
    return [Labeled(f"s{n}", np.array(row, np.float32), "", ";".join(map(str, row))) for n, row in enumerate(rows)]


def numbers(values: list[float]) -> list[Labeled]:
    return [Labeled(f"s{n}", np.array([value], np.float32), "", f"{value:g}") for n, value in enumerate(values)]


def test_two_classes_on_paper() -> None:
    # p of tumor: 1/2, 2/3, 1/3, 3/4
    logits = np.log([[1, 1], [1, 2], [2, 1], [1, 3]])
    found = scores(BINARY, classes(BINARY, [0, 1, 1, 1]), logits, resamples=0)
    values = {name: one.value for name, one in found.values.items()}
    assert values["loss"] == pytest.approx(-math.log(1 / 2 * 2 / 3 * 1 / 3 * 3 / 4) / 4)
    # Equal logits are called the first class.
    assert values["accuracy"] == 0.75
    assert values["balanced_accuracy"] == pytest.approx((1 + 2 / 3) / 2)
    assert values["auc"] == pytest.approx(2 / 3)
    assert values["brier"] == pytest.approx((1 / 4 + 1 / 9 + 4 / 9 + 1 / 16) / 4)
    assert values["calibration_error"] == pytest.approx((1 / 2 + 1 / 3 + 2 / 3 + 1 / 4) / 4)
    assert found.confusion == ((1, 0), (1, 2))
    assert found.outputs[1].roc == ((0, 0), (0, 1 / 3), (0, 2 / 3), (1, 2 / 3), (1, 1))
    assert found.reliability[0] == (1, pytest.approx(1 / 3), 1)
    assert (found.slides, found.patients, found.notes) == (4, 4, ())
    assert "kappa" not in values
    assert found.values["auc"].low is None


def test_more_classes_against_scikit_learn() -> None:
    rng = np.random.default_rng(3)
    truth = rng.integers(0, 3, 41)
    logits = rng.normal(size=(41, 3)) + 1.5 * np.eye(3)[truth]
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    found = scores(GRADES, classes(GRADES, truth.tolist()), logits.astype(np.float32))
    for name, wanted in {
        "loss": metrics.log_loss(truth, p),
        "accuracy": metrics.accuracy_score(truth, logits.argmax(axis=1)),
        "balanced_accuracy": metrics.balanced_accuracy_score(truth, logits.argmax(axis=1)),
        "auc": metrics.roc_auc_score(truth, p, multi_class="ovr", average="macro"),
        "kappa": metrics.cohen_kappa_score(truth, logits.argmax(axis=1), weights="quadratic"),
        "brier": metrics.brier_score_loss(truth, p),
    }.items():
        score = found.values[name]
        assert score.value == pytest.approx(wanted, abs=1e-6), name
        assert score.low < score.value < score.high, name
    assert found.confusion == tuple(map(tuple, metrics.confusion_matrix(truth, logits.argmax(axis=1)).tolist()))
    assert found.logged()["auc_2"] == pytest.approx(metrics.roc_auc_score(truth == 2, p[:, 2]), abs=1e-6)
    assert [line[:24].strip() for line in found.lines()[-3:]] == ["AUC, 1", "AUC, 2", "AUC, 3"]


def test_labels_that_occur_together() -> None:
    rows = [[1, 0, 1], [0, 0, 1], [1, 1, 1], [0, 0, 1]]
    logits = np.array([[2, -1, 3], [1, -2, -1], [3, 1, 2], [-1, -3, 1]], np.float32)
    found = scores(LABELS, labels(rows), logits)
    assert found.values["accuracy"].value == pytest.approx(10 / 12)
    assert found.values["exact_match"].value == 0.75
    assert found.outputs[0].values["auc"].value == 1
    assert found.outputs[0].confusion == ((1, 1), (0, 2))
    assert found.outputs[2].values["auc"].value is None
    assert found.values["auc"].value == 1
    assert found.notes == ("AUC undefined: all slides have label 2; the mean is over the others",)
    p_0 = 1 / (1 + np.exp(-logits[:, 0]))
    assert found.outputs[0].values["brier"].value == pytest.approx(metrics.brier_score_loss([1, 0, 1, 0], p_0))


def test_numbers() -> None:
    found = scores(NUMBER, numbers([1, 2, 4, 8]), np.array([[1.5], [2], [7], [8]]))
    values = {name: one.value for name, one in found.values.items()}
    assert values["loss"] == pytest.approx((0.125 + 2.5) / 4)
    assert values["mae"] == pytest.approx(3.5 / 4)
    assert values["rmse"] == pytest.approx(math.sqrt(9.25 / 4))
    assert values["r2"] == pytest.approx(metrics.r2_score([1, 2, 4, 8], [1.5, 2, 7, 8]))
    assert values["spearman"] == pytest.approx(1)
    assert found.values["mae"].low < 3.5 / 4 < found.values["mae"].high


@pytest.mark.parametrize("cls", [0, 1])
def test_one_class_only_is_a_text_not_nan(cls: int) -> None:
    logits = np.array([[0.5, 0], [0, 0.5], [1, 2]])
    found = scores(BINARY, classes(BINARY, [cls] * 3), logits)
    name = BINARY.names[cls]
    assert str(found.values["auc"]) == f"undefined: only class {name} occurs"
    assert found.notes == (f"AUC undefined: only class {name} occurs",)
    assert math.isnan(found.logged()["auc"])
    assert f"AUC                     undefined: only class {name} occurs" in found.lines()
    assert found.values["loss"].value is not None
    assert "NaN" not in json.dumps(found.as_json(), allow_nan=False)


def test_a_class_that_no_slide_has_is_left_out_of_the_mean() -> None:
    logits = np.array([[2, 1, 0], [0, 1, 2], [2, 0, 0], [1, 0, 3.0]])
    found = scores(GRADES, classes(GRADES, [0, 2, 0, 2]), logits)
    assert found.outputs[1].values["auc"].why == "undefined: no slide has class 2"
    assert found.values["auc"].value == 1
    assert found.values["balanced_accuracy"].value == 1
    assert found.notes == ("AUC undefined: no slide has class 2; the mean is over the others",)


def test_equal_labels_of_a_regression_and_of_grades() -> None:
    found = scores(NUMBER, numbers([3, 3]), np.array([[1.0], [2.0]]))
    assert found.values["r2"].why == "undefined: all labels are equal"
    assert found.values["mae"].value == 1.5
    same = scores(GRADES, classes(GRADES, [1, 1]), np.array([[0, 1, 0], [0, 2.0, 0]]))
    assert same.values["kappa"].why == "undefined: only class 2 occurs, and only it is predicted"


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_network_that_returned_nan(broken: float, tmp_path: Path) -> None:
    logits, labeled = np.array([[0, 1], [broken, 0], [1, broken]]), classes(BINARY, [0, 1, 1])
    found = scores(BINARY, labeled, logits)
    assert found.notes == ("scores undefined: the network returned NaN or infinity for s1 and 1 more",)
    assert math.isnan(found.logged()["loss"])
    json.dumps(found.as_json(), allow_nan=False)
    predictions_csv(tmp_path / "p.csv", BINARY, labeled, logits)
    rows = list(csv.DictReader((tmp_path / "p.csv").open()))
    assert [row["prediction"] for row in rows] == ["tumor", "", ""]


def test_intervals_are_over_patients() -> None:
    rng = np.random.default_rng(8)
    truth = rng.integers(0, 2, 40).tolist()
    logits = np.stack([np.zeros(40), rng.normal(size=40) + truth], axis=1)
    single = scores(BINARY, classes(BINARY, truth), logits)
    patients = "".join(chr(ord("a") + n // 8) for n in range(40))
    few = scores(BINARY, classes(BINARY, truth, patients), logits)
    assert (single.patients, few.patients) == (40, 5)
    assert single.values["auc"].value == few.values["auc"].value
    assert single.values["auc"].low != few.values["auc"].low
    one = scores(BINARY, classes(BINARY, truth, "a" * 40), logits)
    assert (one.patients, one.values["auc"].low) == (1, None)
    again = scores(BINARY, classes(BINARY, truth, patients), logits)
    assert again == few


def test_predictions_csv(tmp_path: Path) -> None:
    logits = np.array([[0, 1.2345678], [2, -1]], np.float32)
    labeled = classes(BINARY, [1, 1], "pq")
    write_scores(tmp_path, scores(BINARY, labeled, logits), BINARY, labeled, logits)
    text = (tmp_path / "predictions.csv").read_text()
    header = "slide_id,patient,label,logit_normal,logit_tumor,probability_normal,probability_tumor,prediction,loss"
    assert text.splitlines()[0] == header
    rows = list(csv.DictReader(text.splitlines()))
    assert [(row["slide_id"], row["patient"], row["label"], row["prediction"]) for row in rows] == [
        ("s0", "p", "tumor", "tumor"),
        ("s1", "q", "tumor", "normal"),
    ]
    assert np.float32(rows[0]["logit_tumor"]) == logits[0, 1]
    assert float(rows[1]["probability_tumor"]) == pytest.approx(1 / (1 + math.exp(3)))
    assert float(rows[1]["loss"]) == pytest.approx(math.log(1 + math.exp(3)))
    stored = json.loads((tmp_path / "scores.json").read_text())
    assert stored["values"]["auc"] == {
        "value": None,
        "low": None,
        "high": None,
        "why": "undefined: only class tumor occurs",
    }


def test_predictions_of_labels_and_numbers(tmp_path: Path) -> None:
    predictions_csv(tmp_path / "l.csv", LABELS, labels([[1, 0, 1]]), np.array([[1, -1, -2]]))
    assert (tmp_path / "l.csv").read_text().splitlines()[1].split(",")[:3] == ["s0", "s0", "1;0;1"]
    assert (tmp_path / "l.csv").read_text().splitlines()[1].split(",")[-2] == "1;0;0"
    predictions_csv(tmp_path / "n.csv", NUMBER, numbers([2.5]), np.array([[2]]))
    assert (tmp_path / "n.csv").read_text() == "slide_id,patient,label,prediction,loss\ns0,s0,2.5,2,0.125\n"


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no slides to score; give a table"):
        scores(BINARY, [], np.zeros((0, 2)))
    with pytest.raises(ValueError, match=r"logits of shape \(2, 3\); \(2, 2\) \(slides, outputs\) are needed"):
        scores(BINARY, classes(BINARY, [0, 1]), np.zeros((2, 3)))
