"""Pixel scores, against numbers worked out on paper and against scikit-learn."""

import math

import numpy as np
import pytest
from sklearn import metrics

from metrics.confusion import (
    IGNORE,
    accuracy,
    auc,
    confusion_from_labels,
    dice_K,
    histogram_from_bytes,
    histogram_from_probabilities,
    iou_K,
    miou,
)

# Rows truth, columns prediction.
CONFUSION_22 = np.array([[5, 1], [2, 4]])


def test_rows_are_truth_and_columns_prediction_and_ignored_pixels_do_not_count() -> None:
    truth_HW = np.array([[0, 0, 1], [1, 2, IGNORE]], np.uint8)
    prediction_HW = np.array([[0, 2, 1], [0, 2, 1]], np.uint8)
    confusion_KK = confusion_from_labels(truth_HW, prediction_HW, 4)
    assert confusion_KK.tolist() == [[1, 0, 1, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert confusion_KK.dtype == np.int64


def test_a_prediction_out_of_range_is_allowed_only_where_truth_is_ignored() -> None:
    truth_P = np.array([1, IGNORE, 0], np.uint8)
    assert confusion_from_labels(truth_P, np.array([1, 9, 0]), 2).tolist() == [[1, 0], [0, 1]]
    with pytest.raises(ValueError, match=r"prediction contains \[9\]; with 2 classes, 0 to 1 are allowed"):
        confusion_from_labels(truth_P, np.array([1, 0, 9]), 2)
    with pytest.raises(ValueError, match=r"truth contains \[1\]; with 1 classes"):
        confusion_from_labels(truth_P, np.array([0, 0, 0]), 1)
    with pytest.raises(ValueError, match=r"shape \(3,\) .* shape \(2,\)"):
        confusion_from_labels(truth_P, np.array([0, 0]), 2)


def test_scores_on_paper() -> None:
    assert iou_K(CONFUSION_22) == pytest.approx([5 / 8, 4 / 7])
    assert dice_K(CONFUSION_22) == pytest.approx([10 / 13, 8 / 11])
    assert miou(CONFUSION_22) == pytest.approx((5 / 8 + 4 / 7) / 2)
    assert accuracy(CONFUSION_22) == pytest.approx(0.75)


def test_a_class_that_never_occurs_has_no_score_and_a_missed_one_has_zero() -> None:
    confusion_KK = np.array([[6, 0, 2], [0, 0, 0], [0, 0, 0]])
    assert iou_K(confusion_KK).tolist() == pytest.approx([0.75, math.nan, 0.0], nan_ok=True)
    assert dice_K(confusion_KK).tolist() == pytest.approx([12 / 14, math.nan, 0.0], nan_ok=True)
    assert miou(confusion_KK) == pytest.approx(0.375)


def test_no_pixel_means_no_score() -> None:
    none_KK = np.zeros((2, 2), np.int64)
    assert np.isnan([*iou_K(none_KK), *dice_K(none_KK), miou(none_KK), accuracy(none_KK)]).tolist() == [True] * 6


def test_histogram_bins() -> None:
    truth_HW = np.array([[0, 0, 1, 2], [1, 1, IGNORE, 0]], np.uint8)
    p_HW = np.array([[0.0, 0.24, 0.25, 0.5], [1.0, 0.99, math.nan, 0.75]])
    assert histogram_from_probabilities(truth_HW, p_HW, 4).tolist() == [[2, 0, 0, 1], [0, 1, 1, 2]]


def test_bytes_have_a_bin_each() -> None:
    truth_HW = np.array([[0, 0, 1], [2, IGNORE, 1]], np.uint8)
    histogram_2N = histogram_from_bytes(truth_HW, np.array([[0, 255, 255], [7, 9, 255]], np.uint8))
    assert histogram_2N.shape == (2, 256)
    assert np.argwhere(histogram_2N).tolist() == [[0, 0], [0, 255], [1, 7], [1, 255]]
    assert histogram_2N[1, 255] == 2
    with pytest.raises(ValueError, match=r"shape \(2, 3\) .* shape \(3,\)"):
        histogram_from_bytes(truth_HW, np.zeros(3, np.uint8))


@pytest.mark.parametrize("p", [-0.01, 1.01, math.nan, math.inf])
def test_a_number_that_is_no_probability_is_refused(p: float) -> None:
    with pytest.raises(ValueError, match=r"1 probabilities are not within \[0, 1\]"):
        histogram_from_probabilities(np.array([0, 1]), np.array([0.5, p]), 4)


def test_probabilities_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(2,\) .* shape \(3,\)"):
        histogram_from_probabilities(np.array([0, 1]), np.array([0.5, 0.5, 0.5]), 4)


@pytest.mark.parametrize(
    ("histogram_2N", "area"),
    [
        ([[2, 0, 0], [0, 0, 3]], 1.0),
        ([[0, 0, 2], [3, 0, 0]], 0.0),
        ([[0, 4, 0], [0, 3, 0]], 0.5),
        # 2 tumor pixels in bin 1 and 2, others 3 and 1 in bin 0 and 1: pairs won 3 + 0.5 and 4, of 8.
        ([[3, 1, 0], [0, 1, 1]], 7.5 / 8),
        ([[0, 0, 0], [1, 0, 2]], math.nan),
        ([[1, 0, 2], [0, 0, 0]], math.nan),
    ],
)
def test_auc_on_paper(histogram_2N: list[list[int]], area: float) -> None:
    assert auc(np.array(histogram_2N)) == pytest.approx(area, nan_ok=True)


def test_auc_of_more_pairs_than_64_bits_hold() -> None:
    assert auc(np.array([[3, 1, 0], [0, 1, 1]]) * 10**12) == 0.9375


def test_against_scikit_learn() -> None:
    rng = np.random.default_rng(7)
    truth_P = rng.integers(0, 3, 997)
    prediction_P = np.where(rng.random(997) < 0.6, truth_P, rng.integers(0, 3, 997))
    confusion_KK = confusion_from_labels(truth_P, prediction_P, 3)
    assert confusion_KK.tolist() == metrics.confusion_matrix(truth_P, prediction_P).tolist()
    assert iou_K(confusion_KK) == pytest.approx(metrics.jaccard_score(truth_P, prediction_P, average=None), rel=1e-12)
    assert dice_K(confusion_KK) == pytest.approx(metrics.f1_score(truth_P, prediction_P, average=None), rel=1e-12)
    assert accuracy(confusion_KK) == pytest.approx(metrics.accuracy_score(truth_P, prediction_P), rel=1e-12)


def test_auc_against_scikit_learn() -> None:
    rng = np.random.default_rng(8)
    truth_P = rng.integers(0, 2, 997)
    # Eighths: every probability lies on the lower edge of its bin, so binning makes no new ties.
    p_P = np.clip(truth_P + rng.integers(-4, 5, 997), 0, 8) / 8
    histogram_2N = histogram_from_probabilities(truth_P, p_P, 16)
    assert auc(histogram_2N) == pytest.approx(metrics.roc_auc_score(truth_P, p_P), rel=1e-12)


def test_binning_changes_the_auc_by_no_more_than_half_the_tied_pairs() -> None:
    rng = np.random.default_rng(9)
    truth_P = rng.integers(0, 2, 997)
    p_P = 1 / (1 + np.exp(-rng.normal(truth_P, 1.0)))
    histogram_2N = histogram_from_probabilities(truth_P, p_P, 32)
    tied = (histogram_2N[0] * histogram_2N[1]).sum() / (histogram_2N[0].sum() * histogram_2N[1].sum())
    error = abs(auc(histogram_2N) - metrics.roc_auc_score(truth_P, p_P))
    assert 0 < error <= tied / 2 < 0.05


def test_sums_of_parts_score_like_the_whole() -> None:
    rng = np.random.default_rng(10)
    truth_HW = rng.choice(np.array([0, 1, IGNORE]), (30, 7))
    prediction_HW = rng.integers(0, 2, (30, 7))
    parts = [confusion_from_labels(truth_HW[rows], prediction_HW[rows], 2) for rows in (slice(0, 11), slice(11, 30))]
    assert (parts[0] + parts[1]).tolist() == confusion_from_labels(truth_HW, prediction_HW, 2).tolist()
