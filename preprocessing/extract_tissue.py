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

import argparse
import csv
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cohorts.pairing import Case
from cohorts.sets import Slides
from options.parser import whole
from preprocessing import store
from preprocessing.runner import FAILED, Outcome, Step
from preprocessing.store import StepResult
from preprocessing.tissue import reads_mask
from preprocessing.whole_slides import NO_TISSUE, Cut, ImageOptions, add_image_options, cut, values, write_image
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
NAMED = 10


@dataclass(frozen=True)
class Options:
    """What is written for each slide.

    Attributes:
        image: how a slide becomes an image.
        mask_step: px of the image per px of the mask, along each axis.
    """

    image: ImageOptions
    mask_step: int = 16


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of this step."""
    group = parser.add_argument_group("whole slides")
    group.add_argument("--labels", type=Path, required=True, help="CSV with the columns slide_id and label")
    add_image_options(group, "extract", 1.0)
    group.add_argument("--keep_glass", action="store_true", help="the whole slide; cut nothing out")
    group.add_argument("--mask_step", type=whole(1, 4096), default=16, help="px of the image per px of its mask")


def step(opts: argparse.Namespace, reading: Reading, slides: Slides) -> Step:
    """The step with its options; takes slides without a label out of `slides`, for all steps of the run.

    Raises:
        ValueError: the table of labels cannot be used; see `read_labels`.
    """
    labels = read_labels(opts.labels)
    unknown = sorted(set(labels) - {case.slide_id for case in slides.cases})
    if unknown:
        more = f" and {len(unknown) - NAMED} more" if len(unknown) > NAMED else ""
        raise ValueError(
            f"{opts.labels} names {len(unknown)} slides that have no file: {', '.join(unknown[:NAMED])}{more}; a "
            "slide_id is a file name without its last suffix: correct the table, or add the slides"
        )
    left_out = [case.slide_id for case in slides.cases if case.slide_id not in labels]
    if left_out:
        slides.notes.append(f"skipped, not in {opts.labels}: {counted(len(left_out), 'slide')}, first {left_out[0]}")
    slides.cases[:] = [case for case in slides.cases if case.slide_id in labels]
    gap_px = None if opts.keep_glass else opts.extract_gap
    image = ImageOptions(reading, opts.extract_um_px, gap_px, opts.extract_format, opts.extract_quality)
    return Step(NAME, 1, make, Options(image, opts.mask_step), reads_mask, partial(finish, labels))


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
                slide_id, label = ((row[name] or "").strip() for name in ("slide_id", "label"))
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
    return StepResult(row | {"tissue_share": round(share, 5)}, (), outputs)


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


if __name__ == "__main__":
    from preprocessing.command import main

    sys.exit(main([NAME]))
