"""The maps of one slide: probabilities and classes in one-channel pyramids that `slides.tiff.pyramid` wrote.

Map px [r, c] covers level-0 x in [c * step_x, (c + 1) * step_x), y likewise: maps start at the slide's corner, and the
last row and column may reach beyond its border. Tensor legend: H rows, W columns.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from slides.geometry import Pair, level_downsample_xy
from slides.tiff.backends import READ_ERRORS, drop_handle, file_key, handle, tiff_levels
from slides.tiff.tiled_tiff import open_tiff

# Most px of a map that are held at once: 64 MiB as bytes.
GRID_PX = 64 * 2**20
BAND_PX = 16 * 2**20


@dataclass(frozen=True)
class MapLevel:
    """One resolution of a map.

    Attributes:
        index: 0 is the finest.
        size_xy: width and height, px of this level.
        step_xy_l0: level-0 px of the slide per px of this level.
        um_px_xy: micrometers per px of this level.
    """

    index: int
    size_xy: tuple[int, int]
    step_xy_l0: Pair
    um_px_xy: Pair


class MapPyramid:
    """One map.

    Args:
        path: the TIFF.
        size_xy_l0: width and height of the slide, level-0 px.
        um_px_xy_l0: micrometers per level-0 px of the slide.
        step_xy_l0: level-0 px per map px.

    Attributes:
        path: the file.
        levels: finest first.

    Raises:
        ValueError: the file is unreadable, or its size does not cover the slide.
    """

    def __init__(self, path: Path, size_xy_l0: tuple[int, int], um_px_xy_l0: Pair, step_xy_l0: Pair) -> None:
        self.path = path
        try:
            self._key = file_key(path)
            self._pages = tiff_levels(path)
        except READ_ERRORS as error:
            raise ValueError(f"map {path} cannot be opened: {error}") from error
        first = self._pages[0]
        if first.samples != 1 or first.bits != 8:
            raise ValueError(f"map {path}: {first.samples} channels of {first.bits} bits; a map has one of 8 bits")
        for size, size_l0, step in zip(first.size_xy, size_xy_l0, step_xy_l0, strict=True):
            # ceil(size_l0 / step), but for the last bit of the quotient.
            if not (size - 1) * step < size_l0 * (1 + 1e-9) or size * step < size_l0 * (1 - 1e-9):
                raise ValueError(
                    f"map {path}: {first.size_xy} px of {step_xy_l0} level-0 px each do not cover a slide of "
                    f"{size_xy_l0} px; the slide is another one, or the step is wrong"
                )
        self.levels = tuple(
            self._level(index, page.size_xy, step_xy_l0, um_px_xy_l0) for index, page in enumerate(self._pages)
        )

    def finest(self, max_px: int = GRID_PX) -> MapLevel:
        """Return the finest level of at most `max_px` px; the coarsest if none is."""
        fitting = [level for level in self.levels if level.size_xy[0] * level.size_xy[1] <= max_px]
        return (fitting or self.levels[-1:])[0]

    def nearest(self, um_px: float, max_px: int = GRID_PX) -> MapLevel:
        """Return the level whose spacing is nearest to `um_px` (by ratio) of those with at most `max_px` px."""
        fitting = self.levels[self.finest(max_px).index :]
        return min(fitting, key=lambda level: abs(math.log(max(level.um_px_xy) / um_px)))

    def read(self, level: MapLevel, corner_xy_lv: tuple[int, int], hw: tuple[int, int]) -> NDArray[np.uint8]:
        """Read a rectangle inside a level.

        Returns:
            value_HW of shape `hw`; not to be changed.

        Raises:
            ValueError: the file cannot be decoded there.
        """
        try:
            backend = handle(self._key, lambda: open_tiff(self.path, self._key, self._pages, unwritten=0))
            pixels = backend.fetch(level.index, corner_xy_lv, hw)[0]
        except READ_ERRORS as error:
            drop_handle(self._key)
            raise ValueError(f"map {self.path} cannot be read in level {level.index}: {error}") from error
        value_HW: NDArray[np.uint8] = pixels[..., 0]
        return value_HW

    def whole(self, level: MapLevel) -> NDArray[np.uint8]:
        """Read a whole level as value_HW; choose one that fits in memory."""
        return self.read(level, (0, 0), level.size_xy[::-1])

    def bands(self, level: MapLevel) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Read a level in bands of at most 16 Mpx (or one row of tiles).

        Yields:
            First row, and value_HW of the band.
        """
        width, height = level.size_xy
        side = max(1, self._pages[level.index].tile_xy[1])
        rows = max(1, BAND_PX // width // side) * side
        for top in range(0, height, rows):
            yield top, self.read(level, (0, top), (min(rows, height - top), width))

    def close(self) -> None:
        """Close the file, which `read` would open again."""
        drop_handle(self._key)

    def _level(self, index: int, size_xy: tuple[int, int], step_xy_l0: Pair, um_px_xy_l0: Pair) -> MapLevel:
        down_x, down_y = level_downsample_xy(self._pages[0].size_xy, size_xy)
        step = step_xy_l0[0] * down_x, step_xy_l0[1] * down_y
        return MapLevel(index, size_xy, step, (step[0] * um_px_xy_l0[0], step[1] * um_px_xy_l0[1]))


class Maps:
    """The maps in one folder: `label.tif`, `probability.tif`, and `probability_C.tif` of more than two classes.

    Args:
        folder: folder of the maps.
        size_xy_l0: width and height of the slide, level-0 px.
        um_px_xy_l0: micrometers per level-0 px of the slide.
        step_xy_l0: level-0 px per map px.
        class_names: name of every class, 0 to K - 1.

    Attributes:
        label: class of every px.
        probability: 255 * (1 - probability of class 0), of every px.
        class_names: name of every class.

    Raises:
        ValueError: classes are not 0 to K - 1 with K at least 2; see also `MapPyramid`.
    """

    def __init__(
        self,
        folder: Path,
        size_xy_l0: tuple[int, int],
        um_px_xy_l0: Pair,
        step_xy_l0: Pair,
        class_names: Mapping[int, str],
    ) -> None:
        if sorted(class_names) != list(range(len(class_names))) or len(class_names) < 2:
            raise ValueError(f"class_names {dict(class_names)}: wanted a name for every class, 0 and 1 at least")
        self.folder = folder
        self.size_xy_l0, self.um_px_xy_l0, self.step_xy_l0 = size_xy_l0, um_px_xy_l0, step_xy_l0
        self.class_names = dict(class_names)
        self.label = self._open("label.tif")
        self.probability = self._open("probability.tif")

    @property
    def classes(self) -> int:
        """Number of classes K."""
        return len(self.class_names)

    def probability_of(self, cls: int) -> MapPyramid:
        """Return the map of one class >= 1; with two classes, that of class 1 is `probability`."""
        return self.probability if self.classes == 2 else self._open(f"probability_{cls}.tif")

    def _open(self, name: str) -> MapPyramid:
        return MapPyramid(self.folder / name, self.size_xy_l0, self.um_px_xy_l0, self.step_xy_l0)
