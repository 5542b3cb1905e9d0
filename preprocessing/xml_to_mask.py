"""Converts ASAP XML to masks: tiled pyramids that match their slides px by px.

    OUT/masks/SLIDE_Mask.tif    classes, for slides with an XML label

Every px has the class under its center, as in training from XML (`slides.truth.xml_truth.XmlTruth`). Tiles without an
edge are filled without visiting their px, so the time depends on the length of the outlines, not on the area.

python -m preprocessing.xml_to_mask --slide_path DIR --label_path DIR --label_format xml --out OUT

A single file, with or without its slide:

python -m preprocessing.xml_to_mask --xml tumor_001.xml --slide tumor_001.tif --out tumor_001_Mask.tif
python -m preprocessing.xml_to_mask --xml tumor_001.xml --size 97792 221184 --um_px 0.243 --out tumor_001_Mask.tif
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cohorts.pairing import Case
from cohorts.sets import Slides
from options.classes import AnnotationClasses
from options.fields import Group, option, read
from options.parser import Parser, positive, whole
from preprocessing.command import StepProgram, main_or_one_file
from preprocessing.runner import FAILED, Outcome, Step
from preprocessing.store import StepResult, check_output
from slides.geometry import Pair, Window
from slides.reader import Slide
from slides.tiff.pyramid import write_mask_pyramid
from slides.truth.annotation import DEFAULT_IGNORE_GROUPS, DEFAULT_LABEL_MAP, describe
from slides.truth.label import has_outlines
from slides.truth.reading import Reading
from slides.truth.xml_truth import XmlTruth
from system.csv_tables import counted

NAME = "xml_to_mask"
FOLDER = "masks"
TILE = 512


@dataclass(frozen=True)
class Field:
    """A slide known only by its size.

    Attributes:
        id: id of the slide.
        path: name in messages.
        size_xy_l0: width and height, level-0 px.
        um_px_xy_l0: micrometers per level-0 px.
    """

    id: str
    path: Path
    size_xy_l0: tuple[int, int]
    um_px_xy_l0: Pair
    bounds_xy_l0: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Options:
    """How masks are written.

    Attributes:
        reading: how slides and labels are read.
        tile: side of the tiles, px, a multiple of 16.
    """

    reading: Reading
    tile: int = TILE


def xml_to_mask(
    xml: Path,
    slide: Slide | Field,
    out: Path,
    label_map: Mapping[str, int] = DEFAULT_LABEL_MAP,
    ignore_groups: Collection[str] = DEFAULT_IGNORE_GROUPS,
    tile: int = TILE,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[str, ...]:
    """Write the mask of one annotation.

    The mask has the size and spacing of the slide, and the sizes of its levels (halves if the slide has only one).
    Values are classes. A px of a coarser level is the maximum of its px, with 255 (ignore) below every class, so small
    lesions remain.

    Args:
        xml: the annotation.
        slide: its slide, or size and spacing of the slide.
        out: mask file, written completely or not at all.
        label_map: group -> class, in painting order.
        ignore_groups: groups to skip.
        tile: side of the tiles, px, a multiple of 16.
        progress: see `slides.tiff.pyramid.write_mask_pyramid`.

    Returns:
        Notes on what was skipped, repaired or clipped.

    Raises:
        ValueError: the annotation cannot be used.
        OSError: the mask cannot be written.
    """
    truth = XmlTruth(xml, slide, label_map, ignore_groups)
    sizes = [level.size_xy for level in slide.levels] if isinstance(slide, Slide) else []
    class_HW = truth.one_class(tile)
    width, height = slide.size_xy_l0

    def tile_of(row: int, column: int) -> NDArray[np.uint8] | int:
        if class_HW[row, column] >= 0:
            return int(class_HW[row, column])
        top, left = row * tile, column * tile
        hw = min(tile, height - top), min(tile, width - left)
        return truth.label(Window((float(left), float(top)), hw, (1.0, 1.0)))

    write_mask_pyramid(
        out, slide.size_xy_l0, slide.um_px_xy_l0, tile_of, sizes if len(sizes) > 1 else None, "max", tile, progress
    )
    return truth.notes


def multiple_of_16(text: str) -> int:
    """Side of a tile, px."""
    tile = whole(16, 16384)(text)
    if tile % 16:
        raise argparse.ArgumentTypeError(f"{tile} given, a multiple of 16 needed")
    return tile


multiple_of_16.__name__ = "whole number"  # argparse shows it in its message


@dataclass(frozen=True, kw_only=True)
class MaskFiles(Group):
    """Masks of annotations."""

    mask_tile: int = option(TILE, parse=multiple_of_16, unit="px", help="side of the tiles")


@dataclass(frozen=True, kw_only=True)
class XmlToMaskOptions(Group):
    """Options of the step on the command line."""

    masks: MaskFiles


def step(options: XmlToMaskOptions, reading: Reading, _slides: Slides) -> Step:
    """The step with its options."""
    classes = sorted({0, *(cls for _, cls in reading.label_map)})
    resolved = Options(reading, options.masks.mask_tile)
    return Step(NAME, 1, make, resolved, finish=partial(finish, classes), target=FOLDER)


def make(case: Case, out: Path, options: Options) -> StepResult:
    """Write the mask of one slide, if its label is a file of outlines."""
    if case.label_path is None or not has_outlines(case.label_path):
        return StepResult()
    slide, reading = options.reading.open_slide(case.slide_path, case.um_px), options.reading
    path = out / FOLDER / f"{case.slide_id}_Mask.tif"
    path.parent.mkdir(parents=True, exist_ok=True)
    xml_to_mask(case.label_path, slide, path, reading.class_of_group, reading.ignore_groups, options.tile)
    return StepResult({"bytes": path.stat().st_size}, (), (f"{FOLDER}/{path.name}",))


def finish(classes: Sequence[int], out: Path, _cases: Sequence[Case], outcomes: Sequence[Outcome]) -> list[str]:
    """Lines with the number of masks, and with the option that reads them if the default does not."""
    good = [outcome.result.values for outcome in outcomes if outcome.state != FAILED]
    sizes = [values["bytes"] for values in good if values]
    others = "; the others have no outlines" if len(sizes) < len(good) else ""
    slides = f"{len(sizes)} of {counted(len(good), 'slide')}"
    line = f"{NAME:<15} masks of {slides}, {sum(sizes) / 1e6:.1f} MB: {out / FOLDER}{others}"
    if not sizes or set(classes) <= {0, 1}:
        return [line]
    return [line, f"{NAME:<15} read them with --mask_values {' '.join(f'{cls}:{cls}' for cls in classes)}"]


# ------------------------------------------------------------------------------------------------------------ one file


@dataclass(frozen=True, kw_only=True)
class SingleFile(Group):
    """Files."""

    xml: Path = option(required=True, help="ASAP annotation or QuPath GeoJSON")
    out: Path = option(required=True, metavar="MASK", help="mask to write (.tif)")
    slide: Path | None = option(help="slide of the annotation: gives size, levels and spacing")
    size: tuple[int, int] | None = option(
        parse=whole(1), nargs=2, metavar=("W", "H"), help="level-0 px, instead of --slide"
    )
    um_px: tuple[float, ...] | None = option(
        parse=positive, nargs="+", metavar="UM", help="um per level-0 px (x and y, or one value for both)"
    )

    def __post_init__(self) -> None:
        if self.um_px is not None and len(self.um_px) > 2:
            raise ValueError("--um_px: give one number, or one for x and one for y")
        if self.slide is not None and self.size is not None:
            raise ValueError("--slide already gives the size: give --slide, or --size with --um_px")
        if self.slide is None and (self.size is None or self.um_px is None):
            raise ValueError("give --slide, or --size with --um_px")

    def field(self) -> Slide | Field:
        """The slide, or its size and spacing; see `Slide` for errors."""
        um_px = None if self.um_px is None else (self.um_px[0], self.um_px[-1])
        if self.slide is not None:
            return Slide(self.slide, um_px)
        assert self.size is not None
        assert um_px is not None
        return Field(self.xml.stem, self.xml, self.size, um_px)


@dataclass(frozen=True, kw_only=True)
class SingleFileOptions(Group):
    """Options of the conversion of a single file."""

    files: SingleFile
    labels: AnnotationClasses
    masks: MaskFiles


def one_file(argv: Sequence[str] | None = None) -> int:
    """Convert a single file; returns the exit code: 0, or 2 after an error."""
    parser = Parser(f"python -m preprocessing.{NAME}", "Write one annotation as a pyramidal mask.")
    options = read(SingleFileOptions, parser, argv)
    files, start = options.files, time.perf_counter()
    try:
        label_map = options.labels.label_map or DEFAULT_LABEL_MAP
        check_output(files.out, (".tif", ".tiff"), [path for path in (files.xml, files.slide) if path is not None])
        field = files.field()
        print(describe(label_map))
        for note in xml_to_mask(
            files.xml, field, files.out, label_map, options.labels.ignore_groups, options.masks.mask_tile
        ):
            print(note)
    except (ValueError, OSError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    width, height = field.size_xy_l0
    print(f"{files.out}: {width} x {height} px in {time.perf_counter() - start:.1f} s")
    return 0


PROGRAM = StepProgram(NAME, __doc__, XmlToMaskOptions, step)

if __name__ == "__main__":
    sys.exit(main_or_one_file(PROGRAM, "--xml", one_file))
