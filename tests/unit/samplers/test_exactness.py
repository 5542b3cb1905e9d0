"""Sampling proven by statistics and by pixels. Seeds are fixed; the significance of each test is 0.001."""

from fractions import Fraction

import cv2
import numpy as np
import pytest
import scipy.stats
import shapely

import samplers
from samplers import draw as drawing
from samplers.patch import PatchReader, PatchRequest
from slides.reader import Slide
from slides.synthetic.demo import write_asap, write_levels
from slides.synthetic.texture import STAINS, blob, stained_tissue
from slides.truth.interface import EmptyTruth
from slides.truth.xml_truth import XmlTruth
from tests.support.search_index import cells, index_of

SIGNIFICANCE = 0.001


def assert_fits(counts, expected):
    """Chi-square: the counts are a draw from the expected ones."""
    counts, expected = np.ravel(counts), np.ravel(expected)
    assert (counts[expected == 0] == 0).all()
    _, p = scipy.stats.chisquare(counts[expected > 0], expected[expected > 0])
    assert p > SIGNIFICANCE


def test_points_are_uniform_over_wavy_polygons_with_holes():
    rng = np.random.default_rng(2)
    outer = blob(rng, np.array([500.0, 400.0]), np.array([400.0, 300.0]), roughness=0.2)
    holes = [blob(rng, np.array(xy), np.full(2, 70.0), roughness=0.1) for xy in ((400.0, 350.0), (650.0, 450.0))]
    area = shapely.Polygon(outer, holes)
    n, side = 20_000, 100
    points = np.array([drawing.point_in_polygon(area, drawing.generator(11, i)) for i in range(n)])
    assert shapely.contains_xy(area, *points.T).all()
    counts, _, _ = np.histogram2d(*points.T, bins=(10, 8), range=((0, 1000), (0, 800)))
    boxes = [[shapely.box(x, y, x + side, y + side) for y in range(0, 800, side)] for x in range(0, 1000, side)]
    share = shapely.area(shapely.intersection(area, np.array(boxes))) / area.area
    large = share * n >= 5  # the rule of thumb for chi-square; the rest is one cell
    pooled = [*counts[large], counts[~large].sum()], [*(share[large] * n), share[~large].sum() * n]
    assert_fits(*pooled)


def test_points_of_a_region_are_uniform_whatever_its_parts():
    # Radboud: annotation by area, then a point inside it, is uniform over the whole class.
    parts = [shapely.box(0, 0, 40, 10), shapely.box(0, 20, 10, 70), shapely.box(60, 40, 120, 80)]
    source = samplers.build("radboud", [index_of(cells((1, 2)), regions={1: parts})], 5, 2, Fraction(1))
    n = 6000
    points = np.array([source.request(i).center_xy_l0 for i in range(n)])
    counts, _, _ = np.histogram2d(*points.T, bins=(12, 8), range=((0, 120), (0, 80)))
    boxes = np.array([[shapely.box(x, y, x + 10, y + 10) for y in range(0, 80, 10)] for x in range(0, 120, 10)])
    union = shapely.union_all(parts)
    assert_fits(counts, shapely.area(shapely.intersection(union, boxes)) / union.area * n)


def test_surf_points_are_uniform_over_cells_and_inside_them():
    places = cells((0, 0), (3, 4), (3, 5), (7, 11))
    source = samplers.build("surf", [index_of(places)], 5, 2, Fraction(1))
    n = 4000
    points = np.array([source.request(i).center_xy_l0 for i in range(n)])
    counts, _, _ = np.histogram2d(points[:, 1], points[:, 0], bins=(8, 12), range=((0, 80), (0, 120)))
    assert_fits(counts, places * n / 4)
    for axis in (0, 1):
        inside, _ = np.histogram(points[:, axis] % 10, bins=10, range=(0, 10))
        assert_fits(inside, np.full(10, n / 10))


@pytest.mark.parametrize(("name", "ratio"), [("surf", Fraction(3, 10)), ("radboud", None), ("radboud", Fraction(1, 4))])
def test_every_slide_has_its_share_of_every_class(name, ratio):
    # Documented: slides of a class are drawn alike, whatever their size.
    tumor = {1: [shapely.box(20, 10, 30, 20)]}
    indexes = [index_of(cells((1, 2)), regions=tumor), index_of(cells((1, 2), (1, 3)), regions=tumor), index_of()]
    source = samplers.build(name, indexes, 1, 2, ratio)
    drawn = [source.request(i) for i in range(6000)]
    for cls, having in ((0, 3), (1, 2)):
        counts = np.bincount([r.slide for r in drawn if r.cls == cls], minlength=3)
        assert_fits(counts, np.where(np.arange(3) < having, counts.sum() / having, 0))


@pytest.mark.parametrize(("ranks", "batch"), [(1, 2), (2, 1), (3, 4)])
@pytest.mark.parametrize("ratio", [Fraction(1, 4), Fraction(2, 5)])
def test_ratio_is_exact_over_every_window_of_batches_of_all_ranks(ranks, batch, ratio):
    from samplers.pipeline import rank_indices  # loads TensorFlow

    source = samplers.build("surf", [index_of(cells((1, 2)))], 3, 2, ratio)
    steps = 60
    streams = [rank_indices(0, batch, rank, ranks) for rank in range(ranks)]
    drawn = np.array([[[source.request(next(s)).cls for _ in range(batch)] for s in streams] for _ in range(steps)])
    per_step = drawn.sum((1, 2))
    for length in (1, 3, 10, steps):
        exact = length * ranks * batch * ratio
        windows = np.convolve(per_step, np.ones(length, int), "valid")
        assert windows.min() >= np.floor(exact)
        assert windows.max() <= np.ceil(exact)


def psnr(a, b):
    return 10 * np.log10(255**2 / np.mean((a.astype(float) - b.astype(float)) ** 2))


@pytest.fixture(scope="module")
def gapped(tmp_path_factory):
    """Lossless tissue at 0.25 um/px whose pyramid has neither 0.5 nor 1.0: levels 1 and 3."""
    hw = (1536, 1536)
    everywhere = np.ones(hw, np.bool_)
    tissue = stained_tissue(np.random.default_rng(4), everywhere, ~everywhere, STAINS["standard"])
    path = tmp_path_factory.mktemp("gapped") / "s.tif"
    third = cv2.resize(tissue, (512, 512), interpolation=cv2.INTER_AREA)
    write_levels(path, [tissue, third], um_px=0.25)
    return Slide(path), tissue


@pytest.mark.parametrize(("um_px", "at_least_db"), [(0.25, 99), (0.5, 50), (1.0, 45)])
def test_spacings_without_a_level_look_like_an_independent_resample(gapped, um_px, at_least_db):
    slide, tissue = gapped
    factor = round(um_px / 0.25)
    side = 1536 // factor
    patch = PatchReader([slide], [EmptyTruth(slide)], side, um_px).read(PatchRequest(0, 0, 0, 0, (768.0, 768.0)))
    # The exact mean of the level-0 pixels under each output pixel.
    mean = tissue.reshape(side, factor, side, factor, 3).mean((1, 3))
    inner = slice(8, -8)
    found = psnr(patch.image_HWC[inner, inner], np.rint(mean)[inner, inner]) if factor > 1 else 99.0
    if factor == 1:
        np.testing.assert_array_equal(patch.image_HWC, tissue)
    assert found >= at_least_db
    # Shifted by one level-0 pixel it is another picture: the bound sees such a mistake.
    if factor > 1:
        shifted = np.roll(tissue, factor // 2, 1).reshape(side, factor, side, factor, 3).mean((1, 3))
        assert psnr(shifted[inner, inner], np.rint(mean)[inner, inner]) < at_least_db


@pytest.mark.parametrize("um_px", [0.25, 0.5, 1.0, 0.83])
def test_labels_are_taken_at_pixel_centers_and_never_invented(gapped, tmp_path, um_px):
    slide, _ = gapped
    areas = [("a", blob(np.random.default_rng(5), np.array([700.0, 800.0]), np.full(2, 500.0), 0.2))]
    areas.append(("b", blob(np.random.default_rng(6), np.array([900.0, 700.0]), np.full(2, 200.0), 0.2)))
    write_asap(tmp_path / "s.xml", areas)
    truth = XmlTruth(tmp_path / "s.xml", slide, {"a": 7, "b": 3}, ())
    side = 384
    patch = PatchReader([slide], [truth], side, um_px).read(PatchRequest(0, 0, 0, 0, (768.3, 700.7)))
    step = patch.window.step_xy_l0[0]
    x = patch.window.corner_xy_l0[0] + (np.arange(side) + 0.5) * step
    y = patch.window.corner_xy_l0[1] + (np.arange(side) + 0.5) * step
    grid_x, grid_y = np.meshgrid(x, y)
    expected = np.zeros((side, side), np.uint8)
    for cls in (7, 3):
        for polygon in truth.regions(cls):
            expected[shapely.contains_xy(polygon, grid_x, grid_y)] = cls
    np.testing.assert_array_equal(patch.label_HW, expected)
    assert {7, 3} <= set(np.unique(patch.label_HW)) <= {0, 3, 7}


def test_a_context_view_has_the_same_center(tmp_path):
    # A ramp: the value of a view's middle tells where it was taken, at any spacing.
    x = np.arange(2048)
    ramp = np.repeat(np.clip(x[None] / 8, 0, 255).astype(np.uint8)[..., None].repeat(600, 0), 3, 2)
    write_levels(tmp_path / "s.tif", [ramp, ramp[::4, ::4]], um_px=0.25)
    slide = Slide(tmp_path / "s.tif")
    reader = PatchReader([slide], [EmptyTruth(slide)], 64, 0.25, context_um_px=2.0)
    patch = reader.read(PatchRequest(0, 0, 0, 0, (1001.0, 300.0)))
    assert reader.channels == 6
    assert patch.image_HWC.shape == (64, 64, 6)
    center = patch.window.center_xy_l0[0]
    near, wide = (patch.image_HWC[30:34, :, c].astype(float).mean(0) for c in (0, 3))
    assert near[31:33].mean() == pytest.approx(center / 8, abs=1)
    assert wide[31:33].mean() == pytest.approx(center / 8, abs=1)
    # 8 level-0 px per px of the context view: one gray level per px.
    assert np.diff(wide).mean() == pytest.approx(1.0, abs=0.03)
    assert np.diff(near).mean() == pytest.approx(1 / 8, abs=0.02)


@pytest.mark.parametrize("center", [(500.0, 400.0), (1260.0, 400.0)])
@pytest.mark.parametrize("um_px", [0.25, 0.37, 0.6])
def test_image_and_label_of_a_resampled_patch_lie_on_each_other_to_a_twentieth_of_a_px(tmp_path, um_px, center):
    # A dark band between two slanted edges, 0.243 um/px: every row crosses them at other fractions of a px.
    y, x = np.mgrid[:800, :1300]
    left, right = center[0] - 60 + 0.1 * (y + 0.5), center[0] - 20 + 0.1 * (y + 0.5)
    covered = np.clip(x + 1 - left, 0, 1) - np.clip(x + 1 - right, 0, 1)
    write_levels(tmp_path / "s.tif", [np.stack([np.round(200 - 200 * covered)] * 3, 2).astype(np.uint8)], um_px=0.243)
    corners = [(left[0, 0] - 0.05, 0.0), (right[0, 0] - 0.05, 0.0), (right[-1, 0] + 0.05, 800.0)]
    write_asap(tmp_path / "s.xml", [("a", np.array([*corners, (left[-1, 0] + 0.05, 800.0)]))])
    slide = Slide(tmp_path / "s.tif")
    reader = PatchReader([slide], [XmlTruth(tmp_path / "s.xml", slide, {"a": 1}, ())], 128, um_px)
    patch = reader.read(PatchRequest(0, 0, 0, 0, center))  # the second is moved inside the slide
    dark_HW, label_HW = 1 - patch.image_HWC[..., 0] / 200, patch.label_HW.astype(float)
    columns = np.arange(128) + 0.5
    assert label_HW.sum() > 500
    assert label_HW.sum() == pytest.approx(dark_HW.sum(), rel=0.005)
    middle = [(plane * columns).sum() / plane.sum() for plane in (dark_HW, label_HW)]
    assert middle[0] == pytest.approx(middle[1], abs=0.05)
