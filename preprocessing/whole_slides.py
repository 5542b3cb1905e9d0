"""Writes the tissue of a slide as one image file; shared by the steps trim_tissue and extract_tissue."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cohorts.pairing import Case
from preprocessing import store
from preprocessing.overview import read_cells
from preprocessing.tissue import mask_path
from slides.filled import FilledSlide
from slides.geometry import Pair, Trim
from slides.tiff.jpeg_files import JPEG_MAX_PX, STRIP_ROWS, write_jpeg
from slides.tiff.pyramid import write_jpeg_pyramid
from slides.trimming import read_strips, trim_text, trimmed, whole_grid
from slides.truth.reading import Reading

FORMATS = ("tif", "jpg")
# Help of the options that both steps have, named after the step: a run may have both.
SPACING_HELP = "um per px of the images"
GAP_HELP = "empty rows or columns in a row that are kept at most"
FORMAT_HELP = f"tiled pyramid, or one JPEG (up to {JPEG_MAX_PX} px a side)"
QUALITY_HELP = "JPEG quality; chroma is not subsampled"
NO_TISSUE = (
    "no tissue was found: look at tissue/{}.png; a slide that is not brightfield has none, another stain may need "
    "--tissue_method otsu in the step tissue"
)


@dataclass(frozen=True)
class ImageOptions:
    """How a slide becomes one image.

    Attributes:
        reading: how slides are read.
        um_px: um per px.
        gap_px: empty rows or columns in a row that are kept at most; None: keep the whole slide.
        format: one of `FORMATS`.
        quality: JPEG quality, 1 to 100.
    """

    reading: Reading
    um_px: float
    gap_px: int | None
    format: str = "tif"
    quality: int = 90


@dataclass(frozen=True)
class Cut:
    """A slide, its tissue, and the part of it that is kept.

    Attributes:
        slide: the slide.
        tissue_RS: cells of the tissue mask, see `overview.read_cells`.
        cell_l0: side of a cell, level-0 px.
        grid: the whole slide at the output spacing.
        trim: the part that is kept.
    """

    slide: FilledSlide
    tissue_RS: NDArray[np.bool_]
    cell_l0: int
    grid: Trim
    trim: Trim

    @property
    def um_px_xy(self) -> Pair:
        """Spacing of the image, um per px along x and y."""
        (step_x, step_y), (um_x, um_y) = self.trim.step_xy_l0, self.slide.um_px_xy_l0
        return step_x * um_x, step_y * um_y


def cut(case: Case, out: Path, options: ImageOptions) -> Cut | None:
    """Decide which part of a slide is kept; None if it has no tissue.

    Raises:
        ValueError: the slide or its mask cannot be read, or the spacing is finer than the slide's.
    """
    slide = options.reading.open_filled(case.slide_path, case.um_px)
    tissue_RS, cell_l0 = read_cells(mask_path(out, case.slide_id), slide)
    grid = whole_grid(slide, options.um_px)
    part = trimmed(grid, tissue_RS, cell_l0, options.gap_px or 0)
    if part is None:
        return None
    return Cut(slide, tissue_RS, cell_l0, grid, grid if options.gap_px is None else part)


def write_image(found: Cut, folder: Path, slide_id: str, options: ImageOptions) -> tuple[str, ...]:
    """Write FOLDER/SLIDE.tif (or .jpg) and FOLDER/SLIDE.json; returns their names.

    Raises:
        ValueError: the image is too large for its format, or the slide cannot be decoded.
        OSError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write = write_jpeg if options.format == "jpg" else write_jpeg_pyramid
    names = f"{slide_id}.{options.format}", f"{slide_id}.json"
    strips = read_strips(found.slide, found.trim, STRIP_ROWS)
    write(folder / names[0], found.trim.size_xy_trim, found.um_px_xy, strips, options.quality)
    store.write_text(folder / names[1], trim_text(found.slide, found.trim))
    return names


def values(found: Cut) -> dict[str, Any]:
    """Table columns: spacing, size, share of the slide that is kept."""
    width, height = found.trim.size_xy_trim
    whole_width, whole_height = found.grid.size_xy_trim
    return {
        "um_px_x": round(found.um_px_xy[0], 6),
        "um_px_y": round(found.um_px_xy[1], 6),
        "width": width,
        "height": height,
        "kept_share": round(width * height / (whole_width * whole_height), 5),
    }
