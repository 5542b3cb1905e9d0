"""A training step whose network is streamed: loss and gradient of whole fields of view with the memory of tiles.

Shapes: B patches per rank, H, W pixels, C channels, K classes, S sums.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from parallel.comm import Comm
from segmentation.losses import Loss
from segmentation.validation import Validator
from streaming import ArrayImage, Streamed
from training.optimizer import Optimizer
from training.precision import LossScale
from training.step import Counter, TrainStep, joint_value, scaled

Interval = tuple[int, int]
STRIP = 512  # rows of logits whose sums are made at once


def in_tiles(window_BHWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Pixels of a tile as the models take them, the same numbers as of a whole patch."""
    found: npt.NDArray[np.float32] = scaled(tf.constant(window_BHWC)).numpy()
    return found


class TileLoss:
    """The loss in every tile of a stream (`streaming.trace.Finish`): counts, adds up sums, makes the cotangents.

    Args:
        loss: to minimize.
        counter: where training metrics are counted, or None.

    Attributes:
        specs: of `given`.
        zeros_S: sums of nothing.
    """

    def __init__(self, loss: Loss, counter: Counter | None) -> None:
        self._loss, self._counter = loss, counter
        self.specs = [tf.TensorSpec([None, None, None], tf.uint8)]
        self._label_BHW: npt.NDArray[np.uint8]
        self.zeros_S = tf.zeros(2 + 3 * len(loss.class_weights_K))
        self._slope_S = tf.Variable(self.zeros_S, trainable=False)
        # float64: a field of view has many tiles
        shape = tf.TensorShape([None, len(self.zeros_S)])
        self._sums_BS = tf.Variable(tf.cast(self.zeros_S[None], tf.float64), trainable=False, shape=shape)

    def begin(self, label_BHW: npt.NDArray[np.uint8], slope_S: Any) -> None:
        """Before a pass: the truth, and the slope of the joint loss along the sums."""
        self._label_BHW = label_BHW
        self._slope_S.assign(slope_S)
        self._sums_BS.assign(tf.zeros((len(label_BHW), len(slope_S)), tf.float64))

    def sums(self) -> Any:
        """Sums of each patch of the pass, sums_BS float32."""
        return tf.cast(self._sums_BS, tf.float32)

    def given(self, rows: Interval, columns: Interval) -> list[Any] | None:
        """Labels of a box; None where there is no truth."""
        label_BHW = self._label_BHW[:, rows[0] : rows[1], columns[0] : columns[1]]
        return None if np.all(label_BHW >= len(self._loss.class_weights_K)) else [label_BHW]

    def cotangents(self, outputs: Sequence[Any], given: Sequence[Any]) -> list[Any]:
        """See `streaming.trace.Finish`."""
        (logits_BHWK,), (label_BHW,) = outputs, given
        with tf.GradientTape() as tape:
            tape.watch(logits_BHWK)
            sums_BS = self._loss.sums(logits_BHWK, label_BHW)
            value = tf.reduce_sum(sums_BS * self._slope_S)
        self._sums_BS.assign_add(tf.cast(sums_BS, tf.float64))
        if self._counter is not None:
            self._counter.update(logits_BHWK, label_BHW)
        return [tape.gradient(value, logits_BHWK)]


class StreamedStep(TrainStep):
    """`TrainStep` of a network that is streamed: the same loss, gradients and update, tile by tile.

    A loss that is a mean of pixels divides by a weight that the truth alone gives, so a tile goes forward, through the
    loss and backward at once, and logits are never kept. Dice needs its sums over all pixels first: a forward pass for
    these, then one with the backward pass.

    Frozen statistics: patches are streamed one after the other, so memory does not grow with the batch. Statistics of
    the batch: all patches of a pass together, as `TrainStep` has it. Dropout is inactive.

    Args:
        model: (B, H, W, C) in [-1, 1] -> logits_BHWK; takes patches of any size, or is built for theirs.
        stream: the streamed model.
        optimizer: see `TrainStep`.
        comm: see `TrainStep`.
        loss: to minimize.
        fp16_allreduce: see `TrainStep`.
        counter: see `TrainStep`.
        warm_up: see `TrainStep`.
        loss_scale: see `TrainStep`.
        parts: see `TrainStep`.
    """

    def __init__(
        self,
        model: Any,
        stream: Streamed,
        optimizer: Optimizer,
        comm: Comm,
        loss: Loss,
        fp16_allreduce: bool,
        counter: Counter | None,
        *,
        warm_up: bool = True,
        loss_scale: LossScale | None = None,
        parts: int = 1,
    ) -> None:
        super().__init__(model, optimizer, comm, loss, fp16_allreduce, counter, warm_up=warm_up, loss_scale=loss_scale)
        self._parts = parts
        self._stream = stream
        self._pixel_loss = loss
        self._tile_loss = TileLoss(loss, counter)
        # Variables that take no part have no gradient in the stream.
        places = {id(v): place for place, v in enumerate(stream.variables)}
        self._places = [places.get(id(v)) for v in model.trainable_variables]

    def gradients(self, image_BHWC: Any, target: Any) -> tuple[Any, Any, list[Any]]:
        """See `TrainStep.gradients`."""
        loss, sample_loss_B, grads = self._streamed(np.asarray(image_BHWC), np.asarray(target))
        return loss, sample_loss_B, self._joint(grads)

    def _update(self, image_BHWC: Any, target: Any, learning_rate: Any) -> tuple[Any, Any, Any]:
        loss, sample_loss_B, grads = self._streamed(np.asarray(image_BHWC), np.asarray(target))
        return loss, sample_loss_B, self._apply_joint(grads, loss, learning_rate)

    @tf.function
    def _apply_joint(self, grads: Sequence[Any], loss: Any, learning_rate: Any) -> Any:
        return self._apply(self._joint(grads), loss, learning_rate)

    def _streamed(self, image_BHWC: Any, label_BHW: Any) -> tuple[Any, Any, list[Any]]:
        """Loss over all ranks, loss of each own patch, and this rank's gradients."""
        # Ranks: the weight of all pixels of all ranks first. That a rank was asked to stop travels along.
        weight, asked = self._comm.sum([self._pixel_loss.weight(label_BHW), self._asked])
        self._all_asked.assign(asked)
        parts = zip(*(np.split(batch, self._parts) for batch in (image_BHWC, label_BHW)), strict=True)
        found = [self._part(images, labels, weight) for images, labels in parts]
        losses, sample_losses, grads = zip(*found, strict=True)
        joined = [tf.add_n(of_parts) for of_parts in zip(*grads, strict=True)]
        return tf.add_n(losses), tf.concat(sample_losses, 0), joined

    def _part(self, image_BHWC: Any, label_BHW: Any, weight: Any) -> tuple[Any, Any, list[Any]]:
        """As `_streamed`, of one pass."""
        before = self._statistics.before()
        groups = list(self._groups(image_BHWC, label_BHW))
        if self._pixel_loss.is_mean:
            _, slope_S = joint_value(self._pixel_loss, self._tile_loss.zeros_S, weight, self._parts)
            sums_BS, grads = self._backward(groups, slope_S, forward=True)
            joint_S = self._comm.sum([tf.reduce_sum(sums_BS, 0)])[0]
            loss, _ = joint_value(self._pixel_loss, joint_S, weight, self._parts)
        else:
            sums_BS = tf.concat([self._sums(image, labels) for image, labels in groups], 0)
            joint_S = self._comm.sum([tf.reduce_sum(sums_BS, 0)])[0]
            loss, slope_S = joint_value(self._pixel_loss, joint_S, weight, self._parts)
            # Of several groups the stream knows the last one only.
            _, grads = self._backward(groups, slope_S, forward=len(groups) > 1)
        if self._stream.batch_statistics:
            self._stream.update_statistics()
            self._join_statistics(before)
        return loss, tf.map_fn(self._pixel_loss.value, sums_BS), grads

    def _groups(self, image_BHWC: Any, label_BHW: Any) -> Iterator[tuple[ArrayImage, Any]]:
        """What is streamed together: with frozen statistics single patches."""
        count = 1 if self._stream.batch_statistics else len(image_BHWC)
        for images, labels in zip(np.split(image_BHWC, count), np.split(label_BHW, count), strict=True):
            yield ArrayImage(images, in_tiles), labels

    def _backward(self, groups: Sequence[tuple[ArrayImage, Any]], slope_S: Any, forward: bool) -> tuple[Any, list[Any]]:
        """Sums of every patch, and the gradients of all, before the mean over ranks."""
        # Ranks: x size, because the allreduce takes the mean over ranks where a sum is meant.
        slope_S = slope_S * self._comm.size
        if self._loss_scale is not None:
            slope_S = slope_S * self._loss_scale.scale
        sums, joined = [], [tf.zeros_like(v.value) for v in self._model.trainable_variables]
        for image, label_BHW in groups:
            if forward:
                self._stream.forward(image, late=False)
            self._tile_loss.begin(label_BHW, slope_S)
            found = self._stream.backward(self._tile_loss).variables
            sums.append(self._tile_loss.sums())
            joined = [g if at is None else g + found[at] for g, at in zip(joined, self._places, strict=True)]
        return tf.concat(sums, 0), joined

    def _sums(self, image: ArrayImage, label_BHW: Any) -> Any:
        """Sums of each patch from a forward pass."""
        logits_BHWK = self._stream.forward(image)
        rows = range(0, label_BHW.shape[1], STRIP)
        strips = [self._strip(logits_BHWK[:, r : r + STRIP], label_BHW[:, r : r + STRIP]) for r in rows]
        return tf.cast(tf.add_n(strips), tf.float32)

    @tf.function(reduce_retracing=True)
    def _strip(self, logits_BHWK: Any, label_BHW: Any) -> Any:
        return tf.cast(self._pixel_loss.sums(logits_BHWK, label_BHW), tf.float64)

    @tf.function
    def _join_statistics(self, before: Sequence[Any]) -> None:
        self._statistics.update(before, self._optimizer.steps, self._comm)


class StreamedValidator(Validator):
    """`Validator` of a network that is streamed.

    Args:
        stream: the network with moving statistics.
        classes: number of classes K.
        loss: scored along with the rest.
    """

    def __init__(self, stream: Streamed, classes: int, loss: Loss) -> None:
        super().__init__(None, classes, loss)
        self._stream = stream

    def _forward(self, image_BHWC: Any, label_BHW: Any) -> tuple[Any, Any]:
        images, labels = np.asarray(image_BHWC), np.asarray(label_BHW)
        predicted_BHW, sums = np.zeros(labels.shape, np.uint8), []
        for number, label_HW in enumerate(labels):
            image = ArrayImage(images[number : number + 1], in_tiles)
            logits_BHWK = self._stream.forward(image, backward=False)
            for row in range(0, len(label_HW), STRIP):
                strip = slice(row, row + STRIP)
                found_BHW, sums_S = self._strip(logits_BHWK[:, strip], label_HW[None, strip])
                predicted_BHW[number, strip] = found_BHW[0]
                sums.append(sums_S)
        return tf.constant(predicted_BHW), tf.add_n(sums)

    @tf.function(reduce_retracing=True)
    def _strip(self, logits_BHWK: Any, label_BHW: Any) -> tuple[Any, Any]:
        return self._scored(logits_BHWK, label_BHW)
