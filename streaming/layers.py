"""The registry: which rule belongs to which layer or operation of Keras and of `models`.

A layer without an entry is refused by its name. `register` adds one: for a layer that takes every cell by itself

    streaming.register(MyActivation, streaming.Rule)

and for others a function from the layer to a rule of `streaming.rules`.
"""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from models import layers as ours
from streaming.rules import (
    AveragePooling,
    Cropping,
    Kernel,
    MaxPooling,
    Padding,
    Repeat,
    Resize,
    Rule,
    Transposed,
    align_corners_weights,
    half_pixel_weights,
    nearest_weights,
    pair,
)

layers = keras.layers

# Up to here the whole window is repeated and cut; matrices cost the window's cells per output cell.
MOST_REPEATS = 8

_rules: dict[type, Callable[[Any], Rule]] = {}

# Operations of keras.ops that take every cell by itself.
_NAMES = (
    "Absolute Abs Add Arctan Cast Celu Ceil Clip Copy Cos Divide DivideNoNan Elu Erf Exp Exp2 Expm1 Floor Gelu "
    "HardSigmoid HardSilu HardTanh LeakyRelu Log Log10 Log1p Log2 LogSigmoid Maximum Minimum Multiply Negative Power "
    "Reciprocal Relu Relu6 Rsqrt Selu Sigmoid Sign Silu Sin Softplus Softsign Sqrt Square Squareplus StopGradient "
    "Subtract Tan Tanh TrueDivide Where"
)
ELEMENTWISE = frozenset(_NAMES.split())
CHANNELWISE = frozenset({"Concatenate", "LogSoftmax", "Softmax"})

# Layers that use the whole image at once, and how.
GLOBAL_REASONS = {
    layers.GroupNormalization: "its statistics are those of the whole image",
    ours.GroupNormalization: "its statistics are those of the whole image",
    layers.UnitNormalization: "its norm may be that of the whole image",
    layers.Flatten: "it needs the whole map in one place; cut before it",
    layers.Reshape: "it moves cells to other places; cut before it",
    layers.Permute: "it moves cells to other places; cut before it",
    layers.MultiHeadAttention: "every cell sees every other; cut before it",
    layers.Attention: "every cell sees every other; cut before it",
}
RANDOM = (
    layers.Dropout,
    layers.SpatialDropout2D,
    layers.GaussianNoise,
    layers.GaussianDropout,
    layers.AlphaDropout,
)


def register(layer: type, rule: Callable[[Any], Rule]) -> None:
    """Declare where the layers of a class look.

    Args:
        layer: class of layers; subclasses with a `call` of their own need an entry of their own.
        rule: from a layer to its rule; `Rule` itself for layers that take every cell by itself.
    """
    _rules[layer] = rule


def rule_of(operation: Any) -> Rule:
    """The rule of an operation.

    Args:
        operation: layer of Keras, or operation of `keras.ops`.

    Raises:
        ValueError: it is not local, or its class has no entry; names it and says what to do.
    """
    kind: Any = type(operation)
    if getattr(operation, "data_format", None) == "channels_first":
        raise refused(operation, "its channels come first; streaming reads (B, H, W, C)")
    for base in kind.__mro__:
        if base in _rules and kind.call is base.call:
            return _rules[base](operation)
        if base in GLOBAL_REASONS and kind.call is base.call:
            raise refused(operation, GLOBAL_REASONS[base])
    if kind.__module__.startswith("keras.src.ops."):
        return _rule_of_op(operation)
    raise refused(operation, "where it looks is unknown; declare it by streaming.register, or cut the stream before it")


def refused(operation: Any, reason: str) -> ValueError:
    """The error for an operation that cannot be streamed."""
    return ValueError(f"{operation.name} ({type(operation).__name__}) cannot be streamed: {reason}")


def is_random(operation: Any) -> bool:
    """Whether a layer draws numbers in training."""
    return isinstance(operation, RANDOM)


def _rule_of_op(operation: Any) -> Rule:
    name = type(operation).__name__
    if name in ELEMENTWISE:
        return Rule(operation)
    if name in CHANNELWISE:
        return _on_channels(operation)
    if name in ("MaxPool", "AveragePool"):
        return (MaxPooling if name == "MaxPool" else AveragePooling)(operation, operation.pool_size)
    if name == "Pad":
        return _pad_op(operation)
    raise refused(operation, "where this operation looks is unknown; write it as a layer, or cut the stream before it")


def _pad_op(operation: Any) -> Rule:
    width = np.broadcast_to(np.asarray(operation.pad_width), (4, 2))
    if operation.mode != "constant" or np.any(width[[0, 3]]):
        raise refused(operation, "it may only pad rows and columns, with a constant")
    return Padding(operation, width[1:3, 0].tolist(), width[1:3, 1].tolist())


def _on_channels(layer: Any) -> Rule:
    axis = getattr(layer, "axis", -1)
    if any(a not in (-1, 3) for a in (axis if isinstance(axis, (list, tuple)) else [axis])):
        raise refused(layer, f"it works along axis {axis}; only the channels, axis -1, are local")
    return Rule(layer)


def _prelu(layer: Any) -> Rule:
    if not {1, 2} <= set(layer.shared_axes or ()):
        raise refused(layer, "it has a weight for every cell; give it shared_axes=[1, 2]")
    return Rule(layer)


def _convolution(layer: Any) -> Rule:
    if layer.padding not in ("same", "valid"):
        raise refused(layer, f"its padding is {layer.padding!r}; same and valid can be streamed")
    return Kernel(layer, layer.kernel_size, layer.dilation_rate)


def _transposed(layer: Any) -> Rule:
    if layer.output_padding is not None or pair(layer.dilation_rate) != (1, 1):
        raise refused(layer, "output padding and dilation of a transposed convolution are not supported")
    return Transposed(layer, layer.kernel_size)


def _zero_padding(layer: Any) -> Rule:
    (top, bottom), (left, right) = layer.padding
    return Padding(layer, (top, left), (bottom, right))


def _cropping(layer: Any) -> Rule:
    (top, bottom), (left, right) = layer.cropping
    return Cropping(layer, (top, left), (bottom, right))


def _fixed_padding(layer: Any) -> Rule:
    total = (layer.kernel - 1) * layer.dilation
    before, after = total // 2, total - total // 2
    return Padding(layer, (before, before), (after, after))


def _upsampling(layer: Any) -> Rule:
    factors = pair(layer.size)
    if layer.interpolation == "nearest" and max(factors) <= MOST_REPEATS:
        return Repeat(layer, factors)
    return Resize(layer, lambda axis, size: size * factors[axis], _weights(layer))


def _resizing(layer: Any) -> Rule:
    if layer.crop_to_aspect_ratio or layer.pad_to_aspect_ratio or getattr(layer, "antialias", False):
        raise refused(layer, "cropping, padding and antialiasing of a resize are not supported")
    hw = (layer.height, layer.width)
    return Resize(layer, lambda axis, _: hw[axis], _weights(layer))


def _weights(layer: Any) -> Any:
    known = {"nearest": nearest_weights, "bilinear": half_pixel_weights}
    if layer.interpolation not in known:
        raise refused(layer, f"interpolation {layer.interpolation!r}; nearest and bilinear can be streamed")
    return known[layer.interpolation]


def _align_corners(layer: Any) -> Rule:
    return Resize(layer, lambda axis, _: layer.hw_out[axis], align_corners_weights)


for _layer in (layers.Conv2D, layers.DepthwiseConv2D, layers.SeparableConv2D, ours.PointwiseConv2D):
    register(_layer, _convolution)
for _layer in (layers.Dense, layers.ReLU, layers.LeakyReLU, layers.ELU, layers.Rescaling, layers.Add):
    register(_layer, Rule)
for _layer in (layers.Subtract, layers.Multiply, layers.Average, layers.Maximum, layers.Minimum, layers.Identity):
    register(_layer, Rule)
for _layer in (layers.Activation, ours.FastFusion, ours.RunningBatchNormalization, *RANDOM):
    register(_layer, Rule)
for _layer in (layers.BatchNormalization, ours.BatchNormalization, layers.LayerNormalization, layers.Concatenate):
    register(_layer, _on_channels)
for _layer in (layers.Softmax, layers.Normalization):
    register(_layer, _on_channels)
register(layers.PReLU, _prelu)
register(layers.Conv2DTranspose, _transposed)
register(layers.MaxPooling2D, lambda layer: MaxPooling(layer, layer.pool_size))
register(layers.AveragePooling2D, lambda layer: AveragePooling(layer, layer.pool_size))
register(layers.ZeroPadding2D, _zero_padding)
register(layers.Cropping2D, _cropping)
register(ours.FixedPadding, _fixed_padding)
register(layers.UpSampling2D, _upsampling)
register(layers.Resizing, _resizing)
register(ours.AlignCornersResize, _align_corners)
