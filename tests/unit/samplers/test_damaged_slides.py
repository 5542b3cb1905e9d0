"""A slide with broken tiles is searched for tissue all the same, in training and prediction."""

from pathlib import Path

import numpy as np
import pytest

from cohorts.pairing import Case
from inference.overlay import overlay
from inference.plan import plan_slide
from samplers.dataset import SetOptions, open_set
from samplers.index import find_tissue
from slides.reader import Slide, SlideError
from slides.truth.reading import Reading
from tests.support.broken import TILE, damage, write_noise
from tests.support.maps_on_disk import write_maps

LOST = tuple(8 * row + column for row in (2, 3, 4) for column in (3, 4, 5))  # a block of 3 x 3 tiles


@pytest.fixture
def slide_path(tmp_path: Path) -> Path:
    path = tmp_path / "a.tif"
    write_noise(path)
    return path


def test_what_cannot_be_decoded_is_no_tissue(slide_path: Path):
    whole = find_tissue(Slide(slide_path), 2)
    assert (whole.notes, whole.damage) == (
        ("a: --bb_downsample 2 clamped to level 0, the last of this slide (2 um per cell)",),
        "",
    )
    damage(slide_path, *LOST)
    found = find_tissue(Slide(slide_path), 2)
    assert found.damage.startswith(
        "a: in the tissue search, places that cannot be decoded are white (25.00% of the px read): slide "
    )
    assert found.notes == (*whole.notes, found.damage)
    # Cells of 4 px; the edge of the hole is smoothed over by the search's closing and opening.
    inner = slice(3 * TILE // 4 + 8, 6 * TILE // 4 - 8)
    assert not found.tissue_HW[2 * TILE // 4 + 8 : 5 * TILE // 4 - 8, inner].any()
    assert found.tissue_HW[:, : 2 * TILE // 4].all()


def test_training_goes_on_without_the_places(slide_path: Path):
    options = SetOptions(Reading(), bb_downsample=0, classes=2)
    damage(slide_path, *LOST)
    index = open_set([Case("a", slide_path, None)], options, 0, 1, lambda action: [action()]).indexes[0]
    assert index.damage in index.notes
    assert "cannot be decoded" in index.damage
    assert 0 < len(index.places[0]) < 256 * 256 * 0.88


def test_a_slide_of_broken_tiles_is_refused(slide_path: Path):
    damage(slide_path, *range(40))
    with pytest.raises(SlideError, match="row 0, column 0"):
        find_tissue(Slide(slide_path), 0)


def test_prediction_plans_the_rest(slide_path: Path):
    damage(slide_path, *LOST)
    planned = plan_slide(slide_path, None, 64, 1.0, 0.0, 0, True, 2)
    assert planned.damage in planned.notes
    assert planned.damage
    # 8 x 8 windows of 64 px at 1 um/px, one per tile; the middle one of the block shows no tissue at all.
    assert (3, 4) not in planned.windows
    assert len(planned.windows) > 50


def test_the_picture_of_a_prediction_is_white_only_there(slide_path: Path, tmp_path: Path):
    maps = write_maps(tmp_path / "maps", np.zeros((64, 64)), step_xy=(16.0, 16.0), um_px_xy_l0=(0.5, 0.5))
    whole = overlay(Slide(slide_path), maps, [], side_px=256)
    damage(slide_path, *LOST)
    picture = overlay(Slide(slide_path), maps, [], side_px=256)
    # 32 px per tile; the kernel reaches 8 px beyond a square of 16.
    assert (picture[64:160, 96:192] == 255).all()
    np.testing.assert_array_equal(picture[:48, :256], whole[:48, :256])
    np.testing.assert_array_equal(picture[:256, :80], whole[:256, :80])
