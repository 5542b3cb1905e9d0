"""What was trained on: one row per patch, kept until the next logging interval, then written and mined.

Every rank writes its own file, `samples/rank-R.csv`; any row can be drawn again from its index.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samplers.mining import Entry, HardPool
from samplers.patch import ORIGINS

# What the input pipeline says of a patch (see `Feed`); x and y are the window's centre, level-0 px.
META = ("index", "attempt", "slide", "cls", "x_l0", "y_l0", "origin")
COLUMNS = ("index", "slide", "x_l0", "y_l0", "um_px", "cls", "origin", "attempt", "loss")

Row = dict[str, Any]


class Records:
    """Rows of this rank, and the way to the sample log and the hard pool.

    Args:
        folder: the run's `--log_dir`, or None to write nothing.
        rank: this rank.
        slide_ids: id of each training slide.
        um_px: spacing of the patches, um per px.
        pool: the hard-mining pool, or None.
    """

    def __init__(
        self, folder: Path | None, rank: int, slide_ids: Sequence[str], um_px: float, pool: HardPool | None
    ) -> None:
        self._path = folder / "samples" / f"rank-{rank}.csv" if folder else None
        self._slide_ids = slide_ids
        self._um_px = um_px
        self._pool = pool
        self._waiting: list[Entry] = []
        self._rows: list[Row] = []
        if self._path is not None and not self._path.exists():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            _write(self._path, [], "w")

    def add(self, meta_BM: NDArray[np.float64], patch_loss_B: NDArray[np.floating[Any]]) -> None:
        """Take in a trained batch: M numbers per patch in the order of `META`, and the loss of each patch."""
        for meta_M, loss in zip(meta_BM, patch_loss_B, strict=True):
            index, attempt, slide, cls, origin = (int(meta_M[META.index(n)]) for n in _WHOLE)
            x_l0, y_l0 = (float(meta_M[META.index(n)]) for n in ("x_l0", "y_l0"))
            self._waiting.append(Entry(index, slide, cls, x_l0, y_l0, float(loss)))
            self._rows.append(
                {
                    "index": index,
                    "slide": self._slide_ids[slide],
                    "x_l0": f"{x_l0:.2f}",
                    "y_l0": f"{y_l0:.2f}",
                    "um_px": self._um_px,
                    "cls": cls,
                    "origin": ORIGINS[origin],
                    "attempt": attempt,
                    "loss": f"{float(loss):.6g}",
                }
            )

    def flush(self, gather: Callable[[list[Entry]], list[list[Entry]]], counter: int) -> None:
        """Write the rows and feed the pool; every rank must call it at the same image counter.

        Args:
            gather: brings together the entries of all ranks; called only where there is a pool.
            counter: images trained so far over all ranks.
        """
        if self._path is not None and self._rows:
            _write(self._path, self._rows, "a")
        if self._pool is not None:
            # Ranks: the only collective call; the pool is the same on all ranks afterwards.
            self._pool.feed([entry for part in gather(self._waiting) for entry in part], counter)
        self._rows, self._waiting = [], []


_WHOLE = ("index", "attempt", "slide", "cls", "origin")


def _write(path: Path, rows: Sequence[Row], mode: str) -> None:
    with path.open(mode, newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if mode == "w":
            writer.writeheader()
        writer.writerows(rows)


def read_samples(folder: Path) -> list[Row]:
    """Rows of all ranks of a run's `--log_dir`, as text, by index; a last row cut short by a crash is left out."""
    rows: list[Row] = []
    for path in sorted((folder / "samples").glob("rank-*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            rows += [row for row in csv.DictReader(file) if row["loss"]]
    return sorted(rows, key=lambda row: int(row["index"]))


def trim_samples(folder: Path, resume_at: int) -> None:
    """Drop the rows from image `resume_at` on: patches of an interrupted run that will be trained again.

    Ranks: one rank does it for all, also for ranks that the resumed run no longer has.
    """
    rows = [row for row in read_samples(folder) if int(row["index"]) < resume_at]
    paths = sorted((folder / "samples").glob("rank-*.csv"))
    for position, path in enumerate(paths):
        _write(path, rows if position == 0 else [], "w")
