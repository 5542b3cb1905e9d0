"""Pixel losses as sums, so that ranks and batches can be joined before dividing.

Shapes: B patches, H, W pixels, K classes.
"""

from __future__ import annotations

import tensorflow as tf

from evaluation.confusion import IGNORE


def weighted_cross_entropy(logits_BHWK, label_BHW, class_weights_K):
    """Softmax cross-entropy per pixel, weighted by class.

    Args:
        logits_BHWK: float logits.
        label_BHW: uint8 class or `IGNORE`.
        class_weights_K: float weight of each class.

    Returns:
        loss_BHW: weight times cross-entropy; 0 where ignored.
        weight_BHW: the weight; 0 where ignored.
    """
    classes = tf.shape(class_weights_K)[0]
    label_BHW = tf.cast(label_BHW, tf.int32)
    valid_BHW = label_BHW != IGNORE
    target_BHW = tf.where(valid_BHW, label_BHW, 0)
    target_BHW = tf.minimum(target_BHW, classes - 1)
    weight_BHW = tf.gather(class_weights_K, target_BHW) * tf.cast(valid_BHW, class_weights_K.dtype)
    entropy_BHW = tf.nn.sparse_softmax_cross_entropy_with_logits(target_BHW, logits_BHWK)
    # where, not a product: an infinite loss under an ignored pixel must not become NaN
    return tf.where(weight_BHW > 0, weight_BHW * entropy_BHW, 0.0), weight_BHW
