"""Pictures of validated slides for the report: what the network saw, and what in it mattered; worst cases first.

Shapes: N slides, K outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classification.inputs import Inputs
from classification.pictures import write_thumbnail
from classification.predictions import probabilities_and_losses
from classification.report import SALIENCY, SLIDES, THUMBNAILS
from classification.saliency import activation, gradient
from classification.saliency_files import Saliency, write
from classification.stream import Stream
from classification.targets import Targets
from parallel.comm import Comm, together


def mapped(method: str | None, stream: Stream, targets: Targets) -> Callable[[Any], Saliency] | None:
    """How a view becomes a saliency map.

    Args:
        method: "gradient" or "activation"; None: not at all.
        stream: the network.
        targets: what its outputs stand for.
    """
    if method is None:
        return None
    made = {"gradient": gradient, "activation": activation}[method]
    return lambda view: made(stream, view, targets)


def worst_first(inputs: Inputs, logits_NK: NDArray[Any]) -> list[int]:
    """Places of the validated slides by their losses, the highest first.

    Args:
        inputs: the slides.
        logits_NK: of all of them.
    """
    target_NK = np.stack([item.target_K for item in inputs.val]).astype(np.float64)
    _, loss_N = probabilities_and_losses(inputs.targets, np.asarray(logits_NK, np.float64), target_NK)
    found: list[int] = np.argsort(-loss_N, kind="stable").tolist()
    return found


def draw(
    folder: Path,
    inputs: Inputs,
    logits_NK: NDArray[Any],
    saliency: Callable[[Any], Saliency] | None,
    comm: Comm,
) -> None:
    """Write `thumbnails/SLIDE.jpg` of the worst slides, and `saliency/SLIDE` of all; every rank must call it.

    Args:
        folder: of the run.
        inputs: the slides.
        logits_NK: of all of them.
        saliency: map of a view; None: no such maps.
        comm: the ranks.

    Raises:
        AgreedError: a slide cannot be read, or a file not be written.
    """
    places = worst_first(inputs, logits_NK)
    rank, size = (0, 1) if inputs.share else (comm.rank, comm.size)

    def mine() -> None:
        # Ranks: each draws every size-th slide; of a slide that they share, one writes.
        for number, place in enumerate(places):
            if number % size != rank:
                continue
            item = inputs.val[place]
            view = inputs.validation_view(item)
            if number < SLIDES and comm.rank == rank:
                write_thumbnail(folder / THUMBNAILS / f"{item.slide_id}.jpg", view)
            if saliency is not None:
                found = saliency(view)
                if comm.rank == rank:
                    write(folder / SALIENCY / item.slide_id, found, view)

    together(comm, mine)
