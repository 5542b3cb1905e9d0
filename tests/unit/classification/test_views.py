"""Views: where they lie, that windows do not matter to the byte, the mask and level 0 through the same map, colors."""

import numpy as np
import pytest

from classification import augment
from classification.augment import STRENGTHS, Strength, strength, view
from classification.images import WholeImage
from slides.geometry import Trim


def image_of(image_HWC, mask_RS=None, step=1, trim=None):
    return WholeImage(
        "a",
        image_HWC.shape[:2],
        lambda rows, columns: np.ascontiguousarray(image_HWC[slice(*rows), slice(*columns)]),
        None if mask_RS is None else np.asarray(mask_RS, np.float32),
        step,
        trim,
    )


def noise(hw, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*hw, 3), np.uint8)


def whole(seen):
    return seen.read((0, seen.hw[0]), (0, seen.hw[1]))[0]


# ----------------------------------------------------------------------------------------------------------- placement


def test_a_small_image_lies_in_the_middle_of_white():
    px_HWC = noise((3, 4))
    seen = whole(view(image_of(px_HWC), (8, 7)))
    # 2.5 rows and 1.5 columns of margin: the smaller half comes first.
    expected = np.full((8, 7, 3), 255, np.uint8)
    expected[2:5, 1:5] = px_HWC
    np.testing.assert_array_equal(seen, expected)


def test_its_own_size():
    px_HWC = noise((5, 9))
    np.testing.assert_array_equal(whole(view(image_of(px_HWC), None)), px_HWC)


def test_validation_sees_the_middle_without_a_mask():
    px_HWC = noise((9, 12))
    np.testing.assert_array_equal(whole(view(image_of(px_HWC), (4, 5))), px_HWC[3:7, 4:9])


def test_validation_sees_where_the_mask_has_most():
    px_HWC = noise((80, 120))
    mask_RS = np.zeros((8, 12))
    mask_RS[5, 2] = 1
    mask_RS[1:3, 8:11] = 1
    seen = view(image_of(px_HWC, mask_RS, 10), (30, 40))
    # Columns 80 to 110 of rows 10 to 30: any crop of 30 x 40 around them has all six; the nearest to the mask's center
    # (row 2, column 8.4) is centered on cell (2, 8).
    assert seen.frame.center_xy == (85.0, 25.0)
    np.testing.assert_array_equal(whole(seen), px_HWC[10:40, 65:105])


def test_a_crop_never_leaves_the_image():
    mask_RS = np.zeros((8, 12))
    mask_RS[0, 0] = 1
    seen = view(image_of(noise((80, 120)), mask_RS, 10), (30, 40))
    assert seen.frame.center_xy == (25.0, 15.0)  # of the cells whose crop lies inside, the first


def test_crops_follow_the_square_of_the_mask():
    mask_RS = np.zeros((1, 40))
    mask_RS[0, 5], mask_RS[0, 30] = 1, 3
    image = image_of(noise((10, 400)), mask_RS, 10)
    much = Strength(flips=False, rotation=False)
    centers = np.array([view(image, (10, 10), much, 3, index).frame.center_xy[0] for index in range(400)])
    right = (centers > 290) & (centers < 320)
    left = (centers > 40) & (centers < 70)
    assert np.all(left | right)
    assert right.mean() == pytest.approx(0.9, abs=0.04)  # 3 squared to 1
    assert len(set(centers)) > 8


def test_flips_without_a_turn_copy_px():
    px_HWC = noise((6, 5))
    flips = [px_HWC, px_HWC[::-1], px_HWC[:, ::-1], px_HWC[::-1, ::-1]]
    seen = [whole(view(image_of(px_HWC), (6, 5), STRENGTHS["flips"], 1, index)) for index in range(60)]
    found = [[np.array_equal(one, flip) for flip in flips].index(True) for one in seen]
    assert min(np.bincount(found, minlength=4)) >= 7


def test_a_quarter_turn_on_paper(monkeypatch):
    monkeypatch.setattr(augment, "_cos_sin", lambda _: (0.0, 1.0))
    px_HWC = noise((4, 6))
    seen = view(image_of(px_HWC), None, Strength(flips=False))
    assert seen.hw == (6, 4)
    # x of the image is -y of the view: the first row of the view is the last column of the image.
    np.testing.assert_array_equal(whole(seen), np.rot90(px_HWC))


def test_all_degrees_occur_and_outside_is_white():
    image = image_of(np.zeros((40, 40, 3), np.uint8))
    seen = [whole(view(image, (40, 40), Strength(flips=False), 0, index)) for index in range(50)]
    white = [int((one[..., 0] == 255).sum()) for one in seen]
    assert len(set(white)) > 15
    assert max(white) <= 4 * 40 * 40 * (1 - np.pi / 4) / 4
    assert all(one[20, 20].max() == 0 for one in seen)


def test_its_own_size_turned_holds_all_of_it():
    seen = view(image_of(np.zeros((30, 50, 3), np.uint8)), None, Strength(), 0, 5)
    dark = 255.0 - whole(seen).astype(float)
    assert dark.sum() / 255 / 3 == pytest.approx(30 * 50, rel=0.01)


def test_zoom_enlarges():
    px_HWC = np.zeros((100, 100, 3), np.uint8)
    much = Strength(crop=False, flips=False, rotation=False, zoom=0.2)
    for index in range(5):
        seen = view(image_of(px_HWC), (200, 200), much, 0, index)
        side = np.sqrt((255.0 - whole(seen).astype(float)).sum() / 255 / 3)
        assert side == pytest.approx(100 / seen.frame.matrix[0][0], abs=0.2)
    assert abs(side - 100) > 1


# -------------------------------------------------------------------------------------------------------------- windows


@pytest.mark.parametrize("level", ["none", "flips", "standard", "strong"])
@pytest.mark.parametrize("size", [(150, 131), (260, 300), None])
def test_windows_give_the_same_px_to_the_byte(level, size, monkeypatch):
    image = image_of(noise((170, 203)))
    much = strength(level, "hed" if size is None else None)
    for index in range(4):
        seen = view(image, size, much, 7, index)
        expected = whole(seen)
        monkeypatch.setattr(augment, "BLOCK_PX", 37)
        np.testing.assert_array_equal(whole(seen), expected)
        monkeypatch.undo()
        rng = np.random.default_rng(index)
        for _ in range(12):
            top, left = (int(rng.integers(0, side)) for side in seen.hw)
            bottom, right = int(rng.integers(top, seen.hw[0])) + 1, int(rng.integers(left, seen.hw[1])) + 1
            window = seen.read((top, bottom), (left, right))[0]
            np.testing.assert_array_equal(window, expected[top:bottom, left:right])


def test_views_are_pure_in_seed_and_index():
    image = image_of(noise((60, 70)))
    much = STRENGTHS["strong"]
    first = whole(view(image, (50, 50), much, 1, 2))
    np.testing.assert_array_equal(whole(view(image, (50, 50), much, 1, 2)), first)
    assert not np.array_equal(whole(view(image, (50, 50), much, 2, 1)), first)
    assert not np.array_equal(whole(view(image, (50, 50), much, 1, 3)), first)


def test_a_window_reads_no_more_of_the_image_than_it_needs():
    read = []
    px_HWC = noise((400, 500))

    def reading(rows, columns):
        read.append((rows, columns))
        return np.ascontiguousarray(px_HWC[slice(*rows), slice(*columns)])

    image = WholeImage("a", (400, 500), reading)
    view(image, (300, 300)).read((10, 30), (50, 90))
    assert read == [((60, 80), (150, 190))]
    read.clear()
    view(image, (300, 300), STRENGTHS["strong"], 0, 1).read((100, 120), (100, 120))
    ((rows, columns),) = read
    # 20 px turned by any angle, scaled by up to 1 / 0.85, and stretched a little.
    assert rows[1] - rows[0] < 50
    assert columns[1] - columns[0] < 50


# ----------------------------------------------------------------------------------------------------- mask and level 0


@pytest.mark.parametrize("level", ["flips", "standard", "strong"])
def test_the_mask_moves_with_the_image(level):
    """An image that shows its own mask: both views show the same."""
    mask_RS = np.zeros((20, 24))
    mask_RS[3:9, 5:17] = 1
    mask_RS[8:18, 12:15] = 1
    px_HWC = np.repeat(np.repeat(np.where(mask_RS > 0, 0, 255).astype(np.uint8), 16, 0), 16, 1)[..., None].repeat(3, 2)
    for index in range(3):
        seen = view(image_of(px_HWC, mask_RS, 16), (260, 300), strength(level, "none"), 4, index)
        shown = whole(seen)[4::8, 4::8, 0] < 128
        masked = seen.mask(8) > 0
        assert masked.shape == (33, 38)
        assert (shown[:32, :37] == masked[:32, :37]).mean() > 0.95
        assert masked.mean() > 0.1


def test_l0_from_view_leads_to_the_px_shown():
    """Colors say where they come from; the px of the view lead there."""
    y, x = np.mgrid[:240, :250]
    px_HWC = np.stack([x, y, np.zeros_like(x)], axis=-1).astype(np.uint8)
    trim = Trim((2.0, 4.0), ((10, 100), (200, 360)), ((0, 240),))
    for index in range(6):
        seen = view(image_of(px_HWC, trim=trim), (200, 200), strength("strong", "none"), 9, index)
        xy = np.stack(np.meshgrid(np.arange(70, 130) + 0.5, np.arange(70, 130) + 0.5), axis=-1)
        place = seen.image_from_view(xy)
        shown = seen.read((70, 130), (70, 130))[0][..., :2] + 0.5
        inside = np.all((place > 2) & (place < 238), axis=-1)
        assert inside.mean() > 0.5
        assert np.abs(place - shown)[inside].max() < 0.7
        left = place[..., 0] < 90
        l0 = seen.l0_from_view(xy)
        np.testing.assert_allclose(l0[..., 1], place[..., 1] * 4)
        np.testing.assert_allclose(l0[..., 0], np.where(left, place[..., 0] + 10, place[..., 0] + 110) * 2)


def test_the_distortion_is_as_strong_as_stated():
    much = Strength(flips=False, rotation=False, elastic_px=1000.0)
    seen = view(image_of(noise((8, 8))), (4096, 4096), much, 0, 0)
    xy = np.stack(np.meshgrid(np.arange(0, 4096, 16.0), np.arange(0, 4096, 16.0)), axis=-1)
    moved = seen.elastic.of_points(xy)
    assert 14 < moved.std() < 20
    # Neighbors 16 px apart move alike: nothing is folded.
    assert np.abs(np.diff(moved, axis=0)).max() < 8
    small = view(image_of(noise((8, 8))), (300, 300), much, 0, 0).elastic.of_points(xy[:19, :19])
    # A fourth of the side: a fourth of the way.
    assert 2.5 < small.std() < 9
    columns = np.arange(100, 140)
    centers = np.stack(np.meshgrid(columns + 0.5, np.arange(7, 30) + 0.5), axis=-1)
    moved = np.stack(seen.elastic.of_px(np.arange(7, 30), columns), axis=-1)
    np.testing.assert_allclose(moved, seen.elastic.of_points(centers), atol=1e-4)
