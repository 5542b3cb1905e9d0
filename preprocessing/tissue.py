"""Tissue masks: a small TIFF per slide, and a picture to check it by.

    OUT/tissue/SLIDE.tif    0 and 255, with the spacing in its tags
    OUT/tissue/SLIDE.png    the slide with tissue outlined in green and pen marks in magenta
    OUT/tissue/tissue.csv   areas and shares of all slides

python -m preprocessing.tissue --slide_path DIR --out OUT
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cohorts.pairing import Case
from cohorts.sets import Slides
from options.fields import Group, option
from options.parser import positive
from options.preprocess import PenMarks, TissueRule
from preprocessing import store
from preprocessing.command import StepProgram, main
from preprocessing.overview import cell_side_l0, draw_outline, overview, write_cells, write_png
from preprocessing.runner import FAILED, Outcome, Step
from preprocessing.store import StepResult
from slides.reader import Slide
from slides.tissue import NOT_BRIGHTFIELD, cells_mm2, in_cells, is_brightfield, pen_marks, tissue_mask
from slides.truth.reading import Reading
from system.csv_tables import counted, csv_text

NAME = "tissue"
LEAST_SHARE = 0.01  # share of the slide; less tissue is reported
GREEN, MAGENTA = (30, 150, 30), (200, 0, 200)


@dataclass(frozen=True)
class Options:
    """How tissue is found.

    Attributes:
        reading: how slides are read.
        um_px: um per px of the masks.
        method: see `tissue_mask`.
        keep_pen: count pen marks as tissue.
    """

    reading: Reading
    um_px: float = 8.0
    method: str = "hsv"
    keep_pen: bool = False


@dataclass(frozen=True, kw_only=True)
class Masks(Group):
    """Tissue masks."""

    tissue_um_px: float = option(8.0, parse=positive, unit="um/px", help="um per px of the tissue masks")


@dataclass(frozen=True, kw_only=True)
class TissueOptions(Group):
    """Options of the step on the command line."""

    rule: TissueRule
    pen: PenMarks
    masks: Masks


def step(options: TissueOptions, reading: Reading, _slides: Slides) -> Step:
    """The step with its options."""
    resolved = Options(reading, options.masks.tissue_um_px, options.rule.tissue_method, options.pen.keep_pen)
    return Step(NAME, 1, make, resolved, finish=finish)


def mask_path(out: Path, slide_id: str) -> Path:
    """Path of the tissue mask of a slide."""
    return out / NAME / f"{slide_id}.tif"


def reads_mask(case: Case, out: Path) -> list[Path]:
    """For `Step.reads` of steps that read the tissue mask of a slide."""
    return [mask_path(out, case.slide_id)]


@dataclass(frozen=True)
class Tissue:
    """The tissue of a slide.

    Attributes:
        tissue_HW: cells with tissue.
        pen_HW: cells that are not counted as tissue because they show a pen mark or its rim.
        removed_HW: those of them that would be tissue otherwise.
        cell_l0: side of a cell, level-0 px.
        um_px: side of a cell along the coarser axis, um.
        brightfield: whether it is a brightfield slide; others have neither tissue nor pen marks.
    """

    tissue_HW: NDArray[np.bool_]
    pen_HW: NDArray[np.bool_]
    removed_HW: NDArray[np.bool_]
    cell_l0: int
    um_px: float
    brightfield: bool = True


def find_tissue(slide: Slide, um_px: float, method: str, keep_pen: bool) -> Tissue:
    """Find the tissue of a slide.

    Args:
        slide: the slide.
        um_px: requested side of the cells, um; the side is a whole number of level-0 px.
        method: see `tissue_mask`.
        keep_pen: count pen marks as tissue.

    Raises:
        SlideError: the slide cannot be read.
    """
    cell_l0 = cell_side_l0(slide, um_px)
    um_cell = cell_l0 * max(slide.um_px_xy_l0)
    rgb_HWC = in_cells(slide, cell_l0)
    tissue_HW = tissue_mask(rgb_HWC, um_cell, method)
    brightfield = is_brightfield(rgb_HWC)
    pen_HW = np.zeros_like(tissue_HW) if keep_pen or not brightfield else pen_marks(rgb_HWC, um_cell)
    return Tissue(tissue_HW & ~pen_HW, pen_HW, tissue_HW & pen_HW, cell_l0, um_cell, brightfield)


def advice(picture: str, method: str) -> str:
    """What to do about a slide with hardly any tissue."""
    return f"look at {picture}" + ("" if method == "otsu" else "; another stain may need --tissue_method otsu")


def make(case: Case, out: Path, options: Options) -> StepResult:
    """Find the tissue of one slide."""
    slide = options.reading.open_filled(case.slide_path, case.um_px)
    found = find_tissue(slide, options.um_px, options.method, options.keep_pen)
    tissue_mm2, pen_mm2, slide_mm2 = (
        cells_mm2(cells_HW, found.cell_l0, slide)
        for cells_HW in (found.tissue_HW, found.removed_HW, np.ones_like(found.tissue_HW))
    )
    share = tissue_mm2 / slide_mm2
    notes = []
    if pen_mm2:
        notes.append(f"pen marks of {pen_mm2:.2f} mm2 are excluded from the tissue")
    if not found.brightfield:
        notes.append(NOT_BRIGHTFIELD)
    elif share < LEAST_SHARE:
        notes.append(
            f"only {share:.2%} of the slide is tissue: {advice(f'{NAME}/{case.slide_id}.png', options.method)}"
        )
    picture_HWC, px_l0 = overview(slide)
    for cells_HW, color in ((found.tissue_HW, GREEN), (found.pen_HW, MAGENTA)):
        draw_outline(picture_HWC, cells_HW, px_l0 / found.cell_l0, color)
    damage = slide.damage()
    write_cells(mask_path(out, case.slide_id), found.tissue_HW, found.um_px)
    write_png(out / NAME / f"{case.slide_id}.png", picture_HWC)
    values = {
        "tissue_mm2": round(tissue_mm2, 4),
        "tissue_share": round(share, 5),
        "pen_mm2": round(pen_mm2, 4),
        "um_px": round(found.um_px, 6),
    }
    return StepResult(
        values, tuple(notes), (f"{NAME}/{case.slide_id}.tif", f"{NAME}/{case.slide_id}.png"), damage=damage
    )


def finish(out: Path, _cases: Sequence[Case], outcomes: Sequence[Outcome]) -> list[str]:
    """Write the table of all slides."""
    good = [outcome for outcome in outcomes if outcome.state != FAILED]
    columns = ("slide", "tissue_mm2", "tissue_share", "pen_mm2", "um_px")
    store.write_text(
        out / NAME / f"{NAME}.csv", csv_text(columns, [{"slide": r.slide_id, **r.result.values} for r in good])
    )
    scarce = [r.slide_id for r in good if r.result.values["tissue_share"] < LEAST_SHARE]
    area = sum(r.result.values["tissue_mm2"] for r in good)
    lines = [f"{NAME:<15} {area:.1f} mm2 on {counted(len(good), 'slide')}; pictures and {NAME}.csv in {out / NAME}"]
    if scarce:
        lines.append(
            f"{NAME:<15} under {LEAST_SHARE:.0%} tissue on {counted(len(scarce), 'slide')}: {', '.join(scarce[:10])}"
        )
    return lines


PROGRAM = StepProgram(NAME, __doc__, TissueOptions, step, reads_labels=False)

if __name__ == "__main__":
    sys.exit(main([PROGRAM]))
