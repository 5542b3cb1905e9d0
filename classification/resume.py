"""Start of a run of the whole-slide classifier: new, resumed, or with the weights of another run."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts.checkpoints import (
    CheckpointError,
    Checkpoints,
    State,
    named_variables,
    options_changed,
    read_arrays,
    remove_partials,
    state_of,
)
from options.train_classifier import Run
from parallel.comm import Comm, together
from parallel.job import Log
from training.optimizer import Optimizer
from training.resume import resume_or_prepare

HEAD = "model/fc/"  # how the names of the last layer's variables start


def resumed_state(
    run: Run,
    options: Mapping[str, Any],
    free: Collection[str],
    comm: Comm,
    model: Any,
    optimizer: Optimizer,
    stream: Mapping[str, Any],
    log: Log,
    *,
    epoch_images: int,
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
        stream: options, slides and outputs that decide which view an index is.
        epoch_images: images of an epoch.
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
        return reader.resume(run.resume, model, optimizer, {**stream, "optimizer": options["optimizer"]})

    def notes(state: State) -> list[str]:
        return options_changed(state, options, free)

    def trim(folder: Path, images: int) -> None:
        remove_partials(folder)
        # Epochs that are trained again.
        for path in (folder / "checkpoints").glob("epoch-*.npz"):
            if int(path.stem.removeprefix("epoch-")) * epoch_images > images:
                path.rename(path.with_name(f"abandoned-{path.name}"))

    found = resume_or_prepare(comm, run.log_dir, options, find, notes, trim, log)
    if found is not None:
        log(f"resume      {found[1]} at image {found[0].images}, best validation score {found[0].best_score:.4f}")
        return found[0]
    if run.resume:
        log(f"resume      no checkpoint in {run.log_dir}: a new run")
    elif run.log_dir is None:
        log("note        no --log_dir: this run will not be saved")
    return None


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained network on disk, read by one rank.

    Attributes:
        path: its checkpoint.
        arrays: all of it; empty on the other ranks.
        state: what it holds besides variables, without arrays.
    """

    path: Path
    arrays: Mapping[str, Any]
    state: State

    @property
    def outputs(self) -> Mapping[str, Any] | None:
        """What its outputs stand for, see `classification.inputs.Inputs.stream`; None where it does not say."""
        found = self.state.options.get("outputs")
        return found if isinstance(found, Mapping) else None


def read_trained(path: Path, comm: Comm) -> Trained:
    """Read the checkpoint of a trained network; every rank must call it.

    Args:
        path: a checkpoint, or the folder of a run: its best checkpoint, else its newest.
        comm: the ranks.

    Raises:
        AgreedError: there is none, or it cannot be read.
    """

    def read() -> Trained | None:
        # Ranks: one reads; the others get its variables by `Comm.broadcast`.
        if comm.rank != 0:
            return None
        file = _checkpoint(path)
        arrays = read_arrays(file)
        return Trained(file, arrays, state_of(arrays))

    mine = together(comm, read)
    described = comm.gather(
        (mine.path, State(mine.state.images, mine.state.best_score, mine.state.options)) if mine else None
    )
    if mine is not None:
        return mine
    assert described[0] is not None
    return Trained(described[0][0], {}, described[0][1])


def _checkpoint(path: Path) -> Path:
    if path.is_file():
        return path
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    if not folder.is_dir():
        raise CheckpointError(f"{path}: no such run or checkpoint; give the --log_dir of a run, or a checkpoint .npz")
    best = folder / "best.npz"
    found = [best] if best.is_file() else Checkpoints(folder).history()
    if not found:
        raise CheckpointError(f"{path} has no checkpoint; give the --log_dir of a run, or a checkpoint .npz")
    return found[0]


def take_weights(trained: Trained, model: Any, same_outputs: bool, comm: Comm) -> list[str]:
    """Give a network the weights of a trained one, on rank 0; every rank must call it.

    Args:
        trained: where from.
        model: to fill.
        same_outputs: whether its last layer is for the same outputs; otherwise this starts untrained.
        comm: the ranks.

    Returns:
        Lines to print.

    Raises:
        AgreedError: it is of another network.
    """

    def take() -> list[str]:
        if comm.rank != 0:
            return []
        named = named_variables(model, None)
        wanted = {name: v for name, v in named.items() if same_outputs or not name.startswith(HEAD)}
        arrays = trained.arrays
        wrong = [name for name, v in wanted.items() if name not in arrays or arrays[name].shape != tuple(v.shape)]
        if wrong:
            raise CheckpointError(
                f"{trained.path}: of another network ({len(wrong)} of {len(named)} variables differ, first "
                f"{wrong[0]}); it was trained with --model {trained.state.options.get('model')}"
            )
        for name, variable in wanted.items():
            variable.assign(arrays[name])
        note = [] if same_outputs else ["weights     its outputs are others: the last layer starts untrained"]
        return [f"weights     {len(wanted)} variables from {trained.path} at image {trained.state.images}", *note]

    return together(comm, take)
