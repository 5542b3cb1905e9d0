"""EfficientNet backbone, with the layer names of `keras.applications`, so that its published weights load by name.

Paper: Tan and Le, EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks,
https://arxiv.org/abs/1905.11946. Stochastic depth is omitted: EfficientDet trains without it, which also keeps the
training pass deterministic; so is the dropout before the classifier.

Shapes: B images, H rows, W columns, C channels, K outputs.
"""

import math
from dataclasses import dataclass

import keras
from keras import layers

from models.layers import normalization
from options.choices import POOLS

# Published weights expect RGB standardized with these ImageNet statistics of values in [0, 1].
IMAGENET_MEAN_RGB = (0.485, 0.456, 0.406)
IMAGENET_STD_RGB = (0.229, 0.224, 0.225)

# (width, depth) multipliers of the paper's table.
SCALING = {"b0": (1.0, 1.0), "b4": (1.4, 1.8)}


@dataclass(frozen=True)
class Stage:
    """One row of the paper's table 1: inverted residual blocks of the same kind, before scaling."""

    kernel: int
    repeats: int
    filters: int
    expand_ratio: int
    stride: int


STAGES = (
    Stage(kernel=3, repeats=1, filters=16, expand_ratio=1, stride=1),
    Stage(kernel=3, repeats=2, filters=24, expand_ratio=6, stride=2),
    Stage(kernel=5, repeats=2, filters=40, expand_ratio=6, stride=2),
    Stage(kernel=3, repeats=3, filters=80, expand_ratio=6, stride=2),
    Stage(kernel=5, repeats=3, filters=112, expand_ratio=6, stride=1),
    Stage(kernel=5, repeats=4, filters=192, expand_ratio=6, stride=2),
    Stage(kernel=3, repeats=1, filters=320, expand_ratio=6, stride=1),
)


@dataclass(frozen=True)
class Block:
    """One inverted residual block of a variant, and how the names of its layers start."""

    stage: Stage
    strides: int
    prefix: str


STEM_FILTERS = 32
TOP_FILTERS = 1280
PREFIXES = ("stem_", "block")  # of the names of all layers with weights
SQUEEZE_RATIO = 0.25


def build(variant: str, outputs: int, pool: str = "max") -> keras.Model:
    """Builds an untrained classifier of images of any size.

    Args:
        variant: "b0" or "b4".
        outputs: K, at least 1: logits of classes, or numbers to predict.
        pool: "max" or "average", over the whole map, before the linear layer; "average" in the paper.

    Returns:
        A model from image_BHWC, float32 RGB in [-1, 1], to `fc`, logits_BK, float32.

    Raises:
        ValueError: unknown pool, or no outputs.
    """
    if pool not in POOLS:
        raise ValueError(f"pool {pool!r} is unknown; choose one of {', '.join(POOLS)}")
    if outputs < 1:
        raise ValueError(f"outputs is {outputs}; a classifier needs at least 1")
    image_BHWC = layers.Input((None, None, 3), name="image")
    x = features(variant, image_BHWC)[-1]
    x = _conv(x, _scaled_filters(TOP_FILTERS, SCALING[variant][0]), 1, "top_conv")
    x = normalization("swish", name="top_bn")(x)
    pooling = layers.GlobalMaxPooling2D if pool == "max" else layers.GlobalAveragePooling2D
    x = pooling(name="pool", dtype="float32")(x)
    logits_BK = layers.Dense(outputs, name="fc", dtype="float32")(x)
    return keras.Model(image_BHWC, logits_BK, name=f"efficientnet{variant}")


def features(variant: str, image_BHWC: keras.KerasTensor) -> list[keras.KerasTensor]:
    """Adds the backbone to a graph.

    Args:
        variant: "b0" or "b4".
        image_BHWC: RGB in [-1, 1], 3 channels for each view; H and W are multiples of 32.

    Returns:
        The last features with stride 2, 4, 8, 16 and 32, finest first: what EfficientDet calls levels 1 to 5.
    """
    width, _ = SCALING[variant]
    x = imagenet_standardized(image_BHWC)
    x = _conv(x, _scaled_filters(STEM_FILTERS, width), 3, "stem_conv", strides=2)
    x = normalization("swish", name="stem_bn")(x)
    by_stride: dict[int, keras.KerasTensor] = {}
    stride = 2
    for block in blocks(variant):
        stage = block.stage
        filters = _scaled_filters(stage.filters, width)
        x = _inverted_residual(x, filters, stage.kernel, block.strides, stage.expand_ratio, block.prefix)
        stride *= block.strides
        by_stride[stride] = x  # the last of its stride stays
    return [by_stride[stride] for stride in (2, 4, 8, 16, 32)]


def blocks(variant: str) -> list[Block]:
    """Returns the blocks of "b0" or "b4" in order; only the first of a stage is strided."""
    _, depth = SCALING[variant]
    return [
        Block(stage, stage.stride if repeat == 0 else 1, f"block{number}{chr(ord('a') + repeat)}_")
        for number, stage in enumerate(STAGES, start=1)
        for repeat in range(math.ceil(depth * stage.repeats))
    ]


def imagenet_standardized(image_BHWC: keras.KerasTensor) -> keras.KerasTensor:
    """Turns RGB in [-1, 1] into ((x + 1) / 2 - mean) / std, the input of the published weights.

    `keras.applications` reaches the same in three steps: its files store the standard deviation as the variance of a
    Normalization layer, which divides by the square root of it; a Rescaling by 1 / sqrt(std) follows.
    """
    views = image_BHWC.shape[-1] // 3  # each is RGB
    scale = [0.5 / std for std in IMAGENET_STD_RGB] * views
    offset = [(0.5 - mean) / std for mean, std in zip(IMAGENET_MEAN_RGB, IMAGENET_STD_RGB, strict=True)] * views
    return layers.Rescaling(scale, offset, name="imagenet_standardisation")(image_BHWC)


def _scaled_filters(filters: int, width: float, divisor: int = 8) -> int:
    """Scales a channel count and rounds it to a multiple of `divisor`, never down by more than 10 %."""
    wanted = filters * width
    rounded = max(divisor, int(wanted + divisor / 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * wanted else rounded + divisor


def _inverted_residual(
    x_BHWC: keras.KerasTensor, filters: int, kernel: int, strides: int, expand_ratio: int, prefix: str
) -> keras.KerasTensor:
    """Expand, depthwise convolution, squeeze and excite, project; residual where the shape is kept."""
    filters_in = x_BHWC.shape[-1]
    x = x_BHWC
    if expand_ratio != 1:
        x = _conv(x, filters_in * expand_ratio, 1, f"{prefix}expand_conv")
        x = normalization("swish", name=f"{prefix}expand_bn")(x)
    # TensorFlow's SAME padding: for the even sizes that occur here, the asymmetric padding the weights were trained
    # with.
    x = layers.DepthwiseConv2D(
        kernel,
        strides=strides,
        padding="same",
        use_bias=False,
        depthwise_initializer=_initializer(),
        name=f"{prefix}dwconv",
    )(x)
    x = normalization("swish", name=f"{prefix}bn")(x)
    x = _squeeze_excite(x, max(1, int(filters_in * SQUEEZE_RATIO)), prefix)
    x = _conv(x, filters, 1, f"{prefix}project_conv")
    x = normalization(name=f"{prefix}project_bn")(x)
    if strides == 1 and filters_in == filters:
        x = layers.Add(name=f"{prefix}add")([x, x_BHWC])
    return x


def _squeeze_excite(x_BHWC: keras.KerasTensor, filters_squeezed: int, prefix: str) -> keras.KerasTensor:
    """Weighs channels by a gate computed from their means over the image."""
    gate = layers.GlobalAveragePooling2D(keepdims=True, name=f"{prefix}se_squeeze")(x_BHWC)
    gate = layers.Conv2D(
        filters_squeezed, 1, activation="swish", kernel_initializer=_initializer(), name=f"{prefix}se_reduce"
    )(gate)
    gate = layers.Conv2D(
        x_BHWC.shape[-1], 1, activation="sigmoid", kernel_initializer=_initializer(), name=f"{prefix}se_expand"
    )(gate)
    return layers.Multiply(name=f"{prefix}se_excite")([x_BHWC, gate])


def _conv(x_BHWC: keras.KerasTensor, filters: int, kernel: int, name: str, strides: int = 1) -> keras.KerasTensor:
    return layers.Conv2D(
        filters, kernel, strides=strides, padding="same", use_bias=False, kernel_initializer=_initializer(), name=name
    )(x_BHWC)


def _initializer() -> keras.initializers.Initializer:
    # A new instance for every layer: a shared one would repeat the same numbers.
    return keras.initializers.VarianceScaling(scale=2.0, mode="fan_out", distribution="truncated_normal")
