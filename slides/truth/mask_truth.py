"""Truth from masks: one channel of at most 8 bits, placed on the slide (`placing`), stored values mapped to classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import cv2
import numpy as np
import shapely
from numpy.typing import NDArray

from slides.geometry import Window, level_downsample_xy, pixel_centers_l0
from slides.reader import Level
from slides.truth.label import IGNORE, check_classes
from slides.truth.mask_file import MaskFile
from slides.truth.outline import outlines
from slides.truth.placing import Field, place
from slides.truth.raster import polygons_of

# Most px that one step of a scan holds, and most cells of an outlined grid.
SCAN_PX = 16 * 2**20
# Larger masks are scanned at a coarser level; full-size CAMELYON masks have 20 Gpx and more.
SCAN_LEVEL0_PX = 2**30
SCAN_UM_PX = 2.0
# Up to this step (level-0 px) labels come from level 0, whatever levels there are.
FINE_STEP = 4.0


class MaskTruth(MaskFile):
    """Truth from a TIFF mask, with or without coarser levels.

    `label` takes the stored pixel under each center: from level 0 up to a step of 4 level-0 px, beyond that from the
    coarsest level with at least two px per step (its px are the mask writer's choice). `label_max` and `regions` scan
    level 0 of masks under 1 Gpx; larger ones at their coarsest level of at most 2 um/px, where a spot that the writer
    of the mask dropped from that level is not found.

    Args:
        path: The mask.
        slide: Its slide.
        value_map: Stored value to class, 255 for areas to ignore; a value not listed is an error when it is met.
            Default: 0 is class 0, any other value class 1; programs decide by all masks (`mask_values.decide`).

    Raises:
        ValueError: See `MaskFile`; also a mask that does not fit the slide.

    Attributes:
        px_l0: Level-0 px per px of the mask, along x and y.
        notes: How the mask lies on the slide, if not px for px.
    """

    def __init__(self, path: str | Path, slide: Field, value_map: Mapping[int, int] | None = None) -> None:
        super().__init__(path)
        self.slide_id = slide.id
        self._size_xy_l0 = slide.size_xy_l0
        self._um_px = max(slide.um_px_xy_l0)
        size_xy = self.pages[0].size_xy
        self.px_l0, self.notes = place(self.path, size_xy, self.pages[0].um_px_xy, slide)
        downs = [level_downsample_xy(size_xy, page.size_xy) for page in self.pages]
        self._levels = tuple(
            Level(index, page.size_xy, (self.px_l0[0] * x, self.px_l0[1] * y))
            for index, (page, (x, y)) in enumerate(zip(self.pages, downs, strict=True))
        )
        self._class_of = np.ones(256, np.uint8)
        self._class_of[0] = 0
        self._unknown: NDArray[np.uint8] | None = None
        if value_map is not None:
            check_classes(value_map.values(), "--mask_values")
            if not all(0 <= value <= 255 for value in value_map):
                raise ValueError(f"--mask_values: {sorted(value_map)}; stored values are 0 to 255")
            self._unknown = np.ones(256, np.uint8)
            for value, cls in value_map.items():
                self._class_of[value], self._unknown[value] = cls, 0
        self._classes: frozenset[int] | None = None

    @property
    def classes(self) -> frozenset[int]:
        """See `Truth`; the first use scans the mask."""
        if self._classes is None:
            level = self._scan_level(max(self._size_xy_l0))
            found: set[int] = set()
            for label_HW in self._blocks(level, 4096):
                found.update(np.flatnonzero(np.bincount(label_HW.ravel(), minlength=256)).tolist())
            self._classes = frozenset(found - {0, IGNORE})
        return self._classes

    def label(self, window: Window) -> NDArray[np.uint8]:
        """See `Truth.label`."""
        level = self._label_level(window)
        x_l0, y_l0 = pixel_centers_l0(window)
        inside_x = (x_l0 >= 0) & (x_l0 < self._size_xy_l0[0])
        inside_y = (y_l0 >= 0) & (y_l0 < self._size_xy_l0[1])
        label_HW = np.full(window.hw_out, IGNORE, np.uint8)
        columns, rows = _px_under(x_l0[inside_x], level, 0), _px_under(y_l0[inside_y], level, 1)
        if not columns.size or not rows.size:
            return label_HW
        left, width = int(columns[0]), int(columns[-1] - columns[0]) + 1
        top_row, left_column = int(np.argmax(inside_y)), int(np.argmax(inside_x))
        # Bands of rows: a coarse window over a mask without levels would need all of level 0 at once.
        for band in np.array_split(np.arange(rows.size), -(-int(rows[-1] - rows[0] + 1) * width // SCAN_PX)):
            if not band.size:
                continue
            top, height = int(rows[band[0]]), int(rows[band[-1]] - rows[band[0]]) + 1
            block = self._read(level, (left, top), (height, width))
            # Slices of neighboring px would be copied one by one.
            picked = block if _neighbors(rows[band]) else block[rows[band] - top]
            picked = picked if _neighbors(columns) else picked[:, columns - left]
            row = top_row + int(band[0])
            label_HW[row : row + band.size, left_column : left_column + columns.size] = picked
        return label_HW

    def label_max(self, cell_l0: int, cls: int) -> NDArray[np.bool_]:
        """See `Truth.label_max`; a px counts for the cell its center lies in, or for all its cells if it is wider."""
        level = self._scan_level(cell_l0)
        width, height = self._size_xy_l0
        occurs_HW = np.zeros((-(-height // cell_l0), -(-width // cell_l0)), np.bool_)
        first_x, last_x = _px_of_cells(width, cell_l0, level, 0)
        first_y, last_y = _px_of_cells(height, cell_l0, level, 1)
        cells = min(4096, max(1, int(4096 * min(level.downsample_xy)) // cell_l0))
        for row in range(0, occurs_HW.shape[0], cells):
            for column in range(0, occurs_HW.shape[1], cells):
                x, y = first_x[column : column + cells], first_y[row : row + cells]
                right, bottom = last_x[column : column + cells][-1] + 1, last_y[row : row + cells][-1] + 1
                hit = self._read(level, (int(x[0]), int(y[0])), (int(bottom - y[0]), int(right - x[0]))) == cls
                hit = _any_of(hit, y - y[0], last_y[row : row + cells] - y[0], 0)
                hit = _any_of(hit, x - x[0], last_x[column : column + cells] - x[0], 1)
                occurs_HW[row : row + cells, column : column + cells] = hit
        return occurs_HW

    def regions(self, cls: int) -> list[shapely.Polygon]:
        """See `Truth.regions`; class 0 has none.

        Exact outlines of level-0 px for masks up to 16 Mpx, else outlines of the cells of `label_max` on the finest
        power-of-two grid of at most 16 Mpx, clipped to the slide.
        """
        if cls == 0:
            return []
        width, height = self._size_xy_l0
        cell_l0 = 1
        while -(-width // cell_l0) * -(-height // cell_l0) > SCAN_PX:
            cell_l0 *= 2
        polygons = outlines(self.label_max(cell_l0, cls), cell_l0)
        box = shapely.box(0, 0, width, height)
        return [piece for part in polygons for piece in polygons_of(part.intersection(box))]

    def _label_level(self, window: Window) -> Level:
        if max(window.step_xy_l0) <= FINE_STEP:
            return self._levels[0]
        return self._coarsest(max(min(window.step_xy_l0) / 2, 1.0))

    def _scan_level(self, cell_l0: int) -> Level:
        width, height = self._levels[0].size_xy
        if width * height < SCAN_LEVEL0_PX:
            return self._levels[0]
        return self._coarsest(min(cell_l0, max(1.0, SCAN_UM_PX / self._um_px)))

    def _coarsest(self, step_l0: float) -> Level:
        """The coarsest level whose px are at most so wide, level-0 px; level 0 if there is none."""
        return [self._levels[0], *(level for level in self._levels if max(level.downsample_xy) <= step_l0)][-1]

    def _blocks(self, level: Level, side: int) -> Iterator[NDArray[np.uint8]]:
        for top in range(0, level.size_xy[1], side):
            for left in range(0, level.size_xy[0], side):
                hw = min(side, level.size_xy[1] - top), min(side, level.size_xy[0] - left)
                yield self._read(level, (left, top), hw)

    def _read(self, level: Level, corner_xy_lv: tuple[int, int], hw: tuple[int, int]) -> NDArray[np.uint8]:
        """Classes of a rectangle inside a level."""
        stored = self.read(level.index, corner_xy_lv, hw)
        # OpenCV's table look-up: ten times faster than NumPy's indexing.
        if self._unknown is not None and (unknown_HW := cv2.LUT(stored, self._unknown)).any():
            strange = np.unique(stored[unknown_HW > 0]).tolist()
            raise ValueError(
                f"mask {self.path} holds values {strange} at level {level.index}, not in --mask_values; add them"
            )
        label_HW: NDArray[np.uint8] = cv2.LUT(stored, self._class_of).astype(np.uint8, copy=False)
        return label_HW


def _px_under(along_l0: NDArray[np.float64], level: Level, axis: int) -> NDArray[np.int64]:
    """Index of the px of a level under each level-0 coordinate; the last px also covers a remainder."""
    px: NDArray[np.int64] = np.floor(along_l0 / level.downsample_xy[axis]).astype(np.int64)
    return px.clip(max=level.size_xy[axis] - 1)


def _px_of_cells(side_l0: int, cell_l0: int, level: Level, axis: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and last px of a level that count for each cell along one axis."""
    down, size = level.downsample_xy[axis], level.size_xy[axis]
    begins = np.arange(0, side_l0, cell_l0)
    ends = np.minimum(begins + cell_l0, side_l0)
    if down <= cell_l0:
        first, last = np.ceil(begins / down - 0.5), np.ceil(ends / down - 0.5) - 1
        last[-1] = np.ceil(side_l0 / down) - 1  # the last px also covers a remainder
    else:
        first, last = np.floor(begins / down), np.ceil(ends / down) - 1
    first, last = (px.astype(np.int64).clip(max=size - 1) for px in (first, last))
    return first, np.maximum(first, last)


def _any_of(
    hit_HW: NDArray[np.bool_], first: NDArray[np.int64], last: NDArray[np.int64], axis: int
) -> NDArray[np.bool_]:
    """Whether any of the rows (axis 0) or columns (axis 1) from `first` to `last` is True; those have no gaps."""
    if first.size < 2 or (first[1:] > last[:-1]).all():
        return np.logical_or.reduceat(hit_HW, first, axis=axis)
    found: NDArray[np.bool_] = hit_HW.take(first, axis) | hit_HW.take(last, axis)
    return found


def _neighbors(px: NDArray[np.int64]) -> bool:
    """Whether every px is the one after its predecessor."""
    return bool((np.diff(px) == 1).all())
