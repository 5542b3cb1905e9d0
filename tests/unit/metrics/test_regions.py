"""False regions, and the coarse grid that they and lesions are found on."""

from pathlib import Path

import numpy as np
import pytest

from evaluation.slide import _cells
from metrics.regions import CellRegion, false_regions
from slides.reader import Slide
from slides.synthetic.demo import position_coded


def test_regions_without_tumor_biggest_first() -> None:
    px_HW = np.array(
        [
            [4, 4, 4, 0, 0, 1, 0],
            [4, 0, 4, 0, 0, 0, 2],
            [4, 0, 4, 0, 0, 0, 0],
            [0, 0, 0, 0, 9, 9, 0],
        ]
    )
    highest_HW = np.where(px_HW > 0, 100, 0).astype(np.uint8)
    highest_HW[0, 5], highest_HW[2, 2] = 255, 51 * 4
    tumor_HW = np.zeros(px_HW.shape, bool)
    # beside a region, by a corner only: not in one of its cells
    tumor_HW[3, 1] = True
    got = false_regions(px_HW, highest_HW, tumor_HW)
    # the arch's center of mass, (0.86, 1), lies in its hollow: (0, 1) is nearer to it than (1, 0) and (1, 2)
    assert [(region.row, region.column, region.px) for region in got] == [(0, 1, 28), (3, 4, 18), (1, 6, 3)]
    assert [region.probability for region in got] == pytest.approx([0.8, 100 / 255, 1.0])
    tumor_HW[0, 0] = True
    assert false_regions(px_HW, highest_HW, tumor_HW) == got[1:]


def test_nothing_predicted() -> None:
    nothing = np.zeros((2, 3), np.int32)
    assert false_regions(nothing, nothing.astype(np.uint8), np.ones((2, 3), bool)) == []
    one = np.array([[0, 0, 7]])
    assert false_regions(one, one.astype(np.uint8), one < 0) == [CellRegion(0, 2, 7 / 255, 7)]


@pytest.mark.parametrize(
    ("um_px", "step", "hw"), [(0.25, 32.0, (5, 5)), (0.22, 32.0, (5, 5)), (0.5, 15.552, (9, 10)), (0.27, 28.8, (5, 6))]
)
def test_cells_are_the_organizers_level_5_or_its_spacing(
    tmp_path: Path, um_px: float, step: float, hw: tuple[int, int]
) -> None:
    position_coded(tmp_path / "a.tif", (150, 130), um_px=um_px)
    window = _cells(Slide(tmp_path / "a.tif", um_px=um_px))
    assert window.step_xy_l0 == pytest.approx((step, step))
    assert (window.hw_out, window.corner_xy_l0) == (hw, (0.0, 0.0))
