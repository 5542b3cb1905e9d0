"""Slides of slides.synthetic.context: truth as drawn, and only the lines distinguish inside from outside."""

from itertools import combinations

import cv2
import numpy as np
import pytest
import shapely

from slides.geometry import Window
from slides.reader import Slide
from slides.synthetic.context import GAP, LINE_PX, SLIDES, ContextSlide, context_image, lines, make_context, outline
from slides.synthetic.demo import rasterized
from slides.truth.interface import open_truth

SMALL = ContextSlide("tumor_007", "val", "violet", side=640, rings=2, decoys=3, radius=(90.0, 150.0))
WHOLE = Window((0.0, 0.0), (640, 640), (1.0, 1.0))


def written(out, seed):
    """The only slide of a data set of one small slide."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("slides.synthetic.context.SLIDES", (SMALL,))
        return make_context(out, seed)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Folder of one small slide of seed 3."""
    out = tmp_path_factory.mktemp("context")
    written(out, 3)
    return out / "val"


def test_annotation_and_mask_are_the_capsules_and_not_the_decoys(small):
    slide = Slide(small / "images/tumor_007.tif")
    rings, decoys = lines(np.random.default_rng([3, 0]), SMALL)
    drawn = open_truth(small / "annotations/tumor_007.xml", slide)
    mask = open_truth(small / "masks/tumor_007_Mask.tif", slide)
    label_HW = drawn.label(WHOLE)
    assert (len(rings), len(decoys), len(drawn.regions(1))) == (2, 3, 2)
    assert np.array_equal(label_HW, mask.label(WHOLE))
    assert np.array_equal(label_HW == 1, rasterized([("_0", ring) for ring in rings], (640, 640)))
    assert 0.15 < (label_HW == 1).mean() < 0.5


def test_slide_has_spacing_and_tissue_to_its_borders(small):
    slide = Slide(small / "images/tumor_007.tif")
    assert (slide.size_xy_l0, slide.um_px_xy_l0) == ((640, 640), pytest.approx((0.25, 0.25), rel=1e-6))
    image_HWC = slide.read(WHOLE)
    assert all(edge.mean() < 225 for edge in (image_HWC[0], image_HWC[-1], image_HWC[:, 0], image_HWC[:, -1]))


def test_texture_does_not_know_of_the_lines(monkeypatch):
    rings, decoys = lines(np.random.default_rng(0), SMALL)
    images = []
    for drawn in ((rings, decoys), ([], [])):
        monkeypatch.setattr("slides.synthetic.context.lines", lambda *_, drawn=drawn: drawn)
        images.append(context_image(np.random.default_rng(1), SMALL)[0])
    line_HW = np.zeros((640, 640), np.uint8)
    for points, closed in [(ring, True) for ring in rings] + [(line, False) for line in decoys]:
        cv2.polylines(line_HW, [np.round(points).astype(np.int32)], closed, 1, LINE_PX + 12)
    changed_HW = (images[0] != images[1]).any(axis=2)
    assert changed_HW.any()
    assert not changed_HW[line_HW == 0].any()


def test_inside_looks_like_outside():
    plan = ContextSlide("tumor_008", "val", "standard", side=1024, rings=4, decoys=0, radius=(150.0, 220.0))
    means, deviations = [], []
    for seed in range(3):
        image_HWC, rings, _ = context_image(np.random.default_rng(seed), plan)
        inside_HW = rasterized([("_0", ring) for ring in rings], (1024, 1024))
        for where_HW in (inside_HW, ~inside_HW):
            # Shrunk, so that the capsule itself counts for neither side.
            core_HW = cv2.erode(where_HW.astype(np.uint8), np.ones((25, 25), np.uint8)) > 0
            means.append(image_HWC[core_HW].mean(axis=0))
            deviations.append(image_HWC[core_HW].std(axis=0))
    mean = np.mean(np.reshape(means, (3, 2, 3)), axis=0)
    deviation = np.mean(np.reshape(deviations, (3, 2, 3)), axis=0)
    assert np.abs(mean[0] - mean[1]).max() < 4
    assert np.abs(deviation[0] - deviation[1]).max() < 3


def test_lines_keep_their_distance():
    rings, decoys = lines(np.random.default_rng([3, 0]), SMALL)
    drawn = [shapely.LinearRing(ring) for ring in rings] + [shapely.LineString(line) for line in decoys]
    border = shapely.box(0, 0, 640, 640).exterior
    distances = [a.distance(b) for a, b in combinations([*drawn, border], 2)]
    assert len(distances) == 15
    assert min(distances) >= GAP


def test_a_short_piece_bends_to_either_side_while_the_whole_closes():
    ring = outline(np.random.default_rng(2), 300.0)
    step = np.diff(np.vstack([ring, ring[:2]]), axis=0)
    turn = np.unwrap(np.arctan2(step[:, 1], step[:, 0]))
    bend = np.diff(turn)
    assert turn[-1] - turn[0] == pytest.approx(2 * np.pi, abs=0.01)
    assert 0.15 < (bend < 0).mean() < 0.5
    assert np.linalg.norm(ring, axis=1) == pytest.approx(300.0, rel=0.2)


def test_same_seed_same_bytes(tmp_path):
    files = [written(tmp_path / str(number), seed)[0].read_bytes() for number, seed in enumerate((4, 4, 5))]
    assert files[0] == files[1]
    assert files[0] != files[2]


def test_grids_of_all_fields_of_view_can_cover_the_slides():
    assert [plan.side % 1024 for plan in SLIDES] == [0] * 11
    assert [plan.name for plan in SLIDES if plan.split == "val"] == ["tumor_101", "tumor_102", "tumor_103"]
