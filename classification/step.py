"""One training step over whole images: each is streamed forward and backward by itself, gradients are added up.

Shapes: B images of this rank, K outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from classification.stream import Stream
from parallel.comm import AgreedError, Comm, together
from streaming import Source
from training.optimizer import Optimizer
from training.precision import LossScale
from training.step import Loss, StepResult

Numbers = npt.NDArray[np.float32]


@dataclass(frozen=True)
class StreamedResult(StepResult):
    """What a step leaves for logging.

    Attributes:
        logits_BK: of this rank's images, before the update.
    """

    logits_BK: Numbers = field(default_factory=lambda: np.zeros((0, 0), np.float32))


@dataclass(frozen=True, eq=False)
class _Passes:
    """What the passes over this rank's images gave: its part of the loss, and gradients of that."""

    loss: float
    sample_loss_B: Numbers
    logits_BK: Numbers
    grads: list[Any]


def require_finite(result: StepResult, slides_B: Sequence[str], images: int, comm: Comm) -> None:
    """Stop all ranks when the loss is not finite; nothing of that step may be saved.

    Ranks: the loss is that of all ranks, so all of them come here in the same step.

    Args:
        result: of the step.
        slides_B: name of each of this rank's images.
        images: image counter at the start of the step.
        comm: the ranks.

    Raises:
        AgreedError: the loss or its gradient is NaN or infinite; names the images whose own loss is.
    """
    if result.finite:
        return
    bad = [name for name, loss in zip(slides_B, result.sample_loss_B, strict=True) if not np.isfinite(loss)]
    names = sorted({name for part in comm.gather(bad) for name in part})
    raise AgreedError(
        f"the loss became {result.loss} or its gradient not finite in the step at image {images}; "
        f"slides whose own loss is not finite: {', '.join(names) or 'none'}. Try a smaller learning rate, or "
        "--mixed_precision float32"
    )


class StreamedStep:
    """Callable training step of a streamed classifier.

    The loss is the weighted mean over all images of all ranks. Its weights follow from the targets, so the slope of
    each image's loss is known as soon as its logits are: each image is streamed forward and backward once, and memory
    does not grow with the batch. A step over K images is the same whether they are called a batch or accumulated.

    Ranks: each has images of its own; or all have the same ones and share their tiles, if the stream does so. Then one
    that cannot read its part raises a ValueError of its own, since the others wait for it: the job must end.

    Args:
        stream: the classifier.
        optimizer: of `stream.variables`.
        comm: the ranks.
        loss: to minimize, a mean over images (`classification.losses`).
        fp16_allreduce: compress gradients for the allreduce.
        loss_scale: for float16; None for precisions whose gradients do not vanish.
    """

    def __init__(
        self,
        stream: Stream,
        optimizer: Optimizer,
        comm: Comm,
        loss: Loss,
        fp16_allreduce: bool = False,
        loss_scale: LossScale | None = None,
    ) -> None:
        self._stream, self._optimizer, self._comm, self._loss = stream, optimizer, comm, loss
        self._fp16, self._loss_scale = fp16_allreduce, loss_scale
        self._losses: list[float] = []

    def __call__(
        self, sources: Iterable[Source], target_BK: Any, learning_rate: float, stop: bool = False
    ) -> StreamedResult:
        """Train on the images of all ranks.

        Args:
            sources: B images, 8-bit or in [-1, 1], or maps if the stream takes these; each is read in its turn, so an
                iterator may prepare the next. Ranks may have unequal numbers, also none.
            target_BK: their truth, float32, see `classification.losses`.
            learning_rate: of this step.
            stop: whether this rank was asked to stop.

        Raises:
            AgreedError: an image cannot be read, on any rank.
        """
        own_weight = self._loss.weight(target_BK)
        weight, asked = self._comm.sum([own_weight, tf.constant(float(stop))])
        own = self._agreed(sources, target_BK, own_weight if self._stream.shared else weight)
        loss, finite = self._update(own.grads, tf.constant(own.loss), tf.constant(learning_rate, tf.float32))
        result = StreamedResult(float(loss), own.sample_loss_B, bool(finite), bool(asked > 0), own.logits_BK)
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

    def gradients(self, sources: Iterable[Source], target_BK: Any) -> tuple[float, list[Any]]:
        """Loss over all ranks, and the joint gradient of each trained variable."""
        own_weight = self._loss.weight(target_BK)
        (weight,) = self._comm.sum([own_weight])
        own = self._agreed(sources, target_BK, own_weight if self._stream.shared else weight)
        (loss,) = self._total([tf.constant(own.loss)])
        return float(loss), self._joint(own.grads)

    def _agreed(self, sources: Iterable[Source], target_BK: Any, weight: Any) -> _Passes:
        """The passes; an error of one rank is one of all."""
        if self._stream.shared:
            return self._passes(sources, target_BK, weight)
        return together(self._comm, lambda: self._passes(sources, target_BK, weight))

    def _passes(self, sources: Iterable[Source], target_BK: Any, weight: Any) -> _Passes:
        """Forward and backward pass of each image, one after the other.

        Args:
            sources: see `__call__`.
            target_BK: see `__call__`.
            weight: of all images of all ranks.
        """
        # Ranks: x size, because the allreduce takes the mean over ranks where a sum is meant.
        factor = 1.0 if self._stream.shared else float(self._comm.size)
        target_BK = np.asarray(target_BK, np.float32)
        grads = [tf.zeros(v.shape, v.dtype) for v in self._stream.variables]
        logits, sample_losses, total = [], [], 0.0
        for source, target_K in zip(sources, target_BK, strict=True):
            logits_1K = self._stream.forward(source)
            with tf.GradientTape() as tape:
                tape.watch(logits_1K)
                sums_S = self._loss.sums(logits_1K, tf.constant(target_K[None]))[0]
                part = self._loss.value(sums_S, weight)
                local = part * factor
                if self._loss_scale is not None:
                    local *= self._loss_scale.scale
            found = self._stream.backward(tape.gradient(local, logits_1K))
            grads = [a + b for a, b in zip(grads, found, strict=True)]
            logits.append(logits_1K.numpy()[0])
            sample_losses.append(float(self._loss.value(sums_S)))
            total += float(part)
        logits_BK = np.array(logits, np.float32).reshape(-1, target_BK.shape[1])
        return _Passes(total, np.array(sample_losses, np.float32), logits_BK, grads)

    def _joint(self, grads: Sequence[Any]) -> list[Any]:
        """Gradients over all ranks, no longer scaled."""
        # Ranks: those that share images have the same ones, up to the head's last bits on GPUs.
        joint = self._comm.mean(grads, fp16=self._fp16 and not self._stream.shared)
        return joint if self._loss_scale is None else [g / self._loss_scale.scale for g in joint]

    def _total(self, losses: Sequence[Any]) -> list[Any]:
        """Losses over all ranks."""
        return self._comm.mean(losses) if self._stream.shared else self._comm.sum(losses)

    @tf.function
    def _update(self, grads: list[Any], loss: Any, learning_rate: Any) -> tuple[Any, Any]:
        """Loss over all ranks and an update of the weights; whether loss and gradients are finite."""
        # Ranks: one allreduce of all gradients, one of the loss, which must not be rounded to fp16.
        (joint_loss,) = self._total([loss])
        joint = self._joint(grads)
        # a sum is not finite as soon as one term is not
        finite = tf.math.is_finite(joint_loss + tf.add_n([tf.reduce_sum(g) for g in joint]))
        if self._loss_scale is None:
            self._optimizer.apply(joint, learning_rate)
            return joint_loss, finite
        if finite:  # of a tensor: made a branch of the graph by tf.function
            self._optimizer.apply(joint, learning_rate)
        self._loss_scale.update(finite)
        return joint_loss, finite
