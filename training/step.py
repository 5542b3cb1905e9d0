"""One training step: forward, loss, gradients, allreduce, update; the same on every rank, whatever the task.

Shapes: B samples per rank, H, W pixels, C channels, S sums. "Output" and "target" are of the task: logits_BHWK and
label_BHW of a segmentation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from parallel.comm import AgreedError, Comm
from training.optimizer import Optimizer
from training.precision import LossScale
from training.statistics import MovingStatistics


class Loss(Protocol):
    """A loss as a function of sums over samples: samples and ranks are joined before anything is divided."""

    def sums(self, output: Any, target: Any, /) -> Any:
        """What `value` needs of each sample, sums_BS float32."""
        ...

    def weight(self, target: Any, /) -> Any:
        """Weight of some samples, one of their sums, float32 scalar: known before the forward pass."""
        ...

    def value(self, sums_S: Any, weight: Any = None, parts: int = 1, /) -> Any:
        """The loss of samples whose `sums` were added up, float32 scalar; 0 without any truth.

        Args:
            sums_S: the sums.
            weight: for one of several parts of a step: weight of all parts; default that of `sums_S`.
            parts: number of parts, whose values add up to the step's.
        """
        ...


class Counter(Protocol):
    """Counts what training metrics are made of, inside the graph."""

    def update(self, output: Any, target: Any, /) -> None:
        """Count the samples of a batch."""
        ...


def scaled(image_BHWC: Any) -> Any:
    """Images as the models take them: uint8 0 .. 255 -> float32 -1 .. 1."""
    if not tf.config.list_logical_devices("GPU"):
        # The same numbers in one pass over memory instead of three; it has no kernel for GPUs.
        return tf.quantization.dequantize(tf.bitcast(image_BHWC, tf.quint8), -1.0, 1.0, mode="MIN_COMBINED")
    return tf.cast(image_BHWC, tf.float32) * (2.0 / 255.0) - 1.0


def joint_value(loss: Loss, joint_S: Any, weight: Any = None, parts: int = 1) -> tuple[Any, Any]:
    """Loss of the samples of all ranks, and its slope along their sums: it turns each rank's sums into a gradient.

    Args:
        loss: the loss.
        joint_S: sums over all ranks.
        weight: see `Loss.value`.
        parts: see `Loss.value`.
    """
    with tf.GradientTape() as tape:
        tape.watch(joint_S)
        value = loss.value(joint_S, weight, parts)
    return value, tape.gradient(value, joint_S)


@dataclass(frozen=True)
class StepResult:
    """What a step leaves for logging.

    Attributes:
        loss: float, of all samples of all ranks.
        sample_loss_B: loss of each of this rank's samples (0 without any truth).
        finite: whether loss and joint gradients are finite; fp16 can overflow in the allreduce whatever the loss.
            Also true of a step that loss scaling skips, whose loss is NaN then.
        stop: whether some rank was asked to stop before this step; the same on all ranks.
    """

    loss: float
    sample_loss_B: npt.NDArray[np.float32]
    finite: bool
    stop: bool = False


def require_finite(result: StepResult, indices_B: npt.NDArray[Any], images: int, comm: Comm) -> None:
    """Stop all ranks when the loss is not finite; nothing of that step may be saved.

    Ranks: the loss is that of all ranks, so all of them come here in the same step.

    Args:
        result: of the step.
        indices_B: stream index of each of this rank's samples.
        images: image counter at the start of the step.
        comm: the ranks.

    Raises:
        AgreedError: the loss is NaN or infinite; names the step and the samples whose own loss is.
    """
    if result.finite:
        return
    bad = [int(i) for i, loss in zip(indices_B, result.sample_loss_B, strict=True) if not np.isfinite(loss)]
    indices = sorted(i for part in comm.gather(bad) for i in part)
    raise AgreedError(
        f"the loss became {result.loss} or its gradient not finite in the step at image {images}; "
        f"indices of patches whose own loss is not finite: {indices or 'no patch'}. Try a smaller "
        "--base_lr, a longer --warmup, no --fp16_allreduce, or --mixed_precision float32"
    )


class TrainStep:
    """Callable training step of a model.

    The loss is that of all samples of all ranks, made from sums that are added up over the ranks, so unequal numbers of
    ignored pixels, or of tumor, do not change the weight of a pixel. BatchNorm's moving statistics are averaged over
    ranks in every step, like the gradients, so that all ranks hold bit-equal models at any time.

    Args:
        model: (B, H, W, C) in [-1, 1] -> output.
        optimizer: of the model's trainable variables (`training.optimizer`).
        comm: the ranks.
        loss: to minimize.
        fp16_allreduce: compress gradients for the allreduce.
        counter: where training metrics are counted, or None.
        warm_up: let BatchNorm's statistics leave their start values quickly; not for pre-trained ones.
        loss_scale: for float16; None for precisions whose gradients do not vanish.
        training_pass: called in place of the model, for a pass that keeps less (`models.training_pass`).
        parts: passes that a batch is cut into, one after the other, to save memory. Up to BatchNorm, which sees a part
            at a time, and to losses that are not a mean, whose mean over the parts is taken, the result is that of one
            pass.
    """

    def __init__(
        self,
        model: Any,
        optimizer: Optimizer,
        comm: Comm,
        loss: Loss,
        fp16_allreduce: bool,
        counter: Counter | None,
        *,
        warm_up: bool = True,
        loss_scale: LossScale | None = None,
        training_pass: Callable[..., Any] | None = None,
        parts: int = 1,
    ) -> None:
        self._model = model
        self._training_pass: Callable[..., Any] = training_pass or model
        self._optimizer = optimizer
        self._comm = comm
        self._loss = loss
        self._fp16 = fp16_allreduce
        self._counter = counter
        self._loss_scale = loss_scale
        self._losses: list[float] = []
        # How many ranks were asked to stop: this one, and after a step all of them.
        self._asked, self._all_asked = (tf.Variable(0.0, trainable=False) for _ in range(2))
        self._statistics = MovingStatistics(model, warm_up)
        self._parts = parts
        trained = model.trainable_variables if parts > 1 else []
        self._gathered = [tf.Variable(tf.zeros_like(v.value), trainable=False) for v in trained]

    def __call__(self, image_BHWC: Any, target: Any, learning_rate: float, stop: bool = False) -> StepResult:
        """Train on one batch per rank.

        Args:
            image_BHWC: uint8 RGB; B is a multiple of the number of parts.
            target: truth of the B samples, as the loss takes it.
            learning_rate: of this step.
            stop: whether this rank was asked to stop.
        """
        self._asked.assign(float(stop))
        rate = tf.constant(learning_rate, tf.float32)
        loss, sample_loss_B, finite = self._update(image_BHWC, target, rate)
        result = StepResult(float(loss), sample_loss_B.numpy(), bool(finite), bool(self._all_asked > 0))
        if not result.finite and self._loss_scale and not self._loss_scale.exhausted:
            self._loss_scale.skipped += 1
            sample_loss_B = np.nan_to_num(result.sample_loss_B, posinf=0.0)
            return replace(result, loss=float("nan"), sample_loss_B=sample_loss_B, finite=True)
        self._losses.append(result.loss)
        return result

    def mean_loss(self) -> float:
        """Mean loss of the steps since the last call, over all ranks; NaN without any."""
        mean = float(np.mean(self._losses)) if self._losses else float("nan")
        self._losses.clear()
        return mean

    def state(self) -> npt.NDArray[np.float64]:
        """What a checkpoint must keep for the next `mean_loss`: the losses since the last one."""
        return np.array(self._losses, np.float64)

    def restore(self, state: npt.NDArray[np.float64]) -> None:
        """Take what `state` returned."""
        self._losses = [float(loss) for loss in state]

    def gradients(self, image_BHWC: Any, target: Any) -> tuple[Any, Any, list[Any]]:
        """Loss over all ranks, loss of each own sample, and the joint gradient of each trainable variable."""
        loss, sample_loss_B, grads = self._own_gradients(image_BHWC, target)
        return loss, sample_loss_B, self._joint(grads)

    def _joint(self, grads: Sequence[Any]) -> list[Any]:
        """Gradients over all ranks, no longer scaled."""
        joint = self._comm.mean(grads, fp16=self._fp16)
        return joint if self._loss_scale is None else [g / self._loss_scale.scale for g in joint]

    def _own_gradients(self, image_BHWC: Any, target: Any, weight: Any = None) -> tuple[Any, Any, list[Any]]:
        """As `gradients`, of one part of a step, before the mean over the ranks.

        Args:
            image_BHWC: see `__call__`.
            target: see `__call__`.
            weight: of all parts of the step on all ranks, where there are more than this one.
        """
        variables = self._model.trainable_variables
        with tf.GradientTape() as tape:
            output = self._training_pass(scaled(image_BHWC), training=True)
            sums_BS = self._loss.sums(output, target)
            sums_S = tf.reduce_sum(sums_BS, 0)
            # Ranks: the sums first, so gradients are already those of the joint loss when they are compressed to fp16.
            # The number of ranks asked to stop travels along, so that all ranks stop after the same step.
            joint_S, asked = self._comm.sum([tf.stop_gradient(sums_S), self._asked])
            self._all_asked.assign(asked)
            loss, slope_S = joint_value(self._loss, joint_S, weight, self._parts)
            # Ranks: x size, because the allreduce takes the mean over ranks where a sum is meant.
            local = tf.reduce_sum(tf.stop_gradient(slope_S) * sums_S) * self._comm.size
            if self._loss_scale is not None:
                local *= self._loss_scale.scale
        grads = tape.gradient(local, [v.value for v in variables])
        if self._counter is not None:
            self._counter.update(output, target)
        # A variable that takes no part (P7 of 1x1 ...) still needs a tensor on every rank.
        grads = [tf.zeros_like(v.value) if g is None else g for g, v in zip(grads, variables, strict=True)]
        return loss, tf.map_fn(self._loss.value, sums_BS), grads

    def _update(self, image_BHWC: Any, target: Any, learning_rate: Any) -> tuple[Any, Any, Any]:
        """One step: loss over all ranks, loss of each own sample, whether loss and gradients are finite."""
        run = self._step if self._parts == 1 else self._step_in_parts
        found: tuple[Any, Any, Any] = run(image_BHWC, target, learning_rate)
        return found

    @tf.function
    def _step(self, image_BHWC: Any, target: Any, learning_rate: Any) -> tuple[Any, Any, Any]:
        before = self._statistics.before()
        loss, sample_loss_B, grads = self.gradients(image_BHWC, target)
        self._statistics.update(before, self._optimizer.steps, self._comm)
        return loss, sample_loss_B, self._apply(grads, loss, learning_rate)

    def _step_in_parts(self, image_BHWC: Any, target: Any, learning_rate: Any) -> tuple[Any, Any, Any]:
        """As `_step`, each part a call of its own: TensorFlow would run the parts of one graph at once."""
        weight = self._comm.sum([self._loss.weight(target)])[0]
        parts = [tf.split(batch, self._parts) for batch in (image_BHWC, target)]
        found = [self._gather(images, targets, weight) for images, targets in zip(*parts, strict=True)]
        losses, sample_losses = zip(*found, strict=True)
        loss = tf.add_n(losses)
        return loss, tf.concat(sample_losses, 0), self._apply_gathered(loss, learning_rate)

    @tf.function
    def _gather(self, image_BHWC: Any, target: Any, weight: Any) -> tuple[Any, Any]:
        before = self._statistics.before()
        loss, sample_loss_B, grads = self._own_gradients(image_BHWC, target, weight)
        self._statistics.update(before, self._optimizer.steps, self._comm)
        for gathered, grad in zip(self._gathered, grads, strict=True):
            gathered.assign_add(grad)
        return loss, sample_loss_B

    @tf.function
    def _apply_gathered(self, loss: Any, learning_rate: Any) -> Any:
        # Ranks: one allreduce for all parts.
        finite = self._apply(self._joint(self._gathered), loss, learning_rate)
        for gathered in self._gathered:
            gathered.assign(tf.zeros_like(gathered))
        return finite

    def _apply(self, grads: Sequence[Any], loss: Any, learning_rate: Any) -> Any:
        """Update the weights; whether loss and gradients are finite."""
        # a sum is not finite as soon as one term is not
        finite = tf.math.is_finite(loss + tf.add_n([tf.reduce_sum(g) for g in grads]))
        if self._loss_scale is None:
            self._optimizer.apply(grads, learning_rate)
            return finite
        if finite:  # of a tensor: made a branch of the graph by tf.function
            self._optimizer.apply(grads, learning_rate)
        self._loss_scale.update(finite)
        return finite
