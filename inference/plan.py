"""Tissue of a slide, and the windows that cover it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from inference.windows import MapGrid, TissueCells, in_stripes, map_grid, with_tissue
from samplers.index import find_tissue
from slides.reader import Slide

COARSE = 1.5  # a slide this many times coarser than the network's training data gets a note


@dataclass(frozen=True)
class PlannedSlide:
    """One slide to predict.

    Attributes:
        slide_id: its id.
        path: its file.
        grid: map and windows.
        windows: rows and columns of the windows to predict, stripe by stripe, in row-major order in each.
        begins: where the stripes begin among them.
        tissue_mm2: area of its tissue, by the search grid.
        notes: remarks for the user.
    """

    slide_id: str
    path: Path
    grid: MapGrid
    windows: list[tuple[int, int]]
    begins: list[int]
    tissue_mm2: float
    notes: tuple[str, ...]


def plan_slide(
    path: Path,
    um_px_l0: float | None,
    img_size: int,
    um_px: float,
    overlap: float,
    bb_downsample: int,
    tissue_only: bool,
    classes: int,
) -> PlannedSlide:
    """Find the tissue of a slide and the windows to predict; takes about a second.

    Args:
        path: the slide.
        um_px_l0: spacing of level 0, um per px, in place of the file's own; None to use that.
        img_size: side of a window, px.
        um_px: spacing of the windows.
        overlap: share of a window's side in common with the next.
        bb_downsample: pyramid level of the tissue search.
        tissue_only: omit windows without tissue.
        classes: number of classes K.

    Raises:
        SlideError: the slide cannot be opened or read.
    """
    slide = Slide(path, um_px=um_px_l0)
    cells_HW, cell_l0, clamped = find_tissue(slide, bb_downsample)
    um_x, um_y = slide.um_px_xy_l0
    tissue_mm2 = float(cells_HW.sum()) * cell_l0**2 * um_x * um_y / 1e6
    grid = map_grid(slide, img_size, um_px, overlap)
    windows, begins = in_stripes(
        with_tissue(grid, TissueCells(cells_HW, cell_l0) if tissue_only else None), grid, classes - 1
    )
    notes = [clamped] if clamped else []
    if not cells_HW.any():
        notes.append(f"{slide.id}: no tissue found" + ("; its maps are empty" if tissue_only else ""))
    if min(slide.um_px_xy_l0) > COARSE * um_px:
        notes.append(f"{slide.id}: scanned at {um_x:g} um/px, enlarged to {um_px:g} um/px: fine detail is missing")
    return PlannedSlide(slide.id, path, grid, windows, begins, tissue_mm2, tuple(notes))
