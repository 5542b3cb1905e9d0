"""Slides whose label is only to be seen at fine spacing: what their islands are, and that a thumbnail hides it."""

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest

from slides.reader import Slide
from slides.synthetic.fine import APART, ISLANDS, SETS, SIDE, Island, fine_image, make_fine, pattern, patterns, places

SEED = 3


@pytest.mark.parametrize("kind", ["nuclei", "vacuoles"])
def test_patterns_have_one_mean_and_one_contrast(kind: str) -> None:
    found = [pattern(kind, 55, period, angle) for period in (5.0, 6.5) for angle in (0.1, 1.0, 2.6)]
    for waves in found:
        assert waves.shape == (111, 111)
        assert abs(waves.mean()) < 0.03
        assert np.mean(waves**2) == pytest.approx(0.5, abs=0.05)


def test_patterns_of_a_slide_follow_its_label() -> None:
    def kinds(name: str, label: int) -> set[tuple[str, ...]]:
        found = [patterns(np.random.default_rng(seed), name, label) for seed in range(20)]
        assert {len(f) for f in found} == {ISLANDS}
        return {tuple(kind for kind in f if kind != "plain") for f in found}

    assert kinds("one_place", 0) == {()}
    assert kinds("one_place", 1) == {("nuclei",), ("nuclei", "nuclei")}
    assert kinds("two_places", 0) == {("nuclei", "nuclei"), ("vacuoles", "vacuoles")}
    assert kinds("two_places", 1) == {("nuclei", "vacuoles")}


def contrast(image_HWC: np.ndarray, island: Island, shrink: int) -> float:
    """Standard deviation inside an island at a coarser spacing."""
    half = island.radius * 6 // 10
    box = image_HWC[island.y - half : island.y + half, island.x - half : island.x + half, 1]
    side = 2 * half // shrink
    return float(cv2.resize(box, (side, side), interpolation=cv2.INTER_AREA).std())


def test_a_thumbnail_does_not_show_what_decides() -> None:
    image_HWC, islands = fine_image(np.random.default_rng(SEED), "two_places", 1)
    assert image_HWC.shape == (SIDE, SIDE, 3)
    apart = np.hypot(islands[0].x - islands[1].x, islands[0].y - islands[1].y)
    assert apart > APART * SIDE
    for island in islands:
        assert (contrast(image_HWC, island, 1) > 30) == (island.pattern != "plain")
        assert contrast(image_HWC, island, 8) < 12
    # Islands are like each other at the coarse spacing, and unlike the tissue.
    means = [image_HWC[i.y - 20 : i.y + 21, i.x - 20 : i.x + 21].mean((0, 1)) for i in islands]
    assert np.ptp(means, axis=0).max() < 35
    assert max(m[1] for m in means) < 140 < image_HWC[..., 1].mean()


def test_files_and_tables(tmp_path: Path) -> None:
    paths = make_fine(tmp_path, SEED, train=2, val=1, sets=SETS[:1])
    assert [p.relative_to(tmp_path).as_posix() for p in paths] == [
        "one_place/slides/train_000.tif",
        "one_place/slides/train_001.tif",
        "one_place/slides/val_000.tif",
    ]
    assert (tmp_path / "one_place" / "train.csv").read_text() == "slide_id,label\ntrain_000,0\ntrain_001,1\n"
    assert (tmp_path / "one_place" / "val.csv").read_text() == "slide_id,label\nval_000,0\n"
    with (tmp_path / "one_place" / "islands.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["slide_id"] for row in rows} == {"train_001"}
    assert {row["pattern"] for row in rows} == {"nuclei"}
    assert Slide(paths[1]).um_px_xy_l0 == pytest.approx((0.5, 0.5), rel=1e-3)
    first = paths[0].read_bytes()
    assert make_fine(tmp_path, SEED, train=1, val=0, sets=SETS[:1])[0].read_bytes() == first


def test_no_room_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"^no room for 40 islands on 500 x 500 px$"):
        places(np.random.default_rng(0), np.ones((500, 500), np.bool_), ["plain"] * 40, 0.0)


def test_a_first_place_in_the_middle_is_tried_again() -> None:
    """From the middle of this tissue no other place is far enough; half of all first places are like it."""
    tissue_HW = np.zeros((1000, 1000), np.uint8)
    cv2.circle(tissue_HW, (500, 500), 480, 1, -1)
    for seed in range(10):
        first, second = places(np.random.default_rng(seed), tissue_HW > 0, ["nuclei", "vacuoles"], 600.0)
        assert np.hypot(first.x - second.x, first.y - second.y) > 600
