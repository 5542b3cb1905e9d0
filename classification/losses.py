"""Losses of whole images, as functions of sums over images: batches and ranks are joined before anything is divided.

Shapes: B images, K outputs, S = 2 sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from options.choices import TARGET_KINDS

EPSILON = 1e-6


@dataclass(frozen=True)
class Loss:
    """The loss to minimize: a mean over images, with the weight of each known before the forward pass.

    classes: softmax cross-entropy. multilabel: sigmoid cross-entropy, mean over labels. regression: smooth L1, squared
    below an error of 1 and linear above (Girshick 2015, Fast R-CNN, https://arxiv.org/abs/1504.08083), mean over
    numbers.

    Args:
        kind: one of `TARGET_KINDS`.
        weights_K: of classes: weight of the images of each; of labels: weight of each label in the mean over labels.
            None for equal ones.
        label_smoothing: share of the target that is spread evenly: over all classes, or over presence and absence of a
            label.

    Raises:
        ValueError: unknown kind, weights that are negative or all 0, a share outside of [0, 1), or either of them for
            numbers.
    """

    kind: str
    weights_K: Sequence[float] | None = None
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if self.kind not in TARGET_KINDS:
            raise ValueError(f"kind {self.kind!r} of labels is unknown; choose one of {', '.join(TARGET_KINDS)}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label smoothing {self.label_smoothing}: give a share from 0 to below 1")
        if self.weights_K is not None and (min(self.weights_K) < 0 or max(self.weights_K) <= 0):
            raise ValueError(f"weights {list(self.weights_K)}: give numbers from 0 on, one of them above 0")
        if self.kind == "regression" and (self.weights_K is not None or self.label_smoothing):
            raise ValueError("regression: class weights and label smoothing are for classes and labels; omit them")

    def sums(self, logits_BK: Any, target_BK: Any, /) -> Any:
        """Weighted loss and weight of each image, sums_BS float32.

        Args:
            logits_BK: what the network returned.
            target_BK: float32; one-hot of classes, 0 or 1 of labels, or numbers.
        """
        logits_BK, target_BK = tf.cast(logits_BK, tf.float32), tf.cast(target_BK, tf.float32)
        weight_B = self._weights(target_BK)
        return tf.stack([weight_B * self._losses(logits_BK, target_BK), weight_B], 1)

    def weight(self, target_BK: Any, /) -> Any:
        """Weight of some images, float32 scalar."""
        return tf.reduce_sum(self._weights(tf.cast(target_BK, tf.float32)))

    def value(self, sums_S: Any, weight: Any = None, parts: int = 1, /) -> Any:  # noqa: ARG002  # parts simply add up
        """The loss of images whose `sums` were added up; 0 without any weight.

        Args:
            sums_S: the sums.
            weight: for one of several parts of a step: weight of all parts; default that of `sums_S`.
            parts: see `training.step.Loss`.
        """
        return sums_S[0] / tf.maximum(sums_S[1] if weight is None else weight, EPSILON)

    def _weights(self, target_BK: Any) -> Any:
        if self.weights_K is None or self.kind != "classes":
            return tf.ones(tf.shape(target_BK)[0])
        return tf.linalg.matvec(target_BK, tf.constant(self.weights_K, tf.float32))

    def _losses(self, logits_BK: Any, target_BK: Any) -> Any:
        if self.kind == "regression":
            off_BK = tf.abs(logits_BK - target_BK)
            return tf.reduce_mean(tf.where(off_BK < 1, 0.5 * off_BK * off_BK, off_BK - 0.5), 1)
        share = self.label_smoothing
        if self.kind == "classes":
            target_BK = (1 - share) * target_BK + share / target_BK.shape[-1]
            return tf.nn.softmax_cross_entropy_with_logits(target_BK, logits_BK)
        loss_BK = tf.nn.sigmoid_cross_entropy_with_logits((1 - share) * target_BK + share / 2, logits_BK)
        if self.weights_K is None:
            return tf.reduce_mean(loss_BK, 1)
        weights_K = tf.constant(self.weights_K, tf.float32)
        return tf.linalg.matvec(loss_BK, weights_K / tf.reduce_sum(weights_K))
