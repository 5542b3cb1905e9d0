"""The report: one file, nothing from outside, every name escaped, and readable numbers."""

import base64
import io
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation.report import html
from evaluation.words import headline, slide_line
from metrics.froc import Hits
from metrics.summary import SlideScores, Summary, plain, summarize
from pages.charts import Axis, chart, matrix, short, thinned
from pages.pictures import data_uri, file_uri

PICTURE = "data:image/jpeg;base64,AAAA"
PICTURES = (PICTURE, "data:image/jpeg;base64,BBBB")


class Page(HTMLParser):
    """Elements, attributes and words of a page; fails where tags do not match."""

    VOID = ("meta", "img", "br")
    DRAWN = ("line", "polyline", "circle")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        assert tag in self.DRAWN
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.words += f" {data}"


def scores(slide_id: str, found: float = 0.9, **changed) -> SlideScores:
    histogram_2N = np.zeros((2, 256), np.int64)
    histogram_2N[0, 20], histogram_2N[1, 230] = 90, 10
    values = {
        "slide_id": slide_id,
        "confusion_KK": np.array([[85, 5], [2, 8]]),
        "histogram_2N": histogram_2N,
        "hits": Hits(np.array([0.3]), np.array([found])),
        "tumor_probability": 0.9,
        "has_tumor": True,
        "truth_mm": 2.5,
        "predicted_mm": 1.5,
        "px_mm2": 0.01,
    }
    return SlideScores(**(values | changed))


def normal(slide_id: str) -> SlideScores:
    histogram_2N = np.zeros((2, 256), np.int64)
    histogram_2N[0, 20] = 100
    nothing = {"hits": Hits(np.array([]), np.array([])), "has_tumor": False, "tumor_probability": 0.1}
    counts = {"confusion_KK": np.array([[100, 0], [0, 0]]), "histogram_2N": histogram_2N}
    return scores(slide_id, truth_mm=0.0, predicted_mm=0.0, **nothing, **counts)


def report(slides: list[SlideScores], names=("normal", "tumor"), pictures=None, **more) -> str:
    summary: Summary = summarize(slides, names, count=20)
    metrics = plain(summary.metrics | {"options": {"pixels": "tissue", "predictions": "p"}} | more)
    rows = [plain(row) for row in summary.rows]
    return html(metrics, rows, summary.froc, summary.roc, pictures or {})


def test_numbers_and_order() -> None:
    slides = [normal("a"), scores("b"), scores("c", found=0.0), scores("d", predicted_mm=0.0)]
    page = Page(report(slides, pictures={"b": PICTURES}))
    # the missed lesion, then the node that is three classes off, then one class, then the right one
    assert re.findall(r"<h3>(.)</h3>", report(slides)) == ["c", "d", "b", "a"]
    # 2 of 3 lesions; false positives below them
    assert "Lesion FROC 0.667" in page.words
    assert "2 of 3 lesions hit" in page.words
    assert "Dice, tumor 0.696" in page.words  # 2 * 24 / (2 * 24 + 15 + 6)
    assert "Patient kappa" not in page.words
    assert [attrs["src"] for tag, attrs in page.elements if tag == "img"] == list(PICTURES)
    assert page.words.count("no picture") == 3


def test_patients_have_a_matrix_and_a_table() -> None:
    page = Page(report([scores("patient_003_node_0"), normal("patient_004_node_1")]))
    assert "Patient kappa" in page.words
    assert "patient_003" in page.words
    assert [attrs for tag, attrs in page.elements if tag == "td" and attrs.get("class") == "bad"] != []


def test_nothing_is_loaded_or_run() -> None:
    text = report([scores("b"), normal("a")], pictures={"b": PICTURES})
    page = Page(text)
    assert {tag for tag, _ in page.elements} & {"script", "link", "iframe", "object", "form", "base"} == set()
    sources = [value for _, attrs in page.elements for name, value in attrs.items() if name in ("src", "href")]
    assert sources == list(PICTURES)
    assert not re.search(r"https?:|url\(|@import|javascript:", text)
    assert not [name for _, attrs in page.elements for name in attrs if name.startswith("on")]
    policy = [attrs["content"] for tag, attrs in page.elements if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


HOSTILE = "\"><script>alert('é')</script>&amp;.ünï"


def test_names_are_only_words() -> None:
    slides = [scores(HOSTILE, notes=(HOSTILE,)), normal("a")]
    text = report(
        slides, ("normal", HOSTILE), {HOSTILE: PICTURES}, left_out={HOSTILE: HOSTILE}, notes=[HOSTILE],
        options={"predictions": HOSTILE, "pixels": "all"},
    )  # fmt: skip
    page = Page(text)
    assert "script" not in {tag for tag, _ in page.elements}
    # heading, class twice in tables and once on a card, left out twice, note, options twice
    assert page.words.count("<script>alert('é')</script>&amp;.ünï") >= 8
    assert [attrs["alt"] for tag, attrs in page.elements if tag == "img"] == [
        f"truth of {HOSTILE}", f"prediction of {HOSTILE}",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="not a data URI of an image"):
        report(slides, pictures={HOSTILE: (PICTURE, "https://example.org/a.png")})


def test_what_does_not_exist_is_said_in_words() -> None:
    page = Page(report([normal("a")]))
    assert "Lesion FROC not defined" in page.words
    assert "no lesion in the truth" in page.words
    assert "All slides with or all without tumor: not defined." in page.words
    assert "No intervals: they need at least two slides." in page.words
    assert "nan" not in page.words.lower()


def test_everything_found_is_explained() -> None:
    shown = Page(report([scores("b", hits=Hits(np.array([]), np.array([0.9]))), normal("a")])).words
    assert "which gives a FROC score of 0.0000; with it the score is 1.0000." in shown


def test_left_out_slides_and_notes_are_on_top() -> None:
    text = report([scores("b"), normal("a")], left_out={"x": "no prediction"}, notes=["n1", "n2"])
    assert text.index("1 slide not evaluated") < text.index("Lesion FROC")
    assert text.index("2 notes on slides and labels") < text.index("Lesion FROC")


def test_many_slides_stay_readable() -> None:
    text = report([normal(f"s{index:03d}") for index in range(403)])
    assert text.count('<article class="slide">') == 400
    assert "The first 400 of 403; all are in slides.csv." in text


def test_axes() -> None:
    log = Axis("x", 0.125, 8, (1,), log=True)
    assert [log.share(value) for value in (0.0, 0.125, 1, 8, 9)] == pytest.approx([0, 0, 0.5, 1, 1])
    assert Axis("y", 0, 2, ()).share(0.5) == 0.25


def test_a_curve_goes_through_its_points() -> None:
    drawn = chart([(0, 0), (0.5, math.nan), (1, 1)], Axis("x", 0, 1, (0, 1)), Axis("y", 0, 1, (0,)), "c", [(0.5, 0.5)])
    assert 'class="curve" points="46.0,228.0 348.0,12.0"' in drawn
    assert 'cx="197.0" cy="120.0"' in drawn
    assert "polyline" not in chart([], Axis("x", 0, 1, ()), Axis("y", 0, 1, ()), "c")


def test_long_curves_are_thinned_between_their_ends() -> None:
    points = [(index, index) for index in range(1001)]
    kept = thinned(points, 100)
    assert (kept[0], kept[1], kept[-1]) == ((0, 0), (11, 11), (1000, 1000))
    assert len(kept) == 92
    assert thinned(points[:5], 100) == points[:5]
    assert thinned([]) == []


def test_counts_fit_into_cells() -> None:
    assert [short(n) for n in (0, 9999, 10_000, 1_234_567, 2 * 10**9)] == ["0", "9999", "10k", "1.23M", "2G"]
    text = matrix([[3, 1], [0, 0]], ["a", "b"], "m", "px")
    assert re.findall(r"<small>([\d.%-]+)</small>", text) == ["75.0%", "25.0%"]


def test_models_and_data_are_named() -> None:
    models = [
        {"model": "runs/a/best.npz", "slides": 1, "options": {"img_size": 1024, "um_px": 0.25}},
        {"model": "", "slides": 1, "options": {}},
    ]
    given = {"pixels": "tissue", "predictions": "p", "label_path": "masks", "label_format": "tif"}
    slides = [scores("b"), normal("a")]
    shown = Page(report(slides, models=models, slide_folders=["/data/s"], options=given)).words
    assert "runs/a/best.npz, 1024 px at 0.25 um/px, 1 slide" in shown
    assert "not named in summary.json, 1 slide" in shown
    assert "The predictions are of 2 models or settings" in shown
    assert "/data/s labels masks tif" in shown
    assert "options of the prediction by runs/a/best.npz" in shown
    shown = Page(report(slides, models=[models[0] | {"slides": 2}], options=given)).words
    assert "best.npz, 1024 px at 0.25 um/px classes" in shown
    assert "mix" not in shown


def test_a_slide_without_finding_is_called_that() -> None:
    slides = [normal("a"), scores("b", tumor_predicted=False, detections=0), scores("c", detections=2)]
    text = report(slides, pictures=dict.fromkeys("abc", PICTURES))
    shown = dict(re.findall(r"<h3>(.)</h3>(.*?)</article>", text))
    assert ["no finding" in shown[name] for name in "abc"] == [False, True, False]
    assert "<dt>finding</dt><dd>none: no tumor predicted, no detection</dd>" in shown["b"]
    assert "truth: no tumor" in shown["a"]
    assert slide_line(slides[1]).endswith("1 of 1 lesions found, 1 false positives, no finding")


def test_all_pixels_stand_beside_those_of_tissue() -> None:
    everywhere = {"all_confusion_KK": np.array([[900, 10], [2, 8]]), "all_histogram_2N": np.ones((2, 256), np.int64)}
    slides = [scores("b", **everywhere), normal("a")]
    text = report(slides)
    page = Page(text)
    # 2 * 8 / (2 * 8 + 12) beside 16 / (16 + 7)
    assert "Dice, tumor 0.696" in page.words
    assert "all px: 0.571" in page.words
    assert "tumor Dice 0.696 (all px 0.571)" in page.words
    assert "All pixels" in page.words
    assert "IoU, all px" in page.words
    assert "All pixels" not in report([scores("b"), normal("a")])


def test_the_terminal_says_what_the_page_says() -> None:
    slides = [scores("b", hits=Hits(np.array([]), np.array([0.9])), all_confusion_KK=np.eye(2, dtype=np.int64))]
    metrics = plain(summarize([*slides, normal("a")], ("normal", "tumor"), count=0).metrics)
    lines = headline(metrics).splitlines()
    assert lines[0] == f"mIoU          {(185 / 192 + 8 / 15) / 2:.4f}"
    assert lines[1] == "  all px      1.0000"
    assert "lesion FROC   0.0000" in lines
    assert "  lesions     1 of 1 found, 0 false positives" in lines
    assert lines[-1] == (
        "note        Every lesion was found. The organizers' program then omits the lowest probability, which gives a "
        "FROC score of 0.0000; with it the score is 1.0000."
    )


def test_areas_are_no_larger_than_the_slide() -> None:
    one = scores("b", slide_mm2=0.95, confusion_KK=np.array([[0, 97], [1, 2]]))
    assert (one.evaluated_mm2, one.wrong_mm2) == (0.95, 0.95)
    assert scores("b", slide_mm2=2.0).evaluated_mm2 == 1.0


def test_pictures_are_small(tmp_path: Path) -> None:
    noise_HWC = np.random.default_rng(0).integers(0, 256, (900, 1600, 3), np.uint8)
    Image.fromarray(noise_HWC).save(tmp_path / "overlay.png")
    uri = file_uri(tmp_path / "overlay.png", 480, 60_000)
    assert uri.startswith("data:image/jpeg;base64,")
    stored = base64.b64decode(uri.split(",")[1])
    assert 30_000 < len(stored) <= 60_000
    assert Image.open(io.BytesIO(stored)).size == (480, 270)
    assert file_uri(tmp_path / "none.png", 480, 60_000) == ""
    (tmp_path / "bad.png").write_bytes(b"\x89PNG no")
    assert file_uri(tmp_path / "bad.png", 480, 60_000) == ""
    assert len(data_uri(noise_HWC[:50, :80], 10**6)) > len(data_uri(noise_HWC[:50, :80], 1_500))
