"""What a run will do and need: its arithmetic in lines, memory of an image, and whether it fits this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from options.train_classifier import ClassifierOptions
from parallel.comm import AgreedError, Comm
from system.csv_tables import counted
from system.gpus import Gpu
from training import planner

if TYPE_CHECKING:
    from classification.network import Classifier
    from classification.stream import Stream
    from models.weights import LoadReport


# Of a rank before its first image: program, TensorFlow, weights.
PROCESS_BYTES = 0.6 * planner.GIB


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
        epochs = total / epoch_images
        lines += [
            f"batch       {training.batch_size} x {training.accumulate_batch} = {counted(joint, 'image')} an update, "
            f"{share}",
            f"length      {counted(total, 'image')} = {epochs:g} epoch{'' if epochs == 1 else 's'} of "
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


def memory(stream: Stream, hw: tuple[int, int], comm: Comm, refuse: bool, gpu: Gpu | None) -> list[str]:
    """Memory and multiplications of an image before it is trained on; every rank must call it.

    Args:
        stream: the network.
        hw: rows and columns of the image, px.
        comm: the ranks, whose machines may differ.
        refuse: whether what cannot fit is an error.
        gpu: that this rank computes on; None for the CPU.

    Raises:
        AgreedError: on all ranks, when it does not fit one of the machines and `refuse` is set.
    """
    from streaming.planner import estimate

    found = estimate(stream.early, hw)
    here = planner.memory(gpu)
    memories, local_sizes = zip(*comm.gather((here, comm.local_size)), strict=True)
    ranks = planner.sharing(memories, local_sizes)
    tightest = min(range(comm.size), key=lambda rank: memories[rank].total / ranks[rank])
    own, need = memories[tightest].total / ranks[tightest], (found.bytes + PROCESS_BYTES) / planner.GIB
    if refuse and need > own:
        raise AgreedError(
            f"an image of {hw[0]} x {hw[1]} px needs about {need:.1f} GiB per rank, {own:.1f} are available: try a "
            "smaller --tile_size, or fewer ranks per node. --no-memory_check starts it anyway"
        )
    return [
        f"memory      about {need:.1f} GiB per rank; {memories[tightest].owner} "
        f"{memories[tightest].total:.1f} GiB for {counted(ranks[tightest], 'rank')}",
        f"streaming   {found}",
    ]


def written(log_dir: Path) -> list[str]:
    """What a finished run has left."""
    return [
        f"model       {log_dir}/final.keras, final_savedmodel; checkpoints in {log_dir}/checkpoints",
        f"TensorBoard tensorboard --logdir {log_dir}",
        f"report      {log_dir}/report.html; predictions.csv, scores.json",
    ]
