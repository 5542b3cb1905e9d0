"""Patches from a grid over the tissue of every slide, with masks, as files or shards, and a picture of the grid.

    OUT/patches/SLIDE/tumor/SLIDE_xX_yY.png        image, top-left corner at (X, Y) in level-0 px
    OUT/patches/SLIDE/tumor/SLIDE_xX_yY_mask.png   classes, 255 beyond the slide
    OUT/patches/SLIDE/normal/...                   patches without tumor (--save_neg)
    OUT/patches/SLIDE/SLIDE-00000.tar              instead of these: shards (--format webdataset, tfrecord)
    OUT/patches/SLIDE/patches.csv                  one row per patch; OUT/patches/patches.csv: all slides
    OUT/patches/SLIDE.png                          the slide with every place of the grid that shows tissue

A place is tried if it shows tissue or tumor. It is a tumor patch if its share of tumor is at least --min_tumor; with a
smaller share it is neither tumor nor normal, and skipped. Glass and black areas are skipped, and so are pen marks
without tumor. Places that cannot be decoded have no patch; if they are more than half, the slide fails.

python -m preprocessing.extract_patches --slide_path DIR --label_path DIR --out OUT     (after the step tissue)
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cohorts.pairing import Case
from cohorts.sets import Slides
from options.fields import Group, option
from options.parser import share_below_1, whole
from options.preprocess import PatchSpacing, PenMarks
from preprocessing import store
from preprocessing.command import StepProgram, main
from preprocessing.overview import overview, read_cells, write_png
from preprocessing.patch_grid import Grid, Place
from preprocessing.patch_writers import CODECS, FORMATS, Patch, Writer, writer
from preprocessing.runner import FAILED, Outcome, Step
from preprocessing.store import StepResult
from preprocessing.tissue import mask_path, reads_mask
from slides.artefacts import has_pen, is_black, is_blank, spread
from slides.filled import MOST_FILLED
from slides.reader import SNAP, Slide, SlideError
from slides.truth.interface import Truth
from slides.truth.label import IGNORE
from slides.truth.reading import Reading
from system.atomic_files import written_folder
from system.csv_tables import counted, csv_text

NAME = "extract_patches"
FOLDER = "patches"
TUMOR, NORMAL, LITTLE, BLANK, BLACK, PEN = "tumor", "normal", "little_tumor", "blank", "black", "pen"
NOT_SAVED, UNREADABLE = "normal_not_saved", "unreadable"
# The possible fates of a place, and their colors (RGB) in the picture.
FATES = {
    TUMOR: (220, 30, 30), NORMAL: (30, 150, 30), NOT_SAVED: (150, 150, 150), LITTLE: (240, 140, 0),
    BLANK: (60, 120, 240), BLACK: (0, 0, 0), PEN: (200, 0, 200), UNREADABLE: (120, 70, 20),
}  # fmt: skip
COLUMNS = (
    "name", "slide", "class", "x_l0", "y_l0", "side_px", "um_px", "tissue_share", "tumor_share", "file", "mask", "key",
)  # fmt: skip
PICTURE_PX = 1536
UPSAMPLED = 0.99  # patches finer than this share of the slide's spacing are enlarged


@dataclass(frozen=True)
class Options:
    """Which patches, and how they are written.

    Attributes:
        reading: how slides and labels are read.
        side_px: side of a patch, px.
        um_px: um per px.
        stride_px: distance between patches, px of a patch.
        min_tissue: smallest share of tissue of a place to try.
        min_tumor: smallest share of tumor of a tumor patch.
        keep_pen: keep patches with pen marks.
        save_neg: write patches without tumor.
        save_png: write a picture of the slide with all places.
        format: one of `FORMATS`.
        codec: codec of images in shards.
        quality: JPEG quality, 1 to 100.
        shard_patches: largest number of patches per shard.
        tolerance: share of `um_px` within which a level of a slide is taken as it is.
    """

    reading: Reading
    side_px: int = 1024
    um_px: float = 0.25
    stride_px: int = 1024
    min_tissue: float = 0.05
    min_tumor: float = 0.01
    keep_pen: bool = False
    save_neg: bool = False
    save_png: bool = True
    format: str = "png"
    codec: str = "jpeg"
    quality: int = 95
    shard_patches: int = 1000
    tolerance: float = 0.0


def true_or_false(text: str) -> bool:
    """`True` or `False`, in upper or lower case."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")
    return text.lower() == "true"


@dataclass(frozen=True, kw_only=True)
class Patches(Group):
    """Patches."""

    patch_size: int = option(1024, parse=whole(16, 16384), unit="px", help="side of a patch")
    stride: int | None = option(
        parse=whole(1), unit="px", help="distance between patches, px of a patch; default --patch_size"
    )
    overlap: float | None = option(
        parse=share_below_1, metavar="SHARE", help="share of a patch that the next one shows again, instead of --stride"
    )
    min_tissue: float = option(0.05, parse=share_below_1, metavar="SHARE", help="smallest share of tissue in a patch")
    min_tumor: float = option(
        0.01, parse=share_below_1, metavar="SHARE", help="smallest share of tumor in a tumor patch"
    )
    save_neg: bool = option(
        False, parse=true_or_false, nargs="?", const=True, metavar="True|False", help="also write patches without tumor"
    )
    save_png: bool = option(
        True, parse=true_or_false, nargs="?", const=True, metavar="True|False",
        help="write a picture of each slide with all places of the grid",
    )  # fmt: skip
    format: str = option("png", choices=FORMATS, help="single files, or shards of many patches")
    codec: str = option("jpeg", choices=CODECS, help="images in shards; masks are PNG")
    jpeg_quality: int = option(95, parse=whole(1, 100), help="JPEG quality; chroma is not subsampled")
    shard_patches: int = option(1000, parse=whole(1), help="largest number of patches in a shard")

    def __post_init__(self) -> None:
        if self.stride is not None and self.overlap is not None:
            raise ValueError("--overlap is not allowed with --stride: omit one")

    @property
    def stride_px(self) -> int:
        """Distance between patches, px of a patch."""
        return self.stride or max(1, round(self.patch_size * (1 - (self.overlap or 0))))


@dataclass(frozen=True, kw_only=True)
class ExtractPatchesOptions(Group):
    """Options of the step on the command line."""

    spacing: PatchSpacing
    pen: PenMarks
    patches: Patches


def step(options: ExtractPatchesOptions, reading: Reading, slides: Slides) -> Step:
    """The step with its options.

    Raises:
        ValueError: a slide has the name of a file that the step writes.
    """
    taken = {f"{FOLDER}.csv", *(f"{case.slide_id}.png" for case in slides.cases)}
    for case in slides.cases:
        if case.slide_id in taken:
            raise ValueError(
                f"the patches of slide {case.slide_path} would be called {FOLDER}/{case.slide_id}, the name of a table "
                "or of another slide's picture: rename the slide"
            )
    patches = options.patches
    resolved = Options(
        reading=reading,
        side_px=patches.patch_size,
        um_px=options.spacing.resolution,
        tolerance=options.spacing.resolution_tolerance,
        stride_px=patches.stride_px,
        min_tissue=patches.min_tissue,
        min_tumor=patches.min_tumor,
        keep_pen=options.pen.keep_pen,
        save_neg=patches.save_neg,
        save_png=patches.save_png,
        format=patches.format,
        codec=patches.codec,
        quality=patches.jpeg_quality,
        shard_patches=patches.shard_patches,
    )
    return Step(NAME, 1, make, resolved, reads_mask, finish, FOLDER)


def make(case: Case, out: Path, options: Options) -> StepResult:
    """Extract the patches of one slide."""
    slide = options.reading.open_slide(case.slide_path, case.um_px).taking_levels(options.tolerance)
    truth = options.reading.open_truth(case.label_path, slide)
    tissue_HW, cell_l0 = read_cells(mask_path(out, case.slide_id), slide)
    tumor_HW = np.zeros_like(tissue_HW)
    for cls in sorted(truth.classes - {0}):
        tumor_HW |= truth.label_max(cell_l0, cls)
    grid = Grid(options.side_px, options.stride_px, options.um_px, options.min_tissue)
    places, in_grid = grid.places(slide, tissue_HW, tumor_HW, cell_l0)
    outputs = [f"{FOLDER}/{case.slide_id}"]
    with written_folder(out / outputs[0]) as part:
        target = writer(part, case.slide_id, options.format, options.codec, options.quality, options.shard_patches)
        fates, rows, fault = _extract(places, slide, truth, options, target)
        store.write_text(part / f"{FOLDER}.csv", csv_text(COLUMNS, rows))
        if options.save_png:
            outputs.append(f"{FOLDER}/{case.slide_id}.png")
            write_png(
                out / outputs[-1], picture(options.reading.open_filled(case.slide_path, case.um_px), places, fates)
            )
    counts = Counter(fates)
    values = {"places": in_grid, "tried": len(places)} | {fate: counts[fate] for fate in FATES}
    lost = counts[UNREADABLE]
    damage = f"no patch of {counted(lost, 'place')} that cannot be decoded: {fault}" if lost else ""
    return StepResult(values, tuple(_notes(slide, values, options)), tuple(outputs), damage=damage)


def _extract(
    places: Sequence[Place], slide: Slide, truth: Truth, options: Options, target: Writer
) -> tuple[list[str], list[dict[str, Any]], str]:
    """Read, judge and write the places.

    Returns:
        The fate of each, table rows of the patches written, and the first message about a place that cannot be decoded.

    Raises:
        SlideError: more than half of the places that are not skipped unread cannot be decoded.
    """
    fates: list[str] = []
    rows: list[dict[str, Any]] = []
    fault = ""
    try:
        for place in places:
            try:
                fate, tumor_share, image_HWC, label_HW = judge(place, slide, truth, options)
            except SlideError as error:
                fault = fault or str(error)
                fates.append(UNREADABLE)
                continue
            fates.append(fate)
            if image_HWC is None or label_HW is None:
                continue
            x, y = place.corner_xy_l0
            about = {
                "slide": slide.id, "x_l0": x, "y_l0": y, "side_px": options.side_px,
                "um_px": round(slide.spacing(options.um_px), 9),
                "tissue_share": round(place.tissue, 4), "tumor_share": round(tumor_share, 6),
            }  # fmt: skip
            patch = Patch(f"{slide.id}_x{x}_y{y}", fate, image_HWC, label_HW, about)
            rows.append({"name": patch.name, "class": fate} | about | target.add(patch))
    finally:
        target.close()
    if fates.count(UNREADABLE) > MOST_FILLED * (len(fates) - fates.count(NOT_SAVED)):
        raise SlideError(fault)
    return fates, rows, fault


def judge(
    place: Place, slide: Slide, truth: Truth, options: Options
) -> tuple[str, float, NDArray[np.uint8] | None, NDArray[np.uint8] | None]:
    """Fate of a place, its share of tumor, and its image and label if it is to be written."""
    if not place.near_tumor and not options.save_neg:
        return NOT_SAVED, 0.0, None, None
    label_HW = truth.label(place.window)
    share = _tumor_share(label_HW)
    if 0 < share < options.min_tumor:
        return LITTLE, share, None, None
    if not share and place.tissue < options.min_tissue:
        return BLANK, share, None, None  # tried because of tumor in a cell that it only touches
    if not share and not options.save_neg:
        return NOT_SAVED, share, None, None
    image_HWC = slide.read(place.window)
    seen_HWC = spread(image_HWC)
    if is_blank(seen_HWC):
        return BLANK, share, None, None
    if is_black(seen_HWC):
        return BLACK, share, None, None
    if not share and not options.keep_pen and has_pen(seen_HWC):
        return PEN, share, None, None
    return TUMOR if share else NORMAL, share, image_HWC, label_HW


def _tumor_share(label_HW: NDArray[np.uint8]) -> float:
    """Share of px of any class but 0; px to ignore count as px, not as tumor."""
    # Counted by OpenCV: four times faster than the mean of NumPy's comparisons.
    ignored = cv2.countNonZero((label_HW == IGNORE).view(np.uint8))
    return (cv2.countNonZero(label_HW) - ignored) / label_HW.size


def _notes(slide: Slide, values: dict[str, int], options: Options) -> list[str]:
    notes = []
    um_px = slide.spacing(options.um_px)
    if not math.isclose(um_px, options.um_px, rel_tol=SNAP):
        notes.append(
            f"patches at the slide's own {um_px:.4g} um/px, not at {options.um_px:g}: within --resolution_tolerance"
        )
    elif options.um_px < UPSAMPLED * max(slide.um_px_xy_l0):
        notes.append(
            f"--resolution {options.um_px:g} is finer than the slide ({max(slide.um_px_xy_l0):.4g} um/px): patches are "
            "enlarged"
        )
    if not values["tried"]:
        notes.append("no place of the grid shows tissue or tumor: no patches")
    elif not values[TUMOR] + values[NORMAL] + values[NOT_SAVED]:
        tried = counted(values["tried"], "place")
        notes.append(f"none of {tried} was written: look at {FOLDER}/{slide.id}.png (--save_png)")
    return notes


def picture(slide: Slide, places: Sequence[Place], fates: Sequence[str]) -> NDArray[np.uint8]:
    """Return a small rgb_HWC of the slide with its places as boxes, and below it the number of each kind."""
    seen_HWC, px_l0 = overview(slide, PICTURE_PX)
    for place, fate in zip(places, fates, strict=True):
        (x, y), (width, height) = place.window.corner_xy_l0, place.window.size_xy_l0
        first = int(x / px_l0) + 2, int(y / px_l0) + 2
        last = int((x + width) / px_l0) - 2, int((y + height) / px_l0) - 2
        cv2.rectangle(seen_HWC, first, last, FATES[fate], 2)
    counts = Counter(fates)
    legend_HWC = np.full((26 * len(FATES) + 8, max(seen_HWC.shape[1], 300), 3), 255, np.uint8)
    for row, (fate, color) in enumerate(FATES.items()):
        cv2.rectangle(legend_HWC, (8, 26 * row + 8), (26, 26 * row + 26), color, -1)
        text = f"{fate.replace('_', ' ')} {counts[fate]}"
        cv2.putText(legend_HWC, text, (36, 26 * row + 24), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (0, 0, 0), 1, cv2.LINE_AA)
    missing = legend_HWC.shape[1] - seen_HWC.shape[1]
    return np.vstack([np.pad(seen_HWC, ((0, 0), (0, missing), (0, 0)), constant_values=255), legend_HWC])


def finish(out: Path, cases: Sequence[Case], outcomes: Sequence[Outcome]) -> list[str]:
    """Join the tables of all slides."""
    good = [outcome for outcome in outcomes if outcome.state != FAILED]
    text = [csv_text(COLUMNS, [])]
    for outcome in good:
        rows = (out / FOLDER / outcome.slide_id / f"{FOLDER}.csv").read_text(encoding="utf-8")
        text.append(rows.split("\n", 1)[1])
    store.write_text(out / FOLDER / f"{FOLDER}.csv", "".join(text))
    counts: Counter[str] = Counter()
    for outcome in good:
        counts.update(outcome.result.values)
    skipped = ", ".join(f"{counts[fate]} {fate.replace('_', ' ')}" for fate in (LITTLE, BLANK, BLACK, PEN))
    skipped += f", {counts[UNREADABLE]} unreadable" if counts[UNREADABLE] else ""
    normal = f"{counts[NORMAL]} normal" if counts[NORMAL] or not counts[NOT_SAVED] else (
        f"{counts[NOT_SAVED]} without tumor, not saved (--save_neg)"
    )  # fmt: skip
    return [
        f"{NAME:<15} {counts[TUMOR]} tumor, {normal}; skipped: {skipped}; of {counted(len(cases), 'slide')}: "
        f"{out / FOLDER}"
    ]


PROGRAM = StepProgram(NAME, __doc__, ExtractPatchesOptions, step)

if __name__ == "__main__":
    sys.exit(main([PROGRAM]))
