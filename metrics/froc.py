"""Free-response ROC of detections against lesions, as CAMELYON16 scores them.

D detections, L lesions, S slides, T thresholds. Source: the challenge's published evaluation program
(Evaluation_FROC.py); Ehteshami Bejnordi et al. 2017, JAMA 318(22).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from metrics.lesions import Lesions
from options.choices import FALSE_PER_SLIDE, FrocRule

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Hits:
    """What the detections of one slide hit.

    Attributes:
        false: probabilities of the false positives.
        lesion_L: highest probability of a detection on each lesion that counts, 0 without one.
        itc: number of lesions that are isolated tumor cells.
        ignored: detections on those, or where truth is unknown: neither right nor false.
    """

    false: Values
    lesion_L: Values
    itc: int = 0
    ignored: int = 0


@dataclass(frozen=True)
class Froc:
    """A FROC curve and its score.

    Attributes:
        threshold_T: probabilities from low to high; the last is infinite: nothing detected.
        false_per_slide_T: false positives at or above the threshold, averaged over all slides.
        sensitivity_T: share of lesions found.
        at: sensitivity at each number of false positives per slide.
        score: their mean; NaN without any lesion.
        lesions: number of lesions.
    """

    threshold_T: Values
    false_per_slide_T: Values
    sensitivity_T: Values
    at: Values
    score: float
    lesions: int


def slide_hits(
    lesions: Lesions, probability_D: Values, row_column_D2: Values, unknown_HW: NDArray[np.bool_] | None = None
) -> Hits:
    """Compare the detections of one slide with its lesions.

    Args:
        lesions: lesions of the slide; without any, every detection is false.
        probability_D: probability of each detection, 0 to 1.
        row_column_D2: its place, px of the map of `lesions`; pixel [r, c] covers [r, r + 1) x [c, c + 1). Outside the
            map a detection is false.
        unknown_HW: where truth is unknown: detections there, off any lesion, are ignored.

    Raises:
        ValueError: probabilities or places are not finite or out of range, or their numbers differ.
    """
    probability_D = np.asarray(probability_D, np.float64).reshape(-1)
    row_column_D2 = np.asarray(row_column_D2, np.float64).reshape(-1, 2)
    if len(probability_D) != len(row_column_D2):
        raise ValueError(f"{len(probability_D)} probabilities for {len(row_column_D2)} places")
    if not ((probability_D >= 0) & (probability_D <= 1)).all():
        raise ValueError("detections with a probability outside [0, 1]")
    if not np.isfinite(row_column_D2).all():
        raise ValueError("detections without a place: coordinates must be finite numbers")
    hit_D = values_at(lesions.label_HW, row_column_D2)
    unknown_D = np.zeros(len(probability_D), np.bool_)
    if unknown_HW is not None:
        unknown_D = values_at(unknown_HW, row_column_D2) > 0
    best = np.zeros(len(lesions.is_itc_L) + 1)
    np.maximum.at(best, hit_D, probability_D)
    on_itc_D = np.concatenate([[False], lesions.is_itc_L])[hit_D]
    return Hits(
        false=probability_D[(hit_D == 0) & ~unknown_D],
        lesion_L=best[1:][~lesions.is_itc_L],
        itc=int(lesions.is_itc_L.sum()),
        ignored=int((on_itc_D | ((hit_D == 0) & unknown_D)).sum()),
    )


def values_at(map_HW: NDArray[np.int32] | NDArray[np.bool_], row_column_D2: Values) -> NDArray[np.int64]:
    """Return the value of a map at each place, px of the map as for `slide_hits`; 0 outside it; shape (D,)."""
    height, width = map_HW.shape
    row_D, column_D = np.floor(row_column_D2).T
    inside_D = (row_D >= 0) & (row_D < height) & (column_D >= 0) & (column_D < width)
    value_D = np.zeros(len(row_column_D2), np.int64)
    value_D[inside_D] = map_HW[row_D[inside_D].astype(np.int64), column_D[inside_D].astype(np.int64)]
    return value_D


def froc(
    slides: Sequence[Hits], every_threshold: bool = False, false_per_slide: Sequence[float] = FALSE_PER_SLIDE
) -> Froc:
    """Compute the FROC curve of a set of slides.

    The organizers' program runs over the sorted distinct probabilities from the second one on. The first is usually the
    0 of a lesion (or of isolated tumor cells) that nothing hit. If everything is found it is a detection, and is still
    dropped: a set of one found lesion and nothing else scores 0. This is kept, since published scores are computed that
    way; `every_threshold` drops only the 0.

    Args:
        slides: hits of every slide, also of those with neither detections nor lesions: false positives are averaged
            over all.
        every_threshold: keep the lowest probability when it is above 0.
        false_per_slide: false positives per slide at which the sensitivity is read off.

    Raises:
        ValueError: no slides.
    """
    return Scorer(slides, every_threshold, false_per_slide).curve(np.ones(len(slides), np.int64))


class Scorer:
    """Computes FROC of the same slides with any weights, for resamples of slides.

    Args:
        slides: as in `froc`.
        every_threshold: as in `froc`.
        false_per_slide: as in `froc`.
        rule: "organisers" keeps the probabilities of lesions in float32 and those of false positives in float64, as
            their program does: equal numbers of a file then differ by rounding, each is a threshold of its own, and
            lesions are compared with a threshold in float32. "double" compares all as they are.

    Raises:
        ValueError: no slides.
    """

    def __init__(
        self,
        slides: Sequence[Hits],
        every_threshold: bool = False,
        false_per_slide: Sequence[float] = FALSE_PER_SLIDE,
        rule: FrocRule = "double",
    ) -> None:
        if not slides:
            raise ValueError("no slides: a FROC curve needs at least one")
        self._every = every_threshold
        self._false_per_slide = tuple(false_per_slide)
        self._false, self._false_slide = _flat([hits.false for hits in slides])
        self._lesion, self._lesion_slide = _flat([hits.lesion_L for hits in slides])
        self._itc_S = np.array([hits.itc > 0 for hits in slides])
        if rule == "organisers":
            self._lesion = _in_float32(self._lesion)
        # Distinct probabilities with the 0 of what was not found first.
        self._value_T, at = np.unique(np.concatenate([[0.0], self._false, self._lesion]), return_inverse=True)
        self._false_at, self._lesion_at = at[1 : 1 + len(self._false)], at[1 + len(self._false) :]
        # The highest threshold that each lesion reaches; NumPy compares float32 with a number in float32.
        compared_T = _in_float32(self._value_T) if rule == "organisers" else self._value_T
        self._lesion_reach = np.searchsorted(compared_T, self._lesion, side="right") - 1

    def curve(self, weight_S: NDArray[np.int64]) -> Froc:
        """Compute the curve of slides that count `weight_S` times each (whole numbers, not all 0)."""
        false_weight, lesion_weight = weight_S[self._false_slide], weight_S[self._lesion_slide]
        false_T, lesion_T = self._sums(self._false_at, false_weight), self._sums(self._lesion_at, lesion_weight)
        reached_T = self._sums(self._lesion_reach, lesion_weight)
        occurs_T = (false_T > 0) | (lesion_T > 0)
        occurs_T[0] |= bool((weight_S[self._itc_S] > 0).any())
        kept = np.flatnonzero(occurs_T)
        if not self._every or (kept.size and kept[0] == 0):
            kept = kept[1:]
        slides, lesions = int(weight_S.sum()), int(lesion_weight.sum())
        false_per_slide_T = np.append(_at_or_above(false_T)[kept], 0) / slides
        found_T = np.append(_at_or_above(reached_T)[kept], 0)
        sensitivity_T = found_T / lesions if lesions else np.full(found_T.shape, np.nan)
        # From high thresholds to low: both grow. Where several points share an abscissa the best one counts.
        at = np.interp(self._false_per_slide, false_per_slide_T[::-1], sensitivity_T[::-1])
        threshold_T = np.append(self._value_T[kept], np.inf)
        return Froc(threshold_T, false_per_slide_T, sensitivity_T, at, float(at.mean()), lesions)

    def scores(self, weight_RS: NDArray[np.int64]) -> Values:
        """Compute the score of each of R resamples, NaN for those without a lesion."""
        return np.array([self.curve(weight_S).score for weight_S in weight_RS], np.float64)

    def _sums(self, at: NDArray[np.int64], weight: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.bincount(at, weight, minlength=len(self._value_T)).astype(np.int64)


def _in_float32(values: Values) -> Values:
    """Round to float32, as numbers of float64."""
    return values.astype(np.float32).astype(np.float64)


def _flat(parts: Sequence[Values]) -> tuple[Values, NDArray[np.int64]]:
    """All values, and the slide each is from."""
    return np.concatenate([np.asarray(part, np.float64) for part in parts]), np.repeat(
        np.arange(len(parts)), [len(part) for part in parts]
    )


def _at_or_above(count_T: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sum of the counts from each threshold on."""
    total_T: NDArray[np.int64] = np.cumsum(count_T[::-1])[::-1]
    return total_T
