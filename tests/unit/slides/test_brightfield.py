"""Slides on black are recognized, and have no tissue in any program."""

from pathlib import Path

import numpy as np
import pytest

from cohorts.pairing import Case
from inference.plan import plan_slide
from preprocessing import check, tissue
from samplers.dataset import SetOptions, open_set
from slides.synthetic.demo import write_pyramid
from slides.tissue import NOT_BRIGHTFIELD, is_brightfield, tissue_mask
from slides.truth.reading import Reading
from tests.support.paths import SHARED

GLASS, PINK, BLACK, HAZE, BLUE = (245, 243, 246), (190, 90, 160), (3, 3, 3), (8, 10, 45), (30, 40, 210)


def image(*parts: tuple[tuple[int, int, int], int]) -> np.ndarray:
    """Columns of these colors, 100 in all; a last row and column of white, as beyond a border."""
    row = np.repeat([color for color, _ in parts], [count for _, count in parts], axis=0)
    return np.pad(np.tile(row, (79, 1, 1)), ((0, 1), (0, 1), (0, 0)), constant_values=255).astype(np.uint8)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (((GLASS, 60), (PINK, 40)), True),
        (((BLACK, 100),), False),
        (((HAZE, 70), (BLUE, 30)), False),
        # Black borders of a scanner, with little glass left.
        (((BLACK, 90), (PINK, 8), (GLASS, 2)), True),
        (((BLACK, 90), (PINK, 9), (GLASS, 1)), False),
        # Tissue without any glass is bright enough not to be dark.
        (((PINK, 100),), True),
        (((BLACK, 49), (BLUE, 51)), True),
        (((BLACK, 50), (BLUE, 50)), False),
    ],
)
def test_dark_without_bright_glass_is_not_brightfield(parts: tuple, expected: bool):
    assert is_brightfield(image(*parts)) is expected


@pytest.mark.parametrize("method", ["hsv", "otsu"])
def test_there_is_no_tissue_on_black(method: str):
    stained = image((HAZE, 60), (BLUE, 40))
    assert not tissue_mask(stained, 8.0, method).any()
    assert tissue_mask(image((GLASS, 60), (BLUE, 40)), 8.0, method).any()


def test_every_program_reports_it(tmp_path: Path):
    image_HWC = np.full((600, 900, 3), HAZE, np.uint8)
    image_HWC[100:400, 200:700] = BLUE
    write_pyramid(tmp_path / "a.tif", image_HWC, 2.0, lossless=True)
    case = Case("a", tmp_path / "a.tif", None)
    made = tissue.make(case, tmp_path / "out", tissue.Options(Reading()))
    assert (made.notes, made.values["tissue_mm2"], made.values["pen_mm2"]) == ((NOT_BRIGHTFIELD,), 0.0, 0.0)
    checked = check.make(case, tmp_path / "out", check.Options(Reading(), 2.0))
    assert ["WARN", "tissue", NOT_BRIGHTFIELD] in [finding[:3] for finding in checked.values["findings"]]
    options = SetOptions(Reading(), bb_downsample=2, classes=2)
    index = open_set([case], options, 0, 1, lambda action: [action()]).indexes[0]
    assert f"a: {NOT_BRIGHTFIELD}" in index.notes
    assert "a: no tissue found; only its annotations can be sampled" in index.notes
    planned = plan_slide(case.slide_path, None, 128, 4.0, 0.0, 2, True, 2)
    assert (planned.windows, planned.brightfield) == ([], False)
    assert f"a: {NOT_BRIGHTFIELD}" in planned.notes
    assert any("does not mean that it has no tumor" in note for note in planned.notes)
    everywhere = plan_slide(case.slide_path, None, 128, 4.0, 0.0, 2, False, 2)
    assert len(everywhere.windows) == 4 * 3


@pytest.mark.skipif(not SHARED.is_dir(), reason="no real slides")
def test_real_slides(tmp_path: Path):
    dapi = SHARED / "slides" / "fluorescence-dapi.ndpi"
    assert tissue.make(Case("d", dapi, None), tmp_path, tissue.Options(Reading())).notes == (NOT_BRIGHTFIELD,)
    assert f"{dapi.stem}: {NOT_BRIGHTFIELD}" in plan_slide(dapi, None, 256, 0.5, 0.0, 7, True, 2).notes
    for name in ("slides/CMU-1-Small-Region.svs", "c16mosaic/train/images/normal_901.tif"):
        made = tissue.make(Case("b", SHARED / name, None), tmp_path, tissue.Options(Reading()))
        assert NOT_BRIGHTFIELD not in made.notes
        assert made.values["tissue_share"] > 0.3
