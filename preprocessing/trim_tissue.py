"""Slides cut to their tissue: margins of glass are removed, empty rows and columns between tissue are shortened.

    OUT/trim_tissue/SLIDE.tif          JPEG pyramid with the spacing in its tags (--trim_format jpg: one JPEG)
    OUT/trim_tissue/SLIDE.json         the rows and columns kept; maps px back to level 0 exactly
    OUT/trim_tissue/trim_tissue.csv    sizes and shares of all slides

A slide without tissue fails: it gets no image, and the exit code is 1.

python -m preprocessing.trim_tissue --slide_path DIR --out OUT     (after the step tissue)
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cohorts.pairing import Case
from cohorts.sets import Slides
from options.fields import Group, option
from options.parser import positive, whole
from preprocessing import store
from preprocessing.command import StepProgram, main
from preprocessing.runner import FAILED, Outcome, Step
from preprocessing.store import StepResult
from preprocessing.tissue import reads_mask
from preprocessing.whole_slides import (
    FORMAT_HELP,
    FORMATS,
    GAP_HELP,
    NO_TISSUE,
    QUALITY_HELP,
    SPACING_HELP,
    ImageOptions,
    cut,
    values,
    write_image,
)
from slides.truth.reading import Reading
from system.csv_tables import counted, csv_text

NAME = "trim_tissue"
COLUMNS = ("slide", "image", "um_px_x", "um_px_y", "width", "height", "kept_share", "runs_x", "runs_y")


@dataclass(frozen=True, kw_only=True)
class TrimmedSlides(Group):
    """Trimmed slides."""

    trim_um_px: float = option(2.0, parse=positive, unit="um/px", help=SPACING_HELP)
    trim_gap: int = option(64, parse=whole(0), unit="px", help=GAP_HELP)
    trim_format: str = option("tif", choices=FORMATS, help=FORMAT_HELP)
    trim_quality: int = option(90, parse=whole(1, 100), help=QUALITY_HELP)


@dataclass(frozen=True, kw_only=True)
class TrimTissueOptions(Group):
    """Options of the step on the command line."""

    trimmed: TrimmedSlides


def step(options: TrimTissueOptions, reading: Reading, _slides: Slides) -> Step:
    """The step with its options."""
    images = options.trimmed
    resolved = ImageOptions(reading, images.trim_um_px, images.trim_gap, images.trim_format, images.trim_quality)
    return Step(NAME, 1, make, resolved, reads_mask, finish)


def make(case: Case, out: Path, options: ImageOptions) -> StepResult:
    """Trim one slide."""
    found = cut(case, out, options)
    if found is None:
        return StepResult(fault=NO_TISSUE.format(case.slide_id))
    names = write_image(found, out / NAME, case.slide_id, options)
    row = {"image": names[0], **values(found), "runs_x": len(found.trim.runs_x), "runs_y": len(found.trim.runs_y)}
    return StepResult(row, (), tuple(f"{NAME}/{name}" for name in names), damage=found.slide.damage())


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


PROGRAM = StepProgram(NAME, __doc__, TrimTissueOptions, step, reads_labels=False)

if __name__ == "__main__":
    sys.exit(main([PROGRAM]))
