"""Pictures of scored slides: the worst first, each at its place, one bad slide harming no other."""

from pathlib import Path

import numpy as np
import pytest

from classification import explain
from classification.augment import View, view
from classification.images import WholeImage
from classification.report import html
from classification.scores import scores, write_scores
from classification.targets import Labeled, Targets
from slides.reader import SlideError
from tests.unit.classification.test_saliency import TWO, bright_network

TUMOR = np.array([0, 1], np.float32)


def view_of(slide_id: str) -> View:
    px = np.full((40, 48, 3), 120, np.uint8)
    px[8:16, 8:16, 0] = 255

    def read(rows: tuple[int, int], columns: tuple[int, int]) -> np.ndarray:
        if slide_id == "bad":
            raise SlideError("bad.tif cannot be decoded; copy it again")
        return px[slice(*rows), slice(*columns)]

    return view(WholeImage(slide_id, (40, 48), read, um_px=1.0), (40, 48))


def test_the_largest_loss_is_first() -> None:
    labeled = [Labeled(name, TUMOR, name, "tumor") for name in ("a", "b", "c", "d", "e")]
    logits = np.array([[0, 1], [0, -1], [np.nan, 0], [0, -1], [0, 3]])
    assert explain.worst_first(TWO, labeled, logits) == ["c", "b", "d", "a", "e"]
    number = Targets("regression", ("value",))
    labeled = [Labeled(name, np.array([2.0], np.float32), name, "2") for name in ("a", "b")]
    assert explain.worst_first(number, labeled, np.array([[2.5], [0.0]])) == ["b", "a"]


@pytest.mark.parametrize("method", ["gradient", "activation"])
def test_every_slide_that_can_be_read_has_its_files(method: str, tmp_path: Path) -> None:
    ids = ["a", "bad", "c"]
    note = "no picture of bad: bad.tif cannot be decoded; copy it again"
    assert explain.pictures(tmp_path, ids, view_of) == [note]
    assert explain.maps(tmp_path, ids, view_of, bright_network(), TWO, method) == [note]
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")) == [
        "saliency/a/overlay.png", "saliency/a/saliency.json", "saliency/a/saliency.tif",
        "saliency/c/overlay.png", "saliency/c/saliency.json", "saliency/c/saliency.tif",
        "thumbnails/a.jpg", "thumbnails/c.jpg",
    ]  # fmt: skip


def test_the_page_shows_them(tmp_path: Path) -> None:
    (tmp_path / "options.json").write_text("{}")
    explain.pictures(tmp_path, ["a"], view_of)
    explain.maps(tmp_path, ["a"], view_of, bright_network("max"), TWO, "activation")
    labeled, logits = [Labeled("a", TUMOR, "p", "tumor")], np.array([[0, 1]])
    write_scores(tmp_path, scores(TWO, labeled, logits), TWO, labeled, logits)
    assert html(tmp_path).count('src="data:image/jpeg') == 2
