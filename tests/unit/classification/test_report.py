"""The page of a classifier's run: everything that was scored, nothing that is not defined as a number."""

import csv
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from classification import report
from classification.scores import scores, write_scores
from classification.targets import Labeled, Targets
from tests.unit.classification.test_scores import BINARY, GRADES, LABELS, NUMBER, classes, labels, numbers

OPTIONS = {"model": "resnet34", "image_size": 4096, "resolution": 0.5, "train_csv": "/data/<train>.csv", "epochs": 3}
LOGITS = np.array([[0, 2], [0, 1], [0, -1.5], [0, 0.5], [0, -1]])


def text_of(html: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", html.split("</style>")[1]).split())


def run(folder: Path, of: Targets, labeled: list[Labeled], logits: np.ndarray) -> str:
    """Score a set of slides into a folder; returns the page."""
    folder.mkdir(exist_ok=True)
    (folder / "options.json").write_text(json.dumps(OPTIONS))
    write_scores(folder, scores(of, labeled, logits, resamples=200), of, labeled, logits)
    report.write(folder)
    return (folder / report.NAME).read_text(encoding="utf-8")


@pytest.fixture
def binary(tmp_path: Path) -> str:
    folder = tmp_path / "run"
    for path in (folder / "thumbnails" / "s2.jpg", folder / "saliency" / "s2" / "overlay.png"):
        path.parent.mkdir(parents=True)
        Image.fromarray(np.full((30, 60, 3), 120, np.uint8)).save(path)
    rows = [
        {"kind": "train", "images": 4, "loss": 0.9, "seconds": 30.0, "learning_rate": 1e-4},
        {"kind": "val", "images": 4, "loss": 0.8, "auc": None},
        {"kind": "train", "images": 8, "loss": 0.5, "seconds": 60.0, "learning_rate": 1e-4},
        {"kind": "val", "images": 8, "loss": 0.7, "auc": 0.8},
    ]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return run(folder, BINARY, classes(BINARY, [1, 1, 1, 0, 0], "aabcd"), LOGITS)


def test_everything_that_was_scored_is_on_the_page(binary: str) -> None:
    shown = text_of(binary)
    assert "trained 8 images in 1.0 min" in shown
    assert "scored 5 slides of 4 patients" in shown
    assert "classes normal (2), tumor (3)" in shown
    assert "labels /data/&lt;train&gt;.csv" in shown
    assert "field of view 4096 px at 0.5 um/px = 2.05 mm" in shown
    assert re.search(r"Accuracy 0\.600 \(0\.\d{3} to 1\.000\)", shown)
    assert re.search(r"AUC 0\.667 \(0\.\d{3} to 1\.000\) of tumor, 3 of 5 slides", shown)
    assert "Lowest val loss 0.700 at image 8" in shown
    assert "95% bootstrap intervals over 4 patients. With so few patients they are unreliable." in shown
    assert re.findall(r"<figcaption>([^<]*)</figcaption><svg", binary) == [
        "loss", "AUC", "learning rate", "class tumor", "probability of tumor",
    ]  # fmt: skip
    assert "normal 1 50.0% 1 50.0% tumor 1 33.3% 2 66.7%" in shown
    assert '"epochs": 3' in binary.replace("&quot;", '"')
    assert not re.search(r"<script|https?:|url\(| on\w+=|NaN|\bnan\b", binary)


def test_the_worst_slide_is_first_with_its_pictures(binary: str) -> None:
    cards = re.findall(r'<article class="slide">.*?</article>', binary)
    assert [re.findall("<h3>(.*?)</h3>", card)[0] for card in cards] == ["s2", "s3", "s1", "s4", "s0"]
    assert re.findall(r'alt="([^"]*)"', cards[0]) == ["image of s2", "saliency of s2"]
    assert "no picture" in cards[1]
    listed = " ".join(re.sub(r"<[^>]*>", " ", cards[0]).split())
    assert listed.endswith("label tumor prediction normal probability of tumor 0.182 loss 1.701 patient b")
    assert '<span class="bad">normal</span>' in cards[0]
    assert "bad" not in cards[4]


def test_roc_and_calibration_are_drawn_through_their_points(binary: str) -> None:
    roc = binary.split("<figcaption>class tumor</figcaption>")[1].split("</figure>", maxsplit=1)[0]
    # s0 and s1 (tumor), s3 (normal), s4 (normal), s2 (tumor); 0 to 1 on 46 to 348 px across and 228 to 12 px up.
    assert re.findall(r'class="curve" points="([^"]*)"', roc) == [
        "46.0,228.0 46.0,156.0 46.0,84.0 197.0,84.0 348.0,84.0 348.0,12.0"
    ]
    drawn = binary.split("<figcaption>probability of tumor</figcaption>")[1].split("</figure>", maxsplit=1)[0]
    x, y = [float(each) for each in re.findall(r'class="mark" cx="([\d.]*)" cy="([\d.]*)"', drawn)[0]]
    assert (x, y) == (pytest.approx(46 + 302 / (1 + math.exp(1.5)), abs=0.06), 12)


def test_one_class_only(tmp_path: Path) -> None:
    html = run(tmp_path, BINARY, classes(BINARY, [1] * 5), LOGITS)
    shown = text_of(html)
    assert "AUC undefined: only class tumor occurs" in shown
    assert "AUC not defined undefined: only class tumor occurs" in shown
    assert "class tumor" in shown
    assert not re.search(r"NaN|\bnan\b", html)


def test_grades_labels_and_numbers(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    html = run(tmp_path / "grades", GRADES, classes(GRADES, [0, 1, 2, 0, 1, 2]), rng.normal(size=(6, 3)))
    assert len(re.findall("<figcaption>class [123]</figcaption>", html)) == 3
    assert "Quadratic kappa" in html
    assert "mean over 3 of 3 classes" in html
    rows = [[1, 0, 1], [0, 0, 1], [1, 1, 1]]
    shown = text_of(run(tmp_path / "labels", LABELS, labels(rows), rng.normal(size=(3, 3))))
    assert "AUC undefined: all slides have label 2; the mean is over the others" in shown
    assert "label 1 slides; rows truth, columns prediction" in shown
    assert "mean over 2 of 3 labels" in shown
    html = run(tmp_path / "numbers", NUMBER, numbers([1, 2, 4]), np.array([[1.5], [2], [math.nan]]))
    assert "scores undefined: the network returned NaN or infinity for s2" in text_of(html)
    assert not re.search(r"NaN\b(?! or)|\bnan\b", html)
    html = run(tmp_path / "numbers", NUMBER, numbers([1, 2, 4]), np.array([[1.5], [2], [4]]))
    assert len(re.findall('class="mark"', html)) == 3
    assert "R2 0.946" in text_of(html)


def test_a_validation_alone(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"kind": "val", "images": 0, "loss": 0.8}))
    html = run(tmp_path, BINARY, classes(BINARY, [1, 1, 1, 0, 0]), LOGITS)
    assert "<h2>Curves</h2>" not in html
    (tmp_path / "options.json").write_text(json.dumps({"train_from_transfer": "runs/a", "variable_input_shapes": True}))
    shown = text_of(report.html(tmp_path))
    assert "weights of runs/a field of view whole images" in shown
    assert "trained" not in shown


def test_names_cannot_break_the_page(tmp_path: Path) -> None:
    of = Targets("classes", ("<b>&", 'x" onload="y'))
    labeled = [Labeled("</h3><script>", np.array([1, 0], np.float32), "<i>", ""), *classes(of, [1, 1])]
    html = run(tmp_path, of, labeled, LOGITS[:3])
    assert not re.search(r"<script|<b>&|<i>| onload=\"y", html)


def test_a_run_without_scores_or_slides_has_a_page_too(tmp_path: Path) -> None:
    (tmp_path / "options.json").write_text("{}")
    assert report.main([str(tmp_path)]) == 0
    assert "no slide has been scored yet" in text_of((tmp_path / report.NAME).read_text())


def test_a_folder_of_no_run_and_damaged_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main([str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"classification.report: error: {tmp_path} has no options.json: give the folder of a run\n"
    )
    (tmp_path / "options.json").write_text("{}")
    (tmp_path / "scores.json").write_text("[1, 2")
    with pytest.raises(ValueError, match=r"scores\.json is damaged: .*; validate again with --only_eval"):
        report.html(tmp_path)
    assert "python -m classification.report" in report.attempt(tmp_path)


def test_only_the_first_slides_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "SLIDES", 2)
    html = run(tmp_path, BINARY, classes(BINARY, [1, 1, 1, 0, 0]), LOGITS)
    assert "The first 2 of 5; all are in predictions.csv." in html
    assert html.count('<article class="slide">') == 2
    with (tmp_path / "predictions.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 5
