"""Classifiers of whole images that are small enough to be compared with the network on the whole image."""

import keras
import numpy as np
import tensorflow as tf

from classification.network import Classifier, split
from classification.stream import Stream
from tests.support.streams import policy, randomize, small_resnet


def small_classifier(outputs=3, pool="max", precision="float32", channels=4, seed=3):
    """Stem and four blocks with strides up to 32, cut behind the third block (stride 16)."""
    with policy(precision):
        body = small_resnet(channels)
        wide = "float64" if precision == "float64" else "float32"
        pooling = keras.layers.GlobalMaxPooling2D if pool == "max" else keras.layers.GlobalAveragePooling2D
        x = pooling(name="pool", dtype=wide)(body.outputs[0])
        logits = keras.layers.Dense(outputs, name="fc", dtype=wide)(x)
        model = keras.Model(body.inputs[0], logits, name="small")
        randomize(model, seed)
        return split(model, "small", "layer3", pool, precision)


def small_stream(classifier: Classifier, **options) -> Stream:
    """Tiles of about a third of the images used here."""
    return Stream(classifier, **{"tile": 128, "late_tile": 9, **options})


def images(count=2, seed=0, hw=(230, 187), low=0):
    """8-bit images (count, 1, H, W, 3)."""
    return np.random.default_rng(seed).integers(low, 256, (count, 1, *hw, 3)).astype(np.uint8)


def whole_gradients(classifier, image_BHWC, loss, target_BK):
    """Loss, logits and gradients of `classifier.trained` of a batch, the whole images at once."""
    with tf.GradientTape() as tape:
        logits_BK = classifier.model(tf.constant(image_BHWC.astype(np.float32) / 127.5 - 1), training=False)
        value = loss.value(tf.reduce_sum(loss.sums(logits_BK, target_BK), 0))
    grads = tape.gradient(value, [v.value for v in classifier.trained])
    return float(value), logits_BK.numpy(), grads
