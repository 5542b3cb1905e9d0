"""Losses by hand, over ignored pixels, and put together from parts."""

import math

import numpy as np
import pytest
import tensorflow as tf

from options.choices import LOSSES
from segmentation.losses import Loss, total
from training.step import joint_value

RNG = np.random.default_rng(7)


def test_loss_by_hand():
    # one row of three pixels: p(class 1) = 0.5, 0.75, anything; labels 1, 0, ignored
    logits_BHWK = np.array([[[[0.0, 0.0], [0.0, math.log(3.0)], [9.0, -9.0]]]], np.float32)
    label_BHW = np.array([[[1, 0, 255]]], np.uint8)

    def value(name, **options):
        loss = Loss(name, (2.0, 5.0), **options)
        return float(loss.value(loss.sums(logits_BHWK, label_BHW)[0]))

    ce = (5 * math.log(2) + 2 * math.log(4)) / 7
    # overlap of class 0 is 2 x 0.25, of class 1 5 x 0.5; predicted 5 x 0.5 + 2 x 0.25 and 5 x 0.5 + 2 x 0.75
    dice = 1 - (2 * 0.5 / (3 + 2) + 2 * 2.5 / (4 + 5)) / 2
    assert value("ce") == pytest.approx(ce)
    assert value("focal") == pytest.approx((5 * 0.25 * math.log(2) + 2 * 0.75**2 * math.log(4)) / 7)
    assert value("focal", focal_gamma=0.0) == pytest.approx(ce)
    assert value("dice") == pytest.approx(dice)
    assert value("ce+dice") == pytest.approx(ce + dice)
    # the target of a class is 0.9 + 0.05, that of the other 0.05
    smooth = 5 * math.log(2) + 2 * (0.95 * math.log(4) + 0.05 * math.log(4 / 3))
    assert value("ce", label_smoothing=0.1) == pytest.approx(smooth / 7)


@pytest.mark.parametrize("name", LOSSES)
def test_ignored_pixels_never_poison_the_loss(name):
    logits_BHWK = np.array([[[[np.inf, 0.0], [0.0, 0.0]]]], np.float32)
    poisoned, clean = (
        Loss(name, (1.0, 1.0)).sums(logits_BHWK[:, :, first:], np.array([[[255, 1]]], np.uint8)[:, :, first:]).numpy()
        for first in (0, 1)
    )
    np.testing.assert_allclose(poisoned, clean)
    assert total(Loss(name, (1.0, 1.0)), clean[0]) > 0
    assert math.isnan(total(Loss(name, (1.0, 1.0)), clean[0] * 0))


@pytest.mark.parametrize("name", LOSSES)
def test_parts_of_a_batch_give_the_gradient_of_the_whole(name):
    """What ranks do: sums added up, and each part's gradient from the slope along them."""
    loss = Loss(name, (1.0, 3.0, 2.0), label_smoothing=0.0 if name == "dice" else 0.1)
    logits_BHWK = tf.constant(RNG.normal(size=(3, 4, 5, 3)).astype(np.float32))
    label_BHW = RNG.integers(0, 3, (3, 4, 5)).astype(np.uint8)
    label_BHW[1:, 2:] = 255
    with tf.GradientTape() as tape:
        tape.watch(logits_BHWK)
        whole = loss.value(tf.reduce_sum(loss.sums(logits_BHWK, label_BHW), 0))
    expected = tape.gradient(whole, logits_BHWK)
    value, slope_S = joint_value(loss, tf.reduce_sum(loss.sums(logits_BHWK, label_BHW), 0))
    with tf.GradientTape() as tape:
        tape.watch(logits_BHWK)
        parts = [loss.sums(logits_BHWK[i : i + 1], label_BHW[i : i + 1])[0] for i in range(3)]
        local = tf.add_n([tf.reduce_sum(slope_S * part) for part in parts])
    np.testing.assert_allclose(tape.gradient(local, logits_BHWK), expected, atol=1e-7)
    assert float(value) == pytest.approx(float(whole))
    assert np.abs(expected).max() > 1e-3
