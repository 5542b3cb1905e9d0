"""Pictures of validated slides: the worst first, each at its place, one bad slide harming no other."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from classification import drawing
from classification.augment import View, view
from classification.images import WholeImage
from classification.report import html
from classification.scores import scores, write_scores
from classification.targets import Labeled, Targets
from parallel.comm import AgreedError, SoloComm
from slides.reader import SlideError
from tests.unit.classification.test_saliency import TWO, bright_network

TUMOR = np.array([0, 1], np.float32)


def labeled(*names: str) -> list[Labeled]:
    return [Labeled(name, TUMOR, name, "tumor") for name in names]


@dataclass
class Slides:
    """Inputs of a run as drawing takes them; `bad` cannot be read."""

    val: list[Labeled]
    share: bool = False
    targets: Targets = TWO
    seen: list[str] = field(default_factory=list)

    def validation_view(self, item: Labeled) -> View:
        self.seen.append(item.slide_id)
        px = np.full((40, 48, 3), 120, np.uint8)
        px[8:16, 8:16, 0] = 255

        def read(rows: tuple[int, int], columns: tuple[int, int]) -> np.ndarray:
            if item.slide_id == "bad":
                raise SlideError("bad.tif cannot be decoded; copy it again")
            return px[slice(*rows), slice(*columns)]

        return view(WholeImage(item.slide_id, (40, 48), read, um_px=1.0), (40, 48))


class Second(SoloComm):
    """The second of two ranks."""

    rank, size = 1, 2


def test_the_largest_loss_is_first() -> None:
    logits = np.array([[0, 1], [0, -1], [np.nan, 0], [0, -1], [0, 3]])
    assert drawing.worst_first(TWO, labeled("a", "d", "c", "b", "e"), logits) == [2, 3, 1, 0, 4]
    number = Targets("regression", ("value",))
    twos = [Labeled(name, np.array([2.0], np.float32), name, "2") for name in ("a", "b")]
    assert drawing.worst_first(number, twos, np.array([[2.5], [0.0]])) == [1, 0]


@pytest.mark.parametrize("method", ["gradient", "activation"])
def test_every_slide_that_can_be_read_has_its_files(method: str, tmp_path: Path) -> None:
    saliency = drawing.mapped(method, bright_network(), TWO)
    notes = drawing.draw(tmp_path, Slides(labeled("a", "bad", "c")), np.zeros((3, 2)), saliency, SoloComm())
    assert notes == ["no picture of bad: bad.tif cannot be decoded; copy it again"]
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")) == [
        "saliency/a/overlay.png", "saliency/a/saliency.json", "saliency/a/saliency.tif",
        "saliency/c/overlay.png", "saliency/c/saliency.json", "saliency/c/saliency.tif",
        "thumbnails/a.jpg", "thumbnails/c.jpg",
    ]  # fmt: skip


def test_ranks_draw_different_slides(tmp_path: Path) -> None:
    slides = Slides(labeled("a", "b", "c", "d"))
    assert drawing.draw(tmp_path, slides, np.zeros((4, 2)), None, Second()) == []
    assert slides.seen == ["b", "d"]
    shared = Slides(labeled("a", "b"), share=True)
    drawing.draw(tmp_path / "shared", shared, np.zeros((2, 2)), None, Second())
    assert shared.seen == ["a", "b"]
    assert not (tmp_path / "shared").exists()


def test_a_shared_slide_that_cannot_be_read_stops_all_ranks(tmp_path: Path) -> None:
    with pytest.raises(AgreedError, match=r"bad\.tif cannot be decoded"):
        drawing.draw(tmp_path, Slides(labeled("bad"), share=True), np.zeros((1, 2)), None, SoloComm())


def test_only_slides_that_the_report_shows_have_thumbnails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "SLIDES", 1)
    saliency = drawing.mapped("activation", bright_network("max"), TWO)
    slides = Slides(labeled("a", "b"))
    logits = np.array([[0, 1], [0, -1]])
    drawing.draw(tmp_path, slides, logits, saliency, SoloComm())
    assert [path.name for path in (tmp_path / "thumbnails").iterdir()] == ["b.jpg"]
    assert sorted(path.name for path in (tmp_path / "saliency").iterdir()) == ["a", "b"]
    (tmp_path / "options.json").write_text("{}")
    write_scores(tmp_path, scores(TWO, slides.val, logits), TWO, slides.val, logits)
    assert html(tmp_path).count('src="data:image/jpeg') == 3
