"""A slide's results from the scratch files of its runs: written to a temporary folder, then moved into place."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from inference.appearance import Appearance
from inference.maps import Maps
from inference.outputs import OutputOptions, write_outputs
from inference.plan import PlannedSlide
from inference.scratch import LABEL, Cells, plane_names, run_path
from inference.summary import Predicted
from inference.whole import INFO, WholeCells
from slides.geometry import Pair
from slides.reader import Slide, SlideError
from slides.tiff.pyramid import Shrink, write_mask_pyramid
from system.atomic_files import written_folder
from system.csv_tables import counted

TILE = 512
CLAIM = "claimed"
# Share of a slide's windows that may be partly unreadable; with more, the slide has no result.
MOST_FAULTS = 0.5


def claim(folder: Path, firsts: Sequence[int]) -> bool:
    """Claim a slide whose runs are all complete, or which was predicted as one; True for the first caller only.

    Args:
        folder: scratch folder of the slide.
        firsts: positions of the first windows of its runs.
    """
    if not (folder / INFO).exists() and not all(run_path(folder, first).exists() for first in firsts):
        return False
    try:
        # Ranks: of several ranks that look at the same time, only one can create the file.
        os.close(os.open(folder / CLAIM, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except (FileExistsError, FileNotFoundError):
        return False
    return True


def write_maps(cells: Cells | WholeCells, planned: PlannedSlide, um_px_xy_l0: Pair, classes: int, folder: Path) -> None:
    """Write the maps of a slide as pyramids: probabilities by mean, labels by maximum.

    Args:
        cells: cells of the slide.
        planned: the slide.
        um_px_xy_l0: its spacing, um per level-0 px.
        classes: number of classes K.
        folder: folder to write to.
    """
    step_x, step_y = planned.grid.step_xy_l0
    um_px_xy = step_x * um_px_xy_l0[0], step_y * um_px_xy_l0[1]
    for plane in plane_names(classes):
        tile_of = partial(cells.tile, side=TILE, plane=plane)
        shrink: Shrink = "max" if plane == LABEL else "mean"
        write_mask_pyramid(folder / f"{plane}.tif", planned.grid.size_xy, um_px_xy, tile_of, shrink=shrink, tile=TILE)


@dataclass(frozen=True)
class PredictionInfo:
    """What all slides of a prediction have in common.

    Attributes:
        out: folder of the results, with one folder for each slide.
        classes: name of every class, 0 to K - 1.
        model: path of the model.
        options: options that determine the result, JSON types.
        outputs: parameters of outlines and detections.
        appearance: what is done about stain; None: nothing.
    """

    out: Path
    classes: Mapping[int, str]
    model: str
    options: Mapping[str, Any]
    outputs: OutputOptions
    appearance: Appearance | None = None


def finish_slide(
    slide: Slide, planned: PlannedSlide, firsts: Sequence[int], scratch: Path, common: PredictionInfo
) -> list[str]:
    """Produce a slide's results from its scratch files; `out/SLIDE_ID` appears when it is complete.

    Args:
        slide: the slide.
        planned: its windows.
        firsts: positions of the first windows of its runs.
        scratch: its scratch folder.
        common: see `PredictionInfo`.

    Returns:
        Notes for the user.

    Raises:
        SlideError: too many of its windows could not be read.
        OSError: the results cannot be written; no part of them remains.
    """
    started = time.monotonic()
    cells: Cells | WholeCells
    if (scratch / INFO).exists():
        cells = WholeCells(scratch, planned.grid)
    else:
        cells = Cells(scratch, list(firsts), planned.weights(), len(common.classes) - 1)
    windows = sum(info["windows"] for info in cells.infos)
    faults = [fault for info in cells.infos for fault in info["faults"]]
    started -= sum(info["seconds"] for info in cells.infos)
    try:
        if len(faults) > MOST_FAULTS * windows:
            raise SlideError(f"{len(faults)} of {windows} windows cannot be read, first: {faults[0]}")
        # Where it exists, --overwrite was given.
        with written_folder(common.out / planned.slide_id) as partial:
            write_maps(cells, planned, slide.um_px_xy_l0, len(common.classes), partial)
            maps = Maps(partial, slide.size_xy_l0, slide.um_px_xy_l0, planned.grid.step_xy_l0, common.classes)
            um_px = planned.grid.step_xy_l0[0] * slide.um_px_xy_l0[0]
            counts = (windows, len(faults))
            stain = None if common.appearance is None else common.appearance.record(planned)
            record = Predicted(
                common.model, *counts, planned.tissue_mm2, um_px, common.options, planned.brightfield, stain
            )
            notes = write_outputs(partial, slide, maps, record, started, options=common.outputs)
    finally:
        cells.close()
    if faults:
        notes.append(
            f"{counted(len(faults), 'window')} could not be read completely, missing px are white; first: {faults[0]}"
        )
    return notes
