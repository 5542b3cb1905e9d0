"""Pictures and saliency maps of scored slides, into the folder of a run.

    thumbnails/SLIDE.jpg    what the network saw
    saliency/SLIDE          see classification/saliency_files.py

N slides, K outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classification import saliency, saliency_files
from classification.augment import View
from classification.kept import Kept
from classification.pictures import write_thumbnail
from classification.predictions import probabilities_and_losses
from classification.report import SALIENCY, THUMBNAILS
from classification.stream import Stream
from classification.targets import Labeled, Targets
from options.choices import SaliencyMethod


def worst_first(targets: Targets, labeled: Sequence[Labeled], logits_NK: NDArray[Any]) -> list[str]:
    """Ids of the slides by loss, the largest first, as in the report; those without a finite one before all."""
    target_NK = np.stack([slide.target_K for slide in labeled]).astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        _, loss_N = probabilities_and_losses(targets, np.asarray(logits_NK, np.float64), target_NK)
    loss_N = np.where(np.isfinite(loss_N), loss_N, np.inf)
    order = sorted(range(len(labeled)), key=lambda n: (-loss_N[n], labeled[n].slide_id))
    return [labeled[n].slide_id for n in order]


def pictures(folder: Path, slide_ids: Sequence[str], view_of: Callable[[str], View]) -> list[str]:
    """Write a thumbnail of every slide.

    Args:
        folder: of the run.
        slide_ids: the slides; the report shows those of the largest loss, `classification.report.SLIDES` of them.
        view_of: from the id of a slide to what the network saw.

    Returns:
        Slides that could not be read, with the reason.

    Raises:
        OSError: a file cannot be written.
    """

    def write(slide_id: str) -> None:
        write_thumbnail(folder / THUMBNAILS / f"{slide_id}.jpg", view_of(slide_id))

    return [note for slide_id in slide_ids if (note := _note(slide_id, write))]


def maps(
    folder: Path,
    slide_ids: Sequence[str],
    view_of: Callable[[str], View],
    stream: Stream,
    targets: Targets,
    method: SaliencyMethod,
    output: int | None = None,
) -> list[str]:
    """Write a saliency map of every slide, see `classification/saliency_files.py`.

    Args:
        folder: of the run.
        slide_ids: the slides.
        view_of: from the id of a slide to what the network saw, not augmented.
        stream: the classifier.
        targets: meaning of the outputs.
        method: see `classification.saliency`.
        output: number of the output to explain; None: see `classification.saliency.explained`.

    Returns:
        Slides without a map, with the reason.

    Raises:
        OSError: a file cannot be written.
    """

    def write(slide_id: str) -> None:
        view = view_of(slide_id)
        image = Kept(view)
        if method == "gradient":
            found = saliency.gradient(stream, image, targets, output)
        else:
            found = saliency.activation(stream, image, targets, output)
        saliency_files.write(folder / SALIENCY / slide_id, found, view)

    return [note for slide_id in slide_ids if (note := _note(slide_id, write))]


def _note(slide_id: str, write: Callable[[str], None]) -> str:
    """Do something for a slide; where that fails, return why, so that the other slides get theirs."""
    try:
        write(slide_id)
    except ValueError as error:
        return f"no picture of {slide_id}: {error}"
    return ""
