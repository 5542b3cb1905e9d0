"""Score predictions of whole slides: python evaluate.py --predictions DIR --label_path DIR --out DIR.

Predictions with their slides and labels (`evaluation.predictions`) -> counts of each slide (`evaluation.slide`) ->
scores with intervals (`metrics.summary`) -> metrics.json, tables, report (`evaluation.outputs`).
"""

from __future__ import annotations

import system.start  # noqa: F401  # first: it says what to do where packages are missing

# isort: split
import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from options.evaluate import EvaluateOptions, evaluate_options
from options.fields import as_json

if TYPE_CHECKING:
    from slides.truth.reading import Reading


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, or 2 after one line that describes the error."""
    opts = evaluate_options(argv)
    tables = opts.tables
    try:
        if tables.submission is not None and tables.reference is not None:
            return compare_tables(tables.submission, tables.reference)
        return evaluate(opts)
    except (ValueError, OSError) as error:
        print(f"evaluate.py: error: {error}", file=sys.stderr)
        return 2


def compare_tables(submission: Path, reference: Path) -> int:
    """Print the kappa of a submission; returns the exit code."""
    from metrics.stages import STAGES, read_submission, score_submission

    kappa, confusion_KK = score_submission(read_submission(reference), read_submission(submission))
    print(f"patients    {confusion_KK.sum()}")
    for stage, row in zip(STAGES, confusion_KK.tolist(), strict=True):
        print(f"  {stage:<8} called " + (", ".join(f"{n} x {s}" for s, n in zip(STAGES, row, strict=True) if n) or "-"))
    print(f"kappa       {kappa!r} (quadratic weights)")
    return 0


def evaluate(opts: EvaluateOptions) -> int:
    """Read predictions, score them, write the results; returns the exit code."""
    from artifacts.metadata import class_count
    from cohorts.pairing import known_problems
    from evaluation.outputs import write_outputs
    from evaluation.predictions import pair_predictions, sources
    from evaluation.slide import Measured, measure
    from evaluation.words import headline, slide_line
    from metrics.summary import plain, summarize

    begin = time.monotonic()
    # ---- inputs ------------------------------------------------------------------------------------------------------
    slides, labels, scores = opts.slides, opts.labels, opts.scores
    predictions, label_path, out = slides.required()
    reading = labels.reading(slides.mpp)
    classes = labels.count(class_count(reading.class_of_group, reading.class_of_value))
    formats = (slides.slide_format, slides.label_format)
    found = pair_predictions(
        predictions, slides.slide_path, label_path, *formats, classes, slides.recursive, slides.mpp_table
    )
    out.mkdir(parents=True, exist_ok=True)
    class_names = found.pairs[0][0].class_names
    notes = [*found.notes, *known_problems([case for _, case in found.pairs])]
    reading = settled(reading, [case.label_path for _, case in found.pairs], class_names)
    # ---- slide by slide ----------------------------------------------------------------------------------------------
    measured: list[Measured] = []
    left_out = dict(found.left_out)
    for number, (prediction, case) in enumerate(found.pairs, start=1):
        try:
            one = measure(prediction, case, reading, tissue_only=scores.pixels == "tissue")
        except (ValueError, OSError) as error:
            # One bad slide does not stop the others; every output names it.
            left_out[prediction.slide_id] = str(error)
            continue
        measured.append(one)
        notes += one.scores.notes
        print(f"{number:>4} of {len(found.pairs)}  {slide_line(one.scores)}", flush=True)
    for slide_id, reason in left_out.items():
        print(f"left out    {slide_id}: {reason}", file=sys.stderr)
    if not measured:
        raise ValueError(f"no slide could be evaluated; the first: {next(iter(left_out.values()))}")
    # ---- scores ------------------------------------------------------------------------------------------------------
    rows = [one.scores for one in measured]
    summary = summarize(rows, class_names, scores.bootstrap, scores.seed, scores.froc_threshold, scores.froc)
    metrics = plain(
        summary.metrics
        | sources(found.pairs, {one.slide_id for one in rows})
        | {"left_out": left_out, "notes": notes, "options": as_json(slides) | as_json(labels) | as_json(scores)}
        | {"seconds": time.monotonic() - begin}
    )
    # ---- outputs -----------------------------------------------------------------------------------------------------
    write_outputs(out, metrics, summary, measured)
    print(headline(metrics))
    print(*(f"note        {note}" for note in notes), f"written to  {out}", sep="\n")
    return 0


def settled(reading: Reading, label_paths: Sequence[Path | None], class_names: Sequence[str]) -> Reading:
    """The reading with the classes that the values of all masks decide; prints which they are."""
    from slides.truth.mask_values import count_all

    # A mask that cannot be read is left out with its slide.
    count = partial(count_all, threads=len(os.sched_getaffinity(0)), lenient=True)
    reading, lines = reading.settled(label_paths, count, dict(enumerate(class_names)))
    for line in lines:
        print(f"classes     {line}")
    return reading


if __name__ == "__main__":
    sys.exit(main())
