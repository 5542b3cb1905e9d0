"""Batch normalization with the statistics of the whole image, in parts that can be streamed.

    sums of x - s and (x - s)^2 over all places  ->  mean and variance  ->  gamma (x - mean) / sqrt(variance + e) + beta

s is the layer's moving mean: a number near the mean, so that the squares keep their digits. The gradient passes through
all three parts, which makes it that of the layer in training mode.

Shapes: B images, H rows, W columns, C channels.
"""

from typing import Any

import tensorflow as tf

from models import fused
from models.layers import BatchNormalization
from streaming.layers import refused
from streaming.nodes import Graph, Node, Value
from streaming.rules import Rule


def add_batch_norm(graph: Graph, name: str, layer: Any, x: Value) -> Value:
    """Add the three parts of a batch normalization; the normalized map.

    Args:
        graph: gets the nodes.
        name: of the layer in the network, `outer/inner` in a nested model.
        layer: of Keras or `models.layers`, along the channels, without `renorm`.
        x: its input.
    """
    if layer.axis not in (-1, 3) or layer.renorm or layer.synchronized:
        raise refused(layer, "its axis must be the channels, without renorm and synchronized")
    dtype = "float64" if x.dtype == "float64" else "float32"
    sums = graph.value(f"{name}/sums", (None, 2, x.channels), dtype, True)
    found = graph.value(f"{name}/statistics", (2, x.channels), dtype, True)
    out = graph.value(name, (None, None, None, x.channels), layer.compute_dtype)

    def moments(x_BHWC: Any) -> Any:
        away = tf.cast(x_BHWC, dtype) - tf.cast(tf.stop_gradient(layer.moving_mean.value), dtype)
        return tf.stack([tf.reduce_sum(away, (1, 2)), tf.reduce_sum(tf.square(away), (1, 2))], 1)

    def statistics(sums_B2C: Any) -> Any:
        mean_C, square_C = tf.unstack(tf.reduce_mean(sums_B2C, 0), 2)
        shift_C = tf.cast(tf.stop_gradient(layer.moving_mean.value), dtype)
        return tf.stack([mean_C + shift_C, tf.maximum(square_C - tf.square(mean_C), 0.0)])

    def normalized(x_BHWC: Any, statistics_2C: Any) -> Any:
        mean_C, variance_C = statistics_2C[0], statistics_2C[1]
        gamma_C = tf.cast(layer.gamma.value, dtype) if layer.scale else 1.0
        beta_C = tf.cast(layer.beta.value, dtype) if layer.center else 0.0
        scale_C = gamma_C * tf.math.rsqrt(variance_C + layer.epsilon)
        y_BHWC = tf.cast(tf.cast(x_BHWC, dtype) * scale_C + (beta_C - mean_C * scale_C), layer.compute_dtype)
        return fused.activated(y_BHWC, layer.activation if isinstance(layer, BatchNormalization) else None)

    graph.add(Node(sums.name, "sum", (x,), sums, lambda x: x, moments=moments))
    graph.add(Node(found.name, "small", (sums,), found, statistics))
    graph.norms.append((layer, found))
    return graph.add(Node(name, "local", (x, found), out, normalized, rule=Rule(layer), layer=layer))
