"""Polygons to pixels and back: centers, common edges, cut windows, exact outlines."""

import numpy as np
import pytest
import shapely

from slides.geometry import Window
from slides.truth.outline import outlines
from slides.truth.raster import edges_of, rasterize, touched_cells
from tests.support.paths import SHARED

DATA = SHARED / "c16mosaic" / "train"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"real slides are not at {DATA}")


def square(x, y, width, height):
    return np.array([[x, y], [x + width, y], [x + width, y + height], [x, y + height]], float)


def test_a_pixel_belongs_where_its_center_lies():
    edges = edges_of([shapely.Polygon([(1.5, 1.4), (4.5, 1.4), (4.5, 3.6), (1.5, 3.6)])])
    # Centers on the left edge are inside, on the right edge outside.
    expected = [[0, 0, 0, 0, 0, 0], [0, 1, 1, 1, 0, 0], [0, 1, 1, 1, 0, 0], [0, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0]]
    assert rasterize(edges, Window((0.0, 0.0), (5, 6), (1.0, 1.0))).astype(int).tolist() == expected


def test_rectangles_with_a_common_edge_neither_share_nor_lose_pixels():
    a = shapely.Polygon([(0, 0), (7, 0), (3, 9), (0, 9)])
    b = shapely.Polygon([(7, 0), (11, 0), (11, 9), (3, 9)])
    window = Window((-1.0, -1.0), (22, 26), (0.5, 0.5))
    masks = [rasterize(edges_of([polygon]), window).astype(int) for polygon in (a, b)]
    assert (sum(masks) == rasterize(edges_of([shapely.box(0, 0, 11, 9)]), window)).all()
    # Areas 45 and 54 in pixels of 0.25.
    assert [int(mask.sum()) for mask in masks] == [180, 216]


def test_holes_and_islands_in_them():
    ring = shapely.Polygon(square(1, 1, 8, 6), [square(2, 2, 6, 4)])
    island = shapely.box(4, 3, 5, 4)
    inside = rasterize(edges_of([ring, island]), Window((0.0, 0.0), (8, 10), (1.0, 1.0)))
    assert inside.sum() == 48 - 24 + 1
    assert inside[3, 4]
    assert not inside[3, 3]


@pytest.mark.parametrize("step", [1.0, 0.5, 1.25])
def test_windows_put_together_equal_the_whole(step):
    rng = np.random.default_rng(7)
    angle = np.sort(rng.uniform(0, 2 * np.pi, 200))
    radius = rng.uniform(15, 45, 200)
    star = shapely.Polygon(np.stack([50 + radius * np.cos(angle), 48 + radius * np.sin(angle)], axis=1))
    edges = edges_of([star])
    full = rasterize(edges, Window((-4.0, -2.0), (84, 90), (step, step)))
    parts = [
        [rasterize(edges, Window((-4 + 30 * c * step, -2 + 21 * r * step), (21, 30), (step, step))) for c in range(3)]
        for r in range(4)
    ]
    assert np.array_equal(np.block(parts), full)
    x, y = np.meshgrid(-4 + (np.arange(90) + 0.5) * step, -2 + (np.arange(84) + 0.5) * step)
    assert np.array_equal(full, shapely.contains_xy(star, x, y))
    assert 1000 < full.sum() < 7000


def test_nothing_in_sight_is_empty():
    edges = edges_of([shapely.box(100, 100, 120, 130)])
    for corner in ((0.0, 0.0), (0.0, 100.0), (130.0, 100.0), (100.0, 140.0)):
        assert rasterize(edges, Window(corner, (20, 30), (1.0, 1.0))).sum() == 0
    assert rasterize(edges_of([]), Window((0.0, 0.0), (2, 3), (1.0, 1.0))).tolist() == [[False] * 3] * 2


def test_touched_cells_are_those_an_edge_passes_through():
    edges = edges_of([shapely.Polygon([(1, 1), (17, 5), (1, 5)])])
    # Cells of 4: the slanted edge goes from (0, 0) to (4, 1); corners and grid lines alone touch nothing.
    expected = [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]]
    assert touched_cells(edges, 4, (3, 5)).astype(int).tolist() == expected
    assert touched_cells(edges_of([shapely.box(4, 4, 12, 8)]), 4, (3, 5)).sum() == 0
    falling = touched_cells(edges_of([shapely.Polygon([(0, 0), (12, 0), (0, 12)])]), 4, (3, 5))
    assert np.argwhere(falling).tolist() == [[0, 2], [1, 1], [2, 0]]


def test_outlines_run_along_the_outer_edges_of_cells():
    grid = np.zeros((5, 7), bool)
    grid[1:4, 2:6] = True
    grid[2, 3] = False
    (found,) = outlines(grid, 10)
    assert found.bounds == (20, 10, 60, 40)
    assert found.area == 1100
    assert [ring.bounds for ring in shapely.get_rings(found)[1:]] == [(30, 20, 40, 30)]


def test_outlines_of_any_grid_are_valid_disjoint_and_give_it_back():
    rng = np.random.default_rng(11)
    wrong = 0
    for _ in range(150):
        height, width = rng.integers(1, 9, 2)
        grid = rng.random((height, width)) < rng.choice([0.3, 0.5, 0.8])
        found = outlines(grid, 2)
        back = rasterize(edges_of(found), Window((0.0, 0.0), (height, width), (2.0, 2.0)))
        valid = all(part.is_valid for part in found) and sum(part.area for part in found) == 4 * grid.sum()
        wrong += not (valid and np.array_equal(back, grid))
    assert wrong == 0


def test_cells_that_touch_at_a_corner_are_two_polygons_and_holes_stay_apart():
    assert len(outlines(np.array([[1, 0, 0], [0, 1, 1]], bool), 1)) == 2
    ring = np.ones((4, 5), bool)
    ring[1, 1] = ring[2, 2] = False
    (found,) = outlines(ring, 1)
    assert (found.is_valid, found.area, len(found.interiors)) == (True, 18, 2)
