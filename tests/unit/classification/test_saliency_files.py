"""Saliency maps on the slide: every cell at its place on level 0, through crop, white and trim."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from classification.augment import STRENGTHS, Frame, View, view
from classification.images import WholeImage
from classification.pictures import small, write_thumbnail
from classification.saliency_files import Saliency, axes, scaled, write
from inference.maps import MapPyramid
from slides.geometry import Trim

# Level-0 px: columns 20 to 120 and 200 to 360, rows 40 to 180 of a slide of 400 x 230.
TRIM = Trim((2.0, 2.0), ((10, 60), (100, 180)), ((20, 90),))


def image(trim: Trim | None = TRIM, hw: tuple[int, int] = (70, 130)) -> WholeImage:
    px = np.random.default_rng(0).integers(0, 255, (*hw, 3)).astype(np.uint8)
    size = (400, 230) if trim else hw[::-1]
    return WholeImage(
        "s", hw, lambda rows, columns: px[slice(*rows), slice(*columns)], trim=trim, um_px=0.5, size_xy_l0=size,
        um_px_xy_l0=(0.25, 0.25),
    )  # fmt: skip


def at(corner_xy: tuple[int, int], hw: tuple[int, int], trim: Trim | None = TRIM) -> View:
    """A view whose corner is at these px of the image, without augmentation."""
    center = corner_xy[0] + hw[1] / 2, corner_xy[1] + hw[0] / 2
    return View(image(trim), hw, Frame(center, ((1, 0), (0, 1))))


def cells(hw: tuple[int, int], bright: dict[tuple[int, int], float], cell: float = 4.0) -> Saliency:
    map_RS = np.zeros(hw, np.float32)
    for place, value in bright.items():
        map_RS[place] = value
    return Saliency("gradient", "tumor", map_RS, (0.0, 0.0), (cell, cell))


def boxes_l0(folder: Path, value: int) -> list[tuple[float, float, float, float]]:
    """x, y, x, y of the box around all px of a value in the written pyramid, level-0 px."""
    facts = json.loads((folder / "saliency.json").read_text())
    pyramid = MapPyramid(folder / "saliency.tif", facts["size_xy_l0"], (0.25, 0.25), facts["step_xy_l0"])
    px_HW = pyramid.whole(pyramid.levels[0])
    rows, columns = (np.flatnonzero((px_HW == value).any(axis=axis)) for axis in (1, 0))
    step_x, step_y = facts["step_xy_l0"]
    return [columns[0] * step_x, rows[0] * step_y, (columns[-1] + 1) * step_x, (rows[-1] + 1) * step_y]


@pytest.mark.parametrize(
    ("corner_xy", "cell_RS", "box_l0"),
    [
        # Px 12 to 16, 4 to 8 of the image: px 22 to 26, 24 to 28 of the grid.
        ((0, 0), (1, 3), [44, 48, 52, 56]),
        # The image begins 6 px right of and 5 px below the view's corner.
        ((-6, -5), (2, 2), [2 * (10 + 2), 2 * (20 + 3), 2 * (10 + 6), 2 * (20 + 7)]),
        # Px 60 to 64 of the image are behind the seam at 50: px 110 to 114 of the grid.
        ((40, 8), (0, 5), [220, 56, 228, 64]),
    ],
)
def test_a_bright_cell_has_its_box_on_level_0(
    corner_xy: tuple[int, int], cell_RS: tuple[int, int], box_l0: list[float], tmp_path: Path
) -> None:
    write(tmp_path, cells((15, 20), {cell_RS: 2.5, (7, 7): 0.5}), at(corner_xy, (60, 80)))
    assert boxes_l0(tmp_path, 255) == box_l0
    facts = json.loads((tmp_path / "saliency.json").read_text())
    assert facts["value_of_255"] == 2.5
    assert (facts["slide"], facts["method"], facts["output"]) == ("s", "gradient", "tumor")
    assert facts["cell_xy_l0"] == [8, 8]
    assert facts["step_xy_l0"] == [2, 2]


def test_a_cell_over_a_seam_is_in_two_places(tmp_path: Path) -> None:
    """Px 48 to 52 of the image: px 58 to 60 and 100 to 102 of the grid; nothing is where the glass was cut out."""
    write(tmp_path, cells((17, 32), {(1, 12): 1.0}), at((0, 0), (68, 128)))
    facts = json.loads((tmp_path / "saliency.json").read_text())
    pyramid = MapPyramid(tmp_path / "saliency.tif", (400, 230), (0.25, 0.25), facts["step_xy_l0"])
    columns = np.flatnonzero(pyramid.whole(pyramid.levels[0]).any(axis=0)) * 2
    assert columns.tolist() == [116, 118, 200, 202]


def test_what_lies_outside_the_image_has_no_place(tmp_path: Path) -> None:
    """The view is larger than the image on all sides, and bright everywhere."""
    write(tmp_path, cells((30, 40), dict.fromkeys(np.ndindex(30, 40), 1.0)), at((-10, -20), (120, 160)))
    facts = json.loads((tmp_path / "saliency.json").read_text())
    pyramid = MapPyramid(tmp_path / "saliency.tif", (400, 230), (0.25, 0.25), facts["step_xy_l0"])
    px_HW = pyramid.whole(pyramid.levels[0]) > 0
    assert px_HW.shape == (115, 200)
    assert px_HW.sum() == 70 * 130
    assert px_HW[20:90, 10:60].all()
    assert px_HW[20:90, 100:180].all()


def test_an_image_without_a_trim_is_its_own_level_0(tmp_path: Path) -> None:
    write(tmp_path, cells((9, 16), {(2, 3): 1.0}, cell=8.0), at((0, 0), (72, 128), trim=None))
    assert boxes_l0(tmp_path, 255) == [24, 16, 32, 24]


def test_cells_that_begin_outside_the_view(tmp_path: Path) -> None:
    """Cells of a late map: 32 px each, the first from -15.5 on."""
    map_RS = np.zeros((3, 4), np.float32)
    map_RS[1, 2] = 1
    late = Saliency("activation", "tumor", map_RS, (-15.5, -15.5), (32.0, 32.0))
    write(tmp_path, late, at((0, 0), (68, 128)))
    # Px 48.5 to 80.5 behind the seam at 50 (px 100 of the grid), 16.5 to 48.5 down; px of the pyramid are 16.
    x0, y0, x1, y1 = boxes_l0(tmp_path, 255)
    assert (abs(y0 - 2 * 36.5), abs(y1 - 2 * 68.5)) <= (8, 8)
    assert x1 == pytest.approx(2 * (100 + 30.5), abs=8)
    assert x0 == pytest.approx(2 * 58.5, abs=8)


def test_the_scale(tmp_path: Path) -> None:
    value_RS, most = scaled(cells((2, 3), {(0, 1): 3.0, (1, 2): 1.0}))
    assert (value_RS.tolist(), most) == ([[0, 255, 0], [0, 0, 85]], 3.0)
    assert scaled(cells((2, 3), {}))[1] == 1.0
    with pytest.raises(ValueError, match="NaN or infinity"):
        scaled(cells((2, 3), {(0, 0): np.nan}))


def test_views_of_training_have_no_place() -> None:
    for matrix in (((0.0, -1.0), (1.0, 0.0)), ((-1.0, 0.0), (0.0, 1.0)), ((0.8, -0.6), (0.6, 0.8))):
        with pytest.raises(ValueError, match=r"slide s: the view is turned, flipped or bent"):
            axes(View(image(), (60, 60), Frame((40.0, 30.0), matrix)))
    with pytest.raises(ValueError, match="bent"):
        axes(view(image(), (60, 60), STRENGTHS["standard"], seed=1, index=2))
    with pytest.raises(ValueError, match="shows nothing of the slide"):
        axes(at((500, 0), (60, 60)))


def test_the_overlay_shows_the_view_with_the_map(tmp_path: Path) -> None:
    write(tmp_path, cells((15, 20), {(3, 5): 1.0}), at((0, 0), (60, 80)))
    seen = np.asarray(Image.open(tmp_path / "overlay.png"))
    plain = at((0, 0), (60, 80)).read((0, 60), (0, 80))[0]
    changed = (seen[:60, :80] != plain).any(axis=-1)
    # Colors run out over half a cell to each side.
    rows, columns = np.nonzero(changed)
    assert 10 <= rows.min() <= 12
    assert 15 <= rows.max() <= 17
    assert 18 <= columns.min() <= 20
    assert 23 <= columns.max() <= 25
    assert changed[12:16, 20:24].all()


def test_small_pictures_are_means(tmp_path: Path) -> None:
    px = np.random.default_rng(3).integers(0, 255, (50, 70, 3)).astype(np.uint8)
    whole = WholeImage("s", (50, 70), lambda rows, columns: px[slice(*rows), slice(*columns)])
    picture = small(whole, side_px=24)
    assert picture.shape == (17, 24, 3)
    assert np.abs(picture[4, 5] - px[12:15, 15:18].mean(axis=(0, 1))).max() <= 0.5
    assert np.abs(picture[16, 23] - px[48:, 69:].mean(axis=(0, 1))).max() <= 0.5
    write_thumbnail(tmp_path / "thumbnails" / "s.jpg", whole, side_px=24)
    assert Image.open(tmp_path / "thumbnails" / "s.jpg").size == (24, 17)
