"""Px of a level at another spacing: fast, at the exact place, without aliasing.

Output px are weighted means of level px, along x and y alike:

    scale up to 1.2   the two px around the exact place, linearly (also where px are enlarged)
    scale above 1.2   first a low pass, a bicubic kernel (Keys, a = -0.5) widened by 0.9 of the reduction, then the same
    scale from 4 on   first means of k x k px, k = floor(scale / 2), then the same at scale / k, which is 2 to 3

Means and low pass are laid on the px of the whole level, and places are rounded to 1/32 px of the whole level: an
output px does not depend on the window or the part it was cut in. Where a window begins on a whole px, as those of
`Slide.window` do, its places are exact, and it takes half the time.

Tensor legend: H rows, W columns, C channels; uint8. Frame: `lv`, px of the level, as in `slides/geometry.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from slides.geometry import Pair
from slides.memory import aligned

Image = NDArray[np.uint8]
# (corner_xy_lv, hw) -> px, and how far right and down of the place asked for they lie, px of the level
Fetch = Callable[[tuple[int, int], tuple[int, int]], tuple[Image, float, float]]

PLACES = 32  # of OpenCV's fixed-point maps, in each px
ROWS = 32
TIE = 1e-6  # of a place: a place in the middle of two, up to rounding of doubles, is rounded up in every window
WHOLE_PX = 1e-6
# Larger reductions are low-passed. Below, linear interpolation is low pass enough.
PLAIN_SCALE = 1.2
# Of the reduction: the linear interpolation after the low pass is the rest of it.
LOW_PASS = 0.9
MEAN_SCALE = 4.0
# Most source px of one step, and its longest side: OpenCV's maps hold 15 bits.
BAND_PX, SIDE_PX = 32 * 2**20, 2**14


@dataclass(frozen=True)
class _Axis:
    """Output px along one axis.

    Attributes:
        corner: outer edge of the first, px of the level.
        scale: px of the level per output px.
        count: how many.
    """

    corner: float
    scale: float
    count: int

    @property
    def mean(self) -> int:
        """K: how many px are averaged first."""
        return math.floor(self.scale / 2) if self.scale >= MEAN_SCALE else 1

    @property
    def kernel(self) -> NDArray[np.float64]:
        """Low pass, an odd number of weights with sum 1."""
        scale = self.scale / self.mean
        if scale <= PLAIN_SCALE:
            return np.ones(1)
        width = LOW_PASS * scale
        reach = math.ceil(2 * width) - 1
        away = np.abs(np.arange(-reach, reach + 1)) / width
        weights = np.where(away < 1, 1.5 * away**3 - 2.5 * away**2 + 1, -0.5 * away**3 + 2.5 * away**2 - 4 * away + 2)
        weights[away >= 2] = 0
        normed: NDArray[np.float64] = weights / weights.sum()
        return normed

    def places(self, first: int, end: int, shift: float = 0.0) -> NDArray[np.int64]:
        """Centers of output px `first` to `end`, excluded, in 1/32 of a mean; 0 is the center of the level's first."""
        center = (self.corner - shift + (np.arange(first, end) + 0.5) * self.scale) / self.mean - 0.5
        places: NDArray[np.int64] = np.floor(center * PLACES + 0.5 + TIE).astype(np.int64)
        return places

    def source(self, first: int, end: int) -> tuple[int, int]:
        """First px of the level that these output px need, and the one behind the last; whole means."""
        # One more on both sides: the px fetched lie up to half a px off.
        reach = self.kernel.size // 2 + 1
        low, high = (int(place) // PLACES for place in self.places(first, end)[[0, -1]])
        return (low - reach) * self.mean, (high + 2 + reach) * self.mean

    def steps(self, most: int) -> list[tuple[int, int]]:
        """Output px (first, end) of parts that each need about `most` px of the level."""
        size = max(1, int((most - 2 * (self.kernel.size // 2 + 3) * self.mean) / self.scale))
        return [(first, min(first + size, self.count)) for first in range(0, self.count, size)]


def resampled(fetch: Fetch, corner_xy_lv: Pair, hw: tuple[int, int], scale_xy: Pair) -> Image:
    """Resample px of a level; memory is bounded at any scale, large windows are read in parts.

    Args:
        fetch: gives px of the level; also of places outside it.
        corner_xy_lv: outer corner of the first output px.
        hw: output rows and columns.
        scale_xy: px of the level per output px.

    Returns:
        image_HWC of shape (*hw, 3).
    """
    x_axis, y_axis = (_Axis(*of) for of in zip(corner_xy_lv, scale_xy, reversed(hw), strict=True))
    columns = x_axis.steps(SIDE_PX)
    left, right = x_axis.source(*columns[0])
    bands = y_axis.steps(min(SIDE_PX, BAND_PX // (right - left)))
    whole = len(columns) == len(bands) == 1
    if whole:
        return _part(fetch, x_axis, y_axis, columns[0], bands[0], whole)
    image_HWC = aligned((*hw, 3))
    for y in bands:
        for x in columns:
            image_HWC[slice(*y), slice(*x)] = _part(fetch, x_axis, y_axis, x, y, whole)
    return image_HWC


def _part(fetch: Fetch, x_axis: _Axis, y_axis: _Axis, x: tuple[int, int], y: tuple[int, int], whole: bool) -> Image:
    """Output px of columns (first, end) and rows (first, end); `whole`: these are all."""
    (left, right), (top, bottom) = x_axis.source(*x), y_axis.source(*y)
    source, shift_x, shift_y = fetch((left, top), (bottom - top, right - left))
    k_x, k_y = x_axis.mean, y_axis.mean
    if (k_x, k_y) != (1, 1):
        size = (right - left) // k_x, (bottom - top) // k_y
        source = cv2.resize(source, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
    kernel_x, kernel_y = x_axis.kernel, y_axis.kernel
    if max(kernel_x.size, kernel_y.size) > 1:
        source = cv2.sepFilter2D(source, -1, kernel_x, kernel_y).astype(np.uint8, copy=False)
    if whole and shift_x == shift_y == 0 and _begins_on_px(x_axis) and _begins_on_px(y_axis):
        return _from_whole_px(source, x_axis, y_axis, (round(x_axis.corner) - left, round(y_axis.corner) - top))
    x_places = x_axis.places(*x, shift_x) - left // k_x * PLACES
    y_places = y_axis.places(*y, shift_y) - top // k_y * PLACES
    return _at_places(source, x_places, y_places)


def _at_places(source: Image, x_places: NDArray[np.int64], y_places: NDArray[np.int64]) -> Image:
    """Px of `source` at places, in 1/32 px of it; 0 is the center of its first."""
    image_HWC = aligned((y_places.size, x_places.size, 3))
    columns, x_parts = x_places // PLACES, x_places % PLACES
    rows, y_parts = y_places // PLACES, y_places % PLACES * PLACES
    # Rows in groups, whose maps stay in the cache of the core: half the time.
    px_HW2 = np.empty((min(ROWS, rows.size), columns.size, 2), np.int16)
    part_HW = np.empty(px_HW2.shape[:2], np.uint16)
    px_HW2[..., 0] = columns
    for first in range(0, rows.size, ROWS):
        end = min(first + ROWS, rows.size)
        top, count = int(rows[first]), end - first
        px_HW2[:count, :, 1] = (rows[first:end] - top)[:, None]
        np.add(x_parts, y_parts[first:end, None], out=part_HW[:count], casting="unsafe")
        below = source[top : int(rows[end - 1]) + 2]
        cv2.remap(below, px_HW2[:count], part_HW[:count], cv2.INTER_LINEAR, dst=image_HWC[first:end])
    return image_HWC


def _begins_on_px(axis: _Axis) -> bool:
    # Below scale 1 the first output px would need the px before it.
    return axis.mean == 1 and axis.scale >= 1 and abs(axis.corner - round(axis.corner)) < WHOLE_PX


def _from_whole_px(source: Image, x_axis: _Axis, y_axis: _Axis, begin_xy: tuple[int, int]) -> Image:
    """Output px that begin on a whole px of `source`: OpenCV's `resize` knows no other."""
    width, height = (math.ceil(axis.count * axis.scale - WHOLE_PX) for axis in (x_axis, y_axis))
    needed = source[begin_xy[1] : begin_xy[1] + height, begin_xy[0] : begin_xy[0] + width]
    image_HWC = aligned((y_axis.count, x_axis.count, 3))
    # By factors: a size in whole px would be another scale.
    resized = cv2.resize(
        needed, None, image_HWC, fx=1 / x_axis.scale, fy=1 / y_axis.scale, interpolation=cv2.INTER_LINEAR
    )
    # One more row or column may fit; the result is then no longer in the memory given.
    return resized[: y_axis.count, : x_axis.count].astype(np.uint8, copy=False)
