"""Data for training on whole slides: one image, one sampling mask and one label per slide.

    OUT/extract_tissue/images/SLIDE.tif    JPEG pyramid with the spacing in its tags (--extract_format jpg: one JPEG)
    OUT/extract_tissue/images/SLIDE.json   the rows and columns kept; maps px back to level 0 exactly
    OUT/extract_tissue/masks/SLIDE.tif     1 for tissue, else 0; one px per --mask_step px of the image
    OUT/extract_tissue/manifest.csv        slide_id, label, files, sizes, spacing

Labels come from a table with the columns slide_id and label. Slides that are not in it are skipped; a slide in it
without a file is an error. A slide without tissue fails: it gets no row, and the exit code is 1. Labels are stored only
in the manifest, so a changed label does not require a new image.

python -m preprocessing.extract_tissue --slide_path DIR --labels LABELS.csv --out OUT     (after the step tissue)
"""

from __future__ import annotations

import csv
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from cohorts.pairing import Case, named
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
    Cut,
    ImageOptions,
    cut,
    values,
    write_image,
)
from slides.names import composed
from slides.tiff.pyramid import write_mask_pyramid
from slides.tiff.shrink import Pixels
from slides.trimming import tissue_tile
from slides.truth.reading import Reading
from system.csv_tables import counted, csv_text

NAME = "extract_tissue"
IMAGES, MASKS = f"{NAME}/images", f"{NAME}/masks"
COLUMNS = (
    "slide_id", "label", "image", "mask", "mask_step", "um_px_x", "um_px_y", "width", "height", "kept_share",
    "tissue_share",
)  # fmt: skip
MASK_TILE = 256


@dataclass(frozen=True)
class Options:
    """What is written for each slide.

    Attributes:
        image: how a slide becomes an image.
        mask_step: px of the image per px of the mask, along each axis.
    """

    image: ImageOptions
    mask_step: int = 16


@dataclass(frozen=True, kw_only=True)
class LabeledImages(Group):
    """Whole slides."""

    labels: Path = option(required=True, metavar="CSV", help="table with the columns slide_id and label")
    extract_um_px: float = option(1.0, parse=positive, unit="um/px", help=SPACING_HELP)
    extract_gap: int = option(64, parse=whole(0), unit="px", help=GAP_HELP)
    extract_format: str = option("tif", choices=FORMATS, help=FORMAT_HELP)
    extract_quality: int = option(90, parse=whole(1, 100), help=QUALITY_HELP)
    keep_glass: bool = option(False, help="keep the whole slide")
    mask_step: int = option(16, parse=whole(1, 4096), unit="px", help="px of the image per px of its mask")


@dataclass(frozen=True, kw_only=True)
class ExtractTissueOptions(Group):
    """Options of the step on the command line."""

    images: LabeledImages


def step(options: ExtractTissueOptions, reading: Reading, _slides: Slides) -> Step:
    """The step with its options.

    Raises:
        ValueError: the table of labels cannot be used; see `read_labels`.
    """
    images = options.images
    gap_px = None if images.keep_glass else images.extract_gap
    image = ImageOptions(reading, images.extract_um_px, gap_px, images.extract_format, images.extract_quality)
    finish_labels = partial(finish, read_labels(images.labels))
    return Step(NAME, 1, make, Options(image, images.mask_step), reads_mask, finish_labels)


def select(options: ExtractTissueOptions, slides: Slides) -> Slides:
    """The slides that have a label.

    Raises:
        ValueError: the table of labels cannot be used, or names slides that have no file.
    """
    path = options.images.labels
    labels = read_labels(path)
    unknown = sorted(set(labels) - {case.slide_id for case in slides.cases})
    if unknown:
        raise ValueError(
            f"{path} names {len(unknown)} slides that have no file: {named(unknown)}; a slide_id is "
            "a file name without its last suffix: correct the table, or add the slides"
        )
    skipped = [case.slide_id for case in slides.cases if case.slide_id not in labels]
    notes = [f"skipped, not in {path}: {counted(len(skipped), 'slide')}, first {skipped[0]}"] if skipped else []
    cases = [case for case in slides.cases if case.slide_id in labels]
    return replace(slides, cases=cases, notes=[*slides.notes, *notes])


def read_labels(path: Path) -> dict[str, str]:
    """Read the label of each slide, in the order of the table.

    Args:
        path: CSV, UTF-8, with the columns slide_id and label; other columns are ignored.

    Returns:
        Slide id -> label.

    Raises:
        ValueError: the file cannot be read, a column or a value is missing, or a slide occurs twice.
    """
    labels: dict[str, str] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            absent = {"slide_id", "label"}.difference(reader.fieldnames or ())
            if absent:
                raise ValueError(
                    f"{path} has no column {', '.join(sorted(absent))}; its first line must name the columns"
                )
            for row in reader:
                slide_id, label = (composed((row[name] or "").strip()) for name in ("slide_id", "label"))
                where = f"{path}, line {reader.line_num}"
                if not (slide_id and label):
                    raise ValueError(f"{where}: slide_id {slide_id!r} and label {label!r}: both are needed")
                if slide_id in labels:
                    raise ValueError(f"{where}: slide {slide_id} occurs twice; keep one row")
                labels[slide_id] = label
    except OSError as error:
        raise ValueError(f"labels {path} cannot be read: {error.strerror}; give a CSV") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"labels {path} is not a CSV table in UTF-8: {error}") from error
    if not labels:
        raise ValueError(f"{path} has no rows")
    return labels


def make(case: Case, out: Path, options: Options) -> StepResult:
    """Write image and mask of one slide."""
    found = cut(case, out, options.image)
    if found is None:
        return StepResult(fault=NO_TISSUE.format(case.slide_id))
    names = write_image(found, out / IMAGES, case.slide_id, options.image)
    mask = f"{case.slide_id}.tif"
    share = write_mask(out / MASKS / mask, found, options.mask_step)
    row = {"image": f"images/{names[0]}", "mask": f"masks/{mask}", "mask_step": options.mask_step, **values(found)}
    outputs = (*(f"{IMAGES}/{name}" for name in names), f"{MASKS}/{mask}")
    return StepResult(row | {"tissue_share": round(share, 5)}, (), outputs, damage=found.slide.damage())


def write_mask(path: Path, found: Cut, mask_step: int) -> float:
    """Write the mask of an image; returns its share of tissue.

    Raises:
        OSError: the mask could not be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = (-(-size // mask_step) for size in found.trim.size_xy_trim)
    tissue_px = 0

    def tile_of(row: int, column: int) -> Pixels:
        nonlocal tissue_px
        corner_xy = column * MASK_TILE, row * MASK_TILE
        mask_HW = tissue_tile(found.trim, found.tissue_RS, found.cell_l0, mask_step, corner_xy, MASK_TILE)
        tissue_px += int(mask_HW.sum())
        return mask_HW

    um_px_xy = found.um_px_xy[0] * mask_step, found.um_px_xy[1] * mask_step
    write_mask_pyramid(path, (width, height), um_px_xy, tile_of, tile=MASK_TILE)
    return tissue_px / (width * height)


def finish(labels: Mapping[str, str], out: Path, _cases: Sequence[Case], outcomes: Sequence[Outcome]) -> list[str]:
    """Write the manifest, in the order of the table of labels."""
    for folder in (IMAGES, MASKS):
        store.remove_leftovers(out / folder)
    made = {outcome.slide_id: outcome.result.values for outcome in outcomes if outcome.state != FAILED}
    rows = [{"slide_id": name, "label": label, **made[name]} for name, label in labels.items() if name in made]
    path = out / NAME / "manifest.csv"
    store.write_text(path, csv_text(COLUMNS, rows))
    counts = Counter(row["label"] for row in rows)
    per_label = ", ".join(f"{count} of {label}" for label, count in sorted(counts.items()))
    return [f"{NAME:<15} {per_label or 'no slides'}: {path}"]


PROGRAM = StepProgram(NAME, __doc__, ExtractTissueOptions, step, select, reads_labels=False)

if __name__ == "__main__":
    sys.exit(main([PROGRAM]))
