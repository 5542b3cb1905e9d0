"""The manifest: a table with one row per slide, which train.py reads instead of folders (--manifest).

    OUT/manifest.csv

Columns: slide, patient, center, class (`tumor` or `normal`, by the area of the truth), split (`train` or `val`),
um_px_x and um_px_y (level 0), width and height (level-0 px), levels, tissue_mm2, tumor_mm2, annotations (count per
group), root, slide_path and label_path (relative to root), slide_bytes, slide_sha256, label_sha256.

python -m preprocessing.manifest --slide_path DIR --label_path DIR --out OUT     (after the step tissue)
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cohorts.pairing import Case
from cohorts.sets import Slides
from cohorts.splits import NORMAL, stratified
from cohorts.staging import parts_of
from options.fields import Group, option
from options.parser import share_below_1
from preprocessing import store
from preprocessing.command import StepProgram, main
from preprocessing.overview import read_cells
from preprocessing.runner import FAILED, Outcome, Step
from preprocessing.store import StepResult
from preprocessing.tissue import mask_path, reads_mask
from slides.geometry import Window
from slides.reader import Slide
from slides.tissue import cells_mm2
from slides.truth.interface import EmptyTruth, Truth
from slides.truth.label import IGNORE, has_outlines
from slides.truth.reading import Reading
from slides.truth.xml_truth import XmlTruth, read_outlines
from system.csv_tables import csv_text

NAME = "manifest"
TUMOR = "tumor"
BLOCK = 4096  # side of the blocks that a mask is read in, px
READ_BYTES = 2**22
COLUMNS = (
    "slide", "patient", "center", "class", "split", "um_px_x", "um_px_y", "width", "height", "levels", "tissue_mm2",
    "tumor_mm2", "annotations", "root", "slide_path", "label_path", "slide_bytes", "slide_sha256", "label_sha256",
    "mpp_x", "mpp_y",
)  # fmt: skip


@dataclass(frozen=True)
class Options:
    """How slides are described.

    Attributes:
        reading: how slides and labels are read.
        checksums: compute the SHA-256 of slides and labels, which reads every byte.
    """

    reading: Reading
    checksums: bool = True


@dataclass(frozen=True)
class Split:
    """How slides are split.

    Attributes:
        val_share: share for validation.
        seed: of the split.
        val_ids: ids of the validation slides, if the user has named them.
    """

    val_share: float
    seed: int
    val_ids: frozenset[str] | None = None


@dataclass(frozen=True, kw_only=True)
class ManifestTable(Group):
    """Manifest."""

    val_split: float = option(
        0.15, parse=share_below_1, metavar="SHARE", help="share for validation if no validation slides are given"
    )
    seed: int = option(0, help="seed of the split")
    checksums: bool = option(True, help="SHA-256 of slides and labels")

    def __post_init__(self) -> None:
        if self.val_split == 0:
            raise ValueError("--val_split 0: a share above 0 and below 1 is needed")


@dataclass(frozen=True, kw_only=True)
class ManifestOptions(Group):
    """Options of the step on the command line."""

    manifest: ManifestTable


def step(options: ManifestOptions, reading: Reading, slides: Slides) -> Step:
    """The step with its options."""
    manifest = options.manifest
    split = Split(manifest.val_split, manifest.seed, slides.val_ids)
    return Step(
        NAME,
        1,
        make,
        Options(reading, manifest.checksums),
        reads_mask,
        partial(finish, split, reading.um_px),
        f"{NAME}.csv",
    )


def make(case: Case, out: Path, options: Options) -> StepResult:
    """Describe one slide."""
    slide = options.reading.open_slide(case.slide_path, case.um_px)
    truth = options.reading.open_truth(case.label_path, slide)
    tissue_HW, cell_l0 = read_cells(mask_path(out, case.slide_id), slide)
    px_mm2 = slide.um_px_xy_l0[0] * slide.um_px_xy_l0[1] / 1e6
    tumor_px = tumor_area_l0(truth, slide)
    values: dict[str, Any] = {
        "slide": case.slide_id, "class": TUMOR if tumor_px else NORMAL,
        "um_px_x": round(slide.um_px_xy_l0[0], 6), "um_px_y": round(slide.um_px_xy_l0[1], 6),
        "width": slide.size_xy_l0[0], "height": slide.size_xy_l0[1], "levels": len(slide.levels),
        "tissue_mm2": round(cells_mm2(tissue_HW, cell_l0, slide), 4), "tumor_mm2": round(tumor_px * px_mm2, 6),
        "annotations": _annotations(case, slide, options.reading),
        "slide_bytes": sum(path.stat().st_size for path in parts_of(case.slide_path)),
    }  # fmt: skip
    if options.checksums:
        values["slide_sha256"] = sha256(parts_of(case.slide_path))
        values["label_sha256"] = sha256([case.label_path]) if case.label_path else None
    return StepResult(values, truth.notes)


def tumor_area_l0(truth: Truth, slide: Slide) -> float:
    """Area of all classes except 0 and 255 (ignore), level-0 px2: exact for polygons, a count of px for masks."""
    if isinstance(truth, XmlTruth):
        return float(sum(part.area for cls in truth.classes if cls for part in truth.regions(cls)))
    if isinstance(truth, EmptyTruth):
        return 0.0
    counts = np.zeros(256, np.int64)
    for window in _blocks(slide):
        counts += np.bincount(truth.label(window).ravel(), minlength=256)
    return float(counts[1:IGNORE].sum())


def sha256(paths: Sequence[Path]) -> str:
    """SHA-256 of the concatenated bytes of files, hexadecimal."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(READ_BYTES):
                digest.update(block)
    return digest.hexdigest()


def finish(
    split: Split, um_px: float | None, out: Path, cases: Sequence[Case], outcomes: Sequence[Outcome]
) -> list[str]:
    """Split the slides and write the table; `um_px` is the spacing given for all slides, if any."""
    rows = {outcome.slide_id: dict(outcome.result.values) for outcome in outcomes if outcome.state != FAILED}
    good = [case for case in cases if case.slide_id in rows]
    path = out / f"{NAME}.csv"
    if not good:
        path.unlink(missing_ok=True)
        return []
    class_of = {slide_id: str(row["class"]) for slide_id, row in rows.items()}
    val = split.val_ids
    if val is None:
        val = stratified(_same_file_together(good, rows), class_of, split.val_share, split.seed)
    paths = [path for case in good for path in (case.slide_path, case.label_path) if path is not None]
    root = Path(os.path.commonpath([path.absolute().parent for path in paths]))
    for case in good:
        label = case.label_path
        # Only if given: training reads them, and would otherwise resample by rounded values.
        mpp_x, mpp_y = case.um_px or (um_px, um_px)
        rows[case.slide_id] |= {
            "patient": case.patient,
            "center": case.center,
            "split": "val" if case.slide_id in val else "train",
            "root": root,
            "mpp_x": mpp_x,
            "mpp_y": mpp_y,
            "slide_path": case.slide_path.absolute().relative_to(root).as_posix(),
            "label_path": label.absolute().relative_to(root).as_posix() if label else None,
        }
    store.write_text(path, csv_text(COLUMNS, [rows[case.slide_id] for case in good]))
    counts = Counter((rows[case.slide_id]["split"], rows[case.slide_id]["class"]) for case in good)
    parts = (
        f"{name} {counts[name, TUMOR]} with tumor, {counts[name, NORMAL]} without"
        for name in ("train", "val")
        if counts[name, TUMOR] + counts[name, NORMAL]
    )
    return [f"{NAME:<15} {'; '.join(parts)}: {path}"]


def _same_file_together(cases: Sequence[Case], rows: Mapping[str, Mapping[str, Any]]) -> list[Case]:
    """The cases, with slides of equal bytes (without checksums: links to one file) assigned to one patient."""
    first: dict[str, Case] = {}
    together = []
    for case in cases:
        holder = first.setdefault(str(rows[case.slide_id].get("slide_sha256") or case.slide_path.resolve()), case)
        if holder is not case:
            together.append(replace(case, patient=holder.patient or holder.slide_id))
        else:
            together.append(case)
    # The first slide of a group needs a patient only if another joined it.
    joined = {case.patient for case in together}
    return [
        replace(case, patient=case.slide_id) if case.patient is None and case.slide_id in joined else case
        for case in together
    ]


def _annotations(case: Case, slide: Slide, reading: Reading) -> str | None:
    """Number of annotations per group; None for masks and slides without a label."""
    if case.label_path is None or not has_outlines(case.label_path):
        return None
    found, _ = read_outlines(case.label_path, slide, reading.class_of_group, reading.ignore_groups)
    counts = Counter(annotation.group for annotation in found)
    return " ".join(f"{group}:{count}" for group, count in sorted(counts.items()))


def _blocks(slide: Slide) -> Iterator[Window]:
    """Windows of level-0 px that together cover a slide."""
    width, height = slide.size_xy_l0
    for top in range(0, height, BLOCK):
        for left in range(0, width, BLOCK):
            hw = min(BLOCK, height - top), min(BLOCK, width - left)
            yield Window((float(left), float(top)), hw, (1.0, 1.0))


PROGRAM = StepProgram(NAME, __doc__, ManifestOptions, step)

if __name__ == "__main__":
    sys.exit(main([PROGRAM]))
