"""A slide as one image: the region of it that a network sees at once, and the maps it gives, box by box.

Frames: `map`, px of the prediction's map as in `inference.windows`; `region`, the same from the region's corner on;
`seen`, the region after it was turned.

Shapes: H rows, W columns, C = 3 channels, K classes, P = K - 1 planes.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference.blending import Floats
from inference.plan import PlannedSlide
from inference.scratch import Bytes, plane_names, planes_of
from inference.windows import MapGrid, Run, TissueCells
from slides.filled import read_or_fill
from slides.geometry import Window
from slides.reader import Slide, SlideError
from system.atomic_files import write_bytes

Interval = tuple[int, int]
Prepare = Callable[[NDArray[np.uint8]], NDArray[Any]]

INFO = "whole.json"
# The networks halve their input up to seven times: a region that begins and ends at multiples of this is seen in the
# same phase as a window.
MULTIPLE = 128
LEAST_STRIP = 64  # px of a window that a thread reads


@dataclass(frozen=True)
class Region:
    """The part of a map that a network sees as one image.

    Attributes:
        rows, columns: first and behind the last, px of the map; they may end beyond it.
    """

    rows: Interval
    columns: Interval

    @property
    def hw(self) -> tuple[int, int]:
        """Rows and columns of px."""
        return self.rows[1] - self.rows[0], self.columns[1] - self.columns[0]


def region_of(planned: PlannedSlide, margin: int) -> Region | None:
    """The rectangle around all tissue of a slide, with what is around it; the whole slide if it is not cut to tissue.

    It begins and ends at multiples of `MULTIPLE`. None if there is no tissue.

    Args:
        planned: the slide.
        margin: px on each side of the tissue, as far as the slide reaches.
    """
    (width, height), (step_x, step_y) = planned.grid.size_xy, planned.grid.step_xy_l0
    if planned.tissue is None:
        return Region((0, _up(height)), (0, _up(width)))
    tissue_HW = planned.tissue.mask()
    if not tissue_HW.any():
        return None
    found = []
    for axis, (step, size) in enumerate(((step_y, height), (step_x, width))):
        cells = np.flatnonzero(tissue_HW.any(1 - axis))
        first, last = (float(cell) * planned.cell_l0 / step for cell in (cells[0], cells[-1] + 1))
        begin = max(0, int(first) - margin) // MULTIPLE * MULTIPLE
        found.append((begin, min(_up(size), _up(int(np.ceil(last)) + margin))))
    return Region(*found)


def _up(px: int) -> int:
    return -(-px // MULTIPLE) * MULTIPLE


class RegionImage:
    """A region of a slide as an image that is read window by window (`streaming.images.Source`).

    Px that cannot be decoded are white. Beyond the slide all is white.

    Args:
        slide: the slide.
        grid: its map.
        region: the region.
        prepare: from uint8 (B, H, W, C) to what the network takes, for every px by itself.
        workers: threads that read.
        strict: whether a window that cannot be read completely is an error.

    Attributes:
        shape: (1, H, W, 3).
        windows: windows of the region that were read.
        faults: what could not be read of some of them.
    """

    def __init__(
        self, slide: Slide, grid: MapGrid, region: Region, prepare: Prepare, workers: int = 1, strict: bool = False
    ) -> None:
        self._slide, self._step = slide, grid.step_xy_l0
        self._region, self._prepare = region, prepare
        self._workers, self._strict = workers, strict
        self.shape = (1, *region.hw, 3)
        self.windows: set[tuple[Interval, Interval]] = set()
        self.faults: dict[tuple[Interval, Interval], str] = {}

    def read(self, rows: Interval, columns: Interval) -> NDArray[Any]:
        """The image (1, rows, columns, C) in two intervals of px of the region.

        Raises:
            SlideError: with `strict`, a window cannot be read.
        """
        strips = max(1, min(self._workers, (rows[1] - rows[0]) // LEAST_STRIP))
        ends = [rows[0] + (rows[1] - rows[0]) * i // strips for i in range(strips + 1)]
        parts = list(itertools.pairwise(ends))
        if strips == 1:
            reads = [self._strip(parts[0], columns)]
        else:
            with ThreadPoolExecutor(strips, thread_name_prefix="read") as pool:
                reads = list(pool.map(lambda part: self._strip(part, columns), parts))
        self.windows.add((rows, columns))
        fault = next((fault for _, fault in reads if fault), "")
        if fault:
            if self._strict:
                raise SlideError(fault)
            self.faults[rows, columns] = fault
        return self._prepare(np.concatenate([image_HWC for image_HWC, _ in reads])[None])

    def _strip(self, rows: Interval, columns: Interval) -> tuple[NDArray[np.uint8], str]:
        x, y = (self._region.columns[0] + columns[0]) * self._step[0], (self._region.rows[0] + rows[0]) * self._step[1]
        window = Window((x, y), (rows[1] - rows[0], columns[1] - columns[0]), self._step)
        image_HWC, fault, _ = read_or_fill(self._slide.read, window)
        return image_HWC, fault


@dataclass(frozen=True)
class Turn:
    """One of the eight orientations of an image: quarter turns counterclockwise, then perhaps a flip of its columns.

    Attributes:
        turns: 0 to 3.
        flipped: whether columns are flipped.
        hw: rows and columns of the image before, px.
    """

    turns: int
    flipped: bool
    hw: tuple[int, int]

    @property
    def hw_seen(self) -> tuple[int, int]:
        """Rows and columns of the turned image."""
        return self.hw[::-1] if self.turns % 2 else self.hw

    def region_from_seen(self, rows: Interval, columns: Interval) -> tuple[Interval, Interval]:
        """Rows and columns of the image that a box of the turned one shows."""
        if self.flipped:
            width = self.hw_seen[1]
            columns = width - columns[1], width - columns[0]
        for turn in range(self.turns, 0, -1):
            width = self.hw[turn % 2]  # before this turn
            rows, columns = columns, (width - rows[1], width - rows[0])
        return rows, columns

    def seen(self, image_HWC: NDArray[Any]) -> NDArray[Any]:
        """Turn a box (H, W, C) of the image."""
        turned = np.rot90(image_HWC, self.turns)
        return turned[:, ::-1] if self.flipped else turned

    def back(self, seen_HWC: NDArray[Any]) -> NDArray[Any]:
        """Turn a box (H, W, C) of the turned image back."""
        return np.rot90(seen_HWC[:, ::-1] if self.flipped else seen_HWC, -self.turns)


EIGHTFOLD = tuple((turns, flipped) for turns in range(4) for flipped in (False, True))


@dataclass(frozen=True)
class TurnedImage:
    """An image in another orientation (`streaming.images.Source`).

    Attributes:
        image: the image.
        turn: the orientation.
    """

    image: RegionImage
    turn: Turn

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """B, H, W, C."""
        return 1, *self.turn.hw_seen, self.image.shape[3]

    def read(self, rows: Interval, columns: Interval) -> NDArray[Any]:
        """The turned image (1, rows, columns, C) in two intervals of its px."""
        box_BHWC = self.image.read(*self.turn.region_from_seen(rows, columns))
        return self.turn.seen(box_BHWC[0])[None]


def share_slides(mpx: Sequence[int], ranks: int) -> list[list[Run]]:
    """Share slides that are predicted as one image each among ranks: the largest first, each to who has least.

    Args:
        mpx: size of every slide's region, Mpx.
        ranks: number of ranks.

    Returns:
        A run of each rank's slides, `last` is its size; in the order of slides.
    """
    shares: list[list[Run]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for slide in sorted(range(len(mpx)), key=lambda slide: (-mpx[slide], slide)):
        rank = loads.index(min(loads))
        loads[rank] += max(mpx[slide], 1)
        shares[rank].append(Run(slide, 0, mpx[slide]))
    return [sorted(share, key=lambda run: run.slide) for share in shares]


class WholeMaps:
    """The maps of a region, written box by box into files of a scratch folder.

    A byte per px and map; with several orientations also four bytes per px and class for their sums. No file is held in
    memory.

    Args:
        folder: scratch folder of the slide.
        planned: the slide.
        region: what was predicted; None: nothing was, all maps are 0.
        classes: number of classes K.
        orientations: how often every px is given; the mean is taken.
    """

    def __init__(
        self, folder: Path, planned: PlannedSlide, region: Region | None, classes: int, orientations: int = 1
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._grid, self._region = folder, planned.grid, region
        self._tissue = None if planned.tissue is None else TissueCells(planned.tissue.mask(), planned.cell_l0)
        self._names, self._planes = plane_names(classes), classes - 1
        self._orientations = orientations
        self._started = time.perf_counter()
        if region is not None:
            for name in self._names:
                _make(self._path(name), region.hw[0] * region.hw[1])
            if orientations > 1:
                _make(self._path("sums"), 4 * self._planes * region.hw[0] * region.hw[1])

    def wants(self, rows: Interval, columns: Interval) -> bool:
        """Whether a box (px of the region) has tissue inside the map; elsewhere maps are 0."""
        inside = self._inside(rows, columns)
        return inside is not None and (self._tissue is None or bool(self._under(*inside).any()))

    def take(self, rows: Interval, columns: Interval, p_HWK: Floats) -> None:
        """Write the probabilities of a box (px of the region), once for each orientation."""
        inside = self._inside(rows, columns)
        if inside is None:
            return
        (top, bottom), (left, right) = inside
        p_PHW = np.moveaxis(p_HWK[top - rows[0] : bottom - rows[0], left - columns[0] : right - columns[0], 1:], 2, 0)
        if self._orientations > 1:
            self._sums()[:, top:bottom, left:right] += p_PHW
        else:
            self._write(inside, p_PHW)

    def finish(self, image: RegionImage | None) -> None:
        """Complete the maps; a file with what was read marks them as complete."""
        if self._region is not None and self._orientations > 1:
            height, width = self._region.hw
            for top in range(0, height, MULTIPLE):
                inside = self._inside((top, min(top + MULTIPLE, height)), (0, width))
                if inside is not None:
                    (first, last), (left, right) = inside
                    sums_PHW = self._sums()[:, first:last, left:right]
                    self._write(inside, sums_PHW / np.float32(self._orientations))
            self._path("sums").unlink()
        region = self._region
        info = {
            "region": None if region is None else [*region.rows, *region.columns],
            "windows": 0 if image is None else len(image.windows),
            "faults": [] if image is None else list(image.faults.values()),
            "seconds": round(time.perf_counter() - self._started, 2),
        }
        write_bytes(self._folder / INFO, json.dumps(info).encode())

    def _write(self, inside: tuple[Interval, Interval], p_PHW: Floats) -> None:
        (top, bottom), (left, right) = inside
        if self._tissue is not None:
            p_PHW = np.where(self._under(*inside), p_PHW, np.float32(0))
        assert self._region is not None
        for name, bytes_HW in planes_of(p_PHW).items():
            if bytes_HW.any():
                # Opened for one box: what is mapped counts as memory of the process.
                np.memmap(self._path(name), np.uint8, "r+", shape=self._region.hw)[top:bottom, left:right] = bytes_HW

    def _sums(self) -> Floats:
        assert self._region is not None
        return np.memmap(self._path("sums"), np.float32, "r+", shape=(self._planes, *self._region.hw))

    def _inside(self, rows: Interval, columns: Interval) -> tuple[Interval, Interval] | None:
        """The part of a box (px of the region) that lies in the map; None if none does."""
        assert self._region is not None
        width, height = self._grid.size_xy
        bottom = min(rows[1], height - self._region.rows[0])
        right = min(columns[1], width - self._region.columns[0])
        return ((rows[0], bottom), (columns[0], right)) if rows[0] < bottom and columns[0] < right else None

    def _under(self, rows: Interval, columns: Interval) -> NDArray[np.bool_]:
        assert self._tissue is not None
        assert self._region is not None
        top, left = self._region.rows[0], self._region.columns[0]
        return self._tissue.at(
            self._grid.step_xy_l0, (rows[0] + top, rows[1] + top), (columns[0] + left, columns[1] + left)
        )

    def _path(self, name: str) -> Path:
        return whole_path(self._folder, name)


def whole_path(folder: Path, name: str) -> Path:
    """The file of a map."""
    return folder / f"whole-{name}.raw"


def _make(path: Path, size: int) -> None:
    """A file of zeros that takes no space before it is written to."""
    with path.open("wb") as file:
        file.truncate(size)


class WholeCells:
    """Reads what `WholeMaps` wrote, as `inference.scratch.Cells` reads runs of windows.

    Args:
        folder: scratch folder of the slide.
        grid: map of the slide.

    Attributes:
        infos: what was read, one entry.

    Raises:
        OSError: the files are missing or damaged.
    """

    def __init__(self, folder: Path, grid: MapGrid) -> None:
        try:
            info = json.loads((folder / INFO).read_text(encoding="utf-8"))
        except ValueError as error:
            raise OSError(f"{folder / INFO}: damaged ({error})") from error
        self._folder, self._grid = folder, grid
        region = info.pop("region")
        self._region = None if region is None else Region((region[0], region[1]), (region[2], region[3]))
        self.infos: list[dict[str, Any]] = [info]

    def tile(self, row: int, column: int, side: int, plane: str) -> Bytes | int:
        """Return a tile of one map, (side, side) or less at the border; 0 if all its px are 0."""
        if self._region is None:
            return 0
        (width, height), region = self._grid.size_xy, self._region
        top, left = row * side, column * side
        bottom, right = min(top + side, height), min(left + side, width)
        y0, y1 = max(top, region.rows[0]), min(bottom, region.rows[1])
        x0, x1 = max(left, region.columns[0]), min(right, region.columns[1])
        if y0 >= y1 or x0 >= x1:
            return 0
        whole_HW = np.memmap(whole_path(self._folder, plane), np.uint8, "r", shape=region.hw)
        found_HW = whole_HW[y0 - region.rows[0] : y1 - region.rows[0], x0 - region.columns[0] : x1 - region.columns[0]]
        if not found_HW.any():
            return 0
        tile_HW = np.zeros((bottom - top, right - left), np.uint8)
        tile_HW[y0 - top : y1 - top, x0 - left : x1 - left] = found_HW
        return tile_HW

    def close(self) -> None:
        """Nothing is open between two calls."""
