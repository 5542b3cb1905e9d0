"""Scores of whole slides, against numbers on paper, scikit-learn and SciPy."""

import math

import numpy as np
import pytest
from scipy import special, stats
from sklearn import calibration, metrics

from metrics import classification as c

RNG = np.random.default_rng(11)
N, K = 57, 4
LOGITS = RNG.normal(size=(N, K)) * 2
CLASS = RNG.integers(0, K, N)
ONES = np.ones((1, N), np.int64)
TWICE = RNG.integers(0, 3, (5, N))
VALUE = np.round(RNG.normal(size=N), 1)
TARGET = np.round(VALUE + RNG.normal(size=N), 1)


def repeated(array: np.ndarray, weight_N: np.ndarray) -> np.ndarray:
    return np.repeat(array, weight_N, axis=0)


def test_probabilities_and_losses_of_large_logits() -> None:
    logits = np.array([[1000.0, -1000.0, 0.0], [0.0, math.log(2), math.log(5)]])
    assert c.softmax_NK(logits).ravel().tolist() == pytest.approx([1, 0, 0, 1 / 8, 2 / 8, 5 / 8])
    assert c.softmax_loss_N(logits, np.array([1, 2])).tolist() == pytest.approx([2000, math.log(8 / 5)])
    assert c.sigmoid_NK(logits)[0].tolist() == [1, 0, 0.5]
    target = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0]])
    by_hand = (1000 + 1000 + math.log(2)) / 3
    assert c.sigmoid_loss_N(logits, target)[0] == pytest.approx(by_hand)
    assert c.smooth_l1_loss_N(np.array([[0.5], [3.0]]), np.array([[0.0], [1.0]])).tolist() == [0.125, 1.5]


def test_losses_against_scikit_learn_and_scipy() -> None:
    p_NK = c.softmax_NK(LOGITS)
    assert p_NK == pytest.approx(special.softmax(LOGITS, axis=1))
    assert c.softmax_loss_N(LOGITS, CLASS).mean() == pytest.approx(metrics.log_loss(CLASS, p_NK))
    target_NK = np.eye(K)[CLASS]
    mean = np.mean([metrics.log_loss(target_NK[:, k], special.expit(LOGITS[:, k])) for k in range(K)])
    assert c.sigmoid_loss_N(LOGITS, target_NK).mean() == pytest.approx(mean)


@pytest.mark.parametrize("weight_RN", [ONES, TWICE], ids=["the set", "resamples"])
def test_scores_of_classes_against_scikit_learn(weight_RN: np.ndarray) -> None:
    p_NK, predicted_N = c.softmax_NK(LOGITS), LOGITS.argmax(axis=1)
    truths = [repeated(CLASS, w) for w in weight_RN]
    predictions = [repeated(predicted_N, w) for w in weight_RN]
    accuracy = [metrics.accuracy_score(t, p) for t, p in zip(truths, predictions, strict=True)]
    assert c.mean_R(predicted_N == CLASS, weight_RN) == pytest.approx(accuracy)
    recall = [metrics.recall_score(t == 2, p == 2) for t, p in zip(truths, predictions, strict=True)]
    assert c.recall_R(CLASS == 2, predicted_N == 2, weight_RN) == pytest.approx(recall)
    kappa = [metrics.cohen_kappa_score(t, p, weights="quadratic") for t, p in zip(truths, predictions, strict=True)]
    assert c.kappa_R(CLASS, predicted_N, K, weight_RN) == pytest.approx(kappa)
    brier = [metrics.brier_score_loss(t, repeated(p_NK, w)) for t, w in zip(truths, weight_RN, strict=True)]
    assert c.brier_R(p_NK, np.eye(K)[CLASS], weight_RN) == pytest.approx(brier)
    binary = [metrics.brier_score_loss(t == 1, repeated(p_NK[:, 1], w)) for t, w in zip(truths, weight_RN, strict=True)]
    assert c.brier_R(p_NK[:, 1:2], np.eye(K)[CLASS][:, 1:2], weight_RN) == pytest.approx(binary)


@pytest.mark.parametrize("weight_RN", [ONES, TWICE], ids=["the set", "resamples"])
def test_scores_of_numbers_against_scikit_learn_and_scipy(weight_RN: np.ndarray) -> None:
    assert len(np.unique(VALUE)) < N, "ties are wanted"
    pairs = [(repeated(TARGET, w), repeated(VALUE, w)) for w in weight_RN]
    assert c.mean_R(np.abs(VALUE - TARGET), weight_RN) == pytest.approx(
        [metrics.mean_absolute_error(t, v) for t, v in pairs]
    )
    assert c.rmse_R(VALUE - TARGET, weight_RN) == pytest.approx(
        [metrics.root_mean_squared_error(t, v) for t, v in pairs]
    )
    assert c.r2_R(VALUE, TARGET, weight_RN) == pytest.approx([metrics.r2_score(t, v) for t, v in pairs])
    assert c.spearman_R(VALUE, TARGET, weight_RN) == pytest.approx([stats.spearmanr(t, v)[0] for t, v in pairs])


def test_the_reliability_diagram_on_paper() -> None:
    p_N = np.array([0.0, 0.1, 0.5, 0.6, 0.7, 1.0])
    event_N = np.array([0, 1, 0, 1, 1, 1], bool)
    found = c.reliability(p_N, event_N, bins=2)
    assert found.count_B.tolist() == [2, 4]
    assert found.stated_B.tolist() == pytest.approx([0.05, 0.7])
    assert found.observed_B.tolist() == [0.5, 0.75]
    assert found.error == pytest.approx((2 * 0.45 + 4 * 0.05) / 6)
    assert math.isnan(c.reliability(p_N[:2], event_N[:2], bins=2).stated_B[1])
    without_first = c.calibration_error_R(p_N, event_N, np.array([[0, 1, 1, 1, 1, 1]]), bins=2)
    assert without_first.tolist() == pytest.approx([(0.9 + 4 * 0.05) / 5])


def test_the_reliability_diagram_against_scikit_learn() -> None:
    p_N, event_N = c.softmax_NK(LOGITS)[:, 1], CLASS == 1
    found = c.reliability(p_N, event_N)
    observed, stated = calibration.calibration_curve(event_N, p_N, n_bins=10)
    filled_B = found.count_B > 0
    assert found.observed_B[filled_B] == pytest.approx(observed)
    assert found.stated_B[filled_B] == pytest.approx(stated)


def test_slides_of_a_patient_come_together() -> None:
    weight_RN, patients = c.patient_weights(["b", "a", "b", "c"], 40, seed=5)
    assert patients == 3
    assert weight_RN.shape == (40, 4)
    assert (weight_RN[:, 0] == weight_RN[:, 2]).all()
    assert (weight_RN[:, 0] != weight_RN[:, 1]).any()
    assert (weight_RN[:, [0, 1, 3]].sum(axis=1) == 3).all()
    assert c.patient_weights(["a", "a"], 40, seed=5)[0].shape == (0, 2)


def test_undefined_scores_are_nan_without_a_warning() -> None:
    same_N, weight_RN = np.array([0.1, 0.1, 0.1]), np.ones((1, 3), np.int64)
    rising_N = np.array([1.0, 2.0, 3.0])
    assert math.isnan(c.r2_R(rising_N, same_N, weight_RN)[0])
    assert math.isnan(c.spearman_R(same_N, rising_N, weight_RN)[0])
    assert math.isnan(c.spearman_R(rising_N, rising_N, np.array([[2, 0, 0]]))[0])
    assert math.isnan(c.mean_R(rising_N, np.zeros((1, 3), np.int64))[0])
    assert math.isnan(c.recall_R(np.zeros(3, bool), np.ones(3, bool), weight_RN)[0])
    assert math.isnan(c.kappa_R(np.ones(3, np.int64), np.ones(3, np.int64), 3, weight_RN)[0])
