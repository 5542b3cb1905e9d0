"""The trained classifier for use elsewhere: `final.keras`, SavedModel, and what a user must know about it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from artifacts.checkpoints import export
from classification import network
from classification.targets import Targets
from parallel.comm import Comm, together
from system.version import __version__

FORMAT = "widefov classifier 1"
INPUT_RANGE = (-1.0, 1.0)  # what the uint8 values 0 and 255 become before the network takes them


def of_run(options: Mapping[str, Any], targets: Targets, um_px: float | None, images: int) -> dict[str, Any]:
    """Describe the network of a run of train_classifier.py.

    Args:
        options: of the run, JSON types.
        targets: what its outputs stand for.
        um_px: um per px of the images, as far as known.
        images: image counter.
    """
    names = ("model", "pool", "image_size", "variable_input_shapes", "mixed_precision")
    return {
        "format": FORMAT,
        "widefov_version": __version__,
        **{name: options[name] for name in names},
        "um_px": um_px,
        "kind": targets.kind,
        "outputs": list(targets.names),
        "output": "numbers" if targets.kind == "regression" else "logits",
        "input_range": list(INPUT_RANGE),
        "images": images,
    }


def export_final(
    classifier: network.Classifier, width: int | None, folder: Path | None, info: Mapping[str, Any], comm: Comm
) -> None:
    """Write all of a network, which computes in float32 then, see `artifacts.checkpoints.export`.

    Args:
        classifier: the network.
        width: see `network.build`.
        folder: of the run; None: nothing is written.
        info: `of_run`.
        comm: the ranks; every one must call it.

    Raises:
        AgreedError: a file cannot be written.
    """
    model = classifier.model
    if classifier.precision != "float32":
        plain, _ = network.build(classifier.name, classifier.outputs, classifier.pool, classifier.cut, width=width)
        plain.model.set_weights(model.get_weights())
        model = plain.model

    def write() -> None:
        # Ranks: all hold the same weights; one writes.
        if folder is not None and comm.rank == 0:
            export(model, folder, info)

    together(comm, write)
