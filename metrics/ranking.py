"""Ranking of slides with tumor above those without by one number per slide: ROC curve and its area.

S slides, T thresholds, R resamples.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Roc:
    """A ROC curve.

    Attributes:
        threshold_T: from infinite (no slide called positive) down.
        false_rate_T: share of slides without tumor at or above the threshold.
        true_rate_T: share of slides with tumor at or above it.
        area: the area under it; NaN without slides of both kinds.
    """

    threshold_T: Values
    false_rate_T: Values
    true_rate_T: Values
    area: float


def roc(positive_S: NDArray[np.bool_], probability_S: Values) -> Roc:
    """Compute the curve over all distinct probabilities; slides of equal probability change sides together.

    Args:
        positive_S: whether each slide has tumor.
        probability_S: its tumor probability.

    Returns:
        The curve. Its area is the chance that a slide with tumor is ranked above one without, ties half. Source:
        Hanley and McNeil 1982, Radiology 143.

    Raises:
        ValueError: lengths differ, or a probability is NaN.
    """
    positive_S = np.asarray(positive_S, np.bool_)
    probability_S = np.asarray(probability_S, np.float64)
    if positive_S.shape != probability_S.shape or positive_S.ndim != 1:
        raise ValueError(f"truth of {positive_S.shape} and probabilities of {probability_S.shape} must be two lists")
    if np.isnan(probability_S).any():
        raise ValueError("a slide's tumor probability is NaN")
    threshold_T = np.append(np.inf, np.unique(probability_S)[::-1])
    called_TS = probability_S[None, :] >= threshold_T[:, None]
    rates = []
    for group_S in (~positive_S, positive_S):
        size = int(group_S.sum())
        rates.append(called_TS[:, group_S].sum(axis=1) / size if size else np.full(len(threshold_T), np.nan))
    area = auc_R(positive_S, probability_S, np.ones((1, len(positive_S)), np.int64))[0]
    return Roc(threshold_T, rates[0], rates[1], float(area))


def auc_R(positive_S: NDArray[np.bool_], probability_S: Values, weight_RS: NDArray[np.int64]) -> Values:  # noqa: N802
    """Compute the area under the ROC curve of resamples in which slide s occurs `weight_RS[r, s]` times.

    Args:
        positive_S: whether each slide has tumor.
        probability_S: its tumor probability.
        weight_RS: number of times each slide occurs.

    Returns:
        R areas, NaN where a resample has slides of one kind only.
    """
    tumor, other = probability_S[positive_S], probability_S[~positive_S]
    won = (tumor[:, None] > other[None, :]) + 0.5 * (tumor[:, None] == other[None, :])
    tumor_R, other_R = weight_RS[:, positive_S].astype(np.float64), weight_RS[:, ~positive_S].astype(np.float64)
    sums_R = ((tumor_R @ won) * other_R).sum(axis=1)
    pairs_R = tumor_R.sum(axis=1) * other_R.sum(axis=1)
    return np.divide(sums_R, pairs_R, out=np.full(pairs_R.shape, np.nan), where=pairs_R > 0)
