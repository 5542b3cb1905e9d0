"""Slides as one image: regions, orientations, and maps that are written box by box."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from inference.plan import PlannedSlide, plan_slide
from inference.whole import (
    EIGHTFOLD,
    Region,
    RegionImage,
    Turn,
    TurnedImage,
    WholeCells,
    WholeMaps,
    region_of,
    share_slides,
)
from inference.windows import MapGrid, Run
from samplers.index import Places
from slides.reader import Slide, SlideError
from slides.synthetic.demo import position_coded, write_pyramid


@pytest.fixture
def planned(tmp_path: Path) -> PlannedSlide:
    """1400 x 900 level-0 px of glass with tissue at x 600 to 1000, y 100 to 500; the map has 2 px of them."""
    image_HWC = np.full((900, 1400, 3), 245, np.uint8)
    image_HWC[100:500, 600:1000] = (190, 90, 160)
    write_pyramid(tmp_path / "slide.tif", image_HWC, 1.0)
    return plan_slide(tmp_path / "slide.tif", None, 128, 2.0, 0.25, 7, True, 2)


def with_cells(planned: PlannedSlide, rows: tuple[int, int], columns: tuple[int, int]) -> PlannedSlide:
    """The same with tissue in these cells of 20 level-0 px, 10 px of the map."""
    tissue_HW = np.zeros((45, 70), bool)
    tissue_HW[rows[0] : rows[1], columns[0] : columns[1]] = True
    return replace(planned, tissue=Places(tissue_HW), cell_l0=20)


def test_the_region_is_around_all_tissue_and_ends_at_multiples_of_128(planned: PlannedSlide) -> None:
    assert planned.grid.size_xy == (700, 450)
    # Tissue in rows 130 to 140 and columns 260 to 280 of the map.
    tissue = with_cells(planned, (13, 14), (26, 28))
    assert region_of(tissue, 0) == Region((128, 256), (256, 384))
    assert region_of(tissue, 10) == Region((0 + 0, 256), (128, 384))
    # As far as the slide reaches, rounded up to whole 128 px.
    assert region_of(tissue, 5000) == Region((0, 512), (0, 768))
    assert region_of(with_cells(planned, (0, 0), (0, 0)), 64) is None
    assert region_of(replace(planned, tissue=None), 64) == Region((0, 512), (0, 768))


def test_slides_go_to_the_rank_with_the_least_work() -> None:
    assert share_slides([5, 9, 0, 4], 2) == [[Run(1, 0, 9), Run(2, 0, 0)], [Run(0, 0, 5), Run(3, 0, 4)]]
    assert share_slides([3], 2) == [[Run(0, 0, 3)], []]


@pytest.mark.parametrize(("turns", "flipped"), EIGHTFOLD)
def test_a_box_of_a_turned_image_is_found_in_the_image(turns: int, flipped: bool) -> None:
    image_HWC = np.arange(5 * 8 * 2).reshape(5, 8, 2)
    turn = Turn(turns, flipped, (5, 8))
    seen_HWC = turn.seen(image_HWC)
    assert seen_HWC.shape[:2] == turn.hw_seen
    np.testing.assert_array_equal(turn.back(seen_HWC), image_HWC)
    rows, columns = turn.region_from_seen((1, 4), (2, 4))
    box_HWC = image_HWC[slice(*rows), slice(*columns)]
    np.testing.assert_array_equal(turn.seen(box_HWC), seen_HWC[1:4, 2:4])


def coded(tmp_path: Path) -> tuple[Slide, MapGrid]:
    position_coded(tmp_path / "coded.tif", (300, 200), um_px=0.5)
    return Slide(tmp_path / "coded.tif"), MapGrid((300, 200), (1.0, 1.0), 64, 48)


def test_a_region_is_read_by_threads_and_white_beyond_the_slide(tmp_path: Path) -> None:
    slide, grid = coded(tmp_path)
    image = RegionImage(slide, grid, Region((0, 256), (128, 384)), lambda x: x, workers=3)
    assert image.shape == (1, 256, 256, 3)
    window_BHWC = image.read((20, 256), (100, 190))
    whole_HWC = slide.read_level(0, (0, 0), (200, 300))
    np.testing.assert_array_equal(window_BHWC[0, :180, :72], whole_HWC[20:, 228:])
    assert (window_BHWC[0, 180:] == 255).all()
    assert (window_BHWC[0, :, 72:] == 255).all()
    turned = TurnedImage(image, Turn(1, True, (256, 256)))
    np.testing.assert_array_equal(
        turned.read((3, 60), (9, 200))[0],
        Turn(1, True, (256, 256)).seen(image.read((0, 256), (0, 256))[0])[3:60, 9:200],
    )


def test_windows_that_cannot_be_read_are_counted_once_or_an_error(tmp_path: Path, monkeypatch) -> None:
    slide, grid = coded(tmp_path)
    read = slide.read

    def torn(window):
        if window.corner_xy_l0[0] < 64:
            raise SlideError("torn")
        return read(window)

    monkeypatch.setattr(slide, "read", torn)
    image = RegionImage(slide, grid, Region((0, 256), (0, 384)), lambda x: x)
    first = image.read((0, 64), (0, 128))
    assert (first[0, :, :64] == 255).all()
    assert not (first[0, :, 64:] == 255).all()
    image.read((0, 64), (0, 128))
    image.read((0, 64), (128, 256))
    assert len(image.windows) == 2
    assert list(image.faults.values()) == ["torn"]
    with pytest.raises(SlideError, match="torn"):
        RegionImage(slide, grid, Region((0, 256), (0, 384)), lambda x: x, strict=True).read((0, 64), (0, 128))


def map_of(cells: WholeCells, grid: MapGrid, plane: str) -> np.ndarray:
    width, height = grid.size_xy
    map_HW = np.zeros((height, width), np.uint8)
    for row in range(-(-height // 50)):
        for column in range(-(-width // 50)):
            part = cells.tile(row, column, 50, plane)
            map_HW[row * 50 : row * 50 + 50, column * 50 : column * 50 + 50] = part
    return map_HW


def test_maps_hold_the_boxes_cut_to_tissue_and_slide(planned: PlannedSlide, tmp_path: Path) -> None:
    # Map px 80 to 450 (the last cell ends beyond the map) and 400 to 700.
    tissue = with_cells(planned, (8, 45), (40, 70))
    region = region_of(tissue, 0)
    assert region == Region((0, 512), (384, 768))
    maps = WholeMaps(tmp_path / "s", tissue, region, classes=2)
    assert not maps.wants((0, 80), (0, 384))
    assert maps.wants((0, 81), (0, 384))
    assert not maps.wants((450, 512), (0, 384))
    p_HWK = np.zeros((512, 384, 2), np.float32)
    p_HWK[..., 1] = np.linspace(0, 1, 512)[:, None]
    for top, bottom in ((0, 200), (200, 512)):
        maps.take((top, bottom), (0, 384), p_HWK[top:bottom])
    maps.finish(None)
    cells = WholeCells(tmp_path / "s", tissue.grid)
    map_HW = map_of(cells, tissue.grid, "probability")
    expected_HW = np.zeros((450, 700), np.uint8)
    expected_HW[80:, 400:] = np.floor(p_HWK[80:450, :1, 1] * 255 + 0.5)
    np.testing.assert_array_equal(map_HW, expected_HW)
    assert map_of(cells, tissue.grid, "label").sum() == 300 * (450 - 256)


def test_orientations_are_averaged(planned: PlannedSlide, tmp_path: Path) -> None:
    everywhere = replace(planned, tissue=None)
    region = region_of(everywhere, 0)
    assert region is not None
    maps = WholeMaps(tmp_path / "s", everywhere, region, classes=3, orientations=2)
    for p in ((0.2, 0.5, 0.3), (0.2, 0.7, 0.1)):
        maps.take((0, 512), (0, 768), np.full((512, 768, 3), p, np.float32))
    maps.finish(None)
    cells = WholeCells(tmp_path / "s", everywhere.grid)
    assert np.unique(map_of(cells, everywhere.grid, "probability_1")).tolist() == [153]
    assert np.unique(map_of(cells, everywhere.grid, "probability_2")).tolist() == [51]
    assert {path.name for path in (tmp_path / "s").iterdir()} == {
        "whole.json", "whole-probability.raw", "whole-probability_1.raw", "whole-probability_2.raw", "whole-label.raw",
    }  # fmt: skip


def test_a_slide_without_tissue_has_empty_maps(planned: PlannedSlide, tmp_path: Path) -> None:
    WholeMaps(tmp_path / "s", planned, None, classes=2).finish(None)
    cells = WholeCells(tmp_path / "s", planned.grid)
    assert cells.tile(0, 0, 512, "label") == 0
    assert cells.infos[0]["windows"] == 0
    (tmp_path / "s" / "whole.json").write_text("{")
    with pytest.raises(OSError, match=r"whole\.json: damaged"):
        WholeCells(tmp_path / "s", planned.grid)
