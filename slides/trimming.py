"""Cutting the glass out of a slide: which rows and columns to keep, their px, and a file that maps them back.

Rows and columns are kept or cut over their whole length, so tissue is moved together but never torn or turned.
Frames: xy_grid, px of the whole slide at the output spacing; xy_trim, px of the trimmed image (`geometry.Trim`).

Tensor legend: H rows, W columns, C = 3 channels (RGB, uint8); R, S rows and columns of cells.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slides.geometry import EDGE_PX, Pair, Trim, Window
from slides.reader import SNAP, Slide

SAME = 1e-9  # of a spacing: px of a level are copied
BESIDE = 1e-5  # px of a level: no window begins on a whole px, all places are rounded alike
GAP_PX = 64  # empty rows or columns in a row that stay at most
VERSION = 1

Runs = tuple[tuple[int, int], ...]


def step_xy_l0(slide: Slide, um_px: float) -> Pair:
    """Level-0 px per px at a spacing; a level's own where that is the same to within 1e-4, so that px are copied.

    Raises:
        ValueError: The spacing is finer than the slide's.
    """
    step = slide.window((0.0, 0.0), (1, 1), um_px).step_xy_l0
    if min(step) < 1 - SNAP:
        raise ValueError(
            f"slide {slide.path} has {max(slide.um_px_xy_l0):g} um/px; a spacing of {um_px:g} um/px is finer than what "
            "was scanned: give a coarser one"
        )
    return step


def whole_grid(slide: Slide, um_px: float) -> Trim:
    """The whole slide at a spacing; its last row and column may reach beyond it."""
    step = step_xy_l0(slide, um_px)
    width, height = (math.ceil(size / one - EDGE_PX) for size, one in zip(slide.size_xy_l0, step, strict=True))
    return Trim(step, ((0, max(1, width)),), ((0, max(1, height)),))


def trimmed(grid: Trim, tissue_RS: NDArray[np.bool_], cell_l0: int, gap_px: int = GAP_PX) -> Trim | None:
    """Keep the rows and columns with tissue, and at most `gap_px` empty ones between two of them.

    Glass before the first and behind the last tissue goes. Of an empty run that is too long the middle goes: what lies
    beside tissue stays beside it.

    Args:
        grid: The whole slide, see `whole_grid`.
        tissue_RS: Where tissue is; cell [r, s] covers level-0 px [s, s + 1) x [r, r + 1) times `cell_l0`.
        cell_l0: Side of a cell, level-0 px.
        gap_px: Empty rows or columns in a row that stay, px of the grid.

    Returns:
        None where there is no tissue.
    """
    axes = []
    for axis, runs in enumerate((grid.runs_x, grid.runs_y)):
        scale = cell_l0 / grid.step_xy_l0[axis]
        axes.append(kept_runs(tissue_RS.any(axis=axis), scale, runs[0][1], gap_px))
    return Trim(grid.step_xy_l0, axes[0], axes[1]) if axes[0] and axes[1] else None


def kept_runs(filled: NDArray[np.bool_], px_per_cell: float, size_px: int, gap_px: int) -> Runs:
    """Runs of px along one axis that `trimmed` keeps.

    Args:
        filled: Which cells along the axis hold tissue.
        px_per_cell: Px of the grid per cell; px that a cell touches are kept.
        size_px: Px of the grid along the axis.
        gap_px: See `trimmed`.
    """
    edges = np.flatnonzero(np.diff(np.r_[False, filled, False].astype(np.int8))).tolist()
    kept: list[list[int]] = []
    for first_cell, end_cell in zip(edges[::2], edges[1::2], strict=True):
        # At the border a cell's last sliver may be less than what counts as a px.
        first = min(math.floor(first_cell * px_per_cell + EDGE_PX), size_px - 1)
        end = min(math.ceil(end_cell * px_per_cell - EDGE_PX), size_px)
        if kept and first - kept[-1][1] <= gap_px:
            kept[-1][1] = end
        elif kept:
            kept[-1][1] += gap_px - gap_px // 2
            kept.append([first - gap_px // 2, end])
        else:
            kept.append([first, end])
    return tuple((first, end) for first, end in kept)


def read_strips(slide: Slide, trim: Trim, rows: int) -> Iterator[NDArray[np.uint8]]:
    """Yield a trimmed image as image_HWC of its whole width and `rows` rows each, the last of what is left.

    Px are those of `Slide.read` on the grid of the whole slide, wherever the image was cut. White beyond the slide.

    Raises:
        SlideError: The slide cannot be decoded.
    """
    width, height = trim.size_xy_trim
    for top in range(0, height, rows):
        yield read_part(slide, trim, (top, min(top + rows, height)), (0, width))


def read_part(
    slide: Slide, trim: Trim, rows: tuple[int, int], columns: tuple[int, int], alike: bool = False
) -> NDArray[np.uint8]:
    """Read rows and columns (first, end) of a trimmed image as image_HWC; they lie inside it. See `read_strips`.

    Args:
        slide: The slide.
        trim: Its rows and columns.
        rows: First row, and the one behind the last, px of the image.
        columns: The same for columns.
        alike: Px are the same to the byte in whatever parts an image is read. Otherwise a resampled part that begins on
            a whole px of its level takes half the time, and may differ by two gray levels.

    Raises:
        SlideError: The slide cannot be decoded.
    """
    part_HWC = np.empty((rows[1] - rows[0], columns[1] - columns[0], 3), np.uint8)
    step_x, step_y = trim.step_xy_l0
    down_x, down_y = slide.level_for(trim.step_xy_l0).downsample_xy
    resampled = max(abs(step_x / down_x - 1), abs(step_y / down_y - 1)) > SAME
    off_x, off_y = (BESIDE * down_x, BESIDE * down_y) if alike and resampled else (0.0, 0.0)
    for rows_grid, row in _inside(trim.runs_y, *rows):
        for columns_grid, column in _inside(trim.runs_x, *columns):
            hw = rows_grid[1] - rows_grid[0], columns_grid[1] - columns_grid[0]
            corner = columns_grid[0] * step_x + off_x, rows_grid[0] * step_y + off_y
            part_HWC[row : row + hw[0], column : column + hw[1]] = slide.read(Window(corner, hw, trim.step_xy_l0))
    return part_HWC


def _inside(runs: Runs, first: int, end: int) -> Iterator[tuple[tuple[int, int], int]]:
    """Parts of runs that lie in px `first` to `end` of the trimmed image, and where they begin behind `first`."""
    start = 0
    for run_first, run_end in runs:
        low, high = max(first, start), min(end, start + run_end - run_first)
        if low < high:
            yield (run_first + low - start, run_first + high - start), low - first
        start += run_end - run_first


def tissue_tile(
    trim: Trim, tissue_RS: NDArray[np.bool_], cell_l0: int, mask_step: int, corner_xy: tuple[int, int], side: int
) -> NDArray[np.uint8]:
    """Return part of a mask of a trimmed image, (h, w), 1 where any cell with tissue touches a px of the mask.

    Args:
        trim: The image.
        tissue_RS: Cells, as of `trimmed`.
        cell_l0: Side of a cell, level-0 px.
        mask_step: Px of the image per px of the mask.
        corner_xy: First column and row wanted, px of the mask.
        side: Most columns and rows wanted; fewer at the border.
    """
    bounds = []
    for axis, runs in enumerate((trim.runs_x, trim.runs_y)):
        scale = trim.step_xy_l0[axis] / cell_l0
        size = trim.size_xy_trim[axis]
        first = corner_xy[axis] * mask_step
        grid = np.concatenate(
            [np.arange(a, b) for (a, b), _ in _inside(runs, first, min(size, first + side * mask_step))]
        )
        low = np.floor(grid * scale + EDGE_PX).astype(np.int64)
        high = np.ceil((grid + 1) * scale - EDGE_PX).astype(np.int64)
        cells = tissue_RS.shape[1 - axis]
        starts = np.arange(0, grid.size, mask_step)
        lowest, highest = np.minimum.reduceat(low, starts), np.maximum.reduceat(high, starts)
        # Between two runs only cells without tissue were cut out, which change nothing.
        bounds.append((np.clip(lowest, 0, cells), np.clip(highest, 0, cells)))
    (left, right), (top, bottom) = bounds
    first_row, first_column = int(top.min()), int(left.min())
    part = tissue_RS[first_row : int(bottom.max()), first_column : int(right.max())]
    sums = np.zeros((part.shape[0] + 1, part.shape[1] + 1), np.int32)
    sums[1:, 1:] = part.cumsum(axis=0, dtype=np.int32).cumsum(axis=1, dtype=np.int32)
    rows, columns = (top - first_row, bottom - first_row), (left - first_column, right - first_column)
    count = (
        sums[np.ix_(rows[1], columns[1])] - sums[np.ix_(rows[0], columns[1])]
        - sums[np.ix_(rows[1], columns[0])] + sums[np.ix_(rows[0], columns[0])]
    )  # fmt: skip
    mask_HW: NDArray[np.uint8] = (count > 0).astype(np.uint8)
    return mask_HW


# ---------------------------------------------------------------------------------------------------------------- file


def trim_text(slide: Slide, trim: Trim) -> str:
    """A trim and its slide as JSON, numbers exact."""
    um_px_xy = [step * um for step, um in zip(trim.step_xy_l0, slide.um_px_xy_l0, strict=True)]
    stored = {
        "version": VERSION,
        "slide": slide.path.name,
        "size_xy_l0": slide.size_xy_l0,
        "um_px_xy_l0": slide.um_px_xy_l0,
        "step_xy_l0": trim.step_xy_l0,
        "um_px_xy_trim": um_px_xy,
        "size_xy_trim": trim.size_xy_trim,
        "runs_x_grid": trim.runs_x,
        "runs_y_grid": trim.runs_y,
    }
    lines = [f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in stored.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def read_trim(path: Path) -> Trim:
    """Read what `trim_text` gave, for `geometry.l0_from_trimmed` and `geometry.trimmed_from_l0`.

    Raises:
        ValueError: The file cannot be read, or is not such a map.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is no map of a trimmed slide: {error}") from error
    return trim_of(text, str(path))


def trim_of(text: str, where: str) -> Trim:
    """Read what `trim_text` gave.

    Args:
        text: JSON.
        where: Its file, for messages.

    Raises:
        ValueError: It is not such a map.
    """
    try:
        stored = json.loads(text)
        if not isinstance(stored, dict) or stored.get("version") != VERSION:
            raise ValueError(f"version {VERSION} is wanted")
        step_x, step_y = stored["step_xy_l0"]
        return Trim((float(step_x), float(step_y)), _runs(stored["runs_x_grid"]), _runs(stored["runs_y_grid"]))
    except KeyError as error:
        raise ValueError(f"{where} is no map of a trimmed slide: {error} is missing") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where} is no map of a trimmed slide: {error}") from error


def _runs(stored: Any) -> Runs:
    if not all(type(edge) is int for run in stored for edge in run):
        raise ValueError(f"runs {stored}: whole px are wanted")
    return tuple((first, end) for first, end in stored)
