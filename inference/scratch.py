"""Partial predictions of a slide on disk, until the slide is complete: a zip file for each run of windows.

A cell whose windows all belong to one run is stored as bytes, one plane per map; a cell shared with another run as
weighted sums. Zip keeps a CRC per member and its directory at the end, so a truncated file is noticed.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference.blending import Floats, Sums, Weights
from system.atomic_files import part_of

Bytes = NDArray[np.uint8]
SUMS, INFO = "sums", "info.json"
TUMOR, LABEL = "probability", "label"
CACHE_BYTES = 256 * 2**20


def planes_of(p_PHW: Floats) -> dict[str, Bytes]:
    """Return the maps of a cell as bytes, by the names of their files.

    Args:
        p_PHW: probabilities of the classes from 1 on.

    Returns:
        `probability`: of any class except 0, times 255, rounded; with more than two classes `probability_C` of each;
        `label`: the class of highest probability, the lower of equals.
    """
    any_HW = p_PHW.sum(axis=0)
    planes = {TUMOR: _rounded(any_HW)}
    if len(p_PHW) > 1:
        planes |= {f"{TUMOR}_{cls}": _rounded(p_HW) for cls, p_HW in enumerate(p_PHW, start=1)}
    p_KHW = np.concatenate([1 - any_HW[None], p_PHW])
    planes[LABEL] = p_KHW.argmax(axis=0).astype(np.uint8)
    return planes


def plane_names(classes: int) -> list[str]:
    """Return the names of the maps of a network with K classes."""
    return list(planes_of(np.zeros((classes - 1, 1, 1), np.float32)))


def _rounded(p_HW: Floats) -> Bytes:
    bytes_HW: Bytes = np.clip(np.floor(p_HW * 255 + 0.5), 0, 255).astype(np.uint8)
    return bytes_HW


class RunWriter:
    """Writes the cells of one run; the file gets its name when the run is complete.

    Args:
        folder: scratch folder of the slide.
        first: position of the run's first window.
        weights: weights of the slide.
    """

    def __init__(self, folder: Path, first: int, weights: Weights) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = run_path(folder, first)
        self._partial = part_of(self._path)
        self._weights = weights
        self._zip = zipfile.ZipFile(self._partial, "w", zipfile.ZIP_DEFLATED, compresslevel=1)

    def add(self, cell: Sums) -> None:
        """Write one cell; a complete one without any probability above 0 is omitted."""
        name = f"{cell.row}/{cell.column}"
        if not cell.complete:
            self._zip.writestr(f"{name}/{SUMS}", cell.sums_PHW.tobytes(), zipfile.ZIP_STORED)
            return
        planes = planes_of(self._weights.probabilities(cell.row, cell.column, cell.sums_PHW))
        for plane, bytes_HW in planes.items():
            if bytes_HW.any():
                self._zip.writestr(f"{name}/{plane}", bytes_HW.tobytes())

    def finish(self, info: Mapping[str, Any]) -> None:
        """Write information about the run, and give the file its name."""
        self._zip.writestr(INFO, json.dumps(dict(info)))
        self._zip.close()
        # Not flushed: after a power cut, the whole folder is made again.
        os.replace(self._partial, self._path)

    def discard(self) -> None:
        """Remove the unfinished file."""
        # Closing would write a directory, for which a full disk has no room.
        self._zip.fp = None
        self._partial.unlink(missing_ok=True)


def run_path(folder: Path, first: int) -> Path:
    """Return the file of the run that begins at this position."""
    return folder / f"run-{first:09d}.zip"


def _opened(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise OSError(f"{path}: damaged ({error})") from error


class Cells:
    """Reads the maps of a slide from its runs.

    Args:
        folder: scratch folder of the slide.
        firsts: positions of the first windows of its runs.
        weights: weights of the slide.
        planes: number of planes P.

    Raises:
        OSError: a run is missing or damaged.
    """

    def __init__(self, folder: Path, firsts: list[int], weights: Weights, planes: int) -> None:
        self._weights = weights
        self._planes = planes
        self._zips = [_opened(run_path(folder, first)) for first in sorted(firsts)]
        self.infos: list[dict[str, Any]] = [json.loads(archive.read(INFO)) for archive in self._zips]
        self._members: dict[tuple[int, int], dict[str, list[int]]] = {}
        for number, archive in enumerate(self._zips):
            for name in archive.namelist():
                if name != INFO:
                    row, column, kind = name.split("/")
                    self._members.setdefault((int(row), int(column)), {}).setdefault(kind, []).append(number)
        self._cache: OrderedDict[tuple[int, int, str], Bytes] = OrderedDict()
        self._held = 0

    def close(self) -> None:
        """Close the files."""
        for archive in self._zips:
            archive.close()

    def cell(self, row: int, column: int, plane: str) -> Bytes | None:
        """Return one map of one cell, shape `MapGrid.cell_hw`; None if it is 0 everywhere."""
        key = (row, column, plane)
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        members = self._members.get((row, column), {})
        if SUMS in members:
            planes = planes_of(self._summed(row, column, members[SUMS]))
            for name, bytes_HW in planes.items():
                self._keep((row, column, name), bytes_HW)
            return planes[plane]
        if plane not in members:
            return None
        stored = self._zips[members[plane][0]].read(f"{row}/{column}/{plane}")
        return self._keep(key, np.frombuffer(stored, np.uint8).reshape(self._weights.grid.cell_hw(row, column)))

    def tile(self, row: int, column: int, side: int, plane: str) -> Bytes | int:
        """Return a tile of one map, (side, side) or less at the border; 0 if all its px are 0."""
        (width, height), stride = self._weights.grid.size_xy, self._weights.grid.stride
        top, left = row * side, column * side
        bottom, right = min(top + side, height), min(left + side, width)
        tile_HW: Bytes | None = None
        for cell_row in range(top // stride, (bottom - 1) // stride + 1):
            for cell_column in range(left // stride, (right - 1) // stride + 1):
                cell_HW = self.cell(cell_row, cell_column, plane)
                if cell_HW is None:
                    continue
                if tile_HW is None:
                    tile_HW = np.zeros((bottom - top, right - left), np.uint8)
                y, x = cell_row * stride, cell_column * stride
                y0, y1 = max(top, y), min(bottom, y + cell_HW.shape[0])
                x0, x1 = max(left, x), min(right, x + cell_HW.shape[1])
                tile_HW[y0 - top : y1 - top, x0 - left : x1 - left] = cell_HW[y0 - y : y1 - y, x0 - x : x1 - x]
        return 0 if tile_HW is None else tile_HW

    def _summed(self, row: int, column: int, runs: list[int]) -> Floats:
        """Return the probabilities of a cell that several runs share, added in the order of the runs."""
        stride = self._weights.grid.stride
        total_PHW = np.zeros((self._planes, stride, stride), np.float32)
        for number in runs:
            stored = self._zips[number].read(f"{row}/{column}/{SUMS}")
            total_PHW += np.frombuffer(stored, np.float32).reshape(total_PHW.shape)
        return self._weights.probabilities(row, column, total_PHW)

    def _keep(self, key: tuple[int, int, str], bytes_HW: Bytes) -> Bytes:
        self._cache[key] = bytes_HW
        self._held += bytes_HW.nbytes
        while self._held > CACHE_BYTES:
            self._held -= self._cache.popitem(last=False)[1].nbytes
        return bytes_HW
