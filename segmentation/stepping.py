"""The training step and the validation of a run: of whole patches, or of patches that are streamed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

import models
from options.choices import SIZE_MULTIPLE
from options.train import Network, TrainOptions
from parallel.comm import Comm, together
from parallel.job import Log
from segmentation import streamed_network
from segmentation.losses import Loss
from segmentation.pixel_counts import PixelCounts
from segmentation.streamed_step import StreamedStep, StreamedValidator
from segmentation.validation import Validator
from system.gpus import Gpu
from training.optimizer import Optimizer
from training.precision import LossScale
from training.step import TrainStep


def build(
    opts: TrainOptions,
    model: Any,
    optimizer: Optimizer,
    comm: Comm,
    loss_scale: LossScale | None,
    counts: PixelCounts,
    log: Log,
    gpu: Gpu | None,
) -> tuple[TrainStep, Validator]:
    """The step and the validator of a model; every rank must call it.

    Args:
        opts: of the run.
        model: to train, layers frozen.
        optimizer: of its trainable variables.
        comm: the ranks.
        loss_scale: for float16, or None.
        counts: where training metrics are counted.
        log: prints lines on rank 0.
        gpu: that this rank computes on; None for the CPU.

    Raises:
        AgreedError: --stream: the tile is too small, or the memory does not suffice.
    """
    network, training = opts.network, opts.training
    classes = model.output_shape[-1]
    loss = Loss(training.loss, training.weights_of(classes), training.label_smoothing, training.focal_gamma)
    warm_up, parts = network.weights_path is None, training.accumulate_batch
    tile = network.stream
    if tile is None:
        step = TrainStep(
            model, optimizer, comm, loss, training.fp16_allreduce, counts, warm_up=warm_up, loss_scale=loss_scale,
            training_pass=models.training_pass(model, network.recompute), parts=parts,
        )  # fmt: skip
        return step, Validator(model, classes, loss)
    stream = together(comm, lambda: stream_of(model, tile))
    need = streamed_network.cost(stream, model, training.batch_size, loss.is_mean)
    log(*streamed_network.require_memory(need, SIZE_MULTIPLE, comm, opts.run.memory_check, gpu), *described(need))
    if stream.batch_statistics:
        log("            with statistics of the batch every normalization keeps a map: --freeze_bn needs less memory")
    streamed = StreamedStep(
        model, stream, optimizer, comm, loss, training.fp16_allreduce, counts, warm_up=warm_up, loss_scale=loss_scale,
        parts=parts,
    )  # fmt: skip
    moving = streamed_network.streamed(model, tile) if stream.batch_statistics else stream
    return streamed, StreamedValidator(moving, classes, loss)


def stream_of(model: Any, tile: int) -> Any:
    """The stream of a model for training.

    Raises:
        ValueError: the tile is too small; names the smallest.
    """
    try:
        return streamed_network.streamed(model, tile, normalizes_batches(model))
    except ValueError as error:
        raise ValueError(f"--stream {tile}: {error}") from error


def normalizes_batches(model: Any) -> bool:
    """Whether a normalization takes the statistics of the batch in training."""
    return any(isinstance(layer, keras.layers.BatchNormalization) and layer.trainable for layer in model.layers)


def described(need: streamed_network.StreamedCost) -> list[str]:
    """A line about the tiles of a stream."""
    tiles = " + ".join(f"{rows} x {columns}" for rows, columns in need.tiles[:4])
    more = f" + {len(need.tiles) - 4} more segments" if len(need.tiles) > 4 else ""
    return [f"stream      tiles {tiles}{more}; {need.factor:.2f} times the arithmetic of a whole patch; no dropout"]


def plan(opts: TrainOptions, ranks: int, gpu: Gpu | None) -> Sequence[str]:
    """Lines of `--plan` for `--stream`: the network is built for it.

    Args:
        opts: of the run.
        ranks: that share the memory.
        gpu: that this rank computes on; None for the CPU.

    Raises:
        ValueError: the tile is too small.
    """
    model = _planned(opts.network, opts.sampling.img_size, opts.sampling.channels)
    tile = opts.network.stream
    assert tile is not None
    need = streamed_network.cost(
        stream_of(model, tile), model, opts.training.batch_size, Loss(opts.training.loss, (1.0, 1.0)).is_mean
    )
    return streamed_network.plan(need, tile, SIZE_MULTIPLE, ranks, gpu)


def _planned(network: Network, img_size: int, channels: int) -> Any:
    """The network of two classes: the number hardly matters."""
    model = models.build(network.networks[0], img_size, 2, channels, network.mixed_precision)
    models.freeze(model, network.freeze_bn, network.freeze_backbone)
    return model
