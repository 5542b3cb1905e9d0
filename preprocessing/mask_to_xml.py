"""Converts masks to ASAP XML along the exact edges of their px: the inverse of `xml_to_mask`.

    OUT/annotations/SLIDE.xml    for slides with a mask as label

Class 1 becomes group `_0`, class C group `class_C`, a hole group `_2` (see `slides.truth.asap_areas`), so
`xml_to_mask` gives the same mask again. Class 255 (ignore) has no outline.

python -m preprocessing.mask_to_xml --slide_path DIR --label_path DIR --out OUT

A single file, without its slide:

python -m preprocessing.mask_to_xml --mask tumor_001_Mask.tif --out tumor_001.xml
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import shapely

from cohorts.pairing import Case
from cohorts.sets import Slides
from options.classes import MaskClasses
from options.fields import Group, option, read
from options.parser import Parser
from preprocessing.command import StepProgram, main_or_one_file
from preprocessing.runner import FAILED, Outcome, Step
from preprocessing.store import StepResult, check_output
from slides.geometry import Pair, Window
from slides.reader import Level, Slide
from slides.truth.asap import YELLOW, write_outlines
from slides.truth.asap_areas import Area, asap_group, asap_label_map, outlines_of
from slides.truth.label import IGNORE, has_outlines
from slides.truth.mask_file import MaskFile
from slides.truth.mask_truth import MaskTruth
from slides.truth.outline import outlines
from slides.truth.raster import polygons_of
from slides.truth.reading import Reading
from system.atomic_files import written_whole
from system.csv_tables import counted

NAME = "mask_to_xml"
FOLDER = "annotations"

# Side of the blocks that are outlined one at a time, px; larger ones do not fit the cache of a core.
BLOCK = 2048


@dataclass(frozen=True)
class Options:
    """How masks are read.

    Attributes:
        reading: how slides and labels are read.
    """

    reading: Reading


@dataclass(frozen=True)
class _Own:
    """A mask as its own slide."""

    id: str
    path: Path
    size_xy_l0: tuple[int, int]
    um_px_xy_l0: Pair = (1.0, 1.0)
    levels: tuple[Level, ...] = ()


def mask_to_xml(
    mask: Path,
    out: Path,
    mask_values: Mapping[int, int] | None = None,
    block: int = BLOCK,
    slide: Slide | None = None,
) -> int:
    """Write the outlines of every class from 1 to 254 of a mask.

    Outlines follow the edges of px exactly, with a point at every corner, in level-0 px of the slide.

    Args:
        mask: one-channel TIFF or PNG.
        out: XML file, written completely or not at all.
        mask_values: stored value -> class; None: every value but 0 is class 1. Class 255 (ignore) has no outline.
        block: side of the blocks that are held in memory, px.
        slide: its slide, on which it is placed (`slides.truth.placing`); None: px are those of the mask.

    Returns:
        Number of areas.

    Raises:
        ValueError: the mask cannot be used.
        OSError: the XML file cannot be written.
    """
    # Outlines are in px: the spacing does not matter, and masks often have none.
    own = _Own(mask.stem, mask, MaskFile(mask).pages[0].size_xy)
    truth = MaskTruth(mask, own, mask_values)
    polygons_of_class = _polygons(truth, own.size_xy_l0, block)
    if slide is not None:
        px_l0 = MaskTruth(mask, slide, mask_values).px_l0
        polygons_of_class = _placed(polygons_of_class, px_l0, slide.size_xy_l0)
    areas = [
        Area(polygon, f"class {cls} {number}", asap_group(cls), YELLOW)
        for cls, polygons in sorted(polygons_of_class.items())
        for number, polygon in enumerate(polygons)
    ]
    with written_whole(out) as part:
        write_outlines(part, outlines_of(areas))
    return len(areas)


def _placed(
    polygons_of_class: Mapping[int, list[shapely.Polygon]], px_l0: Pair, size_xy_l0: tuple[int, int]
) -> dict[int, list[shapely.Polygon]]:
    """Polygons in px of a mask as level-0 px of a slide, without what lies outside it."""
    box = shapely.box(0, 0, *size_xy_l0)
    placed: dict[int, list[shapely.Polygon]] = {}
    for cls, polygons in polygons_of_class.items():
        for polygon in polygons:
            on_slide = shapely.transform(polygon, lambda xy: xy * np.asarray(px_l0))
            inside = shapely.within(on_slide, box)
            placed.setdefault(cls, []).extend([on_slide] if inside else polygons_of(on_slide.intersection(box)))
    return placed


def _polygons(truth: MaskTruth, size_xy: tuple[int, int], block: int) -> dict[int, list[shapely.Polygon]]:
    """Disjoint polygons of each class, level-0 px."""
    width, height = size_xy
    whole: dict[int, list[shapely.Polygon]] = {}
    cut: dict[int, list[shapely.Polygon]] = {}
    for top in range(0, height, block):
        for left in range(0, width, block):
            hw = min(block, height - top), min(block, width - left)
            label_HW = truth.label(Window((float(left), float(top)), hw, (1.0, 1.0)))
            box = shapely.box(left, top, left + hw[1], top + hw[0])
            low, high = int(label_HW.min()), int(label_HW.max())
            if low == high:
                if 0 < low < IGNORE:
                    cut.setdefault(low, []).append(box)
                continue
            present = np.flatnonzero(np.bincount(label_HW.ravel(), minlength=256)[1:IGNORE]) + 1
            for cls in present.tolist():
                for outline in outlines(label_HW == cls, 1.0):
                    polygon = shapely.transform(outline, lambda xy, at=(left, top): xy + at)
                    # An outline at the edge of its block continues in the next block.
                    inside = shapely.contains_properly(box, polygon)
                    (whole if inside else cut).setdefault(cls, []).append(polygon)
    for cls, parts in cut.items():
        # Points where blocks met now lie on straight sides: remove them.
        joined = shapely.simplify(shapely.union_all(parts), 0.0, preserve_topology=True)
        whole.setdefault(cls, []).extend(polygons_of(joined))
    return whole


@dataclass(frozen=True, kw_only=True)
class MaskToXmlOptions(Group):
    """The step has no options of its own."""


def step(_options: MaskToXmlOptions, reading: Reading, _slides: Slides) -> Step:
    """The step with its options."""
    return Step(NAME, 1, make, Options(reading), finish=partial(finish, reading.class_of_value), target=FOLDER)


def make(case: Case, out: Path, options: Options) -> StepResult:
    """Write the annotation of one slide, if its label is a mask."""
    if case.label_path is None or has_outlines(case.label_path):
        return StepResult()
    reading = options.reading
    slide = reading.open_slide(case.slide_path, case.um_px)
    notes = reading.open_truth(case.label_path, slide).notes
    path = out / FOLDER / f"{case.slide_id}.xml"
    path.parent.mkdir(parents=True, exist_ok=True)
    areas = mask_to_xml(case.label_path, path, reading.class_of_value, slide=slide)
    return StepResult({"areas": areas}, notes, (f"{FOLDER}/{path.name}",))


def finish(
    values: Mapping[int, int] | None, out: Path, _cases: Sequence[Case], outcomes: Sequence[Outcome]
) -> list[str]:
    """Lines with the number of areas, and with the options that read them if the defaults do not."""
    good = [outcome.result.values for outcome in outcomes if outcome.state != FAILED]
    areas = [row["areas"] for row in good if row]
    others = "; the others have no mask" if len(areas) < len(good) else ""
    slides = f"{len(areas)} of {counted(len(good), 'slide')}"
    line = f"{NAME:<15} {counted(sum(areas), 'area')} of {slides}: {out / FOLDER}{others}"
    return [line, *(f"{NAME:<15} {advice}" for advice in _reading_advice(values) if areas)]


def _reading_advice(values: Mapping[int, int] | None) -> list[str]:
    """The option that reads annotations of these classes, if the default label map does not."""
    classes = max([1, *(cls for cls in (values or {}).values() if cls != IGNORE)]) + 1
    groups = " ".join(f"{group}:{cls}" for group, cls in asap_label_map(classes).items())
    return [f"read with --label_map {groups}"] if classes > 2 else []


@dataclass(frozen=True, kw_only=True)
class SingleFile(Group):
    """Files."""

    mask: Path = option(required=True, help="one-channel TIFF or PNG")
    out: Path = option(required=True, metavar="XML", help="annotation to write (.xml)")


@dataclass(frozen=True, kw_only=True)
class SingleFileOptions(Group):
    """Options of the conversion of a single file."""

    files: SingleFile
    labels: MaskClasses


def one_file(argv: Sequence[str] | None = None) -> int:
    """Convert a single file; returns the exit code: 0, or 2 after an error."""
    parser = Parser(f"python -m preprocessing.{NAME}", "Write the outlines of one mask as an ASAP annotation.")
    options = read(SingleFileOptions, parser, argv)
    files, values, start = options.files, options.labels.mask_values, time.perf_counter()
    try:
        check_output(files.out, (".xml",), [files.mask])
        reading = Reading(mask_values=None if values is None else tuple(values.items()))
        reading, lines = reading.settled([files.mask])
        values = reading.class_of_value
        print(*lines, sep="\n")
        count = mask_to_xml(files.mask, files.out, values)
    except (ValueError, OSError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    print(f"{files.out}: {counted(count, 'area')} in {time.perf_counter() - start:.1f} s")
    for line in _reading_advice(values):
        print(line)
    return 0


PROGRAM = StepProgram(NAME, __doc__, MaskToXmlOptions, step)

if __name__ == "__main__":
    sys.exit(main_or_one_file(PROGRAM, "--mask", one_file))
