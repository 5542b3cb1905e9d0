"""Cuts slides with annotations into images with one label each, for the whole-slide classifier.

    OUT/images/SLIDE_rNN_cNN.png    windows of a grid
    OUT/labels.csv                  slide_id,label,patient: label 1 where class 1 lies inside, patient the slide

Windows are side x side px at a spacing, edge to edge from the slide's upper left corner. Those with less than a tenth
of tissue are left out, and so are those with only a touch of class 1 (less than a hundredth).

python -m preprocessing.cut_labeled --slide_path DIR --label_path DIR --side 768 --um_px 1.0 --out OUT
"""

from __future__ import annotations

import csv
from argparse import ArgumentParser
from collections.abc import Iterator
from math import ceil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cohorts.pairing import LABEL_SUFFIXES, Case, pair
from slides.geometry import Window
from slides.reader import Slide
from slides.tissue import in_cells, tissue_mask
from slides.truth.interface import Truth, open_truth
from system.output import endure

CELL_UM = 8.0  # of the tissue's mask
LEAST_TISSUE = 0.1  # of a window
LEAST_TUMOR = 0.01  # of a window with label 1
HEADER = ("slide_id", "label", "patient")


def windows(slide: Slide, side: int, um_px: float) -> Iterator[tuple[str, Window]]:
    """Windows of a grid that lie inside the slide, named by row and column.

    Args:
        slide: the slide.
        side: px of a window.
        um_px: micrometers per px of a window.
    """
    step_xy = slide.step_xy_l0(um_px)
    columns, rows = (int(size / (side * step)) for size, step in zip(slide.size_xy_l0, step_xy, strict=True))
    for row in range(rows):
        for column in range(columns):
            corner = column * side * step_xy[0], row * side * step_xy[1]
            yield f"r{row:02d}_c{column:02d}", Window(corner, (side, side), step_xy)


def labeled(slide: Slide, truth: Truth, side: int, um_px: float) -> Iterator[tuple[str, NDArray[np.uint8], int]]:
    """Name, image_HWC and label of every window that is kept.

    Args:
        slide: the slide.
        truth: its annotation.
        side: px of a window.
        um_px: micrometers per px of a window.
    """
    cell_l0 = max(1, round(CELL_UM / max(slide.um_px_xy_l0)))
    tissue_HW = tissue_mask(in_cells(slide, cell_l0), cell_l0 * max(slide.um_px_xy_l0))
    for name, window in windows(slide, side, um_px):
        share = float(np.mean(truth.label(window) == 1))
        if 0 < share < LEAST_TUMOR:
            continue
        (x, y), (width, height) = window.corner_xy_l0, window.size_xy_l0
        rows, columns = (slice(int(a / cell_l0), ceil((a + size) / cell_l0)) for a, size in ((y, height), (x, width)))
        if tissue_HW[rows, columns].mean() >= LEAST_TISSUE:
            yield name, slide.read(window), int(share > 0)


def cut_labeled(
    cases: list[Case], out: Path, side: int, um_px: float, table: str = "labels.csv"
) -> list[tuple[str, int, str]]:
    """Write images and their table.

    Args:
        cases: slides and labels.
        out: folder; made when missing.
        side: px of an image.
        um_px: micrometers per px of an image.
        table: name of the table.

    Returns:
        Rows of the table.

    Raises:
        ValueError: a slide or label cannot be used; no window is kept.
    """
    (out / "images").mkdir(parents=True, exist_ok=True)
    rows: list[tuple[str, int, str]] = []
    for case in cases:
        slide = Slide(case.slide_path)
        for name, image_HWC, label in labeled(slide, open_truth(case.label_path, slide), side, um_px):
            rows.append((f"{case.slide_id}_{name}", label, case.slide_id))
            Image.fromarray(image_HWC).save(out / "images" / f"{rows[-1][0]}.png")
    if not rows:
        raise ValueError(
            f"no window of {side} px at {um_px} um/px lies in the tissue of {len(cases)} slides; take a smaller --side "
            "or --um_px"
        )
    with (out / table).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([HEADER, *rows])
    return rows


def main() -> None:
    """Cut the slides of a folder; print what came of it."""
    parser = ArgumentParser(description="cut annotated slides into images with one label each")
    parser.add_argument("--slide_path", type=Path, required=True, help="slides")
    parser.add_argument("--label_path", type=Path, help="their annotations or masks; without one all are normal")
    parser.add_argument("--label_format", choices=sorted(LABEL_SUFFIXES), default="tif", help="(default: %(default)s)")
    parser.add_argument("--side", type=int, default=768, help="px of an image (default: %(default)s)")
    parser.add_argument("--um_px", type=float, default=1.0, help="micrometers per px (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="folder for images/ and the table")
    parser.add_argument(
        "--table", default="labels.csv", metavar="NAME",
        help="its name, to cut slides for training and for validation into one folder (default: %(default)s)",
    )  # fmt: skip
    given = parser.parse_args()
    endure()
    if given.side < 1 or given.um_px <= 0:
        parser.error(f"--side {given.side} and --um_px {given.um_px} must be positive")
    try:
        cases = pair(given.slide_path, given.label_path, label_format=given.label_format)
        rows = cut_labeled(cases, given.out, given.side, given.um_px, given.table)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    tumor = sum(label for _, label, _ in rows)
    print(f"{len(rows)} images in {given.out / 'images'}: {tumor} with label 1, {len(rows) - tumor} with label 0")


if __name__ == "__main__":
    main()
