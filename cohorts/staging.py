"""Copies of slides on a disk of the node: once per node before training, up to a bound, removed when the run ends.

Every run has a folder per node, `widefov-HOST-PID`. The rank that created it holds a lock on it until the process ends,
so the next run can tell that a folder was left by a killed run, and removes it.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cohorts.pairing import Case
from slides.truth.label import has_outlines
from system.csv_tables import counted

MARGIN = 0.95  # share of the free space that may be used
_PREFIX, _LOCK = "widefov-", ".lock"
Gather = Callable[[Any], list[Any]]


@dataclass(frozen=True)
class Place:
    """Position of this process on its node."""

    local_rank: int
    local_size: int


class Staging:
    """Copies on this node. All ranks call the same methods in the same order; the ranks of a node share the copying.

    Args:
        folder: on a disk of the node, e.g. `$TMPDIR`; created if missing.
        max_bytes: upper bound of the bytes to copy per node.
        place: position of this rank on its node.
        gather: returns one value per rank, in rank order, on every rank.

    Raises:
        OSError: on every rank, if the folder cannot be written on any node.
    """

    def __init__(self, folder: Path, max_bytes: int, place: Place, gather: Gather) -> None:
        self._place = place
        self._gather = gather
        self._lock: Any = None
        host = socket.gethostname()
        mine: tuple[str, str, int] | OSError | None = None
        if place.local_rank == 0:
            try:
                mine = host, *self._make(folder, host, max_bytes)
            except OSError as error:
                mine = error
        # Ranks: all ranks of a node use the folder of its first rank; every rank makes this call, even after an error.
        entries = gather(mine)
        for entry in entries:
            if isinstance(entry, OSError):
                raise entry
        found = {entry[0]: entry[1:] for entry in entries if entry is not None}
        self._root = Path(found[host][0])
        self._max_bytes = int(found[host][1])

    def _make(self, folder: Path, host: str, max_bytes: int) -> tuple[str, int]:
        """Create and lock this run's folder on the node; returns its path and the bytes that may be copied."""
        folder.mkdir(parents=True, exist_ok=True)
        remove_abandoned(folder)
        self._root = folder / f"{_PREFIX}{host}-{os.getpid()}"
        self._root.mkdir()
        self._lock = (self._root / _LOCK).open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        atexit.register(self._remove)
        return str(self._root), min(max_bytes, int(shutil.disk_usage(folder).free * MARGIN))

    def copy(self, cases: Sequence[Case]) -> tuple[list[Case], str]:
        """Copy slides and masks in the order of `cases` up to the bound; other files are read in place.

        Returns:
            The cases with the paths of the copies, and a line about the bytes copied on this node.

        Raises:
            OSError: a file could not be copied.
        """
        both = [path for case in cases for path in (case.slide_path, case.label_path) if path is not None]
        files = list(dict.fromkeys(path for path in both if not has_outlines(path)))  # outlines are read once
        copies: dict[Path, Path] = {}
        total = 0
        for number, path in enumerate(files):
            size = sum(part.stat().st_size for part in parts_of(path))
            if total + size > self._max_bytes:
                continue  # a smaller one may still fit
            total += size
            copies[path] = self._root / f"{number:06d}" / path.name
        for number, (path, copy) in enumerate(copies.items()):
            # Ranks: the ranks of the node take turns.
            if number % self._place.local_size == self._place.local_rank:
                _copy(path, copy)
        moved = [
            replace(c, slide_path=copies.get(c.slide_path, c.slide_path), label_path=_of(c, copies)) for c in cases
        ]
        return moved, f"{len(copies)} of {counted(len(files), 'file')}, {total / 1e9:.3g} GB, copied to {self._root}"

    def close(self) -> None:
        """Remove the copies. Every rank must call it; no copy is removed before all ranks have stopped reading."""
        self._gather(None)
        self._remove()

    def _remove(self) -> None:
        if self._lock is not None:
            shutil.rmtree(self._root, ignore_errors=True)
            self._lock.close()
            self._lock = None


def parts_of(path: Path) -> list[Path]:
    """All files of a slide: the file itself, and for MRXS the files in the folder of the same name."""
    folder = path.with_suffix("")
    inner = sorted(folder.rglob("*")) if path.suffix.lower() == ".mrxs" and folder.is_dir() else []
    return [path, *(part for part in inner if part.is_file())]


def remove_abandoned(folder: Path) -> None:
    """Remove the folders of runs that did not clean up: those that no process has locked."""
    for root in folder.glob(f"{_PREFIX}{socket.gethostname()}-*"):
        # OSError: the folder is in use, or belongs to another user.
        with suppress(OSError), (root / _LOCK).open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(root, ignore_errors=True)


def _of(case: Case, copies: dict[Path, Path]) -> Path | None:
    return None if case.label_path is None else copies.get(case.label_path, case.label_path)


def _copy(path: Path, copy: Path) -> None:
    for part in parts_of(path):
        target = copy.parent / part.relative_to(path.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(part, target)
        if target.stat().st_size != part.stat().st_size:
            raise OSError(f"{part} changed while it was copied to {target}")
