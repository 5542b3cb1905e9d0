"""Checks a data set before it is used: opens every slide with its label and reports what is wrong.

    OUT/check/index.html    all slides with findings and thumbnails (tissue green, tumor red)
    OUT/check/check.csv     slide, level (PASS, WARN, FAIL), what, found, fix
    OUT/check/SLIDE.png     thumbnails

FAIL: later steps and training would end with an error at this slide. WARN: they would run, but look at the slide.

python -m preprocessing.check --slide_path DIR --label_path DIR --out OUT
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from cohorts.pairing import Case, known_problems
from cohorts.sets import Slides
from cohorts.splits import NORMAL
from options.fields import Group
from options.preprocess import PatchSpacing, PenMarks, TissueRule
from preprocessing.check_report import PICTURE_PX, write_report
from preprocessing.command import StepProgram, main
from preprocessing.overview import draw_outline, overview, write_png
from preprocessing.runner import Outcome, Step, one_line
from preprocessing.store import StepResult
from preprocessing.tissue import LEAST_SHARE, Tissue, advice, find_tissue
from slides.reader import Slide
from slides.tissue import NOT_BRIGHTFIELD
from slides.truth.interface import EmptyTruth, Truth
from slides.truth.mask_truth import MaskTruth
from slides.truth.mask_values import count_values, is_plain, listed
from slides.truth.reading import Reading
from slides.truth.xml_truth import XmlTruth, read_outlines
from system.csv_tables import counted
from system.findings import FAIL, WARN, Finding, failed, passed, warned

NAME = "check"
GREEN, RED = (30, 150, 30), (220, 30, 30)
CELL_UM = 16.0  # side of the cells in which tissue and tumor are searched, um
WINDOW_PX = 512
# Spacing of slides scanned for pathology, um per px: 40x is 0.22 to 0.28, 20x about 0.5, 10x about 1.
USUAL_UM_PX = 0.1, 1.1
SQUARE = 0.01  # largest relative difference of the spacings along x and y
LARGE_PX = 64 * 2**20  # a larger slide needs coarser levels, or the search for tissue decodes all of it
TINY_UM2 = 50.0  # area of a nucleus; a smaller outline is a slip of the mouse
ON_TISSUE = 0.5  # smallest share of tumor cells that show tissue
SIGNATURE_PX = 64  # side of the gray thumbnails that are compared to find duplicates
FIX_FILE = "repair or replace the file, or remove the slide"


@dataclass(frozen=True)
class Options:
    """What slides are checked for.

    Attributes:
        reading: how slides and labels are read.
        um_px: um per px of the patches that will be extracted.
        method: method of the tissue search, see `tissue_mask`.
        keep_pen: count pen marks as tissue.
        tolerance: share of `um_px` within which a level of a slide is taken as it is.
    """

    reading: Reading
    um_px: float
    method: str = "hsv"
    keep_pen: bool = False
    tolerance: float = 0.0


@dataclass(frozen=True, kw_only=True)
class CheckOptions(Group):
    """Options of the step on the command line."""

    patches: PatchSpacing
    tissue: TissueRule
    pen: PenMarks


def step(options: CheckOptions, reading: Reading, slides: Slides) -> Step:
    """The step with its options."""
    faults = [_from_error("pairing", ValueError(fault)) for fault in slides.faults]
    spacing, pen = options.patches, options.pen
    resolved = Options(
        reading, spacing.resolution, options.tissue.tissue_method, pen.keep_pen, spacing.resolution_tolerance
    )
    return Step(NAME, 1, make, resolved, finish=partial(finish, faults))


def make(case: Case, out: Path, options: Options) -> StepResult:
    """Check one slide."""
    try:
        slide = options.reading.open_filled(case.slide_path, case.um_px).taking_levels(options.tolerance)
        picture_HWC, px_l0 = overview(slide, PICTURE_PX)
        width, height = slide.size_xy_l0
        slide.read(slide.window((width / 2, height / 2), (WINDOW_PX, WINDOW_PX), options.um_px))
        tissue = find_tissue(slide, CELL_UM, options.method, options.keep_pen)
        damage = slide.damage()
    except (ValueError, OSError) as error:
        return _result([_from_error("slide", error)])
    gray_HW = cv2.cvtColor(picture_HWC, cv2.COLOR_RGB2GRAY)
    signature = cv2.resize(gray_HW, (SIGNATURE_PX, SIGNATURE_PX), interpolation=cv2.INTER_AREA)
    tissue_HW, cell_l0 = tissue.tissue_HW, tissue.cell_l0
    findings = [*_slide(case, slide, options.um_px), *_tissue(tissue, options.method)]
    if damage:
        findings.append(warned("damage", damage, "copy the slide again, or use it without these places"))
    draw_outline(picture_HWC, tissue_HW, px_l0 / cell_l0, GREEN, 1)
    try:
        truth = options.reading.open_truth(case.label_path, slide)
        tumor_HW = np.zeros_like(tissue_HW)
        for cls in sorted(truth.classes - {0}):
            tumor_HW |= truth.label_max(cell_l0, cls)
        findings += _label(case, truth, slide, options.reading)
        findings += _tumor(case, tumor_HW, tissue_HW)
        draw_outline(picture_HWC, tumor_HW, px_l0 / cell_l0, RED, 2)
    except (ValueError, OSError) as error:
        findings.append(_from_error("label", error))
    write_png(out / NAME / f"{case.slide_id}.png", picture_HWC)
    return replace(_result(findings, signature.tobytes().hex(), f"{NAME}/{case.slide_id}.png"), damage=damage)


def _result(findings: Sequence[Finding], signature: str = "", *outputs: str) -> StepResult:
    bad = [f"{finding.found}; {finding.fix}" for finding in findings if finding.level == FAIL]
    values = {"findings": [list(astuple(finding)) for finding in findings], "signature": signature}
    return StepResult(values, (), outputs, one_line("; ".join(bad)))


def _from_error(what: str, error: Exception) -> Finding:
    """A finding from a message whose last part, after a semicolon, says what to do."""
    text = one_line(str(error))
    found, _, fix = text.rpartition("; ")
    return failed(what, found or text, fix if found else FIX_FILE)


def _slide(case: Case, slide: Slide, um_px: float) -> Iterator[Finding]:
    """Size, levels and spacing."""
    width, height = slide.size_xy_l0
    factors = " ".join(f"{max(level.downsample_xy):.4g}" for level in slide.levels)
    found = f"{width} x {height} px, {len(slide.levels)} levels ({factors})"
    if len(slide.levels) == 1 and width * height > LARGE_PX:
        yield warned("levels", found, "the tissue search decodes all of it: write a pyramid (vips tiffsave --pyramid)")
    else:
        yield passed("levels", found)
    x, y = slide.um_px_xy_l0
    found = f"{x:.4g} um/px" if abs(x - y) < 1e-4 * x else f"{x:.4g} x {y:.4g} um/px"
    low, high = USUAL_UM_PX
    if not (low <= x <= high and low <= y <= high):
        yield warned("spacing", f"{found}: slides have {low:g} to {high:g}", "give --mpp if it is wrong")
    elif abs(x - y) > SQUARE * x:
        yield warned("spacing", f"{found}: px are not square", "give --mpp if it is wrong")
    elif min(slide.step_xy_l0(um_px)) < 1 / 1.01:
        yield warned(
            "spacing", f"{found} is coarser than --resolution {um_px:g}: patches are enlarged", f"--resolution {x:.4g}"
        )
    else:
        yield passed("spacing", found)
    for problem in known_problems([case]):
        yield warned("known", problem.partition("; ")[0], "it is used as it is: remove it if that matters")


def _tissue(found: Tissue, method: str) -> Iterator[Finding]:
    share = float(found.tissue_HW.mean())
    if not found.brightfield:
        yield warned("tissue", NOT_BRIGHTFIELD, "leave it out: networks here are for stains seen in transmitted light")
    elif share < LEAST_SHARE:
        yield warned("tissue", f"{share:.2%} of the slide", advice("its thumbnail", method))
    else:
        yield passed("tissue", f"{share:.0%} of the slide")


def _label(case: Case, truth: Truth, slide: Slide, reading: Reading) -> Iterator[Finding]:
    """Contents of a label; for XML also oddities of its outlines."""
    if isinstance(truth, EmptyTruth):
        yield passed("label", "none: class 0 everywhere")
        return
    assert case.label_path is not None
    if not isinstance(truth, XmlTruth):
        assert isinstance(truth, MaskTruth)
        yield _mask(truth, slide, reading)
        return
    found, notes = read_outlines(case.label_path, slide, reading.class_of_group, reading.ignore_groups)
    groups = sorted({annotation.group for annotation in found})
    yield passed("label", f"{counted(len(found), 'annotation')} in {', '.join(groups) or 'no group'}")
    px_um2 = slide.um_px_xy_l0[0] * slide.um_px_xy_l0[1]
    tiny = [item.name for item in found if sum(part.area for part in item.polygons) * px_um2 < TINY_UM2]
    if tiny:
        yield warned(
            "outlines",
            f"{len(tiny)} smaller than {TINY_UM2:g} um2: {', '.join(tiny[:5])}",
            "delete them if they are slips",
        )
    kinds = (
        ("crosses or touches", "crossing or touching themselves, filled as ASAP does"),
        ("without area", "with fewer than three points, skipped"),
        ("has no area", "without area (dots or measurements), skipped"),
        ("is ignored", "in ignored groups"),
    )
    for phrase, what in kinds:
        count = sum(phrase in note for note in notes)
        if count:
            first = next(note for note in notes if phrase in note).removeprefix(f"{case.label_path}: ")
            yield warned("outlines", f"{count} {what}, first: {first}", "look at them in ASAP or QuPath")
    for note in truth.notes:
        if "outside the slide" in note:
            yield warned(
                "outlines", note.removeprefix(f"{case.label_path}: "), "is it the annotation of another slide?"
            )


def _mask(truth: MaskTruth, slide: Slide, reading: Reading) -> Finding:
    """Values of a mask, and the area of each class; a failure where nothing says which class a value is."""
    path, counts = truth.path, count_values(truth.path)
    px_mm2 = slide.um_px_xy_l0[0] * slide.um_px_xy_l0[1] * truth.px_l0[0] * truth.px_l0[1] / 1e6
    placed = truth.notes[0] if truth.notes else f"mask {path.name} of the slide's size"
    found = f"{placed}: values {listed(counts)}"
    classes = reading.class_of_value
    if classes is None:
        if not is_plain(counts):
            return failed("label", f"{found}; their classes are unknown", "say them with --mask_values VALUE:CLASS ...")
        classes = {value: min(value, 1) for value in counts}
    elif unlisted := sorted(counts.keys() - classes.keys()):
        raise ValueError(f"mask {path} holds values {unlisted}, not in --mask_values; add them")
    area: Counter[int] = Counter()
    for value, count in counts.items():
        area[classes[value]] += count
    areas = ", ".join(f"class {cls} {px * px_mm2:.4g} mm2" for cls, px in sorted(area.items()))
    return passed("label", f"{found}; {areas}")


def _tumor(case: Case, tumor_HW: NDArray[np.bool_], tissue_HW: NDArray[np.bool_]) -> Iterator[Finding]:
    """Whether there is tumor where it is expected."""
    count = int(tumor_HW.sum())
    called_normal = case.slide_id.lower().startswith(NORMAL)
    if case.labeled and not count:
        yield warned("tumor", "the label has none", "if it should, check --label_map (or --mask_values)")
    elif count and called_normal:
        yield warned("tumor", "a slide called normal has tumor", "check whether it is the right label")
    elif count:
        share = float((tumor_HW & tissue_HW).sum() / count)
        if share < ON_TISSUE:
            yield warned("tumor", f"only {share:.0%} of it lies on tissue", "check whether it is the right label")
        else:
            yield passed("tumor", f"{share:.0%} of it lies on tissue")


def _one_spelling(text: str) -> str:
    """A text of a finding, which may have been kept since before 0.1.0."""
    return text.replace("tumour", "tumor")  # old spelling


def finish(faults: Sequence[Finding], out: Path, cases: Sequence[Case], outcomes: Sequence[Outcome]) -> list[str]:
    """Find duplicates and write the report."""
    findings = {
        case.slide_id: [Finding(*map(_one_spelling, row)) for row in outcome.result.values["findings"]]
        if "findings" in outcome.result.values
        else [failed("slide", outcome.error, FIX_FILE)]
        for case, outcome in zip(cases, outcomes, strict=True)
    }
    signatures = {outcome.slide_id: outcome.result.values.get("signature", "") for outcome in outcomes}
    for case, other, what in duplicates(cases, signatures):
        findings[case.slide_id].append(
            warned("duplicate", f"{what} as {other.slide_path}", "remove one of them, or keep both in one split")
        )
    counts = write_report(out / NAME, faults, findings)
    # The run lists failures itself.
    lines = [
        f"WARN    {NAME:<15} {slide_id}: {finding.what}: {one_line(finding.found)}"
        for slide_id, found in findings.items()
        for finding in found
        if finding.level == WARN
    ]
    levels = ", ".join(f"{counts[level]} {level}" for level in counts)
    return [*lines, f"{NAME:<15} slides: {levels}; {out / NAME / 'index.html'}"]


def duplicates(cases: Sequence[Case], signatures: dict[str, str]) -> Iterator[tuple[Case, Case, str]]:
    """Slides that show the same image as another: the later one, the earlier one, and how they agree.

    Thumbnails of a copy, even if it was compressed or scaled again, agree to about a gray level; those of neighboring
    sections do not.
    """
    known = [case for case in cases if signatures.get(case.slide_id)]
    if not known:
        return
    gray_NP = np.array([list(bytes.fromhex(signatures[case.slide_id])) for case in known], np.int16)
    for later in range(1, len(known)):
        if gray_NP[later].std() < _LEAST_STD:
            continue  # all thumbnails of glass agree
        distance_NP = np.abs(gray_NP[:later] - gray_NP[later])
        alike = np.flatnonzero((distance_NP.mean(axis=1) <= _ALIKE_MEAN) & (distance_NP.max(axis=1) <= _ALIKE_MOST))
        for earlier in alike[:1]:
            first, second = known[int(earlier)], known[later]
            yield second, first, "the same file" if _same_bytes(first, second) else "shows the same image"


def _same_bytes(first: Case, second: Case) -> bool:
    one, two = first.slide_path, second.slide_path
    if one.stat().st_size != two.stat().st_size:
        return False
    with one.open("rb") as a, two.open("rb") as b:
        while block := a.read(2**22):
            if block != b.read(2**22):
                return False
    return True


_LEAST_STD, _ALIKE_MEAN, _ALIKE_MOST = 4.0, 1.0, 10  # gray levels


PROGRAM = StepProgram(NAME, __doc__, CheckOptions, step, reports_faults=True)

if __name__ == "__main__":
    sys.exit(main([PROGRAM]))
