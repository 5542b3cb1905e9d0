"""Outputs of an evaluation: metrics.json, tables as CSV, the report with small pictures, and scores as text."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from evaluation.report import html
from metrics.stages import submission_text
from metrics.summary import SlideScores, Summary, plain
from system.atomic_files import write_bytes
from system.version import __version__

# Longer side and bytes of a picture in the report, and the number of slides that have one.
PICTURE_PX = 480
PICTURE_BYTES = 60_000
PICTURES = 200
# predict.py writes no overlay with more px than this.
OVERLAY_PX = 64 * 2**20


def write_outputs(
    out: Path,
    metrics: Mapping[str, Any],
    summary: Summary,
    slides: Sequence[SlideScores],
    overlays: Mapping[str, Path],
) -> None:
    """Write all files of an evaluation, each completely or not at all.

    Args:
        out: existing folder to write to.
        metrics: contents of metrics.json, JSON types.
        summary: scores of the set.
        slides: scores of each slide.
        overlays: slide id -> picture of the prediction, which may be missing.

    Raises:
        OSError: a file cannot be written.
    """
    rows = [plain(row) for row in summary.rows]
    stored = {"widefov_version": __version__} | dict(metrics)
    write(out / "metrics.json", json.dumps(stored, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    write(out / "slides.csv", table(summary.rows[0], (row.values() for row in rows)))
    write(out / "false_positives.csv", table(*false_positives(slides)))
    if summary.submission is not None:
        write(out / "submission.csv", submission_text(summary.submission))
    pictures = {row["slide_id"]: picture(overlays[row["slide_id"]]) for row in rows[:PICTURES]}
    write(out / "report.html", html(metrics, rows, summary.froc, summary.roc, pictures))


def slide_line(slide: SlideScores) -> str:
    """Describe the scores of a slide in one line."""
    lesions = f"{len(slide.hits.lesion_L) - slide.missed} of {len(slide.hits.lesion_L)} lesions found"
    return f"{slide.slide_id}: tumor Dice {slide.tumor_dice:.3f}, {lesions}, {len(slide.hits.false)} false positives"


def headline(metrics: Mapping[str, Any]) -> str:
    """List the scores of the set, one per line.

    Args:
        metrics: as in metrics.json.
    """
    pixels, patients = metrics["pixels"], metrics["patients"]
    named = [
        ("mIoU", pixels["miou"]),
        ("pixel AUC", pixels["auc"]),
        ("lesion FROC", metrics["lesions"]["froc"]),
        ("slide AUC", metrics["slide_auc"]),
        ("node accuracy", metrics["nodes"]["accuracy"]),
        *([("patient kappa", patients["kappa"])] if patients else []),
    ]
    return "\n".join(f"{name:<14}{score_text(score)}" for name, score in named)


def score_text(score: Mapping[str, Any]) -> str:
    """Format a score with its interval."""
    if score["value"] is None:
        return "not defined"
    interval = "" if score["low"] is None else f"  (95% {score['low']:.4f} to {score['high']:.4f})"
    return f"{score['value']:.4f}{interval}"


def false_positives(slides: Sequence[SlideScores]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the false regions of all slides, largest first."""
    regions = [(slide.slide_id, region) for slide in slides for region in slide.false_regions]
    regions.sort(key=lambda one: (-one[1].area_um2, one[0], one[1].x, one[1].y))
    return ["slide_id", "x", "y", "probability", "area_um2"], [
        [slide_id, f"{r.x:.1f}", f"{r.y:.1f}", f"{r.probability:.6f}", f"{r.area_um2:.1f}"] for slide_id, r in regions
    ]


def table(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """Format rows as CSV; None becomes an empty cell."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([f"{cell:.6g}" if isinstance(cell, float) else cell for cell in row] for row in rows)
    return buffer.getvalue()


def write(path: Path, text: str) -> None:
    """Write a file completely or not at all.

    Raises:
        OSError: it cannot be written; the message names it and says what to do.
    """
    try:
        write_bytes(path, text.encode())
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"{path} cannot be written: {reason}; free space or choose another --out") from error


def picture(path: Path) -> str:
    """Return a small JPEG of an image as a data URI; empty if the image is missing or unreadable."""
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
