"""What the samplers know of a slide without opening it: where its tissue and its classes are.

The search grid has square cells of a whole number of level-0 pixels, about one pixel of pyramid level `bb_downsample`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from shapely import Polygon

from slides.filled import FilledSlide
from slides.reader import Slide, SlideError
from slides.tissue import NOT_BRIGHTFIELD, fewer_cells, in_cells, is_brightfield, tissue_mask
from slides.truth.interface import Truth

MIN_CELL_UM = 2.0  # tissue is found by its texture at a few um; a slide without coarse levels is sampled down to this


class Places:
    """A set of cells that can be drawn from uniformly; one bit per cell.

    Args:
        cells_HW: bool, True where the cell belongs to the set.
    """

    def __init__(self, cells_HW: NDArray[np.bool_]) -> None:
        self.shape_HW: tuple[int, int] = (cells_HW.shape[0], cells_HW.shape[1])
        self._packed = np.packbits(cells_HW, axis=1)
        self._rows_end: NDArray[np.int64] = np.cumsum(cells_HW.sum(axis=1), dtype=np.int64)

    def __len__(self) -> int:
        """Number of cells in the set."""
        return int(self._rows_end[-1]) if len(self._rows_end) else 0

    def cell(self, k: int) -> tuple[int, int]:
        """(row, column) of the k-th cell of the set in row-major order."""
        row = int(np.searchsorted(self._rows_end, k, side="right"))
        before = int(self._rows_end[row - 1]) if row else 0
        columns = np.flatnonzero(np.unpackbits(self._packed[row], count=self.shape_HW[1]))
        return row, int(columns[k - before])

    def mask(self) -> NDArray[np.bool_]:
        """Return the set as a bool array, shape (rows, columns)."""
        return np.unpackbits(self._packed, axis=1, count=self.shape_HW[1]).astype(bool)


@dataclass(frozen=True)
class SlideIndex:
    """Search index of one slide.

    Attributes:
        slide_id: id of the slide.
        size_xy_l0: slide size, level-0 px.
        um_px_xy_l0: spacing of level 0, um per px.
        cell_l0: side of a cell, level-0 px.
        tissue: cells with tissue, whatever their class.
        places: class -> cells; class 0 is tissue outside all other classes.
        regions: class -> annotated polygons, level-0 px; only classes with annotations of their own (`own_regions`).
        notes: remarks for the user (clamped level, no tissue, places that cannot be decoded, skipped rings).
        damage: what of the slide could not be decoded in the search; empty if nothing. It is one of the notes.
    """

    slide_id: str
    size_xy_l0: tuple[int, int]
    um_px_xy_l0: tuple[float, float]
    cell_l0: int
    tissue: Places
    places: dict[int, Places]
    regions: dict[int, list[Polygon]]
    notes: tuple[str, ...]
    damage: str = ""


def own_regions(regions: dict[int, list[Polygon]]) -> dict[int, list[Polygon]]:
    """Regions without the class-0 polygons that only cut holes into other classes (CAMELYON's `_2`).

    A hole marks what is not tumor inside a lesion; if it counted as the slide's normal tissue, a sampler would see
    nothing else of class 0 there.
    """
    others = [Polygon(polygon.exterior) for cls, polygons in regions.items() if cls != 0 for polygon in polygons]
    normal = [
        polygon
        for polygon in regions.get(0, [])
        if not any(filled.contains(polygon.representative_point()) for filled in others)
    ]
    kept = {cls: polygons for cls, polygons in regions.items() if cls != 0}
    return {0: normal, **kept} if normal else kept


def cell_side_l0(slide: Slide, bb_downsample: int) -> tuple[int, str]:
    """Return the side of a search cell (level-0 px) for pyramid level `bb_downsample`, and a note if it was clamped."""
    level = slide.levels[min(bb_downsample, len(slide.levels) - 1)]
    side = max(1, round(max(level.downsample_xy)), math.ceil(MIN_CELL_UM / max(slide.um_px_xy_l0)))
    side = fewer_cells(slide, side)
    if level.index == bb_downsample:
        return side, ""
    return side, (
        f"{slide.id}: --bb_downsample {bb_downsample} clamped to level {level.index}, the last of this slide "
        f"({side * slide.um_px_xy_l0[0]:.3g} um per cell)"
    )


@dataclass(frozen=True)
class Search:
    """The tissue of a slide.

    Attributes:
        tissue_HW: cells of the search grid with tissue.
        cell_l0: side of a cell, level-0 px.
        notes: remarks for the user (clamped level, not brightfield, places that cannot be decoded).
        damage: what could not be decoded, and counts as glass; empty if nothing. It is one of the notes.
        brightfield: whether it is a brightfield slide; others have no tissue.
    """

    tissue_HW: NDArray[np.bool_]
    cell_l0: int
    notes: tuple[str, ...]
    damage: str = ""
    brightfield: bool = True


def find_tissue(slide: Slide, bb_downsample: int) -> Search:
    """Find the tissue of a slide; places that cannot be decoded have none.

    Args:
        slide: the slide.
        bb_downsample: pyramid level of the search grid; clamped to the slide's last level.

    Raises:
        SlideError: more than half of the slide cannot be decoded.
    """
    cell_l0, clamped = cell_side_l0(slide, bb_downsample)
    damage = ""
    try:
        rgb_HWC = in_cells(slide, cell_l0)
    except SlideError:
        filled = FilledSlide(slide.path, slide.um_px_xy_l0)
        rgb_HWC = in_cells(filled, cell_l0)
        damage = f"{slide.id}: in the tissue search, {filled.damage()}"
    tissue_HW = tissue_mask(rgb_HWC, cell_l0 * slide.um_px_xy_l0[0])
    brightfield = is_brightfield(rgb_HWC)
    dark = "" if brightfield else f"{slide.id}: {NOT_BRIGHTFIELD}"
    return Search(tissue_HW, cell_l0, tuple(note for note in (clamped, dark, damage) if note), damage, brightfield)


def index_slide(slide: Slide, truth: Truth, bb_downsample: int, classes: int) -> SlideIndex:
    """Build the search index of one slide; reads one thumbnail and the truth, about a second per slide.

    Args:
        slide: the slide.
        truth: its truth.
        bb_downsample: pyramid level of the search grid; clamped to the slide's last level.
        classes: number of classes K.

    Raises:
        SlideError: more than half of the slide, or any of its label, could not be read.
    """
    search = find_tissue(slide, bb_downsample)
    tissue_HW, cell_l0 = search.tissue_HW, search.cell_l0
    places: dict[int, Places] = {}
    annotated_HW = np.zeros_like(tissue_HW)
    for cls in range(1, classes):
        if cls in truth.classes:
            cells_HW = truth.label_max(cell_l0, cls)
            annotated_HW |= cells_HW
            places[cls] = Places(cells_HW)
    normal_HW = tissue_HW & ~annotated_HW
    if normal_HW.any():
        places[0] = Places(normal_HW)
    notes = [*search.notes]
    if not tissue_HW.any():
        notes.append(f"{slide.id}: no tissue found; only its annotations can be sampled")
    return SlideIndex(
        slide_id=slide.id,
        size_xy_l0=slide.size_xy_l0,
        um_px_xy_l0=slide.um_px_xy_l0,
        cell_l0=cell_l0,
        tissue=Places(tissue_HW | annotated_HW),
        places=places,
        regions=own_regions({cls: truth.regions(cls) for cls in sorted(truth.classes)}),
        notes=(*notes, *truth.notes),
        damage=search.damage,
    )
