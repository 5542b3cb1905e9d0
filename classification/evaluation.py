"""Evaluation of a trained classifier by itself, `train_classifier.py --only_eval`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from classification import report
from classification.inputs import Inputs
from classification.validation import shown, validated, write_found
from parallel.comm import Comm, together
from parallel.job import Log
from training.log import RunLog
from training.run_folder import prepare_folder


def evaluate(
    log_dir: Path | None,
    options: Mapping[str, Any],
    inputs: Inputs,
    logits_1K: Callable[[Any], Any],
    draw: Callable[[Path | None, Any], None],
    comm: Comm,
    stop: Callable[[], bool],
    log: Log,
) -> bool:
    """Score the slides to validate on; every rank must call it.

    Args:
        log_dir: where scores, predictions and report go; in the folder of a run, to its folder `eval`.
        options: of the program, JSON types.
        inputs: the slides.
        logits_1K: of a view.
        draw: adds pictures to a folder, from logits_NK.
        comm: the ranks.
        stop: whether this rank was asked to stop.
        log: prints lines on rank 0.

    Returns:
        False: some rank was asked to stop before the end.

    Raises:
        AgreedError: a slide cannot be read, or the folder not be written.
    """
    folder = log_dir / "eval" if log_dir is not None and (log_dir / "checkpoints").is_dir() else log_dir
    log(*together(comm, lambda: prepare_folder(folder, False, options) if folder and comm.rank == 0 else []))
    found = validated(inputs, logits_1K, comm, stop)
    if found is None:
        return False
    write_found(folder, found[0], inputs, found[1], comm)
    draw(folder, found[1])
    run_log = together(comm, lambda: RunLog(folder, comm.rank, page=report.attempt))
    run_log.numbers("val", 0, found[0].logged())
    run_log.close()
    log(
        f"val         {shown(found[0].logged())}",
        *(f"val         {line}" for line in (*found[0].lines(), *found[0].notes)),
        *([f"report      {folder}/report.html; predictions.csv, scores.json"] if folder else []),
    )
    return True
