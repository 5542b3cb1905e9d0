"""Losses of segmentation, as a function of sums over pixels: batches and ranks are joined before anything is divided.

Shapes: B patches, H, W pixels, K classes, S = 2 + 3 K sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from options.choices import LOSSES

EPSILON = 1e-6


@dataclass(frozen=True)
class Loss:
    """The loss to minimize: a pixel loss, a region loss, or both added up.

    ce: softmax cross-entropy, mean over pixels. focal: the same times (1 - p)^gamma, p the probability of the true
    class (Lin et al. 2017, https://arxiv.org/abs/1708.02002). dice: 1 - soft Dice, mean over the classes that occur in
    the truth (Milletari et al. 2016, https://arxiv.org/abs/1606.04797, without squares), each class's sums taken over
    all pixels of all ranks. Pixels whose label is not a class (255 = ignore) are excluded from both.

    Args:
        name: one of `LOSSES`.
        class_weights_K: weight of the pixels of each class, in pixel losses and in the sums of Dice.
        label_smoothing: share of the target that is spread evenly over all classes, in ce and focal.
        focal_gamma: gamma of focal.
    """

    name: str
    class_weights_K: Sequence[float]
    label_smoothing: float = 0.0
    focal_gamma: float = 2.0

    def __post_init__(self) -> None:
        """Refuse unknown names."""
        if self.name not in LOSSES:
            raise ValueError(f"loss {self.name!r} is unknown; choose one of {', '.join(LOSSES)}")

    @property
    def is_mean(self) -> bool:
        """Whether its slope along the sums follows from the truth alone, without any logits."""
        return "dice" not in self.name

    def sums(self, logits_BHWK: Any, label_BHW: Any) -> Any:
        """What `value` needs of some pixels.

        Args:
            logits_BHWK: float logits.
            label_BHW: uint8 class, or any other value where there is no truth.

        Returns:
            sums_BS of each patch, float32: pixel loss, weight, and for each class overlap, prediction and truth.
        """
        classes = len(self.class_weights_K)
        logits_BHWK = tf.cast(logits_BHWK, tf.float32)
        label_BHW = tf.cast(label_BHW, tf.int32)
        valid_BHW = label_BHW < classes
        target_BHW = tf.where(valid_BHW, label_BHW, 0)
        weight_BHW = tf.gather(tf.constant(self.class_weights_K, tf.float32), target_BHW)
        weight_BHW *= tf.cast(valid_BHW, tf.float32)
        pixel_B = tf.zeros(tf.shape(label_BHW)[0])
        if self.name != "dice":
            # where, not a product: an infinite loss under an ignored pixel must not become NaN
            loss_BHW = tf.where(weight_BHW > 0, weight_BHW * self._pixel_loss(logits_BHWK, target_BHW), 0.0)
            pixel_B = tf.reduce_sum(loss_BHW, (1, 2))
        columns = [pixel_B[:, None], tf.reduce_sum(weight_BHW, (1, 2))[:, None]]
        if not self.is_mean:
            columns += _regions(logits_BHWK, target_BHW, weight_BHW, classes)
        else:
            columns.append(tf.zeros((tf.shape(label_BHW)[0], 3 * classes)))
        return tf.concat(columns, 1)

    def weight(self, label_BHW: Any) -> Any:
        """Weight of some pixels, the second of their `sums`."""
        weights_N = tf.pad(tf.constant(self.class_weights_K, tf.float32), [[0, 256 - len(self.class_weights_K)]])
        return tf.reduce_sum(tf.gather(weights_N, tf.cast(label_BHW, tf.int32)))

    def value(self, sums_S: Any, weight: Any = None, parts: int = 1) -> Any:
        """The loss of pixels whose `sums` were added up; 0 without any truth.

        Args:
            sums_S: the sums.
            weight: for one of several parts of a step: weight of all parts; default that of `sums_S`.
            parts: number of parts, whose values add up to the step's: the pixel loss of all parts together, and the
                mean of the Dice losses of the parts.
        """
        mean = sums_S[0] / tf.maximum(sums_S[1] if weight is None else weight, EPSILON)
        if self.is_mean:
            return mean
        overlap_K, predicted_K, truth_K = tf.split(sums_S[2:], 3)
        occurs_K = tf.cast(truth_K > 0, tf.float32)
        lost_K = 1.0 - 2.0 * overlap_K / tf.maximum(predicted_K + truth_K, EPSILON)
        dice = tf.reduce_sum(lost_K * occurs_K) / tf.maximum(tf.reduce_sum(occurs_K), 1.0) / parts
        return dice if self.name == "dice" else mean + dice

    def _pixel_loss(self, logits_BHWK: Any, target_BHW: Any) -> Any:
        entropy_BHW = tf.nn.sparse_softmax_cross_entropy_with_logits(target_BHW, logits_BHWK)
        if self.name == "focal":
            # 1 - p by expm1: exact where p is close to 1. Never 0, whose power has no gradient for gamma below 1.
            slope_BHW = tf.maximum(-tf.math.expm1(-entropy_BHW), 1e-7) ** self.focal_gamma
        if self.label_smoothing:
            everywhere_BHW = -tf.reduce_mean(tf.nn.log_softmax(logits_BHWK), -1)
            entropy_BHW += self.label_smoothing * (everywhere_BHW - entropy_BHW)
        return entropy_BHW * slope_BHW if self.name == "focal" else entropy_BHW


def total(loss: Loss, sums_S: npt.NDArray[np.float64]) -> float:
    """The loss of summed `sums`, NaN without any truth."""
    return float(loss.value(tf.constant(sums_S, tf.float32))) if sums_S[1] > 0 else float("nan")


def _regions(logits_BHWK: Any, target_BHW: Any, weight_BHW: Any, classes: int) -> list[Any]:
    """Overlap, prediction and truth of soft Dice, (B, K) each."""
    weight_BHW1 = weight_BHW[..., None]
    p_BHWK = tf.where(weight_BHW1 > 0, tf.nn.softmax(logits_BHWK) * weight_BHW1, 0.0)
    is_BHWK = tf.one_hot(target_BHW, classes)
    return [tf.reduce_sum(x, (1, 2)) for x in (p_BHWK * is_BHWK, p_BHWK, is_BHWK * weight_BHW1)]
