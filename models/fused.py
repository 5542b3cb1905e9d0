"""Elementwise parts of the training pass joined into single passes over memory, with gradients that keep less.

On CPU TensorFlow runs every elementwise operation as a pass of its own: the gradient of swish is six. XLA joins them
into one, in a third of the time (docs/performance.md). Convolutions and batch statistics stay with TensorFlow, whose
oneDNN kernels are faster than XLA's. Inference does not come here.

Shapes: B images, H rows, W columns, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

ACTIVATIONS = (None, "relu", "swish")
WIDE = 512  # channels

one_pass = tf.function(jit_compile=True, autograph=False)
Total = Callable[[Sequence[Any]], Sequence[Any]]  # tensors to their sums over ranks


class Statistics(NamedTuple):
    """What a batch normalization takes from its batch.

    Attributes:
        mean_C: mean of every channel, float32.
        variance_C: biased variance of every channel, float32.
        kept: what the gradient needs besides.
    """

    mean_C: Any
    variance_C: Any
    kept: tuple[Any, ...]


def batch_norm(
    x_BHWC: Any, gamma_C: Any, beta_C: Any, epsilon: float, activation: str | None, known: Statistics | None
) -> tuple[Any, Statistics]:
    """Normalise with the batch's own statistics, then activate; as one operation for the gradient.

    The gradient keeps the input alone: the normalised map is made again from it within the pass that needs it.

    Args:
        x_BHWC: map, float32 or a half precision.
        gamma_C: scale, float32.
        beta_C: offset, float32.
        epsilon: added to the variance.
        activation: one of `ACTIVATIONS`.
        known: what an earlier pass over the same batch found.

    Returns:
        The activated map, of the input's type, and the batch's statistics, which pass no gradient on.
    """
    affine = {"scale": gamma_C, "offset": beta_C, "epsilon": epsilon}

    @tf.custom_gradient
    def run(x_BHWC: Any, gamma_C: Any, beta_C: Any) -> Any:
        if known is None:
            normal = tf.raw_ops.FusedBatchNormV3(x=x_BHWC, mean=[], variance=[], is_training=True, **affine)
            # The operation returns the unbiased variance.
            count = tf.cast(tf.size(x_BHWC) // tf.shape(x_BHWC)[-1], tf.float32)
            variance_C = normal.batch_variance * ((count - 1.0) / count)
            found = Statistics(normal.batch_mean, variance_C, tuple(normal[3:]))
        else:
            found = known
            given = {"mean": found.mean_C, "variance": found.variance_C}
            normal = tf.raw_ops.FusedBatchNormV3(x=x_BHWC, is_training=False, **given, **affine)
        out_BHWC = activated(normal.y, activation)

        def gradient(out_gradient_BHWC: Any, *_: Any) -> Any:
            scale_C = gamma_C * tf.math.rsqrt(found.variance_C + epsilon)
            shift_C = beta_C - found.mean_C * scale_C
            return tf.raw_ops.FusedBatchNormGradV3(
                y_backprop=_before(activation, x_BHWC, scale_C, shift_C, out_BHWC, out_gradient_BHWC),
                x=x_BHWC,
                scale=gamma_C,
                reserve_space_1=found.kept[0],
                reserve_space_2=found.kept[1],
                reserve_space_3=found.kept[2],
                epsilon=epsilon,
                is_training=True,
            )[:3]

        return (out_BHWC, found.mean_C, found.variance_C, *found.kept), gradient

    out_BHWC, *found = run(x_BHWC, gamma_C, beta_C)
    mean_C, variance_C, *kept = (tf.stop_gradient(x) for x in found)
    return out_BHWC, Statistics(mean_C, variance_C, tuple(kept))


def synced_batch_norm(
    x_BHWC: Any,
    gamma_C: Any,
    beta_C: Any,
    epsilon: float,
    activation: str | None,
    known: Statistics | None,
    near_C: Any,
    total: Total,
) -> tuple[Any, Statistics]:
    """As `batch_norm`, with the statistics of all ranks' batches; the gradient passes through them to every rank.

    The gradient is that of the sum of the ranks' losses: ranks that average the gradients of their weights get that of
    one rank with all their images. Two small sums over ranks, one for either direction.

    Args:
        x_BHWC: see `batch_norm`.
        gamma_C: see `batch_norm`.
        beta_C: see `batch_norm`.
        epsilon: see `batch_norm`.
        activation: see `batch_norm`.
        known: see `batch_norm`.
        near_C: numbers near the mean, equal on all ranks: what they are taken off does not lose its digits.
        total: sums tensors over ranks.
    """

    @tf.custom_gradient
    def run(x_BHWC: Any, gamma_C: Any, beta_C: Any) -> Any:
        mean_C, variance_C, (joint_count,) = known or _joint_statistics(x_BHWC, near_C, total)
        rate_C = tf.math.rsqrt(variance_C + epsilon)
        scale_C = gamma_C * rate_C
        shift_C = beta_C - mean_C * scale_C
        out_BHWC = activated(tf.cast(tf.cast(x_BHWC, tf.float32) * scale_C + shift_C, x_BHWC.dtype), activation)

        def gradient(out_gradient_BHWC: Any, *_: Any) -> Any:
            grad_BHWC = _before(activation, x_BHWC, scale_C, shift_C, out_BHWC, out_gradient_BHWC)
            grad_BHWC = tf.cast(grad_BHWC, tf.float32)
            normal_BHWC = (tf.cast(x_BHWC, tf.float32) - mean_C) * rate_C
            own = [tf.reduce_sum(grad_BHWC * normal_BHWC, (0, 1, 2)), tf.reduce_sum(grad_BHWC, (0, 1, 2))]
            gamma_gradient_C, beta_gradient_C = (summed / joint_count for summed in total(own))
            x_gradient_BHWC = scale_C * (grad_BHWC - beta_gradient_C - normal_BHWC * gamma_gradient_C)
            return tf.cast(x_gradient_BHWC, x_BHWC.dtype), *own

        return (out_BHWC, mean_C, variance_C, joint_count), gradient

    out_BHWC, *found = run(x_BHWC, gamma_C, beta_C)
    mean_C, variance_C, joint_count = (tf.stop_gradient(x) for x in found)
    return out_BHWC, Statistics(mean_C, variance_C, (joint_count,))


def _joint_statistics(x_BHWC: Any, near_C: Any, total: Total) -> Statistics:
    """Statistics of all ranks' batches, and the number of their values."""
    count = tf.cast(tf.size(x_BHWC) // tf.shape(x_BHWC)[-1], tf.float32)
    away_BHWC = tf.cast(x_BHWC, tf.float32) - near_C
    sums = [tf.reduce_sum(away_BHWC, (0, 1, 2)), tf.reduce_sum(tf.square(away_BHWC), (0, 1, 2)), count]
    sum_C, square_C, joint_count = total(sums)
    mean_C = sum_C / joint_count
    variance_C = tf.maximum(square_C / joint_count - tf.square(mean_C), 0.0)
    return Statistics(mean_C + near_C, variance_C, (joint_count,))


def weighted_swish(weights_N: Any, maps: Sequence[Any]) -> Any:
    """Swish of a weighted sum of maps of one shape; the gradient keeps the maps alone.

    Args:
        weights_N: weight of each map, float32.
        maps: N maps (B, H, W, C) of one type.
    """

    @tf.custom_gradient
    def run(weights_N: Any, *maps: Any) -> Any:
        def gradient(out_gradient_BHWC: Any) -> Any:
            sum_gradient_BHWC, *gradients = _before_weighted_swish(weights_N, maps, out_gradient_BHWC)
            products = [tf.reduce_sum(tf.cast(sum_gradient_BHWC * x, tf.float32)) for x in maps]
            return [tf.stack(products), *gradients]

        return _weighted_swish(weights_N, maps), gradient

    return run(weights_N, *maps)


def pointwise(x_BHWC: Any, kernel_CF: Any) -> Any:
    """1 x 1 convolution with stride 1, (B, H, W, F).

    The gradient of the kernel is a matrix product: 1.1 to 1.8 times as fast on CPU as the gradient of a convolution,
    from 128 channels on (docs/performance.md). So is the rest from `WIDE` channels on.
    """
    channels, filters = kernel_CF.shape
    by_product = min(channels, filters) >= WIDE
    kernel_11CF = tf.reshape(kernel_CF, (1, 1, channels, filters))

    @tf.custom_gradient
    def run(x_BHWC: Any, kernel_CF: Any, kernel_11CF: Any) -> Any:
        shape = tf.shape(x_BHWC)

        def gradient(out_gradient_BHWF: Any) -> Any:
            x_NC, gradient_NF = tf.reshape(x_BHWC, (-1, channels)), tf.reshape(out_gradient_BHWF, (-1, filters))
            kernel_gradient_CF = tf.matmul(x_NC, gradient_NF, transpose_a=True)
            if by_product:
                x_gradient_BHWC = tf.reshape(tf.matmul(gradient_NF, kernel_CF, transpose_b=True), shape)
            else:
                sizes = {"input_sizes": shape, "strides": [1, 1, 1, 1], "padding": "VALID"}
                x_gradient_BHWC = tf.raw_ops.Conv2DBackpropInput(
                    filter=kernel_11CF, out_backprop=out_gradient_BHWF, **sizes
                )
            return x_gradient_BHWC, kernel_gradient_CF, None

        if not by_product:
            return tf.nn.conv2d(x_BHWC, kernel_11CF, 1, "VALID"), gradient
        out_NF = tf.matmul(tf.reshape(x_BHWC, (-1, channels)), kernel_CF)
        return tf.reshape(out_NF, (*tf.unstack(shape[:3]), filters)), gradient

    out_BHWF = run(x_BHWC, kernel_CF, tf.stop_gradient(kernel_11CF))
    out_BHWF.set_shape((*x_BHWC.shape[:3], filters))
    return out_BHWF


def activated(x_BHWC: Any, activation: str | None) -> Any:
    """The map behind an activation of `ACTIVATIONS`."""
    if activation is None:
        return x_BHWC
    return tf.nn.silu(x_BHWC) if activation == "swish" else tf.nn.relu(x_BHWC)


def _before(
    activation: str | None, x_BHWC: Any, scale_C: Any, shift_C: Any, out_BHWC: Any, out_gradient_BHWC: Any
) -> Any:
    """Gradient at y = x scale + shift from that at out = activation(y); y itself was not kept."""
    if activation == "swish":
        return _before_swish(x_BHWC, scale_C, shift_C, out_gradient_BHWC)
    if activation == "relu":
        return tf.raw_ops.ReluGrad(gradients=out_gradient_BHWC, features=out_BHWC)
    return out_gradient_BHWC


def _swish_slope(x: Any) -> Any:
    """Derivative of swish at x, any shape."""
    sigmoid = tf.sigmoid(x)
    return sigmoid * (1.0 + x * (1.0 - sigmoid))


@one_pass
def _before_swish(x_BHWC: Any, scale_C: Any, shift_C: Any, out_gradient_BHWC: Any) -> Any:
    """`_before` for swish, in one pass."""
    slope_BHWC = _swish_slope(tf.cast(x_BHWC, tf.float32) * scale_C + shift_C)
    return tf.cast(tf.cast(out_gradient_BHWC, tf.float32) * slope_BHWC, x_BHWC.dtype)


def _sum(weights_N: Any, maps: Sequence[Any]) -> Any:
    return tf.add_n([tf.cast(x, tf.float32) * weights_N[i] for i, x in enumerate(maps)])


@one_pass
def _weighted_swish(weights_N: Any, maps: Sequence[Any]) -> Any:
    sum_BHWC = _sum(weights_N, maps)
    return tf.cast(sum_BHWC * tf.sigmoid(sum_BHWC), maps[0].dtype)


@one_pass
def _before_weighted_swish(weights_N: Any, maps: Sequence[Any], out_gradient_BHWC: Any) -> Any:
    """Gradients at the sum, and at every map."""
    dtype = maps[0].dtype
    sum_gradient_BHWC = tf.cast(out_gradient_BHWC, tf.float32) * _swish_slope(_sum(weights_N, maps))
    return [tf.cast(sum_gradient_BHWC * w, dtype) for w in (1.0, *(weights_N[i] for i in range(len(maps))))]
