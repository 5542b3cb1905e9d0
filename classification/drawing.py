"""Pictures of validated slides for the report: what the network saw, and what in it mattered; worst cases first.

    thumbnails/SLIDE.jpg    of those with the largest loss, as many as the report shows
    saliency/SLIDE          of all, where asked for; see classification/saliency_files.py

Shapes: N slides, K outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classification.augment import View
from classification.inputs import Inputs
from classification.kept import Kept
from classification.pictures import write_thumbnail
from classification.predictions import probabilities_and_losses
from classification.report import SALIENCY, SLIDES, THUMBNAILS
from classification.saliency import activation, gradient
from classification.saliency_files import Saliency, write
from classification.stream import Stream
from classification.targets import Labeled, Targets
from options.choices import SaliencyMethod
from parallel.comm import Comm, together

ToMap = Callable[[View], Saliency]


def mapped(method: SaliencyMethod | None, stream: Stream, targets: Targets) -> ToMap | None:
    """How a view becomes a saliency map.

    Args:
        method: see `classification.saliency`; None: not at all.
        stream: the network.
        targets: what its outputs stand for.
    """
    if method is None:
        return None
    made = {"gradient": gradient, "activation": activation}[method]
    # Tiles overlap, and come again in the backward pass.
    return lambda view: made(stream, Kept(view), targets)


def worst_first(targets: Targets, labeled: Sequence[Labeled], logits_NK: NDArray[Any]) -> list[int]:
    """Places of slides by loss, the largest first, as in the report; those without a finite one before all.

    Args:
        targets: what the outputs stand for.
        labeled: the slides.
        logits_NK: of them.
    """
    target_NK = np.stack([item.target_K for item in labeled]).astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        _, loss_N = probabilities_and_losses(targets, np.asarray(logits_NK, np.float64), target_NK)
    loss_N = np.where(np.isfinite(loss_N), loss_N, np.inf)
    return sorted(range(len(labeled)), key=lambda n: (-loss_N[n], labeled[n].slide_id))


def draw(folder: Path, inputs: Inputs, logits_NK: NDArray[Any], saliency: ToMap | None, comm: Comm) -> list[str]:
    """Write thumbnails and saliency maps; every rank must call it.

    Args:
        folder: of the run.
        inputs: the slides.
        logits_NK: of all of them.
        saliency: map of a view; None: no such maps.
        comm: the ranks.

    Returns:
        Slides that could not be read or have no map, with the reason; of all ranks. A slide that ranks share is an
        error instead.

    Raises:
        AgreedError: a file cannot be written.
    """
    places = worst_first(inputs.targets, inputs.val, logits_NK)
    # Ranks: each draws every size-th slide; of a slide that they share, one writes.
    rank, size = (0, 1) if inputs.share else (comm.rank, comm.size)
    writes = comm.rank == rank
    notes: list[str] = []

    def one(number: int) -> None:
        item = inputs.val[places[number]]
        view = inputs.validation_view(item)
        if number < SLIDES and writes:
            write_thumbnail(folder / THUMBNAILS / f"{item.slide_id}.jpg", view)
        if saliency is not None:
            found = saliency(view)
            if writes:
                write(folder / SALIENCY / item.slide_id, found, view)

    def mine() -> None:
        for number in range(rank, len(places), size):
            if inputs.share:
                one(number)
            elif note := _reason(one, number):
                notes.append(f"no picture of {inputs.val[places[number]].slide_id}: {note}")

    together(comm, mine)
    return [note for part in comm.gather(notes) for note in part]


def _reason(one: Callable[[int], None], number: int) -> str:
    """Draw a slide; where that fails, return why, so that the others get theirs."""
    try:
        one(number)
    except ValueError as error:
        return str(error)
    return ""
