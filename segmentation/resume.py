"""How a run begins: afresh, or from a checkpoint, in a log folder that fits."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from artifacts.checkpoints import Checkpoints, State, changed, remove_partials
from options.train import as_json
from parallel.comm import Comm, together
from samplers.records import trim_samples
from training.log import prepare_folder, trim_metrics


def checkpoint_to_go_on_from(
    opts: argparse.Namespace, comm: Comm, network: tuple[Any, Any], stream: Mapping[str, Any], say: Callable[..., None]
) -> State | None:
    """Fill model and optimizer on rank 0 from the checkpoint that --resume names, and make the log folder ready.

    Every rank must call it.

    Args:
        opts: validated options.
        comm: the ranks.
        network: model and optimizer.
        stream: what decides which patch an index is.
        say: prints lines on rank 0.

    Returns:
        What the checkpoint holds besides variables, on all ranks; None for a fresh start.

    Raises:
        AgreedError: no checkpoint can be read, or it is of another run; the folder cannot be written.
    """

    def begin() -> tuple[State, Path] | None:
        # Ranks: one reads, so all go on from the same file even where a shared file system lags.
        if comm.rank != 0:
            return None
        found = None
        if opts.resume:
            reader = Checkpoints(opts.log_dir / "checkpoints" if opts.log_dir else Path())
            # An elastic job that comes together anew goes on from itself, wherever it began.
            wanted = "auto" if opts.elastic and reader.history() else opts.resume
            found = reader.resume(wanted, *network, {**stream, "optimizer": opts.optimizer})
        if found:
            say(*(f"resume      {note}" for note in (*found[2], *changed(found[0], as_json(opts), comm.size))))
        if opts.log_dir is not None:
            own = found is not None and found[1].is_relative_to(opts.log_dir)
            say(*prepare_folder(opts.log_dir, own, as_json(opts)))
            remove_partials(opts.log_dir)
            images = found[0].images if found else 0
            trim_samples(opts.log_dir, images)
            trim_metrics(opts.log_dir, images)
        return found[:2] if found else None

    found = comm.gather(together(comm, begin))[0]
    if found is not None:
        say(f"resume      {found[1]} at image {found[0].images}, best val mIoU {found[0].best_miou:.4f}")
        return found[0]
    if opts.resume:
        say(f"resume      no checkpoint in {opts.log_dir}: a fresh start")
    elif opts.log_dir is None:
        say("note        no --log_dir: nothing will be kept of this run")
    return None
