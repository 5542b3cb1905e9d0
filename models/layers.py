"""Layers that Keras lacks. Importing this module registers them, so that saved models open.

Shapes: B images, H rows, W columns, C channels.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf
from keras import ops

from models import fused, recompute

_register = keras.saving.register_keras_serializable(package="widefov")


@_register
class FastFusion(keras.layers.Layer):
    """Fast normalised fusion: swish of a weighted mean of feature maps of one shape, with learned non-negative weights.

    out = swish(sum_i relu(w_i) x_i / (sum_j relu(w_j) + 0.0001)), one scalar per input, starting at 1.
    Source: EfficientDet, https://arxiv.org/abs/1911.09070, section 3.3.
    """

    EPSILON = 1e-4

    def build(self, input_shape: Sequence[Sequence[int | None]]) -> None:
        """Makes one weight per input map."""
        self.fusion_weights = self.add_weight(
            name="fusion_weights", shape=(len(input_shape),), initializer="ones", trainable=True, autocast=False
        )

    def call(self, maps_BHWC: Sequence[keras.KerasTensor], training: bool = False) -> keras.KerasTensor:
        """Returns the activated mean, of the shape of each input."""
        weights = tf.nn.relu(self.fusion_weights.value)
        weights = weights / (tf.reduce_sum(weights) + self.EPSILON)
        if training:
            return fused.weighted_swish(weights, maps_BHWC)
        shares = tf.unstack(tf.cast(weights, maps_BHWC[0].dtype))
        return tf.nn.silu(tf.add_n([x * share for x, share in zip(maps_BHWC, shares, strict=True)]))

    def compute_output_shape(self, input_shape: Sequence[Sequence[int | None]]) -> tuple[int | None, ...]:
        """Returns the shape of one input."""
        return tuple(input_shape[0])


@_register
class FixedPadding(keras.layers.Layer):
    """Pads rows and columns as the TensorFlow model zoo does before strided convolutions.

    (k - 1) // 2 zeros before and the rest of k - 1 after, k the kernel's extent with its dilation, whatever the size of
    the map. SAME padding instead depends on the size and shifts even-sized maps by a pixel against the trained weights.
    """

    def __init__(self, kernel: int, dilation: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.kernel = kernel
        self.dilation = dilation

    def call(self, x_BHWC: keras.KerasTensor) -> keras.KerasTensor:
        """Returns the map with (k - 1) more rows and columns."""
        total = (self.kernel - 1) * self.dilation
        pad = (total // 2, total - total // 2)
        return ops.pad(x_BHWC, ((0, 0), pad, pad, (0, 0)))

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "kernel": self.kernel, "dilation": self.dilation}


@_register
class AlignCornersResize(keras.layers.Layer):
    """Bilinear resize whose corner pixels keep their place: output pixel i lies at i (size_in - 1) / (size_out - 1).

    The public DeepLab weights were trained with this rule (`align_corners=True`), which `keras.ops.image.resize` lacks.
    Works for any ratio, a map of 1x1 becomes constant. Always computed and returned in float32.

    The resize is separable: one product with an interpolation matrix per axis, whose gradient is again a product. A
    gather of two taps has a scatter as its gradient, slow on CPU.
    """

    def __init__(self, hw_out: Sequence[int], **kwargs: Any) -> None:
        super().__init__(**{"dtype": "float32", **kwargs})
        self.hw_out = (int(hw_out[0]), int(hw_out[1]))

    def call(self, x_BHWC: keras.KerasTensor) -> keras.KerasTensor:
        """Returns the map with `hw_out` rows and columns, float32."""
        _, rows_in, columns_in, channels = x_BHWC.shape
        rows_out, columns_out = self.hw_out
        x = ops.reshape(x_BHWC, (-1, rows_in, columns_in * channels))
        x = ops.matmul(ops.convert_to_tensor(interpolation_matrix(rows_in, rows_out)), x)
        x = ops.reshape(x, (-1, rows_out, columns_in, channels))
        return ops.matmul(ops.convert_to_tensor(interpolation_matrix(columns_in, columns_out)), x)

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        """Returns (B, *hw_out, C)."""
        return (input_shape[0], *self.hw_out, input_shape[-1])

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "hw_out": self.hw_out}


def interpolation_matrix(size_in: int, size_out: int) -> npt.NDArray[np.float32]:
    """Returns the align-corners linear interpolation along one axis, float32 (size_out, size_in); rows sum to 1."""
    steps = max(size_out - 1, 1)
    # Integer arithmetic: a position that falls on an input pixel falls on it exactly.
    left, remainder = np.divmod(np.arange(size_out) * (size_in - 1), steps)
    fraction = remainder / steps
    matrix = np.zeros((size_out, size_in))
    rows = np.arange(size_out)
    matrix[rows, left] = 1.0 - fraction
    inside = left + 1 < size_in
    matrix[rows[inside], left[inside] + 1] = fraction[inside]
    return matrix.astype(np.float32)


@_register
class BatchNormalization(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization` of (B, H, W, C), and the activation behind it, by fused operations.

    Weights and results are those of Keras' layers; see `models.fused` for what the gradient keeps. Statistics stay in
    float32 under any precision policy.

    Args:
        activation: "swish", "relu" or None.
        kwargs: As of Keras' layer; `axis`, `center`, `scale`, `renorm` and `synchronized` stay as they are there.

    Attributes:
        total: Sums tensors over ranks, whose batches then are normalised as one; None for each by itself.
        adapting: Where it is a list, the layer normalises with the batch's statistics and adds them (mean, variance):
            see `models.adaptation`.
    """

    total: fused.Total | None = None
    adapting: list[tuple[Any, Any]] | None = None

    def __init__(self, activation: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if activation not in fused.ACTIVATIONS:
            raise ValueError(f"activation {activation!r}; fused are {fused.ACTIVATIONS}")
        self.activation = activation

    def call(self, inputs: keras.KerasTensor, training: bool = False, mask: None = None) -> keras.KerasTensor:
        """Normalises every channel; in training also moves the statistics towards the batch's."""
        assert mask is None
        gamma, beta = (tf.cast(v, tf.float32) for v in (self.gamma, self.beta))
        old_mean, old_variance = (tf.convert_to_tensor(v.value) for v in (self.moving_mean, self.moving_variance))
        if self.adapting is not None:
            out, found = fused.batch_norm(inputs, gamma, beta, self.epsilon, self.activation, None)
            self.adapting.append((found.mean_C, found.variance_C))
            return out
        if not (training and self.trainable):
            if inputs.dtype == tf.float64:  # no fused operation takes it
                normalised = keras.layers.BatchNormalization.call(self, inputs, training=False)
                return fused.activated(normalised, self.activation)
            frozen = {"mean": old_mean, "variance": old_variance, "epsilon": self.epsilon, "is_training": False}
            normalised = tf.raw_ops.FusedBatchNormV3(x=inputs, scale=gamma, offset=beta, **frozen).y
            return fused.activated(normalised, self.activation)
        known = recompute.statistics_of(self.name)
        if self.total is None:
            out, found = fused.batch_norm(inputs, gamma, beta, self.epsilon, self.activation, known)
        else:
            out, found = fused.synced_batch_norm(
                inputs, gamma, beta, self.epsilon, self.activation, known, old_mean, self.total
            )
        if known is None:
            recompute.keep_statistics(self.name, found)
            self.moving_mean.assign(old_mean * self.momentum + found.mean_C * (1.0 - self.momentum))
            self.moving_variance.assign(old_variance * self.momentum + found.variance_C * (1.0 - self.momentum))
        return out

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "activation": self.activation}


@_register
class GroupNormalization(keras.layers.Layer):
    """Normalization over the px and the channels of a group, image by image, and the activation behind it.

    No batch and no moving statistics: the same in training and at inference, for a batch of any size. Groups have at
    least `CHANNELS` channels, and there are at most `GROUPS`. Statistics and weights stay float32 under any precision.

    Source: Wu and He, Group normalization, https://arxiv.org/abs/1803.08494.

    Args:
        activation: "swish", "relu" or None.
        epsilon: Added to the variance.
        kwargs: As of Keras' layers.
    """

    GROUPS, CHANNELS = 32, 8

    def __init__(self, activation: str | None = None, epsilon: float = 1e-3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if activation not in fused.ACTIVATIONS:
            raise ValueError(f"activation {activation!r}; fused are {fused.ACTIVATIONS}")
        self.activation = activation
        self.epsilon = epsilon

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Makes scale and offset, one value per channel."""
        channels = input_shape[-1]
        assert channels is not None
        most = min(self.GROUPS, max(1, channels // self.CHANNELS))
        self.groups = max(count for count in range(1, most + 1) if channels % count == 0)
        self.gamma = self.add_weight(name="gamma", shape=(channels,), initializer="ones", autocast=False)
        self.beta = self.add_weight(name="beta", shape=(channels,), initializer="zeros", autocast=False)

    def call(self, x_BHWC: keras.KerasTensor) -> keras.KerasTensor:
        """Normalises every group of every image."""
        x = tf.cast(x_BHWC, tf.float32)
        shape, channels = tf.shape(x), x_BHWC.shape[-1]
        grouped = tf.reshape(x, (shape[0], shape[1] * shape[2], self.groups, channels // self.groups))
        mean, variance = tf.nn.moments(grouped, (1, 3), keepdims=True)
        grouped = (grouped - mean) * tf.math.rsqrt(variance + self.epsilon)
        out = tf.reshape(grouped, shape) * tf.cast(self.gamma, tf.float32) + tf.cast(self.beta, tf.float32)
        return fused.activated(tf.cast(out, self.compute_dtype), self.activation)

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        """Returns the shape of the input."""
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "activation": self.activation, "epsilon": self.epsilon}


_norm = ContextVar("norm", default="batch")


@contextmanager
def normalized_by(norm: str) -> Iterator[None]:
    """Networks built inside have this normalization, one of `NORMS`."""
    token = _norm.set(norm)
    try:
        yield
    finally:
        _norm.reset(token)


def normalization(
    activation: str | None = None, momentum: float = 0.99, epsilon: float = 1e-3, name: str | None = None
) -> keras.layers.Layer:
    """Returns the normalization of the network that is being built; see `normalized_by`.

    Args:
        activation: Of the layer behind it: "swish", "relu" or None.
        momentum: Of moving statistics.
        epsilon: Added to the variance.
        name: Of the layer.
    """
    if _norm.get() == "group":
        return GroupNormalization(activation, epsilon, name=name)
    return BatchNormalization(activation, momentum=momentum, epsilon=epsilon, name=name)


@_register
class PointwiseConv2D(keras.layers.Conv2D):
    """`keras.layers.Conv2D` of size 1 with stride 1 and without bias, quicker in training; see `fused.pointwise`."""

    def __init__(self, filters: int, **kwargs: Any) -> None:
        super().__init__(filters, **{**kwargs, "kernel_size": 1, "use_bias": False})

    def call(self, inputs: keras.KerasTensor) -> keras.KerasTensor:
        """Returns (B, H, W, filters)."""
        return fused.pointwise(inputs, ops.reshape(self.kernel, self.kernel.shape[2:]))


@_register
class RunningBatchNormalization(keras.layers.Layer):
    """Batch normalization for maps too small for statistics of their own, such as pooled 1x1 maps with batch 1.

    Ordinary batch normalization of a 1x1 map with one image returns beta, whatever the image: the only value is its own
    mean. This layer normalises with its moving statistics in training as at inference, and updates them afterwards:

        mean     <- a mean     + (1 - a) batch mean of x
        variance <- a variance + (1 - a) batch mean of (x - old mean)^2

    Deviations are taken from the old moving mean, so one value is enough, and both updates are means over samples: an
    image's output does not depend on its batch, and averaging the statistics of all ranks gives exactly those of the
    joint batch.

    No gradient flows through the statistics, so they, not the gradient, hold the scale. They start at mean 0 and
    variance 1: at first the layer leaves its input as it is, and no correction of the start-up bias is wanted. A jump
    of the input against small statistics is damped by the next update: afterwards it is at most 1 / sqrt(1 - a)
    deviations high. That bound is why the momentum is lower than usual.

    Weights, their order and the inference behaviour are those of `keras.layers.BatchNormalization`: gamma, beta,
    moving_mean, moving_variance. With `trainable = False` the statistics stay as they are.
    """

    def __init__(self, momentum: float = 0.9, epsilon: float = 1e-3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.momentum = momentum
        self.epsilon = epsilon

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Makes the four vectors, one value per channel."""
        shape = (input_shape[-1],)
        # All stay in float32 under any precision policy.
        self.gamma = self.add_weight(name="gamma", shape=shape, initializer="ones", autocast=False)
        self.beta = self.add_weight(name="beta", shape=shape, initializer="zeros", autocast=False)
        frozen = {"shape": shape, "trainable": False, "autocast": False}
        self.moving_mean = self.add_weight(name="moving_mean", initializer="zeros", **frozen)
        self.moving_variance = self.add_weight(name="moving_variance", initializer="ones", **frozen)

    def call(self, x_BHWC: keras.KerasTensor, training: bool = False) -> keras.KerasTensor:
        """Normalises every channel; in training also moves the statistics towards the batch's."""
        x = ops.cast(x_BHWC, self.moving_mean.dtype)  # float32, or float64 under that policy
        known = recompute.statistics_of(self.name)
        old_mean, old_variance = known or (ops.copy(v) for v in (self.moving_mean, self.moving_variance))
        scale = self.gamma * ops.rsqrt(old_variance + self.epsilon)
        normalised = (x - old_mean) * scale + self.beta
        if known is None:
            recompute.keep_statistics(self.name, (old_mean, old_variance))
        if training and self.trainable and known is None:
            # Last, and both at once: everything above and both new values are made from the old statistics.
            mean, variance = self._moved(ops.stop_gradient(x))
            self.moving_mean.assign(mean)
            self.moving_variance.assign(variance)
        return ops.cast(normalised, self.compute_dtype)

    def _moved(self, x_BHWC: keras.KerasTensor) -> tuple[keras.KerasTensor, keras.KerasTensor]:
        """Returns the next moving mean and variance, each (C,)."""
        axes = tuple(range(x_BHWC.ndim - 1))
        mean = ops.mean(x_BHWC, axes)
        variance = ops.mean(ops.square(x_BHWC - self.moving_mean), axes)
        keep, take = self.momentum, 1.0 - self.momentum
        return self.moving_mean * keep + mean * take, self.moving_variance * keep + variance * take

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "momentum": self.momentum, "epsilon": self.epsilon}
