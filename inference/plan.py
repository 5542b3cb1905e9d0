"""Tissue of a slide, and the windows that cover it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from inference.blending import Weights
from inference.windows import MapGrid, TissueCells, in_stripes, map_grid, with_tissue
from samplers.index import Places, Search, find_tissue
from slides.geometry import Pair
from slides.reader import SNAP, Slide
from slides.stain import SlideStain, slide_stain
from slides.tissue import cells_mm2

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
        tissue: its tissue, one bit per cell, that the maps are cut to; None: they are not.
        cell_l0: side of a cell of the search grid, level-0 px.
        stain: its stain.
        notes: remarks for the user.
        damage: what could not be decoded in the search for tissue; empty if nothing. It is one of the notes.
        brightfield: whether it is a brightfield slide; others have no tissue.
    """

    slide_id: str
    path: Path
    grid: MapGrid
    windows: list[tuple[int, int]]
    begins: list[int]
    tissue_mm2: float
    tissue: Places | None
    cell_l0: int
    stain: SlideStain
    notes: tuple[str, ...]
    damage: str = ""
    brightfield: bool = True

    def weights(self) -> Weights:
        """Return the weights of its windows, cut to its tissue."""
        tissue = None if self.tissue is None else TissueCells(self.tissue.mask(), self.cell_l0)
        return Weights(self.grid, self.windows, tissue)


def plan_slide(
    path: Path,
    um_px_l0: float | Pair | None,
    img_size: int,
    um_px: float,
    overlap: float,
    bb_downsample: int,
    tissue_only: bool,
    classes: int,
    *,
    stain_methods: Sequence[str] = (),
    tolerance: float = 0.0,
) -> PlannedSlide:
    """Find the tissue of a slide and the windows to predict; takes about a second.

    Args:
        path: the slide.
        um_px_l0: spacing of level 0 (or along x and y), um per px, in place of the file's own; None to use that.
        img_size: side of a window, px.
        um_px: spacing of the windows.
        overlap: share of a window's side in common with the next.
        bb_downsample: pyramid level of the tissue search.
        tissue_only: omit windows without tissue, and cut the maps to it.
        classes: number of classes K.
        stain_methods: methods of `slides.stain` to estimate its stain by.
        tolerance: share of `um_px` within which a level of the slide is taken as it is.

    Raises:
        SlideError: the slide cannot be opened, or more than half of it cannot be decoded.
    """
    slide = Slide(path, um_px=um_px_l0).taking_levels(tolerance)
    search = tissue_cells(slide, bb_downsample)
    cells_HW, cell_l0 = search.tissue_HW, search.cell_l0
    tissue_mm2 = cells_mm2(cells_HW, cell_l0, slide)
    grid = map_grid(slide, img_size, um_px, overlap)
    windows, begins = in_stripes(
        with_tissue(grid, TissueCells(cells_HW, cell_l0) if tissue_only else None), grid, classes - 1
    )
    tissue = Places(cells_HW) if tissue_only else None
    stain = slide_stain(slide, cells_HW, cell_l0, stain_methods)
    return PlannedSlide(
        slide.id,
        path,
        grid,
        windows,
        begins,
        tissue_mm2,
        tissue,
        cell_l0,
        stain,
        (*search.notes, *_notes(slide, search, um_px, tissue_only, tolerance)),
        search.damage,
        search.brightfield,
    )


def _notes(slide: Slide, search: Search, um_px: float, tissue_only: bool, tolerance: float) -> list[str]:
    """Remarks on the spacing of a slide and on what was found on it; see `plan_slide`."""
    notes = []
    if not math.isclose(slide.spacing(um_px), um_px, rel_tol=SNAP):
        notes.append(
            f"{slide.id}: read at its own {slide.spacing(um_px):.4g} um/px, not at {um_px:g}, as in training "
            f"(within {tolerance:g} of it)"
        )
    if not search.tissue_HW.any():
        notes.append(f"{slide.id}: no tissue found" + ("; its maps are empty" if tissue_only else ""))
        if tissue_only and not search.brightfield:
            notes.append(f"{slide.id}: this does not mean that it has no tumor; --no-tissue_only predicts all of it")
    if min(slide.um_px_xy_l0) > COARSE * um_px:
        notes.append(
            f"{slide.id}: scanned at {slide.um_px_xy_l0[0]:g} um/px, enlarged to {um_px:g} um/px: "
            "fine detail is missing"
        )
    return notes


def tissue_cells(slide: Slide, bb_downsample: int) -> Search:
    """Find the tissue that is predicted: that of `samplers.index.find_tissue`, up to the slide's border.

    Seen with the white beyond, last cells that lie partly beyond the slide look pale: they take over their neighbors.
    """
    search = find_tissue(slide, bb_downsample)
    extended_HW = search.tissue_HW.copy()
    width, height = slide.size_xy_l0
    if height % search.cell_l0 and len(extended_HW) > 1:
        extended_HW[-1] |= extended_HW[-2]
    if width % search.cell_l0 and extended_HW.shape[1] > 1:
        extended_HW[:, -1] |= extended_HW[:, -2]
    return replace(search, tissue_HW=extended_HW)
