"""Percentile bootstrap over slides (or patients): how much a score would vary with another sample of them.

S slides, R resamples. Patches and pixels of one slide are not independent, so whole slides are drawn. Source: Efron
and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEAST_SLIDES = 2
"""With fewer slides, every resample is the set itself."""

Weights = NDArray[np.int64]
Values = NDArray[np.float64]

_CHUNK_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Interval:
    """A percentile interval.

    Attributes:
        low: lower end; NaN where there is no interval.
        high: upper end.
        slides: number of slides (patients) drawn from.
        defined: share of resamples in which the score exists; the ends are of those.
    """

    low: float
    high: float
    slides: int
    defined: float


def resamples(slides: int, count: int, seed: int) -> Weights:
    """Draw how often each slide occurs in each resample: weight_RS, whose rows each sum to `slides`.

    Args:
        slides: number of slides S; fewer than 2 give no resamples.
        count: number of resamples R.
        seed: the same seed gives the same resamples.

    Raises:
        ValueError: a number is negative.
    """
    if slides < 0 or count < 0:
        raise ValueError(f"{count} resamples of {slides} slides: both must be at least 0")
    if slides < LEAST_SLIDES:
        return np.zeros((0, slides), np.int64)
    rng = np.random.default_rng(seed)
    return rng.multinomial(slides, np.full(slides, 1 / slides), size=count).astype(np.int64)


def interval(values_R: Values, slides: int, level: float = 0.95) -> Interval:
    """Compute the percentile interval of the scores of resamples.

    Args:
        values_R: one score per resample, NaN where it does not exist.
        slides: number of slides drawn from.
        level: share of the resamples inside.

    Returns:
        The interval; NaN with fewer than 2 slides or without any defined score.
    """
    if not 0 < level < 1:
        raise ValueError(f"level {level}: a share between 0 and 1 (both excluded) is needed")
    defined = values_R[~np.isnan(values_R)]
    if slides < LEAST_SLIDES or not defined.size:
        return Interval(float("nan"), float("nan"), slides, 0.0)
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), slides, defined.size / values_R.size)


def of_counts(
    counts: Sequence[NDArray[Any]], statistic: Callable[..., Values | float], weight_RS: Weights
) -> NDArray[np.float64]:
    """Compute a statistic of summed counts for every resample.

    The sums of all resamples are one matrix product; only the statistic itself runs once for each.

    Args:
        counts: arrays of whole numbers with slides along the first axis, such as confusion matrices (S, K, K) and
            histograms (S, 2, N).
        statistic: takes the sums (K, K), (2, N), ... and returns one number or an array.
        weight_RS: from `resamples`.

    Returns:
        The statistic of each resample, shape (R, ...); (0,) without resamples.

    Raises:
        ValueError: the counts have another number of slides than the resamples.
    """
    for array in counts:
        if len(array) != weight_RS.shape[1]:
            raise ValueError(f"counts of {len(array)} slides, resamples of {weight_RS.shape[1]}")
    if not len(weight_RS):
        return np.zeros(0)
    flat = [np.ascontiguousarray(array).reshape(len(array), -1).astype(np.float64) for array in counts]
    width = sum(part.shape[1] for part in flat)
    rows = max(1, _CHUNK_BYTES // (8 * max(1, width)))
    found: list[Any] = []
    for first in range(0, len(weight_RS), rows):
        weight = weight_RS[first : first + rows].astype(np.float64)
        # Doubles hold whole numbers up to 9e15 exactly: more pixels than any set of slides has.
        sums = [
            np.rint(weight @ part).astype(np.int64).reshape(-1, *array.shape[1:])
            for part, array in zip(flat, counts, strict=True)
        ]
        found += [statistic(*(part[r] for part in sums)) for r in range(len(weight))]
    return np.array(found, np.float64)
