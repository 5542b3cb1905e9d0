"""Validation on all ranks: every slide once, in the order of the table, whatever the number of ranks.

Shapes: N slides, K outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classification.inputs import Inputs
from classification.scores import Scores, scores, write_scores
from parallel.comm import Comm, together
from training.averaging import Average


def logits_NK(  # noqa: N802
    views: Iterable[tuple[int, Any]],
    slides: int,
    outputs: int,
    logits_1K: Callable[[Any], Any],
    comm: Comm,
    stop: Callable[[], bool] = lambda: False,
) -> NDArray[np.float32] | None:
    """Logits of all slides, on every rank; every rank must call it.

    Args:
        views: this rank's slides: place among all slides, and view. A slide may be on several ranks.
        slides: N.
        outputs: K.
        logits_1K: of a view.
        comm: the ranks.
        stop: whether this rank was asked to stop; called before every slide.

    Returns:
        None on all ranks when one was asked to stop.

    Raises:
        AgreedError: a slide cannot be read.
    """

    def mine() -> tuple[list[tuple[int, NDArray[np.float32]]], bool]:
        found = []
        for place, view in views:
            if stop():
                return [], True
            found.append((place, np.asarray(logits_1K(view), np.float32).reshape(outputs)))
        return found, False

    parts = comm.gather(together(comm, mine))
    if any(stopped for _, stopped in parts):
        return None
    found_NK = np.full((slides, outputs), np.nan, np.float32)
    seen = set()
    for part, _ in parts:
        for place, logits_K in part:
            found_NK[place] = logits_K
            seen.add(place)
    assert len(seen) == slides, f"{len(seen)} of {slides} slides were validated"
    return found_NK


def validated(
    inputs: Inputs,
    logits_1K: Callable[[Any], Any],
    comm: Comm,
    stop: Callable[[], bool],
) -> tuple[Scores, NDArray[np.float32]] | None:
    """Scores and logits_NK of the slides to validate on, on every rank; every rank must call it.

    Args:
        inputs: slides and their views.
        logits_1K: of a view.
        comm: the ranks.
        stop: whether this rank was asked to stop.

    Returns:
        None on all ranks when one was asked to stop.

    Raises:
        AgreedError: a slide cannot be read.
    """

    def asked() -> bool:
        # Ranks: those that share a slide stop before the same one.
        return any(comm.gather(stop())) if inputs.share else stop()

    found_NK = logits_NK(inputs.val_feed(), len(inputs.val), inputs.targets.outputs, logits_1K, comm, asked)
    return None if found_NK is None else (scores(inputs.targets, inputs.val, found_NK), found_NK)


def validated_with_average(
    inputs: Inputs, logits_1K: Callable[[Any], Any], average: Average | None, comm: Comm, stop: Callable[[], bool]
) -> tuple[Scores, NDArray[np.float32], dict[str, float]] | None:
    """As `validated`, of the average of the weights where there is one.

    Args:
        inputs: see `validated`.
        logits_1K: see `validated`.
        average: of the network's weights.
        comm: see `validated`.
        stop: see `validated`.

    Returns:
        Also the scores of the network's own weights, `own_loss` and so on; none without an average.
    """
    own: dict[str, float] = {}
    if average is not None:
        if (plain := validated(inputs, logits_1K, comm, stop)) is None:
            return None
        own = {f"own_{name}": value for name, value in plain[0].logged().items()}
    with average.in_place() if average else nullcontext():
        found = validated(inputs, logits_1K, comm, stop)
    return None if found is None else (*found, own)


def write_found(folder: Path | None, found: Scores, inputs: Inputs, logits: NDArray[np.float32], comm: Comm) -> None:
    """Write scores.json and predictions.csv; every rank must call it.

    Args:
        folder: where; None: nothing is written.
        found: the scores.
        inputs: the slides.
        logits: logits_NK.
        comm: the ranks.

    Raises:
        AgreedError: a file cannot be written.
    """

    def write() -> None:
        # Ranks: all hold the same scores; one writes.
        if folder is not None and comm.rank == 0:
            write_scores(folder, found, inputs.targets, inputs.val, logits)

    together(comm, write)


def quality(values: Mapping[str, float]) -> float:
    """What the best checkpoint is chosen by: the AUC; where there is none, as for numbers, the loss with a minus."""
    auc = values.get("auc", math.nan)
    return -values["loss"] if math.isnan(auc) else auc


def shown(values: Mapping[str, float]) -> str:
    """The most important scores in a line."""
    titles = {"loss": "loss", "accuracy": "accuracy", "auc": "AUC", "kappa": "kappa", "mae": "MAE", "r2": "R2"}
    return "  ".join(f"{title} {values[name]:.4f}" for name, title in titles.items() if name in values)
