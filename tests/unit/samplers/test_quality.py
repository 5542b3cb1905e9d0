"""Glass, pens and blur, told from real and made patches."""

import cv2
import numpy as np
import pytest

from samplers.quality import BLANK, BLURRED, PEN, fault, is_blurred
from slides.artefacts import has_pen, is_black, is_blank, spread
from slides.reader import Slide
from tests.support.paths import SHARED

needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason=f"real tiles are not at {SHARED}")


def tile(name):
    return cv2.cvtColor(cv2.imread(str(SHARED / "tiles" / name)), cv2.COLOR_BGR2RGB)


@needs_data
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("almost-white-2.png", BLANK),
        ("no-tissue.png", BLANK),
        ("no-tissue-green-pen.png", PEN),
        ("no-tissue-red-pen.png", PEN),
        ("tissue-level0-4302-10273-4814-10785.png", None),
    ],
)
def test_real_tiles(name, expected):
    assert fault(tile(name), 0.5) == expected


def patches(um_px, side):
    """Patches of real tissue on a grid over three slides of three laboratories."""
    for name, um in (
        ("c16mosaic/val/images/tumor_951.tif", None),
        ("slides/CMU-1-Small-Region.svs", None),
        ("slides/tcga-cr-7395-01a-01-ts1.svs", 0.25),
    ):
        slide = Slide(SHARED / name, um_px=um)
        step = side * um_px / slide.um_px_xy_l0[0]
        for x in np.arange(step, slide.size_xy_l0[0] - step, 1.3 * step):
            for y in np.arange(step, slide.size_xy_l0[1] - step, 1.3 * step):
                image_HWC = slide.read(slide.window((float(x), float(y)), (side, side), um_px))
                if fault(image_HWC, um_px) != BLANK:
                    yield image_HWC


@needs_data
@pytest.mark.parametrize(("um_px", "side"), [(0.25, 256), (0.5, 256), (1.0, 128)])
def test_sharp_tissue_passes_and_blurred_tissue_does_not(um_px, side):
    found = list(patches(um_px, side))
    assert len(found) > 20
    assert not any(is_blurred(image_HWC, um_px) for image_HWC in found)
    pale = [(255 - (255 - image_HWC.astype(float)) * 0.45).astype(np.uint8) for image_HWC in found]
    assert not any(is_blurred(image_HWC, um_px) for image_HWC in pale)
    # The TCGA slide has green ink on its margin.
    assert sum(fault(image_HWC, um_px) == PEN for image_HWC in found) <= 0.02 * len(found)
    assert all(is_blurred(cv2.GaussianBlur(image_HWC, (0, 0), 1.5 / um_px), um_px) for image_HWC in found)


@needs_data
@pytest.mark.parametrize("rgb", [(20, 120, 60), (30, 60, 190), (215, 25, 30), (25, 25, 28)])
def test_a_line_of_any_marker_is_seen(rgb):
    image_HWC = tile("tissue-level0-4302-10273-4814-10785.png")
    assert not has_pen(image_HWC)
    marked_HWC = cv2.line(image_HWC.copy(), (0, 100), (511, 300), rgb, 90, cv2.LINE_AA)
    assert has_pen(marked_HWC)


def test_focus_is_not_judged_on_coarse_patches():
    slope = np.linspace(60, 200, 64)
    smooth = np.stack([slope + slope[:, None], slope + slope[:, None] / 3, slope + slope[:, None]], 2) / 2
    smooth = smooth.astype(np.uint8)
    assert fault(smooth, 0.5) == BLURRED
    assert fault(smooth, 8.0) is None
    assert fault(smooth, 0.5, judge=False) is None


@pytest.mark.parametrize("hw", [(1, 1), (5, 127), (128, 255), (256, 257), (300, 1024), (1000, 777), (4096, 383)])
def test_spread_px_are_spread_no_further(hw):
    image_HWC = np.random.default_rng(0).integers(0, 256, (*hw, 3)).astype(np.uint8)
    once = spread(image_HWC)
    assert min(hw[0], 128) <= once.shape[0] < 256
    assert min(hw[1], 128) <= once.shape[1] < 256
    np.testing.assert_array_equal(spread(once), once)
    assert (is_blank(once), is_black(once), has_pen(once)) == (
        is_blank(image_HWC), is_black(image_HWC), has_pen(image_HWC),
    )  # fmt: skip


@pytest.mark.parametrize(("dark_rows", "value", "expected"), [(5, 29, True), (4, 29, False), (5, 30, False)])
def test_half_of_a_black_patch_is_below_30_in_every_channel(dark_rows, value, expected):
    image_HWC = np.full((10, 7, 3), 200, np.uint8)
    image_HWC[:dark_rows] = (0, value, 0)
    # Dark in two channels only.
    image_HWC[9] = (0, 0, 200)
    assert is_black(image_HWC) is expected
