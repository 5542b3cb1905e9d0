"""Start of a run: new, or resumed from a checkpoint, in a log folder made ready for it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from artifacts.checkpoints import Checkpoints, State, changed, remove_partials
from options.train import Run
from parallel.comm import Comm
from parallel.job import Log
from samplers.records import trim_samples
from training import schedule
from training.optimizer import Optimizer
from training.resume import resume_or_prepare


def resumed_state(
    run: Run,
    options: Mapping[str, Any],
    free: Collection[str],
    comm: Comm,
    model: Any,
    optimizer: Optimizer,
    stream: Mapping[str, Any],
    log: Log,
) -> State | None:
    """Fill model and optimizer on rank 0 from the checkpoint that --resume names, and make the log folder ready.

    Every rank must call it.

    Args:
        run: how to resume, and the log folder.
        options: all options of the run, JSON types.
        free: names of those that change nothing of what is learned.
        comm: the ranks.
        model: to fill.
        optimizer: its optimizer, to fill.
        stream: options and slides that decide which patch an index is.
        log: prints lines on rank 0.

    Returns:
        The state in the checkpoint besides variables, on all ranks; None for a new run.

    Raises:
        AgreedError: no checkpoint can be read, or it is of another run; the folder cannot be written.
    """

    def find() -> tuple[State, Path, list[str]] | None:
        if not run.resume:
            return None
        reader = Checkpoints(run.log_dir / "checkpoints" if run.log_dir else Path())
        # An elastic job that reconnects resumes from its own checkpoints, wherever it began.
        wanted = "auto" if run.elastic and reader.history() else run.resume
        return reader.resume(wanted, model, optimizer, {**stream, "optimizer": options["optimizer"]})

    def notes(state: State) -> list[str]:
        return [*changed(state, options, free, comm.size), *rate_changed(state, options, comm.size)]

    found = resume_or_prepare(comm, run.log_dir, options, find, notes, _trim, log)
    log(*_beginning(run, found))
    return found[0] if found else None


def _trim(folder: Path, images: int) -> None:
    """Remove what a killed run left half written, and the samples after an image counter."""
    remove_partials(folder)
    trim_samples(folder, images)


def base_batch(state: State, options: Mapping[str, Any]) -> int:
    """Patches to which `--base_lr` of a resumed run belongs: `--batch_size` of its first start.

    So ranks, batch and passes may change, and the rate follows the joint batch alone. A new `--base_lr` belongs to the
    new `--batch_size`.

    Args:
        state: of the checkpoint.
        options: of the resumed run, by name.
    """
    if options["base_lr"] != state.options.get("base_lr", options["base_lr"]):
        return int(options["batch_size"])
    return state.base_batch or int(state.options["batch_size"])


def rate_changed(state: State, options: Mapping[str, Any], ranks: int) -> list[str]:
    """A line if the resumed run goes on at another learning rate, whatever the reason; else none.

    Args:
        state: of the checkpoint.
        options: of the resumed run, by name.
        ranks: of the resumed run.
    """
    was = {**options, **state.options}
    base_batches = state.base_batch or int(was["batch_size"]), base_batch(state, options)
    before, after = (
        schedule.of_options(o, o["batch_size"] * o["accumulate_batch"] * r, base).rate(state.images)
        for o, r, base in zip((was, options), (state.ranks, ranks), base_batches, strict=True)
    )
    return [] if before == after else [f"the learning rate was {before:.3g}, is {after:.3g}"]


def _beginning(run: Run, found: tuple[State, Path] | None) -> list[str]:
    """Where the run begins, in lines for the log."""
    if found is not None:
        state, path = found
        return [f"resume      {path} at image {state.images}, best val mIoU {state.best_score:.4f}"]
    if run.resume:
        return [f"resume      no checkpoint in {run.log_dir}: a new run"]
    return [] if run.log_dir else ["note        no --log_dir: this run will not be saved"]
