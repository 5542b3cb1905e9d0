"""Whole images straight from slides: tissue is found, glass is cut out in place, px are read when they are needed.

Mask and map to level 0 are those that `preprocessing.extract_tissue` would write with the same options; px are those
without the losses of JPEG, to two gray levels, since here they do not depend on the windows (`trimming.read_part`).
What was found is kept in memory: a bit per 16 px of a slide, looked for once per process.

Shapes: H rows, W columns; R, S rows and columns of cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from classification.image_files import Interval, Pixels, Place
from classification.images import Files, Images, WholeImage
from cohorts.pairing import Case
from options.choices import TissueMethod
from preprocessing.tissue import find_tissue
from slides.geometry import Trim
from slides.reader import Slide, SlideError
from slides.trimming import GAP_PX, read_part, step_xy_l0, tissue_tile, trimmed, whole_grid
from slides.truth.reading import Reading


@dataclass(frozen=True)
class Cutting:
    """What is made of a slide.

    Attributes:
        um_px: um per px of the image.
        gap_px: empty rows or columns in a row that are kept at most; None: keep the whole slide.
        mask_step: px of the image per cell of the sampling mask.
        tissue_um_px: um per px in which tissue is looked for.
        tissue_method: see `slides.tissue.tissue_mask`.
        keep_pen: count pen marks as tissue.
    """

    um_px: float
    gap_px: int | None = GAP_PX
    mask_step: int = 16
    tissue_um_px: float = 8.0
    tissue_method: TissueMethod = "hsv"
    keep_pen: bool = False


@dataclass(frozen=True, eq=False)
class _Found:
    """What is kept of a slide: its cut, and a bit per cell of its mask; no bits if it has no tissue."""

    trim: Trim
    cells_hw: tuple[int, int]
    bits: NDArray[np.uint8] | None


def of_slides(cases: Sequence[Case], reading: Reading, cutting: Cutting) -> Images:
    """Images of slides.

    Args:
        cases: slides, see `cohorts.pairing.find_slides`; their spacings go before that of `reading`.
        reading: how slides are read.
        cutting: what is made of them.

    Raises:
        ValueError: there are no slides.
    """
    if not cases:
        raise ValueError("there are no slides; give a folder of them with --slide_path")
    case_of = {case.slide_id: case for case in cases}
    found: dict[str, _Found] = {}

    def opener(name: str, of: Files) -> WholeImage:
        slide = reading.open_slide(of.image.path, case_of[name].um_px)
        if name not in found:
            found[name] = _found(slide, cutting)
        return _whole(name, slide, found[name], cutting.mask_step)

    def probe(name: str, of: Files) -> None:
        step_xy_l0(reading.open_slide(of.image.path, case_of[name].um_px), cutting.um_px)

    files = {case.slide_id: Files(Place(case.slide_path)) for case in cases}
    folder = cases[0].slide_path.parent
    return Images(files, opener, f"--slide_path {folder}", probe)


def _found(slide: Slide, cutting: Cutting) -> _Found:
    grid = whole_grid(slide, cutting.um_px)
    tissue = find_tissue(slide, cutting.tissue_um_px, cutting.tissue_method, cutting.keep_pen)
    part = trimmed(grid, tissue.tissue_HW, tissue.cell_l0, cutting.gap_px or 0)
    if part is None and cutting.gap_px is not None:
        raise SlideError(
            f"slide {slide.path}: no tissue was found; look at it with python -m preprocessing.tissue, try "
            "--tissue_method otsu or --keep_glass, or remove its label"
        )
    trim = grid if part is None or cutting.gap_px is None else part
    width, height = (-(-size // cutting.mask_step) for size in trim.size_xy_trim)
    if part is None:
        return _Found(trim, (height, width), None)
    mask_RS = tissue_tile(trim, tissue.tissue_HW, tissue.cell_l0, cutting.mask_step, (0, 0), max(width, height))
    return _Found(trim, (height, width), np.packbits(mask_RS))


def _whole(name: str, slide: Slide, found: _Found, mask_step: int) -> WholeImage:
    trim = found.trim
    um_px = sum(step * um for step, um in zip(trim.step_xy_l0, slide.um_px_xy_l0, strict=True)) / 2
    mask_RS = None
    if found.bits is not None:
        rows, columns = found.cells_hw
        mask_RS = np.unpackbits(found.bits, count=rows * columns).reshape(rows, columns).astype(np.float32)

    def read(rows: Interval, columns: Interval) -> Pixels:
        return read_part(slide, trim, rows, columns, alike=True)

    return WholeImage(
        name,
        trim.size_xy_trim[::-1],
        read,
        mask_RS,
        mask_step,
        trim,
        um_px,
        slide.size_xy_l0,
        slide.um_px_xy_l0,
        str(slide.path),
    )
