"""Pixel scores from sums: one confusion matrix and one histogram of tumor probabilities.

K: classes. N: bins of the tumor probability. P: pixels. Counts of patches, slides and ranks add up before any score is
taken, so the scores of a set do not depend on how it was cut into patches or divided among ranks.

confusion_KK: int64, rows truth, columns prediction. histogram_2N: int64, row 0 pixels that are not tumor, row 1
tumor; bin i holds the probabilities in [i / N, (i + 1) / N), the last one also 1.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

IGNORE = 255
"""Label of pixels without truth: never counted."""

BINS = 1024
"""Bins of the tumor probability in training and evaluation, so that their histograms add up."""

Counts = NDArray[np.int64]
Values = NDArray[np.float64]


def iou_K(confusion_KK: Counts) -> Values:  # noqa: N802, the shape is part of the name
    """Intersection over union (Jaccard index) per class: TP / (TP + FP + FN).

    Args:
        confusion_KK: pixel counts, rows truth, columns prediction.

    Returns:
        One value per class; NaN for a class that occurs neither in truth nor in prediction. Source: Everingham et al.
        2010, PASCAL VOC.
    """
    right_K, truth_K, predicted_K = _marginals(confusion_KK)
    return _ratio(right_K, truth_K + predicted_K - right_K)


def dice_K(confusion_KK: Counts) -> Values:  # noqa: N802
    """Dice coefficient per class: 2 TP / (2 TP + FP + FN).

    Args:
        confusion_KK: pixel counts, rows truth, columns prediction.

    Returns:
        One value per class; NaN for a class that occurs neither in truth nor in prediction. Source: Dice 1945.
    """
    right_K, truth_K, predicted_K = _marginals(confusion_KK)
    return _ratio(2 * right_K, truth_K + predicted_K)


def miou(confusion_KK: Counts) -> float:
    """Mean intersection over union over the classes that occur in truth or prediction.

    A class that occurs in neither has no IoU and is left out, rather than counted as 0 or 1.

    Args:
        confusion_KK: pixel counts, rows truth, columns prediction.

    Returns:
        The mean; NaN without any pixel.
    """
    values_K = iou_K(confusion_KK)
    occurs_K = ~np.isnan(values_K)
    return float(values_K[occurs_K].mean()) if occurs_K.any() else float("nan")


def accuracy(confusion_KK: Counts) -> float:
    """Share of pixels predicted correctly.

    Args:
        confusion_KK: pixel counts, rows truth, columns prediction.

    Returns:
        The share; NaN without any pixel.
    """
    right_K, truth_K, _ = _marginals(confusion_KK)
    return float(_ratio(right_K.sum(keepdims=True), truth_K.sum(keepdims=True))[0])


def auc(histogram_2N: Counts) -> float:
    """Area under the ROC curve: the chance that a tumor pixel gets a higher probability than another pixel.

    Ties count half. Pixels of one bin are ties, which is the trapezoidal rule on the ROC curve through the edges of the
    bins. It differs from the area of the unbinned probabilities by at most half the share of (tumor, other) pairs that
    meet in one bin.

    Args:
        histogram_2N: pixel counts by tumor probability, row 0 not tumor, row 1 tumor.

    Returns:
        The area; NaN when there are no tumor pixels or no others. Source: Hanley and McNeil 1982, Radiology 143.
    """
    assert histogram_2N.shape == (2, histogram_2N.size // 2), histogram_2N.shape
    other_N, tumor_N = histogram_2N.astype(np.int64)
    if not other_N.sum() or not tumor_N.sum():
        return float("nan")
    # Twice the other pixels below, ties half: integers keep it exact until the division.
    below_N = 2 * np.cumsum(other_N) - other_N
    # Python's integers: the product of two counts of a large set does not fit into 64 bits.
    pairs = sum(int(count) * int(below) for count, below in zip(tumor_N, below_N, strict=True))
    return pairs / (2 * int(tumor_N.sum()) * int(other_N.sum()))


def confusion_from_labels(
    truth: NDArray[np.integer[Any]], prediction: NDArray[np.integer[Any]], classes: int
) -> Counts:
    """Count pixels by true and predicted class.

    Args:
        truth: classes 0 .. classes - 1 or IGNORE, any shape.
        prediction: classes 0 .. classes - 1, the shape of `truth`; where `truth` is IGNORE its value does not matter.
        classes: number of classes K.

    Returns:
        confusion_KK, int64, rows truth, columns prediction.

    Raises:
        ValueError: shapes differ, or a class is out of range.
    """
    if truth.shape != prediction.shape:
        raise ValueError(f"truth of shape {truth.shape} and prediction of shape {prediction.shape} must have one shape")
    counted = truth != IGNORE
    truth_P, prediction_P = truth[counted].astype(np.int64), prediction[counted].astype(np.int64)
    for name, classes_P in (("truth", truth_P), ("prediction", prediction_P)):
        wrong = np.unique(classes_P[(classes_P < 0) | (classes_P >= classes)])
        if wrong.size:
            raise ValueError(
                f"{name} contains {wrong.tolist()[:10]}; with {classes} classes, 0 to {classes - 1} are allowed"
            )
    return np.bincount(truth_P * classes + prediction_P, minlength=classes * classes).reshape(classes, classes)


def histogram_from_probabilities(
    truth: NDArray[np.integer[Any]], p: NDArray[np.floating[Any]], bins: int = BINS
) -> Counts:
    """Count pixels by tumor probability, separately for tumor and the rest.

    Args:
        truth: class 0 is not tumor, every other class is, IGNORE is not counted; any shape.
        p: tumor probability in [0, 1], the shape of `truth`; where `truth` is IGNORE its value does not matter.
        bins: number of bins N of equal width over [0, 1].

    Returns:
        histogram_2N, int64, row 0 not tumor, row 1 tumor.

    Raises:
        ValueError: shapes differ, or a probability is NaN or outside [0, 1].
    """
    if truth.shape != p.shape:
        raise ValueError(f"truth of shape {truth.shape} and probabilities of shape {p.shape} must have one shape")
    counted = truth != IGNORE
    p_P = p[counted]
    outside = p_P[~((p_P >= 0) & (p_P <= 1))]
    if outside.size:
        raise ValueError(
            f"{outside.size} probabilities are not within [0, 1], the first is {outside[0]}; pass a softmax"
        )
    # The last bin takes 1 itself.
    bin_P = np.minimum((p_P.astype(np.float64) * bins).astype(np.int64), bins - 1)
    row_P = (truth[counted] != 0).astype(np.int64)
    return np.bincount(row_P * bins + bin_P, minlength=2 * bins).reshape(2, bins)


def histogram_from_bytes(truth: NDArray[np.integer[Any]], value: NDArray[np.uint8]) -> Counts:
    """Count pixels by tumor probability stored as a byte, round(255 p), separately for tumor and the rest.

    Args:
        truth: as for `histogram_from_probabilities`.
        value: 0 .. 255, the shape of `truth`.

    Returns:
        histogram_2N, int64, N = 256: one bin for each value, so nothing is lost by binning.

    Raises:
        ValueError: shapes differ.
    """
    if truth.shape != value.shape:
        raise ValueError(f"truth of shape {truth.shape} and probabilities of shape {value.shape} must have one shape")
    counted = truth != IGNORE
    row_P = (truth[counted] != 0).astype(np.int64)
    return np.bincount(row_P * 256 + value[counted], minlength=2 * 256).reshape(2, 256)


def _marginals(confusion_KK: Counts) -> tuple[Counts, Counts, Counts]:
    """Return pixels per class: predicted correctly, in truth, predicted."""
    assert confusion_KK.shape == (len(confusion_KK),) * 2, confusion_KK.shape
    return np.diagonal(confusion_KK), confusion_KK.sum(axis=1), confusion_KK.sum(axis=0)


def _ratio(part: Counts, whole: Counts) -> Values:
    """Part / whole, NaN where whole is 0."""
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)
