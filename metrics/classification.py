"""Scores of whole slides: labels against probabilities or numbers, each also for resamples of the patients.

N slides, K outputs, R resamples, G patients, B bins. A score `..._R` takes `weight_RN`, how often each slide occurs in
each resample, and is NaN in resamples in which it does not exist; one row of ones gives the score of the set itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from metrics.bootstrap import resamples
from metrics.stages import quadratic_kappa

Values = NDArray[np.float64]
Weights = NDArray[np.int64]
Flags = NDArray[np.bool_]

BINS = 10
"""Bins of equal width of a reliability diagram."""


@dataclass(frozen=True)
class Reliability:
    """A reliability diagram: in bins of the stated probability, how often it was right.

    Attributes:
        count_B: slides in each bin; bin i holds probabilities in [i / B, (i + 1) / B), the last one also 1.
        stated_B: their mean probability; NaN in empty bins.
        observed_B: share of them with the event; NaN in empty bins.
        error: expected calibration error, the mean of |stated - observed| over slides; NaN without slides. Source:
            Naeini et al. 2015, AAAI.
    """

    count_B: Weights
    stated_B: Values
    observed_B: Values
    error: float


def patient_weights(patients: Sequence[str], count: int, seed: int) -> tuple[Weights, int]:
    """Draw resamples of patients: all slides of a patient come together, since they are not independent.

    Args:
        patients: the patient of every slide.
        count: number of resamples R.
        seed: the same seed gives the same resamples.

    Returns:
        weight_RN, and the number of patients G; no resamples with fewer than 2 patients.
    """
    names = sorted(set(patients))
    place = {name: index for index, name in enumerate(names)}
    of_N = np.array([place[name] for name in patients], np.int64)
    return resamples(len(names), count, seed)[:, of_N], len(names)


def softmax_NK(logits_NK: Values) -> Values:  # noqa: N802, the shape is part of the name
    """Probabilities of classes that exclude each other."""
    shifted = logits_NK - logits_NK.max(axis=1, keepdims=True)
    share = np.exp(shifted)
    found: Values = share / share.sum(axis=1, keepdims=True)
    return found


def sigmoid_NK(logits_NK: Values) -> Values:  # noqa: N802
    """Probabilities of labels that may occur together."""
    small = np.exp(-np.abs(logits_NK))
    found: Values = np.where(logits_NK >= 0, 1 / (1 + small), small / (1 + small))
    return found


def softmax_loss_N(logits_NK: Values, class_N: Weights) -> Values:  # noqa: N802
    """Cross-entropy of every slide, from logits, so that no probability is rounded to 0."""
    top_N1 = logits_NK.max(axis=1, keepdims=True)
    total_N = np.log(np.exp(logits_NK - top_N1).sum(axis=1)) + top_N1[:, 0]
    found: Values = total_N - logits_NK[np.arange(len(logits_NK)), class_N]
    return found


def sigmoid_loss_N(logits_NK: Values, target_NK: Values) -> Values:  # noqa: N802
    """Binary cross-entropy of every slide, the mean over its labels, from logits."""
    each_NK = np.maximum(logits_NK, 0) - logits_NK * target_NK + np.log1p(np.exp(-np.abs(logits_NK)))
    found: Values = each_NK.mean(axis=1)
    return found


def smooth_l1_loss_N(value_NK: Values, target_NK: Values) -> Values:  # noqa: N802
    """Smooth L1 loss of every slide, the mean over its outputs: squared below an error of 1, linear above.

    Source: Girshick 2015, Fast R-CNN.
    """
    off_NK = np.abs(value_NK - target_NK)
    found: Values = np.where(off_NK < 1, 0.5 * off_NK**2, off_NK - 0.5).mean(axis=1)
    return found


def mean_R(value_N: NDArray[np.float64] | Flags, weight_RN: Weights) -> Values:  # noqa: N802
    """Mean over slides, such as the share of right ones or the loss; NaN in an empty resample."""
    return _ratio(weight_RN.astype(np.float64) @ value_N.astype(np.float64), weight_RN.sum(axis=1).astype(np.float64))


def recall_R(wanted_N: Flags, right_N: Flags, weight_RN: Weights) -> Values:  # noqa: N802
    """Share of some slides that are right: sensitivity of those with a label, specificity of those without."""
    return mean_R(right_N[wanted_N], weight_RN[:, wanted_N])


def kappa_R(truth_N: Weights, predicted_N: Weights, classes: int, weight_RN: Weights) -> Values:  # noqa: N802
    """Quadratic-weighted kappa of ordered classes 0 .. classes - 1, see `metrics.stages.quadratic_kappa`."""
    cell_N = truth_N * classes + predicted_N
    counts = [np.bincount(cell_N, row_N, classes * classes) for row_N in weight_RN]
    return np.array([quadratic_kappa(np.rint(one).astype(np.int64).reshape(classes, classes)) for one in counts])


def brier_R(p_NK: Values, target_NK: Values, weight_RN: Weights) -> Values:  # noqa: N802
    """Brier score: mean over slides of the squared error of the probabilities, summed over outputs; best is 0.

    Args:
        p_NK: probabilities; of two classes give the second one alone (N, 1), so that the worst is 1, not 2.
        target_NK: 0 or 1.
        weight_RN: see the top of the file.

    Returns:
        R scores. Source: Brier 1950, Monthly Weather Review 78.
    """
    return mean_R(((p_NK - target_NK) ** 2).sum(axis=1), weight_RN)


def reliability(p_N: Values, event_N: Flags, bins: int = BINS) -> Reliability:
    """Compute a reliability diagram.

    Args:
        p_N: probability of the event, 0 to 1: of a label, or of the predicted class.
        event_N: whether it occurred.
        bins: number of bins.
    """
    inside_NB = _bins_NB(p_N, bins)
    count_B = inside_NB.sum(axis=0)
    size_B = count_B.astype(np.float64)
    stated_B, observed_B = (_ratio(values @ inside_NB, size_B) for values in (p_N, event_N.astype(np.float64)))
    error = calibration_error_R(p_N, event_N, np.ones((1, len(p_N)), np.int64), bins)[0]
    return Reliability(count_B, stated_B, observed_B, float(error))


def calibration_error_R(p_N: Values, event_N: Flags, weight_RN: Weights, bins: int = BINS) -> Values:  # noqa: N802
    """Expected calibration error of resamples, see `Reliability.error`."""
    off_NB = (p_N - event_N)[:, None] * _bins_NB(p_N, bins)
    return _ratio(np.abs(weight_RN @ off_NB).sum(axis=1), weight_RN.sum(axis=1).astype(np.float64))


def rmse_R(off_N: Values, weight_RN: Weights) -> Values:  # noqa: N802
    """Root of the mean squared error."""
    found: Values = np.sqrt(mean_R(off_N**2, weight_RN))
    return found


def r2_R(value_N: Values, target_N: Values, weight_RN: Weights) -> Values:  # noqa: N802
    """Coefficient of determination, 1 - squared error / variance; NaN where all targets are equal."""
    mean_R1 = mean_R(target_N, weight_RN)[:, None]
    spread_R = (weight_RN * (target_N - mean_R1) ** 2).sum(axis=1)
    several_R = _differs_R(target_N, weight_RN)
    return np.where(several_R, 1 - _ratio(weight_RN @ (value_N - target_N) ** 2, spread_R), np.nan)


def spearman_R(value_N: Values, target_N: Values, weight_RN: Weights) -> Values:  # noqa: N802
    """Spearman's rank correlation, ties with their mean rank; NaN where all values or all targets are equal."""
    defined_R = _differs_R(value_N, weight_RN) & _differs_R(target_N, weight_RN)
    total_R1 = weight_RN.sum(axis=1, keepdims=True).astype(np.float64)
    # The mean of the ranks 1 to n is (n + 1) / 2, whatever the ties.
    a_RN, b_RN = (_ranks_RN(each_N, weight_RN) - (total_R1 + 1) / 2 for each_N in (value_N, target_N))
    shared_R, own_R, other_R = ((weight_RN * x * y).sum(axis=1) for x, y in ((a_RN, b_RN), (a_RN, a_RN), (b_RN, b_RN)))
    return np.where(defined_R, _ratio(shared_R, np.sqrt(own_R * other_R)), np.nan)


def _ranks_RN(value_N: Values, weight_RN: Weights) -> Values:  # noqa: N802
    """Mean rank of every slide in every resample, from 1."""
    _, place_N = np.unique(value_N, return_inverse=True)
    same_NU = (place_N[:, None] == np.arange(place_N.max(initial=-1) + 1)).astype(np.float64)
    count_RU = weight_RN @ same_NU
    found: Values = (np.cumsum(count_RU, axis=1) - count_RU + (count_RU + 1) / 2)[:, place_N]
    return found


def _differs_R(value_N: Values, weight_RN: Weights) -> Flags:  # noqa: N802
    """Whether the slides of a resample have more than one value."""
    low_R = np.where(weight_RN > 0, value_N, np.inf).min(axis=1, initial=np.inf)
    high_R = np.where(weight_RN > 0, value_N, -np.inf).max(axis=1, initial=-np.inf)
    found: Flags = low_R < high_R
    return found


def _bins_NB(p_N: Values, bins: int) -> NDArray[np.int64]:  # noqa: N802
    """1 in the bin of every slide."""
    bin_N = np.minimum((p_N * bins).astype(np.int64), bins - 1)
    inside_NB: NDArray[np.int64] = (bin_N[:, None] == np.arange(bins)).astype(np.int64)
    return inside_NB


def _ratio(part: Values, whole: Values) -> Values:
    found: Values = np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0)
    return found
