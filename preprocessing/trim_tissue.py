"""Slides cut to their tissue: margins of glass are removed, empty rows and columns between tissue are shortened.

    OUT/trim_tissue/SLIDE.tif          JPEG pyramid with the spacing in its tags (--trim_format jpg: one JPEG)
    OUT/trim_tissue/SLIDE.json         the rows and columns kept; maps px back to level 0 exactly
    OUT/trim_tissue/trim_tissue.csv    sizes and shares of all slides

A slide without tissue fails: it gets no image, and the exit code is 1.

python -m preprocessing.trim_tissue --slide_path DIR --out OUT     (after the step tissue)
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cohorts.pairing import Case
from cohorts.sets import Slides
from preprocessing import store
from preprocessing.runner import FAILED, Outcome, Step
from preprocessing.store import StepResult
from preprocessing.tissue import reads_mask
from preprocessing.whole_slides import NO_TISSUE, ImageOptions, add_image_options, cut, values, write_image
from slides.truth.reading import Reading
from system.csv_tables import counted, csv_text

NAME = "trim_tissue"
COLUMNS = ("slide", "image", "um_px_x", "um_px_y", "width", "height", "kept_share", "runs_x", "runs_y")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of this step."""
    add_image_options(parser.add_argument_group("trimmed slides"), "trim", 2.0)


def step(opts: argparse.Namespace, reading: Reading, _slides: Slides) -> Step:
    """The step with its options."""
    options = ImageOptions(reading, opts.trim_um_px, opts.trim_gap, opts.trim_format, opts.trim_quality)
    return Step(NAME, 1, make, options, reads_mask, finish)


def make(case: Case, out: Path, options: ImageOptions) -> StepResult:
    """Trim one slide."""
    found = cut(case, out, options)
    if found is None:
        return StepResult(fault=NO_TISSUE.format(case.slide_id))
    names = write_image(found, out / NAME, case.slide_id, options)
    row = {"image": names[0], **values(found), "runs_x": len(found.trim.runs_x), "runs_y": len(found.trim.runs_y)}
    return StepResult(row, (), tuple(f"{NAME}/{name}" for name in names))


def finish(out: Path, _cases: Sequence[Case], outcomes: Sequence[Outcome]) -> list[str]:
    """Write the table of all slides."""
    good = [outcome for outcome in outcomes if outcome.state != FAILED]
    rows = [{"slide": outcome.slide_id, **outcome.result.values} for outcome in good]
    store.write_text(out / NAME / f"{NAME}.csv", csv_text(COLUMNS, rows))
    if not rows:
        return []
    px = sum(row["width"] * row["height"] for row in rows)
    share = px / sum(row["width"] * row["height"] / row["kept_share"] for row in rows)
    return [f"{NAME:<15} {px / 1e6:.1f} Mpx, {share:.0%} of {counted(len(rows), 'slide')}: {out / NAME}"]


if __name__ == "__main__":
    from preprocessing.command import main

    sys.exit(main([NAME]))
