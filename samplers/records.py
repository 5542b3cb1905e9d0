"""Log of trained patches: one row per patch, kept until the next logging interval, then written and mined.

Every rank writes its own files: `samples/rank-R.csv`, whose rows can all be drawn again, and, if slides could not be
read, `samples/unreadable-rank-R.csv`.
"""

from __future__ import annotations

import csv
import json
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samplers.hard_pool import Entry, HardPool
from samplers.patch import ORIGINS, UNREADABLE, Patch, Rejected
from system.atomic_files import write_bytes

# What the input pipeline reports about a patch (see `Feed`); x and y are the window's center, level-0 px.
META = ("index", "attempt", "slide", "cls", "x_l0", "y_l0", "origin")
COLUMNS = ("index", "slide", "x_l0", "y_l0", "um_px", "cls", "origin", "attempt", "rejected", "loss")
UNREADABLE_COLUMNS = ("index", "attempt", "slide", "x_l0", "y_l0", "error")
FEW_UNREADABLE = 8  # draws of a rank; fewer are never an error

Row = dict[str, Any]


class Records:
    """Collects rows of this rank for the sample log and the hard pool.

    Args:
        folder: the run's `--log_dir`; None to write nothing.
        rank: this rank.
        slide_ids: id of each training slide.
        um_px: spacing of the patches of each training slide, um per px.
        pool: the hard-mining pool, or None.
        max_unreadable: share of this rank's draws that may be unreadable before the run stops.

    Attributes:
        rejected: number of rejected draws of trained patches, by reason.
    """

    def __init__(
        self,
        folder: Path | None,
        rank: int,
        slide_ids: Sequence[str],
        um_px: Sequence[float],
        pool: HardPool | None,
        max_unreadable: float = 0.01,
    ) -> None:
        self._path = folder / "samples" / f"rank-{rank}.csv" if folder else None
        self._max_unreadable = max_unreadable
        self._noticed: dict[int, tuple[Rejected, ...]] = {}
        self._lock = threading.Lock()  # input workers notice, the training loop adds
        self._trained = 0
        self._unreadable: list[Row] = []
        self.rejected: Counter[str] = Counter()
        self._slide_ids = slide_ids
        self._um_px = um_px
        self._pool = pool
        self._waiting: list[Entry] = []
        self._rows: list[Row] = []
        if self._path is not None and not self._path.exists():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            _write(self._path, [], "w")

    def noticed(self, patch: Patch) -> Patch:
        """Remember the rejected draws of a patch until it is trained; returns the patch."""
        if patch.rejected:
            with self._lock:
                self._noticed[patch.request.index] = patch.rejected
        return patch

    def add(self, meta_BM: NDArray[np.float64], sample_loss_B: NDArray[np.floating[Any]]) -> None:
        """Add a trained batch: M numbers per patch in the order of `META`, and the loss of each patch.

        Raises:
            ValueError: more draws than `max_unreadable` could not be read; the message lists them.
        """
        for meta_M, loss in zip(meta_BM, sample_loss_B, strict=True):
            index, attempt, slide, cls, origin = (int(meta_M[META.index(n)]) for n in _WHOLE)
            x_l0, y_l0 = (float(meta_M[META.index(n)]) for n in ("x_l0", "y_l0"))
            self._waiting.append(Entry(index, slide, cls, x_l0, y_l0, float(loss)))
            with self._lock:
                rejected = self._noticed.pop(index, ())
            reasons = Counter(draw.reason for draw in rejected)
            self.rejected += reasons
            self._unreadable += [self._unreadable_row(draw) for draw in rejected if draw.reason == UNREADABLE]
            self._rows.append(
                {
                    "index": index,
                    "slide": self._slide_ids[slide],
                    "x_l0": repr(x_l0),  # all digits, so that the row can be drawn again
                    "y_l0": repr(y_l0),
                    "um_px": self._um_px[slide],
                    "cls": cls,
                    "origin": ORIGINS[origin],
                    "attempt": attempt,
                    "rejected": " ".join(f"{reason}:{count}" for reason, count in sorted(reasons.items())),
                    "loss": f"{float(loss):.6g}",
                }
            )
        self._trained += len(sample_loss_B)
        self._judge_unreadable()

    def _unreadable_row(self, draw: Rejected) -> Row:
        x_l0, y_l0 = draw.request.center_xy_l0
        place = {"slide": self._slide_ids[draw.request.slide], "x_l0": f"{x_l0:.1f}", "y_l0": f"{y_l0:.1f}"}
        return {"index": draw.request.index, "attempt": draw.request.attempt, **place, "error": draw.message}

    def _judge_unreadable(self) -> None:
        bad = self.rejected[UNREADABLE]
        if bad <= max(FEW_UNREADABLE, self._max_unreadable * (self._trained + bad)):
            return
        slides = Counter(row["slide"] for row in self._unreadable)
        listed = "; ".join(f"{slide} {count} times" for slide, count in slides.most_common(10))
        raise ValueError(
            f"{bad} of {self._trained + bad} draws could not be read, more than --max_unreadable "
            f"{self._max_unreadable:g} allows: {listed}. The last: {self._unreadable[-1]['error']}"
        )

    def flush(self, gather: Callable[[list[Entry]], list[list[Entry]]], counter: int) -> None:
        """Write the rows and feed the pool; every rank must call it at the same image counter.

        Args:
            gather: collects the entries of all ranks; called only with a pool.
            counter: images trained so far over all ranks.
        """
        if self._path is not None and self._rows:
            _write(self._path, self._rows, "a")
            self._write_unreadable()
        if self._pool is not None:
            # Ranks: the only collective call; the pool is the same on all ranks afterwards.
            self._pool.feed([entry for part in gather(self._waiting) for entry in part], counter)
        self._rows, self._waiting = [], []

    def _write_unreadable(self) -> None:
        """Append rows that have not been written yet."""
        assert self._path is not None
        path = self._path.with_name(f"unreadable-{self._path.name}")
        fresh = [row for row in self._unreadable if not row.get("written")]
        if fresh:
            _write(path, fresh, "a" if path.exists() else "w", UNREADABLE_COLUMNS)
        for row in fresh:
            row["written"] = True


_WHOLE = ("index", "attempt", "slide", "cls", "origin")


def _write(path: Path, rows: Sequence[Row], mode: str, columns: Sequence[str] = COLUMNS) -> None:
    with path.open(mode, newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        if mode == "w":
            writer.writeheader()
        writer.writerows(rows)


def write_described(folder: Path, described: Mapping[str, Any]) -> None:
    """Record which files a run reads and how, as `samples/slides.json` in its `--log_dir`."""
    path = folder / "samples" / "slides.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, (json.dumps(described, indent=1) + "\n").encode())


def read_described(folder: Path) -> dict[str, Any]:
    """Inverse of `write_described`.

    Raises:
        OSError: the file is missing.
    """
    described: dict[str, Any] = json.loads((folder / "samples" / "slides.json").read_text(encoding="utf-8"))
    return described


def read_samples(folder: Path) -> list[Row]:
    """Read the rows of all ranks of a run, as text, by index; a last row truncated by a crash is omitted."""
    rows: list[Row] = []
    for path in sorted((folder / "samples").glob("rank-*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            rows += [row for row in csv.DictReader(file) if row["loss"]]
    return sorted(rows, key=lambda row: int(row["index"]))


def trim_samples(folder: Path, resume_at: int) -> None:
    """Remove the rows from image `resume_at` on: patches of an interrupted run that will be trained again.

    Ranks: one rank does it for all, including ranks that the resumed run no longer has.
    """
    rows = [row for row in read_samples(folder) if int(row["index"]) < resume_at]
    paths = sorted((folder / "samples").glob("rank-*.csv"))
    for position, path in enumerate(paths):
        _write(path, rows if position == 0 else [], "w")
