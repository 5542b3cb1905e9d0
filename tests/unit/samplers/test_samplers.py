"""Samplers: schedules, uniform points, and where the pixels of a patch come from."""

import itertools
from fractions import Fraction
from typing import get_args

import numpy as np
import pytest
import shapely

import samplers
from options.choices import TUMOR_RATIOS, SamplerName
from samplers import draw as drawing
from samplers.grid import fair_shares, requests, slide_grid
from samplers.index import Places, cell_side_l0, index_slide, own_regions
from samplers.patch import GRID, Patch, PatchReader, PatchRequest, draw
from slides.reader import Slide
from slides.synthetic.demo import decode, position_coded, write_asap
from slides.truth.interface import EmptyTruth
from slides.truth.xml_truth import XmlTruth
from tests.support.search_index import CELL, cells, index_of

# ----------------------------------------------------------------------------------------------------------- the table


@pytest.mark.parametrize("name", get_args(SamplerName))
def test_every_sampler_of_the_table_draws_and_has_its_default_ratio(name):
    indexes = [index_of(cells((1, 2)), regions={1: [shapely.box(20, 10, 30, 20)]})]
    usual, asked = (
        [samplers.build(name, indexes, 5, 2, ratio).request(i) for i in range(20)]
        for ratio in (None, TUMOR_RATIOS[name])
    )
    assert usual == asked
    assert {request.cls for request in usual} == ({1} if name == "surf" else {0, 1})


# ----------------------------------------------------------------------------------------------------------- schedules


def test_share_is_exact_and_even():
    assert [i for i in range(12) if drawing.share(i, Fraction(1, 4))] == [3, 7, 11]
    assert [i for i in range(10) if drawing.share(i, Fraction(2, 5))] == [2, 4, 7, 9]
    assert all(drawing.share(i, Fraction(1)) for i in range(5))
    assert not any(drawing.share(i, Fraction(0)) for i in range(5))


@pytest.mark.parametrize("ratio", [Fraction(1, 3), Fraction(3, 10), Fraction(7, 8)])
def test_share_holds_in_every_window(ratio):
    taken = np.cumsum([0, *(drawing.share(i, ratio) for i in range(500))])
    for length in (1, 2, 7, 40):
        counts = {int(c) for c in taken[length:] - taken[:-length]}
        assert counts <= {int(np.floor(length * ratio)), int(np.ceil(length * ratio))}
    assert [drawing.count_before(i, ratio) for i in (0, 17, 500)] == [taken[i] for i in (0, 17, 500)]


def test_rounds_are_balanced_and_shuffled():
    rounds = [[drawing.round_member(5, 3 * r + k, 3) for k in range(3)] for r in range(40)]
    assert {tuple(sorted(r)) for r in rounds} == {(0, 1, 2)}
    assert len({tuple(r) for r in rounds}) == 6


def test_generators_of_different_purpose_differ():
    # SeedSequence pads with zeros: without a purpose these two would be the same stream
    assert drawing.generator(1, 7, 0).random() != drawing.generator(1, 7, purpose=drawing.ROUNDS).random()
    assert drawing.generator(1, 7, 0).random() == drawing.generator(1, 7, 0).random()


@pytest.mark.parametrize(("batch", "size"), [(2, 1), (2, 2), (1, 3), (3, 4)])
def test_ranks_are_disjoint_and_complete(batch, size):
    from samplers.pipeline import rank_indices  # loads TensorFlow

    steps, first = 5, 40
    taken = [list(itertools.islice(rank_indices(first, batch, r, size), batch * steps)) for r in range(size)]
    together = sorted(i for rank in taken for i in rank)
    assert together == list(range(first, first + batch * size * steps))
    # step by step too: the joint batch of a step is the same for any number of ranks
    assert sorted(i for rank in taken for i in rank[:batch]) == list(range(first, first + batch * size))


def test_batch_one_does_not_tie_a_rank_to_a_class():
    from samplers.pipeline import rank_indices  # loads TensorFlow

    ranks = [rank_indices(0, 1, r, 2) for r in (0, 1)]
    classes = [[drawing.share(next(rank), Fraction(1, 2)) for _ in range(4)] for rank in ranks]
    assert classes == [[False, True, False, True], [True, False, True, False]]


# --------------------------------------------------------------------------------------------------------------- points


def test_places_lists_its_cells():
    places = Places(cells((0, 3), (2, 0), (2, 11)))
    assert len(places) == 3
    assert [places.cell(k) for k in range(3)] == [(0, 3), (2, 0), (2, 11)]
    assert (places.mask() == cells((0, 3), (2, 0), (2, 11))).all()


def test_point_in_places_stays_in_its_cell():
    places = Places(cells((2, 11)))
    points = np.array([drawing.point_in_places(places, CELL, drawing.generator(0, i)) for i in range(200)])
    assert points.min(0) == pytest.approx([110, 20], abs=0.5)
    assert points.max(0) == pytest.approx([120, 30], abs=0.5)


def test_points_avoid_holes_and_fill_the_polygon():
    ring = shapely.Polygon([(0, 0), (90, 0), (90, 60), (0, 60)], [[(30, 20), (60, 20), (60, 40), (30, 40)]])
    points = np.array([drawing.point_in_polygon(ring, drawing.generator(3, i)) for i in range(2400)])
    counts, _, _ = np.histogram2d(points[:, 1], points[:, 0], bins=(3, 3), range=((0, 60), (0, 90)))
    assert counts[1, 1] == 0
    expected = 2400 / 8
    chi2 = (((counts - expected) ** 2 / expected).sum()) - expected  # without the hole's cell
    assert chi2 < 24.3  # 7 degrees of freedom, significance 0.001


def test_thin_polygon_is_triangulated():
    thin = shapely.Polygon([(0, 0), (1000, 1000), (1000, 1000.5), (0, 0.5)])
    points = np.array([drawing.point_in_polygon(thin, drawing.generator(3, i)) for i in range(300)])
    assert shapely.contains_xy(thin.buffer(1e-6), points[:, 0], points[:, 1]).all()
    counts, _ = np.histogram(points[:, 0], bins=5, range=(0, 1000))
    assert ((counts - 60) ** 2 / 60).sum() < 18.5  # 4 degrees of freedom, significance 0.001


# ------------------------------------------------------------------------------------------------------------- samplers


def test_surf_draws_slides_that_have_the_class():
    indexes = [index_of(cells((1, 2))), index_of(), index_of(cells((5, 6), (5, 7)))]
    source = samplers.build("surf", indexes, 9, 2, Fraction(1, 2))
    drawn = [source.request(i) for i in range(400)]
    assert [r.cls for r in drawn[:4]] == [0, 1, 0, 1]
    assert {r.slide for r in drawn if r.cls == 1} == {0, 2}
    assert {r.slide for r in drawn if r.cls == 0} == {0, 1, 2}
    on_first = [r for r in drawn if (r.cls, r.slide) == (1, 0)]
    assert 60 < len(on_first) < 140
    assert {(int(r.center_xy_l0[0] // 10), int(r.center_xy_l0[1] // 10)) for r in on_first} == {(2, 1)}


def test_requests_are_pure():
    indexes = [index_of(cells((1, 2), (3, 3)))]
    one, two = (samplers.build("surf", indexes, 9, 2, Fraction(1, 2)) for _ in range(2))
    backwards = [two.request(i) for i in reversed(range(20))][::-1]
    assert [one.request(i) for i in range(20)] == backwards
    assert one.request(3, attempt=1) != one.request(3)
    assert one.request(3, attempt=1).cls == one.request(3).cls


def test_surf_without_tumor_says_what_to_do():
    with pytest.raises(ValueError, match="--batch_tumor_ratio 0"):
        samplers.build("surf", [index_of()], 0, 2, None)
    assert samplers.build("surf", [index_of()], 0, 2, Fraction(0)).request(5).cls == 0


def test_radboud_rounds_and_annotations():
    small = shapely.box(0, 0, 10, 10)
    large = shapely.box(50, 20, 80, 50)
    indexes = [index_of(cells((1, 2)), regions={1: [small, large]}), index_of()]
    source = samplers.build("radboud", indexes, 4, 2, None)
    drawn = [source.request(i) for i in range(600)]
    assert all(sorted(r.cls for r in drawn[k : k + 2]) == [0, 1] for k in range(0, 600, 2))
    tumor = [r for r in drawn if r.cls == 1]
    assert {r.slide for r in tumor} == {0}
    inside = sum(small.contains(shapely.Point(r.center_xy_l0)) for r in tumor)
    others = sum(large.contains(shapely.Point(r.center_xy_l0)) for r in tumor)
    assert inside + others == 300
    assert 15 <= inside <= 48  # 300 draws at 1/10: 30 +- 3.4 standard deviations
    assert {r.slide for r in drawn if r.cls == 0} == {0, 1}


def test_radboud_honours_a_ratio():
    indexes = [index_of(cells((1, 2)), regions={1: [shapely.box(0, 0, 10, 10)]})]
    source = samplers.build("radboud", indexes, 4, 2, Fraction(1, 4))
    assert [source.request(i).cls for i in range(8)] == [0, 0, 0, 1, 0, 0, 0, 1]


def test_radboud_names_the_missing_class():
    with pytest.raises(ValueError, match="has class 1, which"):
        samplers.build("radboud", [index_of()], 0, 2, None)


def test_unknown_sampler():
    with pytest.raises(ValueError, match="choose one of radboud, surf"):
        samplers.build("os", [], 0, 2, None)


# -------------------------------------------------------------------------------------------------------------- patches


@pytest.fixture(scope="module")
def coded(tmp_path_factory):
    """A 401 x 299 px position-coded slide (0.5 um/px; levels 1, 2.5) with a tumor box and an exclusion in it."""
    folder = tmp_path_factory.mktemp("coded")
    position_coded(folder / "s.tif", (401, 299), (1.0, 2.5), tile=64, um_px=0.5)
    tumor = np.array([[100, 80], [220, 80], [220, 200], [100, 200]], float)
    write_asap(folder / "s.xml", [("_0", tumor), ("_2", tumor[:2].mean(0) + (tumor - tumor[0]) / 4)])
    slide = Slide(folder / "s.tif")
    return slide, XmlTruth(folder / "s.xml", slide)


def test_patch_is_centered_and_its_label_is_of_the_same_place(coded):
    slide, truth = coded
    patch = PatchReader([slide], [truth], 64, 0.5).read(PatchRequest(0, 0, 0, 1, (150.0, 120.0)))
    x, y = decode(patch.image_HWC)
    assert (x[0], y[:, 0]) == (pytest.approx(np.arange(118, 182)), pytest.approx(np.arange(88, 152)))
    tumor_HW = (x >= 100) & (x < 220) & (y >= 80) & (y < 200)
    hole_HW = (x >= 160) & (x < 190) & (y >= 80) & (y < 110)
    assert (patch.label_HW == (tumor_HW & ~hole_HW)).all()
    assert 0 < patch.label_HW.mean() < 1


def test_patch_is_moved_inside_but_grid_windows_are_not(coded):
    slide, truth = coded
    reader = PatchReader([slide], [truth], 64, 0.5)
    drawn = reader.read(PatchRequest(0, 0, 0, 0, (398.0, 3.0)))
    assert drawn.window.corner_xy_l0 == (337.0, 0.0)
    assert not (drawn.label_HW == 255).any()
    fixed = reader.read(PatchRequest(0, 0, 0, -1, (398.0, 3.0), GRID))
    assert fixed.window.corner_xy_l0 == (366.0, -29.0)
    assert (fixed.label_HW[:29] == 255).all()
    assert (fixed.label_HW[29:, :35] == 0).all()
    assert (fixed.label_HW[:, 35:] == 255).all()
    assert (fixed.image_HWC[:29] == 255).all()


class Scripted:
    """A source whose attempts look at given places."""

    max_redraws = 2

    def __init__(self, centers):
        self.centers = centers

    def request(self, index, attempt=0):
        return PatchRequest(index, attempt, 0, 0, self.centers[attempt])


class Painted:
    """A reader that shows texture right of x = 50 and plain glass elsewhere."""

    um_px = 0.5

    def read(self, request):
        rng = np.random.default_rng(0)
        image_HWC = np.full((8, 6, 3), 240, np.uint8)
        if request.center_xy_l0[0] > 50:
            image_HWC = np.add(rng.integers(0, 120, (8, 6, 1)), (80, 20, 70)).astype(np.uint8)
        return Patch(request, None, image_HWC, np.zeros((8, 6), np.uint8))


def test_blank_patches_are_redrawn_a_bounded_number_of_times():
    assert draw(Scripted([(0, 0), (60, 0), (70, 0)]), Painted(), 7).request == PatchRequest(7, 1, 0, 0, (60, 0))
    assert draw(Scripted([(0, 0), (1, 0), (2, 0)]), Painted(), 7).request == PatchRequest(7, 2, 0, 0, (2, 0))


# ------------------------------------------------------------------------------------------------------- index and grid


def test_index_keeps_a_lesion_smaller_than_a_cell(tmp_path):
    position_coded(tmp_path / "s.tif", (401, 299), (1.0, 4.0, 16.0), tile=64, um_px=0.5)
    slide = Slide(tmp_path / "s.tif")
    tiny = np.array([[200.2, 100.2], [201.4, 100.2], [201.4, 101.3]])
    write_asap(tmp_path / "s.xml", [("_0", tiny)])
    index = index_slide(slide, XmlTruth(tmp_path / "s.xml", slide), 2, 2)
    assert index.cell_l0 == 16
    assert index.places[1].shape_HW == (19, 26)
    assert [index.places[1].cell(k) for k in range(len(index.places[1]))] == [(6, 12)]
    assert index.regions[1][0].area == pytest.approx(0.66)
    assert 1 not in index_slide(slide, EmptyTruth(slide), 2, 2).places


def test_holes_are_not_class_zero_annotations():
    tumor = shapely.Polygon([(0, 0), (90, 0), (90, 60), (0, 60)], [[(30, 20), (60, 20), (60, 40), (30, 40)]])
    hole, beside = shapely.box(30, 20, 60, 40), shapely.box(100, 0, 110, 70)
    assert own_regions({0: [hole], 1: [tumor]}) == {1: [tumor]}
    assert own_regions({0: [hole, beside], 1: [tumor]}) == {0: [beside], 1: [tumor]}


def test_search_level_is_clamped_and_said_so(coded):
    assert cell_side_l0(coded[0], 1) == (4, "")  # level 1 has 1.25 um per px, a cell at least 2 um
    side, note = cell_side_l0(coded[0], 7)
    assert side == 4
    assert "--bb_downsample 7 clamped to level 1" in note


def test_grid_covers_tissue_once():
    # 120 x 80 px at 0.5 um/px; windows of 40 px at 0.5 um/px: 3 x 2 places, tissue in two of them
    index = index_of(tissue_HW=cells((0, 0), (0, 1), (1, 1), (5, 9), (5, 10)))
    assert slide_grid(index, 40, (1.0, 1.0)) == [(20.0, 20.0), (100.0, 60.0)]
    full = requests([index, index_of()], 40, [(1.0, 1.0)] * 2, 0)
    assert [(r.index, r.slide) for r in full] == [(0, 0), (1, 0), (2, 1), (3, 1), (4, 1), (5, 1), (6, 1), (7, 1)]
    capped = requests([index, index_of()], 40, [(1.0, 1.0)] * 2, 5)
    assert [(r.slide, r.center_xy_l0) for r in capped] == [
        (0, (20.0, 20.0)), (0, (100.0, 60.0)), (1, (60.0, 20.0)), (1, (20.0, 60.0)), (1, (100.0, 60.0)),
    ]  # fmt: skip


def test_grid_without_tissue_is_an_error():
    with pytest.raises(ValueError, match=r"no tissue found on any of the 1 validation slides.*: b"):
        requests([index_of(tissue_HW=cells(), slide_id="b")], 40, [(1.0, 1.0)], 0)


def test_fair_shares():
    assert fair_shares((1, 10, 10), 9) == [1, 4, 4]
    assert fair_shares((3, 0, 2), 100) == [3, 0, 2]
    assert sum(fair_shares((5, 5, 5), 7)) == 7
