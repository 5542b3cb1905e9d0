"""Changes of color: exact cases, direction, gray and white, that neighbors do not matter."""

import cv2
import numpy as np
import pytest

from classification.color import Hed, Lch, drawn

PINK = np.array([[[215, 150, 190]]], np.uint8)


def lch(image_HWC):
    lab = cv2.cvtColor(image_HWC.astype(np.float32) / 255, cv2.COLOR_RGB2LAB).reshape(3)
    return lab[0], np.hypot(*lab[1:]), np.degrees(np.arctan2(lab[2], lab[1]))


def test_no_change_is_nearly_none():
    image_HWC = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    change = np.abs(Hed((1, 1, 1), (0, 0, 0))(image_HWC).astype(int) - image_HWC)
    assert change.max() <= 1
    # 8 bits of Lab are fewer colors.
    change = np.abs(Lch(1, 1, 0)(PINK).astype(int) - PINK)
    assert change.max() <= 2


def test_lightness_chroma_and_hue():
    light, chroma, hue = lch(PINK)
    found = lch(Lch(0.9, 1.2, 30)(PINK))
    assert found[0] == pytest.approx(0.9 * light, abs=0.7)
    assert found[1] == pytest.approx(1.2 * chroma, abs=1.5)
    assert found[2] - hue == pytest.approx(30, abs=3)


def test_gray_stays_gray_in_lch():
    gray = np.full((1, 1, 3), 200, np.uint8)
    shown = Lch(0.95, 1.05, 18)(gray)[0, 0].astype(int)
    assert shown.max() - shown.min() <= 2
    assert 185 < shown.mean() < 193


def test_white_without_shift_stays_white_in_hed():
    white = np.full((1, 1, 3), 255, np.uint8)
    assert Hed((0.8, 1.2, 1.1), (0, 0, 0))(white).tolist() == [[[255, 255, 255]]]
    # Hematoxylin on glass: 0.1 of 0.650, 0.700, 0.290, normed: 0.0651, 0.0701, 0.0290; 256 exp(-od) - 1.
    assert Hed((1, 1, 1), (0.1, 0, 0))(white).tolist() == [[[239, 238, 248]]]


def test_more_of_a_stain_multiplies_its_density():
    od = 0.5 * np.array([0.65, 0.70, 0.29]) / np.linalg.norm([0.65, 0.70, 0.29])
    px = np.round(256 * np.exp(-od) - 1).astype(np.uint8)[None, None]
    shown = Hed((1.5, 1, 1), (0, 0, 0))(px)[0, 0]
    np.testing.assert_allclose(-np.log((shown + 1) / 256), 1.5 * od, atol=0.02)


@pytest.mark.parametrize("change", [Lch(0.97, 1.04, 11), Hed((1.2, 0.85, 1.1), (0.01, -0.02, 0.02))])
def test_a_px_does_not_depend_on_its_neighbors(change):
    image_HWC = np.random.default_rng(1).integers(0, 256, (61, 67, 3), np.uint8)
    whole = change(image_HWC)
    for top, bottom, left, right in ((0, 1, 0, 1), (3, 60, 5, 38), (7, 9, 1, 67), (60, 61, 66, 67)):
        np.testing.assert_array_equal(change(image_HWC[top:bottom, left:right]), whole[top:bottom, left:right])


def test_drawn_within_its_share_and_the_same_numbers_for_any_model():
    rngs = [np.random.default_rng(5) for _ in range(3)]
    none, found, hed = (drawn(model, 0.05, rng) for model, rng in zip(("none", "lch", "hed"), rngs, strict=True))
    assert none is None
    assert abs(found.lightness - 1) <= 0.05
    assert abs(found.turn) <= 18
    assert hed.factors[0] == found.lightness
    assert len({rng.random() for rng in rngs}) == 1
