"""Losses of whole images, against numbers on paper."""

import math

import numpy as np
import pytest

from classification.losses import Loss

LOG2, LOG4 = math.log(2), math.log(4)


def joint(loss, logits_BK, target_BK):
    sums_BS = loss.sums(np.array(logits_BK, np.float32), np.array(target_BK, np.float32)).numpy()
    return float(loss.value(sums_BS.sum(0))), sums_BS


def test_classes_with_weights():
    # Probabilities of the true class: 1/2 and 1/4.
    loss, sums_BS = joint(Loss("classes", (1, 3)), [[0, 0], [math.log(3), 0]], [[1, 0], [0, 1]])
    np.testing.assert_allclose(sums_BS, [[LOG2, 1], [3 * LOG4, 3]], rtol=1e-6)
    assert loss == pytest.approx((LOG2 + 3 * LOG4) / 4)
    assert joint(Loss("classes"), [[0, 0], [math.log(3), 0]], [[1, 0], [0, 1]])[0] == pytest.approx((LOG2 + LOG4) / 2)


def test_classes_smoothed():
    # 0.8 of the target on class 0, and 0.1 on each of the two others and on itself: cross-entropy with 3/4, 1/8, 1/8.
    logits = [[math.log(6), 0.0, 0.0]]
    expected = 0.8 * math.log(4 / 3) + 0.2 * math.log(8)
    assert joint(Loss("classes", label_smoothing=0.3), logits, [[1, 0, 0]])[0] == pytest.approx(expected, rel=1e-6)


def test_labels_are_a_mean_over_labels():
    loss, sums_BS = joint(Loss("multilabel"), [[0, math.log(3)]], [[1, 0]])
    np.testing.assert_allclose(sums_BS, [[(LOG2 + LOG4) / 2, 1]], rtol=1e-6)
    assert loss == pytest.approx((LOG2 + LOG4) / 2)
    assert joint(Loss("multilabel", (1, 3)), [[0, math.log(3)]], [[1, 0]])[0] == pytest.approx((LOG2 + 3 * LOG4) / 4)
    smoothed = 0.25 * math.log(4 / 3) + 0.75 * LOG4
    assert joint(Loss("multilabel", label_smoothing=0.5), [[math.log(3)]], [[0]])[0] == pytest.approx(smoothed)


def test_numbers_are_smooth_l1():
    loss, _ = joint(Loss("regression"), [[0.5], [-3.0]], [[0.0], [1.0]])
    assert loss == pytest.approx((0.125 + 3.5) / 2)
    assert joint(Loss("regression"), [[2.0, 0.0]], [[0.0, 0.0]])[0] == pytest.approx(0.75)


def test_parts_add_up_with_the_weight_known_before():
    loss = Loss("classes", (1, 3))
    target_BK = np.array([[1, 0], [0, 1], [0, 1]], np.float32)
    logits_BK = np.array([[2, 0], [0, 1], [-1, 1]], np.float32)
    weight = loss.weight(target_BK)
    assert float(weight) == 7
    each = [float(loss.value(sums_S, weight)) for sums_S in loss.sums(logits_BK, target_BK)]
    assert sum(each) == pytest.approx(joint(loss, logits_BK, target_BK)[0], rel=1e-6)
    assert float(loss.weight(np.zeros((0, 2), np.float32))) == 0
    assert float(loss.value(np.zeros(2, np.float32))) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("pixels",), "kind 'pixels' of labels is unknown; choose one of classes, multilabel, regression"),
        (("classes", (0.0, 0.0)), "weights .* give numbers from 0 on"),
        (("classes", (-1.0, 1.0)), "weights .* give numbers from 0 on"),
        (("classes", None, 1.0), "label smoothing 1.0: give a share from 0 to below 1"),
        (("regression", (1.0,)), "regression: class weights and label smoothing are for classes and labels"),
    ],
)
def test_what_has_no_meaning_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Loss(*options)
