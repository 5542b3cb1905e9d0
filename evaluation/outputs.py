"""Outputs of an evaluation: metrics.json, tables as CSV, the report with small pictures."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.report import html
from evaluation.slide import Measured
from metrics.stages import submission_text
from metrics.summary import SlideScores, Summary, plain
from system.atomic_files import write_bytes
from system.version import __version__

# Slides that have pictures in the report.
PICTURES = 200


def write_outputs(
    out: Path,
    metrics: Mapping[str, Any],
    summary: Summary,
    measured: Sequence[Measured],
) -> None:
    """Write all files of an evaluation, each completely or not at all.

    Args:
        out: existing folder to write to.
        metrics: contents of metrics.json, JSON types.
        summary: scores of the set.
        measured: each slide.

    Raises:
        OSError: a file cannot be written.
    """
    rows = [plain(row) for row in summary.rows]
    stored = {"widefov_version": __version__} | dict(metrics)
    write(out / "metrics.json", json.dumps(stored, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    write(out / "slides.csv", table(summary.rows[0], (row.values() for row in rows)))
    write(out / "false_positives.csv", table(*false_positives([one.scores for one in measured])))
    if summary.submission is not None:
        write(out / "submission.csv", submission_text(summary.submission))
    pictures = {one.scores.slide_id: (one.truth, one.predicted) for one in measured}
    shown = {row["slide_id"]: pictures[row["slide_id"]] for row in rows[:PICTURES]}
    write(out / "report.html", html(metrics, rows, summary.froc, summary.roc, shown))


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
