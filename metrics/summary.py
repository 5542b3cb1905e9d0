"""From counts of slides to scores of a set, with confidence intervals.

K classes, N bins, S slides, R resamples.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metrics.bootstrap import interval, of_counts, resamples
from metrics.confusion import accuracy, auc, dice_K, iou_K, miou
from metrics.froc import Froc, Hits, Scorer
from metrics.ranking import Roc, auc_R, roc
from metrics.stages import (
    NODE_CLASSES,
    STAGES,
    Submission,
    node_class,
    patient_of,
    quadratic_kappa,
    stage_confusion,
    stages_of_patients,
)
from options.choices import FALSE_PER_SLIDE, FrocRule

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class FalseRegion:
    """A region predicted tumor where there is none.

    Attributes:
        x, y: a point inside it near its center, level-0 px.
        probability: the highest in it.
        area_um2: its area, um2.
    """

    x: float
    y: float
    probability: float
    area_um2: float


@dataclass(frozen=True)
class SlideScores:
    """What one slide adds to the scores of a set.

    Attributes:
        slide_id: id of the slide.
        confusion_KK: px that count, rows truth, columns prediction.
        histogram_2N: the same px by tumor probability, row 0 not tumor, row 1 tumor.
        hits: what its detections hit.
        tumor_probability: tumor probability of the slide.
        has_tumor: whether its truth has tumor.
        truth_mm: longest diameter of its largest true lesion, 0 without one.
        predicted_mm: the same of the prediction.
        px_mm2: area of a px.
        slide_mm2: area of the slide, mm2; px at its border may reach beyond it.
        all_confusion_KK, all_histogram_2N: the first two of all px, glass too; None where the first two are those.
        detections: number of its detections.
        tumor_predicted: whether any px was called tumor.
        false_regions: predicted tumor that touches no true tumor, largest first.
        notes: remarks for the user.
    """

    slide_id: str
    confusion_KK: Counts
    histogram_2N: Counts
    hits: Hits
    tumor_probability: float
    has_tumor: bool
    truth_mm: float
    predicted_mm: float
    px_mm2: float
    slide_mm2: float = math.inf
    all_confusion_KK: Counts | None = None
    all_histogram_2N: Counts | None = None
    detections: int = 0
    tumor_predicted: bool = True
    false_regions: tuple[FalseRegion, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def missed(self) -> int:
        """Lesions that no detection hit."""
        return int((self.hits.lesion_L == 0).sum())

    @property
    def evaluated_mm2(self) -> float:
        """Area of px that count, mm2, at most that of the slide."""
        return min(float(self.confusion_KK.sum()) * self.px_mm2, self.slide_mm2)

    @property
    def wrong_mm2(self) -> float:
        """Area of px with a wrong class, mm2, at most that of the slide."""
        return min(float(self.confusion_KK.sum() - np.trace(self.confusion_KK)) * self.px_mm2, self.slide_mm2)

    @property
    def whole(self) -> tuple[Counts, Counts]:
        """Confusion and histogram of all px."""
        return (
            self.confusion_KK if self.all_confusion_KK is None else self.all_confusion_KK,
            self.histogram_2N if self.all_histogram_2N is None else self.all_histogram_2N,
        )

    @property
    def finding(self) -> bool:
        """Whether the prediction has any tumor or detection."""
        return self.tumor_predicted or self.detections > 0

    @property
    def node_error(self) -> int:
        """Distance of truth and prediction in classes of lymph nodes."""
        true, predicted = (NODE_CLASSES.index(node_class(mm)) for mm in (self.truth_mm, self.predicted_mm))
        return abs(true - predicted)

    @property
    def tumor_dice(self) -> float:
        """Dice of all classes from 1 on together; NaN if neither truth nor prediction has any."""
        return float(dice_K(_two(self.confusion_KK))[1])


@dataclass(frozen=True)
class Summary:
    """Everything a report shows.

    Attributes:
        metrics: scores, as JSON types; NaN for an undefined score.
        rows: one dictionary per slide, the worst first.
        froc: the curve of the lesions.
        roc: the curve of the slides.
        submission: predicted stages and classes; None if no slide is named as in CAMELYON17.
    """

    metrics: dict[str, Any]
    rows: list[dict[str, Any]]
    froc: Froc
    roc: Roc
    submission: Submission | None


def summarize(
    slides: Sequence[SlideScores],
    class_names: Sequence[str],
    count: int = 1000,
    seed: int = 0,
    false_per_slide: Sequence[float] = FALSE_PER_SLIDE,
    rule: FrocRule = "double",
) -> Summary:
    """Score a set of slides.

    Args:
        slides: at least one.
        class_names: names of the K classes.
        count: resamples for the intervals; 0 gives none.
        seed: seed of the resamples.
        false_per_slide: false positives per slide at which FROC is read.
        rule: precision of FROC, see `metrics.froc.Scorer`.

    Raises:
        ValueError: no slides.
    """
    weight_RS = resamples(len(slides), count, seed)
    curve, lesions = _lesions(slides, weight_RS, false_per_slide, rule)
    roc_curve, ranking = _ranking(slides, weight_RS)
    submission, patients = _patients(slides, count, seed)
    metrics = {
        "slides": len(slides),
        "pixels": _pixels([(s.confusion_KK, s.histogram_2N) for s in slides], class_names, weight_RS),
        "pixels_all": _pixels([s.whole for s in slides], class_names, weight_RS),
        "lesions": lesions,
        "slide_auc": ranking,
        "nodes": _nodes(slides, weight_RS),
        "patients": patients,
    }
    ordered = sorted(slides, key=lambda s: (-s.missed, -s.node_error, -s.wrong_mm2, s.slide_id))
    return Summary(metrics, [_row(slide, class_names) for slide in ordered], curve, roc_curve, submission)


def _score(value: float, values_R: NDArray[np.float64], slides: int) -> dict[str, float]:
    found = interval(values_R, slides)
    return {"value": float(value), "low": found.low, "high": found.high}


def _pixels(counts: Sequence[tuple[Counts, Counts]], class_names: Sequence[str], weight_RS: Counts) -> dict[str, Any]:
    """Score the summed px, with intervals."""

    def scores(confusion_KK: Counts, histogram_2N: Counts) -> NDArray[np.float64]:
        single = [miou(confusion_KK), accuracy(confusion_KK), auc(histogram_2N)]
        return np.concatenate([single, iou_K(confusion_KK), dice_K(confusion_KK)])

    confusion_SKK, histogram_S2N = (np.stack(each) for each in zip(*counts, strict=True))
    values = scores(confusion_SKK.sum(axis=0), histogram_S2N.sum(axis=0))
    values_R = of_counts([confusion_SKK, histogram_S2N], scores, weight_RS).reshape(-1, len(values))
    named = [_score(value, values_R[:, index], len(counts)) for index, value in enumerate(values)]
    classes = len(class_names)
    return {
        "miou": named[0],
        "accuracy": named[1],
        "auc": named[2],
        "iou": dict(zip(class_names, named[3 : 3 + classes], strict=True)),
        "dice": dict(zip(class_names, named[3 + classes :], strict=True)),
        "confusion": confusion_SKK.sum(axis=0).tolist(),
        "classes": list(class_names),
    }


def _lesions(
    slides: Sequence[SlideScores], weight_RS: Counts, false_per_slide: Sequence[float], rule: FrocRule
) -> tuple[Froc, dict[str, Any]]:
    hits = [slide.hits for slide in slides]
    scorer = Scorer(hits, false_per_slide=false_per_slide, rule=rule)
    ones_S = np.ones(len(slides), np.int64)
    curve = scorer.curve(ones_S)
    every = Scorer(hits, True, false_per_slide, rule).curve(ones_S)
    theirs = Scorer(hits, False, false_per_slide, "organisers").curve(ones_S)
    return curve, {
        "froc": _score(curve.score, scorer.scores(weight_RS), len(slides)),
        "froc_rule": rule,
        "froc_every_threshold": every.score,
        "froc_organisers": theirs.score,
        "sensitivity_at": {f"{at:g}": float(value) for at, value in zip(false_per_slide, curve.at, strict=True)},
        "lesions": curve.lesions,
        "found": sum(int((one.lesion_L > 0).sum()) for one in hits),
        "isolated_tumor_cells": sum(one.itc for one in hits),
        "false_positives": sum(len(one.false) for one in hits),
        "ignored_detections": sum(one.ignored for one in hits),
    }


def _ranking(slides: Sequence[SlideScores], weight_RS: Counts) -> tuple[Roc, dict[str, Any]]:
    positive_S = np.array([slide.has_tumor for slide in slides], np.bool_)
    probability_S = np.array([slide.tumor_probability for slide in slides])
    curve = roc(positive_S, probability_S)
    areas_R = auc_R(positive_S, probability_S, weight_RS)
    return curve, _score(curve.area, areas_R, len(slides)) | {"with_tumor": int(positive_S.sum())}


def _nodes(slides: Sequence[SlideScores], weight_RS: Counts) -> dict[str, Any]:
    confusion_SKK = np.zeros((len(slides), len(NODE_CLASSES), len(NODE_CLASSES)), np.int64)
    for index, slide in enumerate(slides):
        true, predicted = node_class(slide.truth_mm), node_class(slide.predicted_mm)
        confusion_SKK[index, NODE_CLASSES.index(true), NODE_CLASSES.index(predicted)] = 1
    confusion_KK = confusion_SKK.sum(axis=0)
    shares_R = of_counts([confusion_SKK], accuracy, weight_RS)
    return {
        "accuracy": _score(accuracy(confusion_KK), shares_R, len(slides)),
        "confusion": confusion_KK.tolist(),
        "classes": list(NODE_CLASSES),
    }


def _patients(slides: Sequence[SlideScores], count: int, seed: int) -> tuple[Submission | None, dict[str, Any] | None]:
    """Score the stages of CAMELYON17's patients; None without any."""
    named = {slide.slide_id: slide for slide in slides if patient_of(slide.slide_id)}
    if not named:
        return None, None
    predicted = {slide_id: node_class(slide.predicted_mm) for slide_id, slide in named.items()}
    truth = stages_of_patients({slide_id: node_class(slide.truth_mm) for slide_id, slide in named.items()})
    submission = Submission(stages_of_patients(predicted), predicted)
    confusion_PKK = np.stack([stage_confusion([truth[p]], [submission.stages[p]]) for p in truth])
    confusion_KK = confusion_PKK.sum(axis=0)
    kappas_R = of_counts([confusion_PKK], quadratic_kappa, resamples(len(truth), count, seed))
    nodes_of = [patient for slide_id in named for patient, _ in [patient_of(slide_id) or ("", 0)]]
    return submission, {
        "kappa": _score(quadratic_kappa(confusion_KK), kappas_R, len(truth)),
        "confusion": confusion_KK.tolist(),
        "classes": list(STAGES),
        "stages": {
            patient: {"truth": stage, "prediction": submission.stages[patient], "nodes": nodes_of.count(patient)}
            for patient, stage in truth.items()
        },
    }


def _row(slide: SlideScores, class_names: Sequence[str]) -> dict[str, Any]:
    """Return one slide as a row of a table."""
    iou = dict(zip(class_names, iou_K(slide.confusion_KK).tolist(), strict=True))
    return {
        "slide_id": slide.slide_id,
        "has_tumor": slide.has_tumor,
        "tumor_probability": slide.tumor_probability,
        "tumor_dice": slide.tumor_dice,
        "tumor_dice_all": float(dice_K(_two(slide.whole[0]))[1]),
        "miou": miou(slide.confusion_KK),
        **{f"iou {name}": value for name, value in iou.items()},
        "pixel_auc": auc(slide.histogram_2N),
        "evaluated_mm2": slide.evaluated_mm2,
        "wrong_mm2": slide.wrong_mm2,
        "lesions": len(slide.hits.lesion_L),
        "missed": slide.missed,
        "isolated_tumor_cells": slide.hits.itc,
        "false_positives": len(slide.hits.false),
        "false_regions": len(slide.false_regions),
        "truth_mm": slide.truth_mm,
        "predicted_mm": slide.predicted_mm,
        "node_truth": node_class(slide.truth_mm),
        "node_prediction": node_class(slide.predicted_mm),
        "finding": slide.finding,
        "notes": "; ".join(slide.notes),
    }


def _two(confusion_KK: Counts) -> Counts:
    """Merge the classes from 1 on."""
    return np.array(
        [
            [confusion_KK[0, 0], confusion_KK[0, 1:].sum()],
            [confusion_KK[1:, 0].sum(), confusion_KK[1:, 1:].sum()],
        ],
        np.int64,
    )


def plain(value: Any) -> Any:
    """Return JSON types without NaN: an undefined value is None."""
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
