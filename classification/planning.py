"""What a run will do and need: its arithmetic in lines, memory of an image, and whether it fits this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from options.train_classifier import ClassifierOptions
from system.csv_tables import counted

if TYPE_CHECKING:
    from classification.network import Classifier
    from models.weights import LoadReport


def arithmetic(opts: ClassifierOptions, epoch_images: int, total: int, ranks: int) -> list[str]:
    """What users get wrong: images of an update over ranks and passes, length, what the network sees.

    Args:
        opts: of the program.
        epoch_images: images of an epoch; 0 where nothing is trained.
        total: length of the training, images.
        ranks: number of ranks.
    """
    images, training = opts.images, opts.training
    side = "own size" if images.variable_input_shapes else f"{images.image_size} px"
    um_px = f" at {images.resolution:g} um/px" if images.resolution else ""
    lines = [f"view        {side}{um_px}, computed in tiles of {opts.network.tile_size} px"]
    if epoch_images:
        joint, share = training.joint_batch, f"on {counted(ranks, 'rank')}"
        if opts.machine.share_slide:
            share = f"the tiles of each shared by {counted(ranks, 'rank')}"
        lines += [
            f"batch       {training.batch_size} x {training.accumulate_batch} = {counted(joint, 'image')} an update, "
            f"{share}",
            f"length      {counted(total, 'image')} = {total / epoch_images:g} epochs of "
            f"{counted(epoch_images, 'image')} = {counted(-(-total // joint), 'update')}",
        ]
    return lines


def network_lines(classifier: Classifier, weights: Path | None, report: LoadReport | None) -> list[str]:
    """The network, and what a file of weights gave.

    Args:
        classifier: the network.
        weights: the file.
        report: what it gave.
    """
    lines = [
        f"network     {classifier.name}, {classifier.model.count_params():,} parameters, {classifier.pool} pooling, "
        f"cut {classifier.cut}"
    ]
    if report is not None:
        lines.append(
            f"weights     {counted(len(report.loaded), 'layer')} from {weights}, {len(report.skipped)} skipped"
        )
        lines += [f"            {name}: {reason}" for name, reason in report.skipped]
    return lines


def written(log_dir: Path) -> list[str]:
    """What a finished run has left."""
    return [
        f"model       {log_dir}/final.keras, final_savedmodel; checkpoints in {log_dir}/checkpoints",
        f"TensorBoard tensorboard --logdir {log_dir}",
        f"report      {log_dir}/report.html; predictions.csv, scores.json",
    ]
