"""Coordinate frames of a slide, and the only conversions between them.

Frames (all are (x, y), x to the right, y down; arrays are (row, column) = (y, x)):

    xy_l0   level-0 pixels, continuous. Pixel (i, j) covers [i, i+1) x [j, j+1); its center is (i + 0.5, j + 0.5).
    xy_lv   the same for the pixels of one pyramid level; xy_l0 = xy_lv * downsample_xy of that level.
    xy_out  the same for the output pixels of one window; array element [r, c] covers [c, c+1) x [r, r+1).
    xy_grid the same for the pixels of the whole slide at one spacing, from its corner on; xy_l0 = xy_grid * step_xy_l0.
    xy_trim the same for the pixels of an image that holds only some rows and columns of that grid (`Trim`).
    xy_bounds level-0 pixels from the corner of the slide's bounds on, which QuPath shows; xy_l0 = xy_bounds + corner.

A point is never "a pixel": converting a pixel means converting its center or its corners.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from options.choices import GeojsonFrame

Pair = tuple[float, float]
Points = NDArray[np.float64]  # shape (..., 2), last axis (x, y)
EDGE_PX = 1e-6  # of a grid; as far as rounding of doubles may take a point


class Extent(Protocol):
    """What says which slide it is and where it ends; `reader.Slide` has it."""

    @property
    def id(self) -> str:
        """Id of the slide."""

    @property
    def path(self) -> Path:
        """The slide, for messages."""

    @property
    def size_xy_l0(self) -> tuple[int, int]:
        """Width and height, level-0 px."""


@dataclass(frozen=True)
class Window:
    """A rectangle of a slide, and the output pixels it is cut into.

    Attributes:
        corner_xy_l0: Outer corner of the top-left output pixel, level-0 px. May lie outside the slide.
        hw_out: Output rows and columns.
        step_xy_l0: Level-0 px per output px, along x and along y.
    """

    corner_xy_l0: Pair
    hw_out: tuple[int, int]
    step_xy_l0: Pair

    def __post_init__(self) -> None:
        """Refuse what no reader can answer.

        Raises:
            ValueError: Non-finite numbers, steps that are not positive, or an empty output.
        """
        if not all(math.isfinite(v) for v in (*self.corner_xy_l0, *self.step_xy_l0)) or min(self.step_xy_l0) <= 0:
            raise ValueError(
                f"window corner {self.corner_xy_l0} and step {self.step_xy_l0} must be finite, the step > 0 level-0 px"
            )
        if min(self.hw_out) < 1:
            raise ValueError(f"window of {self.hw_out} (rows, columns) is empty; both must be at least 1")

    @property
    def size_xy_l0(self) -> Pair:
        """Width and height in level-0 px."""
        return self.hw_out[1] * self.step_xy_l0[0], self.hw_out[0] * self.step_xy_l0[1]

    @property
    def center_xy_l0(self) -> Pair:
        """Center in level-0 px."""
        width, height = self.size_xy_l0
        return self.corner_xy_l0[0] + width / 2, self.corner_xy_l0[1] + height / 2


def window_centered(center_xy_l0: Pair, hw_out: tuple[int, int], step_xy_l0: Pair) -> Window:
    """Return the window of `hw_out` (rows, columns) at `step_xy_l0` whose center is `center_xy_l0` (level-0 px)."""
    corner_xy_l0 = (
        center_xy_l0[0] - hw_out[1] * step_xy_l0[0] / 2,
        center_xy_l0[1] - hw_out[0] * step_xy_l0[1] / 2,
    )
    return Window(corner_xy_l0, hw_out, step_xy_l0)


def shifted_inside(window: Window, size_xy_l0: tuple[int, int]) -> Window:
    """Move a window so that it lies inside the slide; size and step stay.

    Along an axis where it is larger than the slide it is centered on the slide instead, so that the outside is
    shared evenly by both borders.

    Args:
        window: Any window.
        size_xy_l0: Width and height of the slide, level-0 px.
    """

    def moved(corner: float, extent: float, size: int) -> float:
        return (size - extent) / 2 if extent > size else min(max(corner, 0.0), size - extent)

    extent_x, extent_y = window.size_xy_l0
    x, y = window.corner_xy_l0
    corner_xy_l0 = (moved(x, extent_x, size_xy_l0[0]), moved(y, extent_y, size_xy_l0[1]))
    return replace(window, corner_xy_l0=corner_xy_l0)


def l0_from_out(window: Window, xy_out: ArrayLike) -> Points:
    """Level-0 px of points given in output px of `window`; both have shape (..., 2), last axis (x, y)."""
    xy_l0: Points = np.asarray(window.corner_xy_l0) + np.asarray(xy_out, np.float64) * np.asarray(window.step_xy_l0)
    return xy_l0


def pixel_centers_l0(window: Window) -> tuple[Points, Points]:
    """Return level-0 x of the centers of a window's columns, shape (W,), and y of those of its rows, shape (H,)."""
    height, width = window.hw_out
    (x, y), (step_x, step_y) = window.corner_xy_l0, window.step_xy_l0
    return x + (np.arange(width) + 0.5) * step_x, y + (np.arange(height) + 0.5) * step_y


def l0_from_lv(xy_lv: ArrayLike, downsample_xy: Pair) -> Points:
    """Level-0 px of points given in px of a level with `downsample_xy`; shape (..., 2), last axis (x, y)."""
    xy_l0: Points = np.asarray(xy_lv, np.float64) * np.asarray(downsample_xy)
    return xy_l0


def lv_from_l0(xy_l0: ArrayLike, downsample_xy: Pair) -> Points:
    """Px of a level with `downsample_xy` of points given in level-0 px; shape (..., 2), last axis (x, y)."""
    xy_lv: Points = np.asarray(xy_l0, np.float64) / np.asarray(downsample_xy)
    return xy_lv


def level_downsample_xy(size_xy_l0: tuple[int, int], size_xy_lv: tuple[int, int]) -> Pair:
    """Level-0 px per px of a level, along x and y, from the two sizes.

    A writer that halves an odd size drops or adds a partial pixel: 4443 px become 2221, but the factor is 2 and not
    4443 / 2221 = 2.0005, which would be wrong by a whole pixel at the far border. So an integer k is taken, per axis,
    where the level's size is the floor or the ceiling of size / k; else the ratio of the sizes. Where several integers
    fit (tiny levels), one that fits both axes goes first, then a power of two, then the one nearest to the ratio.
    """
    fits_x, fits_y = (_integer_factors(n0, nl) for n0, nl in zip(size_xy_l0, size_xy_lv, strict=True))
    both = fits_x & fits_y
    factors = []
    for n0, nl, fits in zip(size_xy_l0, size_xy_lv, (fits_x, fits_y), strict=True):
        ratio = n0 / nl
        candidates = both or fits
        # A power of two has a single bit set: k & (k - 1) is 0.
        best = min(candidates, key=lambda k: ((k & (k - 1)) != 0, abs(k - ratio)), default=None)
        factors.append(ratio if best is None else float(best))
    return factors[0], factors[1]


def _integer_factors(n0: int, nl: int) -> set[int]:
    """Every integer k for which `nl` is the floor or the ceiling of n0 / k."""
    if not 0 < nl <= n0:
        raise ValueError(f"a level of {nl} px under a level 0 of {n0} px: sizes must be positive and not grow")
    if nl == 1:
        # Anything from n0 / 2 up gives 1 px; the other axis decides, or else the ratio.
        first, last = n0 // 2 + 1 if n0 > 1 else 1, 2 * n0
    else:
        first, last = n0 // (nl + 1), n0 // (nl - 1) + 1
    return {k for k in range(max(first, 1), last + 1) if nl in (n0 // k, -(-n0 // k))}


def l0_from_bounds(xy_bounds: ArrayLike, bounds_xy_l0: Pair) -> Points:
    """Level-0 px of points given from the corner of the slide's bounds on (`Slide.bounds_xy_l0`); both (..., 2)."""
    xy_l0: Points = np.asarray(xy_bounds, np.float64) + np.asarray(bounds_xy_l0)
    return xy_l0


def geojson_corner(bounds_xy_l0: Pair, frame: GeojsonFrame) -> Pair:
    """Level-0 px of (0, 0) in a GeoJSON file: the corner of the bounds for `qupath`, that of the slide for `slide`."""
    return bounds_xy_l0 if frame == "qupath" else (0.0, 0.0)


def bounds_from_l0(xy_l0: ArrayLike, bounds_xy_l0: Pair) -> Points:
    """Points (level-0 px) from the corner of the slide's bounds on (`Slide.bounds_xy_l0`); both (..., 2)."""
    xy_bounds: Points = np.asarray(xy_l0, np.float64) - np.asarray(bounds_xy_l0)
    return xy_bounds


@dataclass(frozen=True)
class Trim:
    """Rows and columns of a slide at one spacing, put side by side: what is left of it when its glass is cut out.

    Attributes:
        step_xy_l0: Level-0 px per px of the grid, along x and y.
        runs_x: Columns kept, as (first, end) in px of the grid, end excluded; ascending, apart from each other.
        runs_y: Rows kept, the same.
    """

    step_xy_l0: Pair
    runs_x: tuple[tuple[int, int], ...]
    runs_y: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        """Refuse what is no cut.

        Raises:
            ValueError: A step that is not positive, or runs that are none, empty, out of order or touch.
        """
        if not all(math.isfinite(step) and step > 0 for step in self.step_xy_l0):
            raise ValueError(f"step {self.step_xy_l0} (x, y) must be finite and more than 0 level-0 px")
        for axis, runs in (("x", self.runs_x), ("y", self.runs_y)):
            flat = [edge for run in runs for edge in run]
            if not flat or flat[0] < 0 or any(one >= two for one, two in itertools.pairwise(flat)):
                raise ValueError(f"runs along {axis} {runs}: (first, end) each, ascending and apart, from 0 on")

    @property
    def size_xy_trim(self) -> tuple[int, int]:
        """Width and height of the image, px."""
        width, height = (sum(end - first for first, end in runs) for runs in (self.runs_x, self.runs_y))
        return width, height


def l0_from_trimmed(trim: Trim, xy_trim: ArrayLike) -> Points:
    """Level-0 px of points given in px of a trimmed image; both have shape (..., 2), last axis (x, y).

    A point on a seam is the first of the run behind it. Points outside the image continue its first or last run.
    """
    points = np.asarray(xy_trim, np.float64)
    axes = []
    for axis, runs in enumerate((trim.runs_x, trim.runs_y)):
        firsts, starts = _firsts_and_starts(runs)
        run = np.maximum(np.searchsorted(starts, points[..., axis], side="right") - 1, 0)
        axes.append((firsts[run] + (points[..., axis] - starts[run])) * trim.step_xy_l0[axis])
    return np.stack(axes, axis=-1)


def trimmed_from_l0(trim: Trim, xy_l0: ArrayLike) -> Points:
    """Px of a trimmed image of points given in level-0 px; both have shape (..., 2), last axis (x, y).

    Inverse of `l0_from_trimmed` inside the image. A coordinate in what was cut out is NaN; the far edge of a run is
    still in.
    """
    points = np.asarray(xy_l0, np.float64)
    axes = []
    for axis, runs in enumerate((trim.runs_x, trim.runs_y)):
        firsts, starts = _firsts_and_starts(runs)
        ends = np.array([end for _, end in runs], np.float64)
        grid = points[..., axis] / trim.step_xy_l0[axis]
        # Multiplied and divided by a step, the edge of a run may come out a hair's breadth beside it.
        run = np.maximum(np.searchsorted(firsts, grid + EDGE_PX, side="right") - 1, 0)
        inside = (grid >= firsts[run] - EDGE_PX) & (grid <= ends[run] + EDGE_PX)
        axes.append(np.where(inside, grid - firsts[run] + starts[run], np.nan))
    return np.stack(axes, axis=-1)


def _firsts_and_starts(runs: tuple[tuple[int, int], ...]) -> tuple[Points, Points]:
    """Where every run begins, in px of the grid and in px of the trimmed image."""
    lengths = [end - first for first, end in runs]
    return np.array([first for first, _ in runs], np.float64), np.cumsum([0.0, *lengths[:-1]])
