"""A slide's results from the scratch files of its runs: written beside their place, then moved there as a whole."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from inference.plan import PlannedSlide
from inference.scratch import LABEL, Cells, plane_names, run_path
from slides.geometry import Pair
from slides.pyramid import Shrink, write_mask_pyramid

TILE = 512
CLAIM = "claimed"


def claim(folder: Path, firsts: Sequence[int]) -> bool:
    """Whether all runs of a slide are there, and this call is the first to know.

    Args:
        folder: scratch folder of the slide.
        firsts: positions of the first windows of its runs.
    """
    if not all(run_path(folder, first).exists() for first in firsts):
        return False
    try:
        # Ranks: of several that look at the same time, one can make the file.
        os.close(os.open(folder / CLAIM, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except (FileExistsError, FileNotFoundError):
        return False
    return True


def write_maps(cells: Cells, planned: PlannedSlide, um_px_xy_l0: Pair, classes: int, folder: Path) -> None:
    """Write the maps of a slide as pyramids: probabilities by mean, labels by maximum.

    Args:
        cells: of the slide.
        planned: the slide.
        um_px_xy_l0: its spacing, um per level-0 px.
        classes: K.
        folder: where to.
    """
    step_x, step_y = planned.grid.step_xy_l0
    um_px_xy = step_x * um_px_xy_l0[0], step_y * um_px_xy_l0[1]
    for plane in plane_names(classes):
        tile_of = partial(cells.tile, side=TILE, plane=plane)
        shrink: Shrink = "max" if plane == LABEL else "mean"
        write_mask_pyramid(folder / f"{plane}.tif", planned.grid.size_xy, um_px_xy, tile_of, shrink=shrink, tile=TILE)
