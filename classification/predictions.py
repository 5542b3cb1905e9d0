"""What was predicted for every slide: probabilities, losses, `predictions.csv`.

N slides, K outputs.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classification.targets import Labeled, Targets
from metrics import classification as measured
from system.atomic_files import write_bytes

PREDICTIONS = "predictions.csv"
# A label counts as predicted from this probability on.
LABEL_FROM = 0.5

Values = NDArray[np.float64]


def check(targets: Targets, labeled: Sequence[Labeled], logits_NK: NDArray[Any]) -> None:
    """Refuse what cannot be scored.

    Raises:
        ValueError: no slides, or logits of another shape.
    """
    if not labeled:
        raise ValueError("no slides to score; give a table of labels with at least one slide")
    wanted = (len(labeled), len(targets.names))
    if np.shape(logits_NK) != wanted:
        raise ValueError(f"logits of shape {np.shape(logits_NK)}; {wanted} (slides, outputs) are needed")


def predictions_csv(path: Path, targets: Targets, labeled: Sequence[Labeled], logits_NK: NDArray[Any]) -> None:
    """Write what was predicted for every slide as CSV, completely or not at all.

    Columns: slide_id, patient, label, logit_NAME and probability_NAME for every output (but not of a regression),
    prediction, loss. Logits are exact to float32, so that scores can be computed from the file. Loss is without class
    weights: softmax cross-entropy, the mean binary cross-entropy of labels, smooth L1 of numbers.

    Raises:
        ValueError: no slides, or logits of another shape.
        OSError: the file cannot be written.
    """
    check(targets, labeled, logits_NK)
    logits_NK = np.asarray(logits_NK, np.float64)
    target_NK = np.stack([slide.target_K for slide in labeled]).astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        p_NK, loss_N = probabilities_and_losses(targets, logits_NK, target_NK)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    columns = [] if targets.kind == "regression" else ["logit", "probability"]
    heads = [f"{column}_{name}" for column in columns for name in targets.names]
    writer.writerow(["slide_id", "patient", "label", *heads, "prediction", "loss"])
    for index, slide in enumerate(labeled):
        numbers = [logits_NK[index], p_NK[index]] if columns else []
        writer.writerow(
            [slide.slide_id, slide.group or slide.slide_id, _label(targets, slide)]
            + [f"{value:.9g}" for row in numbers for value in row]
            + [_predicted(targets, logits_NK[index], p_NK[index]), f"{loss_N[index]:.9g}"]
        )
    write_bytes(path, buffer.getvalue().encode("utf-8", "replace"))


def probabilities_and_losses(targets: Targets, logits_NK: Values, target_NK: Values) -> tuple[Values, Values]:
    """Probabilities (N, K), the numbers themselves for a regression, and the loss of every slide (N,)."""
    if targets.kind == "classes":
        loss_N = measured.softmax_loss_N(logits_NK, target_NK.argmax(axis=1))
        return measured.softmax_NK(logits_NK), loss_N
    if targets.kind == "multilabel":
        return measured.sigmoid_NK(logits_NK), measured.sigmoid_loss_N(logits_NK, target_NK)
    return logits_NK, measured.smooth_l1_loss_N(logits_NK, target_NK)


def _label(targets: Targets, slide: Labeled) -> str:
    """The label; of classes and labels written as predictions are, so that the two can be compared."""
    if targets.kind == "classes":
        return targets.names[int(slide.target_K.argmax())]
    if targets.kind == "multilabel":
        return ";".join(str(int(value > 0.5)) for value in slide.target_K)
    return slide.text


def _predicted(targets: Targets, logits_K: Values, p_K: Values) -> str:
    """The prediction, written as the labels are."""
    if not np.isfinite(logits_K).all():
        return ""
    if targets.kind == "classes":
        return targets.names[int(logits_K.argmax())]
    if targets.kind == "multilabel":
        return ";".join(str(int(p >= LABEL_FROM)) for p in p_K)
    return ";".join(f"{value:.9g}" for value in logits_K)
