"""Scores of whole slides with intervals by patient, and `predictions.csv`.

    found = scores(targets, labeled, logits_NK)
    found.logged()              numbers for the log of a run
    found.lines()               the same as text
    write_scores(folder, found, targets, labeled, logits_NK)

Where a score does not exist, such as the AUC of one class only, its value is None and its text has the reason.

The calibration error has no interval: within resamples it is larger than in the set, since slides repeat.

N slides, K outputs, R resamples of patients; the first row of `weight_RN` is the set itself.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classification.predictions import LABEL_FROM, PREDICTIONS, check, predictions_csv
from classification.targets import Labeled, Targets
from metrics import classification as measured
from metrics.bootstrap import interval
from metrics.ranking import auc_R, roc
from metrics.summary import plain
from system.atomic_files import write_bytes

SCORES = "scores.json"
RESAMPLES = 1000
TITLES = {
    "loss": "loss",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "exact_match": "all labels right",
    "auc": "AUC",
    "kappa": "quadratic kappa",
    "brier": "Brier score",
    "calibration_error": "calibration error",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "mae": "mean absolute error",
    "rmse": "root mean squared error",
    "r2": "R2",
    "spearman": "Spearman correlation",
}

Values = NDArray[np.float64]
Weights = NDArray[np.int64]


@dataclass(frozen=True)
class Score:
    """One score.

    Attributes:
        value: None where it does not exist.
        low, high: ends of its 95% interval over patients; None without one.
        why: the reason where `value` is None.
    """

    value: float | None
    low: float | None
    high: float | None
    why: str = ""

    def __str__(self) -> str:
        if self.value is None:
            return self.why
        ends = "" if self.low is None or self.high is None else f" ({self.low:.3f} to {self.high:.3f})"
        return f"{self.value:.3f}{ends}"


@dataclass(frozen=True)
class OutputScores:
    """Scores of one class, label or number.

    Attributes:
        name: of the class, label or number.
        slides: slides that have it; all for numbers.
        values: name of a score (`TITLES`) -> score.
        roc: (false positive rate, sensitivity) of all thresholds; empty where the AUC does not exist, and for numbers.
        reliability: bins (slides, mean probability, observed share), empty ones omitted.
        confusion: of a label, rows truth (without, with), columns prediction; empty otherwise.
    """

    name: str
    slides: int
    values: Mapping[str, Score]
    roc: tuple[tuple[float, float], ...] = ()
    reliability: tuple[tuple[int, float, float], ...] = ()
    confusion: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Scores:
    """Scores of a set of slides.

    Attributes:
        kind: classes, multilabel or regression.
        slides: number of slides.
        patients: number of patients; intervals are over them.
        values: name of a score (`TITLES`) -> score. The AUC of two classes is that of the second; of more, and of
            labels, it is the mean over those that have one.
        outputs: one for every output.
        confusion: of classes, rows truth, columns prediction; empty otherwise.
        reliability: of classes: of the second of two, or of the predicted one of more; see `OutputScores`.
        notes: what is undefined and why, as text.
    """

    kind: str
    slides: int
    patients: int
    values: Mapping[str, Score]
    outputs: tuple[OutputScores, ...]
    confusion: tuple[tuple[int, ...], ...] = ()
    reliability: tuple[tuple[int, float, float], ...] = ()
    notes: tuple[str, ...] = ()

    def logged(self) -> dict[str, float]:
        """Numbers for the log: every score, and `auc_0` ... of the outputs; NaN where one does not exist."""
        found = {name: score.value for name, score in self.values.items()}
        if self.kind != "regression" and len(self.outputs) > 2 - (self.kind == "multilabel"):
            found |= {f"auc_{index}": one.values["auc"].value for index, one in enumerate(self.outputs)}
        return {name: math.nan if value is None else value for name, value in found.items()}

    def lines(self) -> list[str]:
        """Scores as text, one per line, with intervals; then the AUC of every output, where there are several."""
        rows = [f"{TITLES[name]:<24}{score}" for name, score in self.values.items()]
        if self.kind != "regression" and len(self.outputs) > 2 - (self.kind == "multilabel"):
            rows += [f"{'AUC, ' + one.name:<24}{one.values['auc']}" for one in self.outputs]
        return rows

    def as_json(self) -> dict[str, Any]:
        """As JSON types, without NaN."""
        found: dict[str, Any] = plain(asdict(self))
        return found


def scores(
    targets: Targets,
    labeled: Sequence[Labeled],
    logits_NK: NDArray[Any],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Scores:
    """Score a set of slides.

    Args:
        targets: meaning of the K outputs.
        labeled: the N slides.
        logits_NK: what the network returned for them, in that order; numbers of a regression.
        resamples: resamples of patients for the intervals; 0 gives none.
        seed: seed of the resamples.

    Raises:
        ValueError: no slides, or logits of another shape.
    """
    check(targets, labeled, logits_NK)
    patients = [slide.group or slide.slide_id for slide in labeled]
    drawn_RN, count = measured.patient_weights(patients, resamples, seed)
    weight_RN = np.concatenate([np.ones((1, len(labeled)), np.int64), drawn_RN])
    logits_NK = np.asarray(logits_NK, np.float64)
    target_NK = np.stack([slide.target_K for slide in labeled]).astype(np.float64)
    broken = [slide.slide_id for slide, row in zip(labeled, logits_NK, strict=True) if not np.isfinite(row).all()]
    if broken:
        more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
        why = f"undefined: the network returned NaN or infinity for {broken[0]}{more}"
        none = {"loss": Score(None, None, None, why)}
        outputs = tuple(
            OutputScores(name, _having(targets, target_NK[:, k]), {"auc": none["loss"]})
            for k, name in enumerate(targets.names)
        )
        return Scores(targets.kind, len(labeled), count, none, outputs, notes=(f"scores {why}",))
    score = {"classes": _classes, "multilabel": _multilabel, "regression": _regression}[targets.kind]
    return score(targets, logits_NK, target_NK, weight_RN, count)


def _classes(targets: Targets, logits_NK: Values, target_NK: Values, weight_RN: Weights, patients: int) -> Scores:
    names, classes = targets.names, len(targets.names)
    p_NK = measured.softmax_NK(logits_NK)
    truth_N, predicted_N = target_NK.argmax(axis=1), logits_NK.argmax(axis=1)
    right_N = truth_N == predicted_N
    outputs = tuple(
        _output(names[k], p_NK[:, k], truth_N == k, predicted_N == k, weight_RN, patients) for k in range(classes)
    )
    recall_KR = np.stack([measured.recall_R(truth_N == k, right_N, weight_RN) for k in range(classes)])
    two = classes == 2
    stated_N, event_N = (p_NK[:, 1], truth_N == 1) if two else (p_NK.max(axis=1), right_N)
    brier = (p_NK[:, 1:], target_NK[:, 1:]) if two else (p_NK, target_NK)
    found_R = {
        "loss": measured.mean_R(measured.softmax_loss_N(logits_NK, truth_N), weight_RN),
        "accuracy": measured.mean_R(right_N, weight_RN),
        "balanced_accuracy": _mean_of_defined(recall_KR),
        "auc": _auc_R(p_NK[:, 1], truth_N == 1, weight_RN)
        if two
        else _mean_of_defined(np.stack([_auc_R(p_NK[:, k], truth_N == k, weight_RN) for k in range(classes)])),
        "brier": measured.brier_R(*brier, weight_RN),
        "calibration_error": measured.calibration_error_R(stated_N, event_N, weight_RN[:1]),
    }
    if targets.ordered:
        found_R["kappa"] = measured.kappa_R(truth_N, predicted_N, classes, weight_RN)
    only = f"only class {names[int(truth_N[0])]} occurs"
    reasons = {"auc": f"undefined: {only}", "kappa": f"undefined: {only}, and only it is predicted"}
    values = {name: _score(each_R, patients, reasons.get(name, "")) for name, each_R in found_R.items()}
    confusion = np.zeros((classes, classes), np.int64)
    np.add.at(confusion, (truth_N, predicted_N), 1)
    return Scores(
        "classes", len(target_NK), patients, values, outputs,
        tuple(tuple(row) for row in confusion.tolist()), _bins(stated_N, event_N), _notes(values, outputs, two),
    )  # fmt: skip


def _multilabel(targets: Targets, logits_NK: Values, target_NK: Values, weight_RN: Weights, patients: int) -> Scores:
    p_NK = measured.sigmoid_NK(logits_NK)
    truth_NK, predicted_NK = target_NK > 0.5, p_NK >= LABEL_FROM
    outputs = tuple(
        _output(name, p_NK[:, k], truth_NK[:, k], predicted_NK[:, k], weight_RN, patients, label=True)
        for k, name in enumerate(targets.names)
    )
    right_NK = truth_NK == predicted_NK
    labels = range(len(targets.names))
    found_R = {
        "loss": measured.mean_R(measured.sigmoid_loss_N(logits_NK, target_NK), weight_RN),
        "accuracy": measured.mean_R(right_NK.mean(axis=1), weight_RN),
        "exact_match": measured.mean_R(right_NK.all(axis=1), weight_RN),
        "auc": _mean_of_defined(np.stack([_auc_R(p_NK[:, k], truth_NK[:, k], weight_RN) for k in labels])),
        "brier": measured.brier_R(p_NK, target_NK, weight_RN) / len(labels),
        "calibration_error": np.mean(
            [measured.calibration_error_R(p_NK[:, k], truth_NK[:, k], weight_RN[:1]) for k in labels], axis=0
        ),
    }
    why = "undefined: each label occurs in all slides or in none"
    values = {name: _score(each_R, patients, why) for name, each_R in found_R.items()}
    return Scores(
        "multilabel", len(target_NK), patients, values, outputs, notes=_notes(values, outputs, two=len(outputs) == 1)
    )


def _regression(targets: Targets, logits_NK: Values, target_NK: Values, weight_RN: Weights, patients: int) -> Scores:
    whys = {
        "r2": "undefined: all labels are equal",
        "spearman": "undefined: all labels or all predictions are equal",
    }
    each = []
    for k in range(len(targets.names)):
        value_N, target_N = logits_NK[:, k], target_NK[:, k]
        each.append(
            {
                "mae": measured.mean_R(np.abs(value_N - target_N), weight_RN),
                "rmse": measured.rmse_R(value_N - target_N, weight_RN),
                "r2": measured.r2_R(value_N, target_N, weight_RN),
                "spearman": measured.spearman_R(value_N, target_N, weight_RN),
            }
        )
    outputs = tuple(
        OutputScores(
            name, len(target_NK), {key: _score(all_R, patients, whys.get(key, "")) for key, all_R in found.items()}
        )
        for name, found in zip(targets.names, each, strict=True)
    )
    found_R = {"loss": measured.mean_R(measured.smooth_l1_loss_N(logits_NK, target_NK), weight_RN)}
    found_R |= {key: _mean_of_defined(np.stack([found[key] for found in each])) for key in each[0]}
    values = {key: _score(all_R, patients, whys.get(key, "")) for key, all_R in found_R.items()}
    return Scores("regression", len(target_NK), patients, values, outputs, notes=_notes(values, outputs, two=True))


def _output(
    name: str,
    p_N: Values,
    truth_N: NDArray[np.bool_],
    predicted_N: NDArray[np.bool_],
    weight_RN: Weights,
    patients: int,
    label: bool = False,
) -> OutputScores:
    """Score one class against the others, or one label."""
    having, noun = int(truth_N.sum()), "label" if label else "class"
    kinds = {0: f"no slide has {noun} {name}", len(truth_N): f"all slides have {noun} {name}"}
    reason = f"undefined: {kinds.get(having, '')}"
    right_N = truth_N == predicted_N
    values = {
        "auc": _score(_auc_R(p_N, truth_N, weight_RN), patients, reason),
        "sensitivity": _score(measured.recall_R(truth_N, right_N, weight_RN), patients, reason),
        "specificity": _score(measured.recall_R(~truth_N, right_N, weight_RN), patients, reason),
    }
    if label:
        values["accuracy"] = _score(measured.mean_R(right_N, weight_RN), patients)
        values["brier"] = _score(measured.mean_R((p_N - truth_N) ** 2, weight_RN), patients)
        values["calibration_error"] = _score(measured.calibration_error_R(p_N, truth_N, weight_RN[:1]), patients)
    points: tuple[tuple[float, float], ...] = ()
    if values["auc"].value is not None:
        curve = roc(truth_N, p_N)
        points = tuple(zip(curve.false_rate_T.tolist(), curve.true_rate_T.tolist(), strict=True))
    counts = ((int((~truth_N & ~predicted_N).sum()), int((~truth_N & predicted_N).sum())),
              (int((truth_N & ~predicted_N).sum()), int((truth_N & predicted_N).sum())))  # fmt: skip
    return OutputScores(name, having, values, points, _bins(p_N, truth_N), counts if label else ())


def _auc_R(p_N: Values, truth_N: NDArray[np.bool_], weight_RN: Weights) -> Values:  # noqa: N802
    return auc_R(truth_N, p_N, weight_RN)


def _bins(p_N: Values, event_N: NDArray[np.bool_]) -> tuple[tuple[int, float, float], ...]:
    found = measured.reliability(p_N, event_N)
    rows = zip(found.count_B.tolist(), found.stated_B.tolist(), found.observed_B.tolist(), strict=True)
    return tuple((count, stated, observed) for count, stated, observed in rows if count)


def _mean_of_defined(values_KR: Values) -> Values:
    """Mean over outputs that have the score in the set itself; resamples in which one of them has none give NaN."""
    defined_K = ~np.isnan(values_KR[:, 0])
    if not defined_K.any():
        return np.full(values_KR.shape[1], np.nan)
    found: Values = values_KR[defined_K].mean(axis=0)
    return found


def _score(values_R: Values, patients: int, why: str = "") -> Score:
    """Return a score from its value in the set, which is first, and those in resamples, if any."""
    value = float(values_R[0])
    if not math.isfinite(value):
        return Score(None, None, None, why or "undefined")
    found = interval(values_R[1:], patients)
    ends = (found.low, found.high) if math.isfinite(found.low) else (None, None)
    return Score(value, *ends)


def _having(targets: Targets, target_N: Values) -> int:
    return len(target_N) if targets.kind == "regression" else int((target_N > 0.5).sum())


def _notes(values: Mapping[str, Score], outputs: Sequence[OutputScores], two: bool) -> tuple[str, ...]:
    """Which scores are undefined; those of single outputs where these differ from the others."""
    found = [f"{TITLES[name]} {score.why}" for name, score in values.items() if score.value is None]
    if not two:
        of_outputs = [one.values["auc"] for one in outputs]
        missing = [score.why for score in of_outputs if score.value is None]
        if len(missing) < len(outputs):
            found += [f"AUC {why}; the mean is over the others" for why in missing]
    return tuple(found)


# --------------------------------------------------------------------------------------------------------------- files


def write_scores(
    folder: Path, found: Scores, targets: Targets, labeled: Sequence[Labeled], logits_NK: NDArray[Any]
) -> None:
    """Write `scores.json` and `predictions.csv`, each completely or not at all.

    Raises:
        OSError: a file cannot be written.
    """
    text = json.dumps(found.as_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_bytes(folder / SCORES, text.encode("utf-8", "replace"))
    predictions_csv(folder / PREDICTIONS, targets, labeled, logits_NK)
