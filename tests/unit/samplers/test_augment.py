"""Augmentation: pure in (seed, index), image and label together, labels never invented."""

import numpy as np
import pytest
import tensorflow as tf

from options.choices import AUGMENTATIONS
from samplers import augment
from samplers.augment import STRENGTHS, Augment, Strength, parameters

SIDE = 64


def coded(batch=2, channels=3):
    """Image whose first channel is the column, second the row; the label repeats the column."""
    column, row = np.meshgrid(np.arange(SIDE), np.arange(SIDE))
    image_HWC = np.stack([column * 4, row * 4, (column + row) * 2] * (channels // 3), -1).astype(np.uint8)
    label_HW = column.astype(np.uint8)
    return tf.constant(np.repeat(image_HWC[None], batch, 0)), tf.constant(np.repeat(label_HW[None], batch, 0))


def test_every_augmentation_has_its_strength():
    assert {"none", *STRENGTHS} == set(AUGMENTATIONS)


@pytest.mark.parametrize("level", ["flips", "standard", "strong"])
def test_what_is_done_depends_on_seed_and_index_alone(level):
    image_BHWC, label_BHW = coded(3)
    once = Augment(level, 7)(image_BHWC, label_BHW, np.array([5.0, 8.0, 9.0]))
    # Another batch, another order, another object.
    again = Augment(level, 7)(image_BHWC[:2], label_BHW[:2], np.array([9.0, 5.0]))
    for first, second in zip(once, again, strict=True):
        np.testing.assert_array_equal(first.numpy()[[2, 0]], second.numpy())
    assert not np.array_equal(parameters("strong", 7, 5), parameters("strong", 8, 5))
    assert not np.array_equal(parameters("strong", 7, 5), parameters("strong", 7, 6))


def test_flips_are_the_eight_symmetries_and_exact():
    image_BHWC, label_BHW = coded(64)
    turned, labels = (t.numpy() for t in Augment("flips", 0)(image_BHWC, label_BHW, np.arange(64)))
    symmetries = {np.rot90(label_BHW[0].numpy(), k).tobytes() for k in range(4)}
    symmetries |= {np.rot90(label_BHW[0].numpy().T, k).tobytes() for k in range(4)}
    # The label is the column alone, so its eight symmetries come in pairs.
    assert {label.tobytes() for label in labels} == symmetries
    np.testing.assert_array_equal(turned[..., 0], labels * 4)
    assert len({image.tobytes() for image in turned}) == 8


@pytest.mark.parametrize("level", ["standard", "strong"])
def test_image_and_label_move_together(level, monkeypatch):
    # Geometry alone, so that the image still says where it came from.
    much = STRENGTHS[level]
    monkeypatch.setitem(STRENGTHS, level, Strength(zoom=much.zoom, elastic=much.elastic))
    image_BHWC, label_BHW = coded(16)
    moved, labels = (t.numpy() for t in Augment(level, 1)(image_BHWC, label_BHW, np.arange(16)))
    known = labels != 255
    assert known.mean() > 0.7
    # Bilinear against nearest: at most half a pixel (2 gray levels) apart, and rounding.
    assert np.abs(moved[..., 0].astype(int) - labels.astype(int) * 4)[known].max() <= 3
    assert set(np.unique(labels)) <= {*range(SIDE), 255}
    assert not np.array_equal(labels[0], label_BHW[0])


def test_a_zoom_out_ignores_what_was_not_read(monkeypatch):
    monkeypatch.setitem(STRENGTHS, "standard", Strength(zoom=0.5))
    image_BHWC, label_BHW = coded(8)
    _, labels = Augment("standard", 0)(image_BHWC, label_BHW, np.arange(8))
    zooms = np.array([parameters("standard", 0, i)[augment._ZOOM][0] for i in range(8)])
    expected = np.where(zooms < 1, 1 - zooms**2, 0)
    assert zooms.min() < 0.8
    np.testing.assert_allclose((labels.numpy() == 255).mean((1, 2)), expected, atol=0.06)


def test_color_without_strength_changes_nothing():
    drawn_BP = tf.constant(parameters("flips", 0, 0)[None])
    levels = tf.constant(np.random.default_rng(0).integers(0, 256, (1, 9, 9, 6)), tf.float32)
    np.testing.assert_allclose(augment.recolored(levels, drawn_BP), levels, atol=0.02)
    np.testing.assert_array_equal(augment.blurred(levels, drawn_BP[:, augment._BLUR]), levels)


def test_stain_is_scaled_in_optical_density(monkeypatch):
    monkeypatch.setitem(STRENGTHS, "standard", Strength(stain=0.5))
    drawn_BP = parameters("standard", 0, 3)[None]
    eosin_od = 0.4 * augment.HED_RGB[1]
    pixel = (256 * np.exp(-eosin_od) - 1)[None, None, None]
    shown = augment.recolored(tf.constant(pixel, tf.float32), tf.constant(drawn_BP)).numpy()[0, 0, 0]
    found = -np.log((shown + 1) / 256) / augment.HED_RGB[1]
    # Pure eosin stays pure eosin, only more or less of it; glass stays glass.
    np.testing.assert_allclose(found, found.mean(), rtol=1e-3)
    assert 0.2 <= found.mean() <= 0.6
    glass = augment.recolored(tf.fill((1, 1, 1, 3), 255.0), tf.constant(drawn_BP)).numpy()
    np.testing.assert_allclose(glass, 255, atol=1e-3)


def test_blur_is_a_gaussian_of_the_given_sigma():
    impulse = np.zeros((1, 33, 33, 3), np.float32)
    impulse[0, 16, 16] = 1
    out = augment.blurred(tf.constant(impulse), tf.constant([[1.0]])).numpy()[0, ..., 0]
    along = np.arange(33) - 16
    assert out.sum() == pytest.approx(1, abs=1e-5)
    assert (out.sum(0) * along**2).sum() == pytest.approx(1.0, rel=0.03)  # cut at 3 sigma


def test_a_context_view_is_treated_like_the_first():
    image_BHWC, label_BHW = coded(4, channels=6)
    out, _ = Augment("strong", 2)(image_BHWC, label_BHW, np.arange(4))
    np.testing.assert_array_equal(out[..., :3], out[..., 3:])
