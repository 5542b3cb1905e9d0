"""Start of a run: new, or resumed from a checkpoint, in a log folder made ready for it; the same for every task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from parallel.comm import Comm, together
from parallel.job import Log
from training.run_folder import prepare_folder, trim_metrics


class Resumed(Protocol):
    """State in a checkpoint; `artifacts.checkpoints.State` has it."""

    @property
    def images(self) -> int:
        """Image counter."""
        ...


S = TypeVar("S", bound=Resumed)


def resume_or_prepare(
    comm: Comm,
    folder: Path | None,
    options: Mapping[str, Any],
    find: Callable[[], tuple[S, Path, list[str]] | None],
    notes: Callable[[S], list[str]],
    trim: Callable[[Path, int], None],
    log: Log,
) -> tuple[S, Path] | None:
    """Fill model and optimizer on rank 0 from a checkpoint, and make the log folder ready; every rank must call it.

    Args:
        comm: the ranks.
        folder: the log folder, or None.
        options: all options of the run, JSON types.
        find: fills model and optimizer; returns the state, the file it came from, and notes; None for a new run.
        notes: lines on what differs from the run that wrote the checkpoint.
        trim: removes from the log folder what comes after an image counter, besides its metrics.
        log: prints lines on rank 0.

    Returns:
        The state in the checkpoint and its file, on all ranks; None for a new run.

    Raises:
        AgreedError: no checkpoint can be read, or it is of another run; the folder cannot be written.
    """

    def begin() -> tuple[S, Path] | None:
        # Ranks: one reads, so all resume from the same file even where a shared file system lags.
        if comm.rank != 0:
            return None
        found = find()
        if found:
            log(*(f"resume      {note}" for note in (*found[2], *notes(found[0]))))
        if folder is not None:
            log(*prepare_folder(folder, found is not None and found[1].is_relative_to(folder), options))
            images = found[0].images if found else 0
            trim(folder, images)
            trim_metrics(folder, images)
        return found[:2] if found else None

    found: tuple[S, Path] | None = comm.gather(together(comm, begin))[0]
    return found
