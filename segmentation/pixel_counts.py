"""Counts of pixels inside the graph; sums over batches and ranks until the last line.

Shapes: B patches, H, W pixels, K classes, N probability bins.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from metrics.confusion import BINS
from parallel.comm import Comm


class PixelCounts:
    """A confusion matrix and a histogram of tumor probabilities, to which every batch adds.

    Tumor is any class >= 1, its probability 1 - p(class 0).

    Args:
        classes: number of classes K.
    """

    def __init__(self, classes: int) -> None:
        self._classes = classes
        self._confusion = tf.Variable(tf.zeros(classes * classes, tf.int64), trainable=False)
        self._histogram = tf.Variable(tf.zeros(2 * BINS, tf.int64), trainable=False)

    def update(self, logits_BHWK: Any, label_BHW: Any) -> None:
        """Count the pixels of a batch whose label is a class (labels >= K are ignored)."""
        truth = tf.cast(tf.reshape(label_BHW, [-1]), tf.int32)
        valid = tf.where(truth < self._classes)[:, 0]
        truth = tf.gather(truth, valid)
        logits_NK = tf.gather(tf.reshape(logits_BHWK, [-1, self._classes]), valid)
        predicted = tf.argmax(logits_NK, axis=-1, output_type=tf.int32)
        tumor = 1.0 - tf.nn.softmax(logits_NK)[:, 0]
        bins = tf.clip_by_value(tf.cast(tumor * BINS, tf.int32), 0, BINS - 1)
        self._confusion.assign_add(_counts(truth * self._classes + predicted, self._classes**2))
        self._histogram.assign_add(_counts(tf.where(truth > 0, BINS, 0) + bins, 2 * BINS))

    def state(self, comm: Comm) -> npt.NDArray[np.int64]:
        """What a checkpoint must keep: the counts of all ranks since `totals`; every rank must call it."""
        return comm.sum_array(np.concatenate([self._confusion.numpy(), self._histogram.numpy()]))

    def restore(self, state: npt.NDArray[np.int64]) -> None:
        """Take what `state` returned. Ranks: on one rank only, since `totals` adds them up."""
        self._confusion.assign(state[: self._classes**2])
        self._histogram.assign(state[self._classes**2 :])

    def totals(self, comm: Comm) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Sums over all ranks; then counting starts again from zero.

        Returns:
            confusion_KK: int64, rows truth, columns prediction.
            histogram_2N: int64, row 0 negative pixels, row 1 tumor pixels, columns bins of tumor probability.
        """
        confusion = comm.sum_array(self._confusion.numpy())
        histogram = comm.sum_array(self._histogram.numpy())
        self._confusion.assign(tf.zeros_like(self._confusion))
        self._histogram.assign(tf.zeros_like(self._histogram))
        return confusion.reshape(self._classes, self._classes), histogram.reshape(2, BINS)


def _counts(values: Any, length: int) -> Any:
    return tf.cast(tf.math.bincount(values, minlength=length, maxlength=length), tf.int64)
