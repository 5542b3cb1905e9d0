"""Score predictions of whole slides: python evaluate.py --predictions DIR --label_path DIR --out DIR.

Predictions (inference, one folder per slide) -> slides and labels (evaluation_inputs) -> counts of each slide
(evaluation_slide) -> scores with intervals (metrics.summary) -> metrics.json, slides.csv, false_positives.csv,
submission.csv, report.html (evaluation.report).
"""

from __future__ import annotations

import base64
import csv
import io
import json
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from options.evaluate import EvaluateOptions, evaluate_options
from options.fields import as_json
from system.atomic_files import write_bytes

# Longer side and bytes of a picture in the report, and of how many slides there are any.
PICTURE_PX = 480
PICTURE_BYTES = 60_000
PICTURES = 200
# An overlay with more px than this was not made by predict.py.
OVERLAY_PX = 64 * 2**20


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0, or 2 with one line that says what is wrong."""
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
    """Kappa of a submission, printed."""
    from metrics.stages import STAGES, read_submission, score_submission

    kappa, confusion_KK = score_submission(read_submission(reference), read_submission(submission))
    print(f"patients    {confusion_KK.sum()}")
    for stage, row in zip(STAGES, confusion_KK.tolist(), strict=True):
        print(f"  {stage:<8} called " + (", ".join(f"{n} x {s}" for s, n in zip(STAGES, row, strict=True) if n) or "-"))
    print(f"kappa       {kappa!r} (quadratic weights)")
    return 0


def evaluate(opts: EvaluateOptions) -> int:
    """Everything, from predictions to report."""
    from artifacts.metadata import class_count
    from cohorts.pairing import known_problems
    from evaluation.predictions import find
    from evaluation.report import html
    from evaluation.slide import measure
    from metrics.stages import submission_text
    from metrics.summary import SlideScores, plain, summarize
    from slides.truth.annotation import describe

    begin = time.monotonic()
    # ---- what there is -----------------------------------------------------------------------------------------------
    slides, labels, scores = opts.slides, opts.labels, opts.scores
    predictions, label_path, out = slides.required()
    reading = labels.reading(slides.mpp)
    classes = labels.count(class_count(reading.class_of_group, reading.class_of_value))
    found = find(predictions, slides.slide_path, label_path, (slides.slide_format, slides.label_format), classes)
    out.mkdir(parents=True, exist_ok=True)
    class_names = found.pairs[0][0].class_names
    notes = [*found.notes, *known_problems([case for _, case in found.pairs])]
    print(f"classes     {describe(reading.class_of_group, dict(enumerate(class_names)))}")
    # ---- slide by slide ----------------------------------------------------------------------------------------------
    measured: list[SlideScores] = []
    folders = {prediction.slide_id: prediction.folder for prediction, _ in found.pairs}
    left_out = dict(found.left_out)
    for number, (prediction, case) in enumerate(found.pairs, start=1):
        try:
            one = measure(prediction, case, reading, tissue_only=scores.pixels == "tissue")
        except (ValueError, OSError) as error:
            # One bad slide does not cost the rest; it is named in every output.
            left_out[prediction.slide_id] = str(error)
            continue
        measured.append(one)
        notes += one.notes
        print(f"{number:>4} of {len(found.pairs)}  {line(one)}", flush=True)
    for slide_id, reason in left_out.items():
        print(f"left out    {slide_id}: {reason}", file=sys.stderr)
    if not measured:
        raise ValueError(f"no slide could be evaluated; the first: {next(iter(left_out.values()))}")
    # ---- scores ------------------------------------------------------------------------------------------------------
    summary = summarize(measured, class_names, scores.bootstrap, scores.seed, scores.froc_threshold)
    metrics = plain(
        summary.metrics
        | {"left_out": left_out, "notes": notes, "options": as_json(slides) | as_json(labels) | as_json(scores)}
        | {"seconds": time.monotonic() - begin}
    )
    # ---- files -------------------------------------------------------------------------------------------------------
    shown = {row["slide_id"]: picture(folders[row["slide_id"]] / "overlay.png") for row in summary.rows[:PICTURES]}
    write(out / "metrics.json", json.dumps(metrics, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    write(out / "slides.csv", table(summary.rows[0], (plain(row).values() for row in summary.rows)))
    write(out / "false_positives.csv", table(*false_positives(measured)))
    if summary.submission is not None:
        write(out / "submission.csv", submission_text(summary.submission))
    write(out / "report.html", html(metrics, [plain(row) for row in summary.rows], summary.froc, summary.roc, shown))
    print(headline(metrics))
    for note in notes:
        print(f"note        {note}")
    print(f"written to  {out}")
    return 0


def line(slide: Any) -> str:
    """One slide in one line."""
    lesions = f"{len(slide.hits.lesion_L) - slide.missed} of {len(slide.hits.lesion_L)} lesions found"
    return f"{slide.slide_id}: tumor Dice {slide.tumor_dice:.3f}, {lesions}, {len(slide.hits.false)} false positives"


def headline(metrics: dict[str, Any]) -> str:
    """The scores of the set."""
    pixels, patients = metrics["pixels"], metrics["patients"]
    named = [
        ("mIoU", pixels["miou"]),
        ("pixel AUC", pixels["auc"]),
        ("lesion FROC", metrics["lesions"]["froc"]),
        ("slide AUC", metrics["slide_auc"]),
        ("node accuracy", metrics["nodes"]["accuracy"]),
        *([("patient kappa", patients["kappa"])] if patients else []),
    ]
    return "\n".join(f"{name:<14}{shown(score)}" for name, score in named)


def shown(score: dict[str, Any]) -> str:
    """A score and its interval in words."""
    if score["value"] is None:
        return "not defined"
    return f"{score['value']:.4f}" + (
        "" if score["low"] is None else f"  (95% {score['low']:.4f} to {score['high']:.4f})"
    )


def false_positives(slides: Sequence[Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of all slides' false regions, the biggest first."""
    regions = [(slide.slide_id, region) for slide in slides for region in slide.false_regions]
    regions.sort(key=lambda one: (-one[1].area_um2, one[0], one[1].x, one[1].y))
    return ["slide_id", "x", "y", "probability", "area_um2"], [
        [slide_id, f"{r.x:.1f}", f"{r.y:.1f}", f"{r.probability:.6f}", f"{r.area_um2:.1f}"] for slide_id, r in regions
    ]


def table(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """CSV; what does not exist is an empty cell."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([f"{cell:.6g}" if isinstance(cell, float) else cell for cell in row] for row in rows)
    return buffer.getvalue()


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    try:
        write_bytes(path, text.encode())
    except OSError as error:
        raise OSError(
            f"{path} cannot be written: {error.strerror or error}; free space or give another --out"
        ) from error


def picture(path: Path) -> str:
    """A small JPEG of an image as a data URI; empty where there is none or it cannot be read."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.width * image.height > OVERLAY_PX:
                return ""
            image.thumbnail((PICTURE_PX, PICTURE_PX))
            small = image.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError):
        return ""
    for quality in (80, 60, 40, 20, 5):
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=quality)
        if buffer.tell() <= PICTURE_BYTES:
            break
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


if __name__ == "__main__":
    sys.exit(main())
