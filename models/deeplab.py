"""DeepLabV3+ with the aligned Xception-65 of the TensorFlow model zoo; layer names of the public Keras weight files.

Papers: Chen et al., Encoder-Decoder with Atrous Separable Convolution for Semantic Image Segmentation,
https://arxiv.org/abs/1802.02611 (figures 2 and 4); Chollet, Xception, https://arxiv.org/abs/1610.02357.

The public Keras file holds the model zoo's arrays. Its own graph pads the first convolution by SAME, off by a pixel for
even sizes; padding here is fixed everywhere, as in the zoo's graph, where the weights were trained.

Output stride 16. Differences from the public weights' training set-up, none of which changes inference: batch
normalization has momentum 0.99 instead of 0.9997, which would still remember its start after ten thousand steps, and
`image_pooling_BN` normalises with its moving statistics in training too (see `RunningBatchNormalization`), because a
pooled map of one image has no variance.

With one image per normalization group, `concat_projection_BN` still removes what is constant over that image, the
pooled branch
included: the branch learns from two images on (batch size 2, or batch statistics joined over ranks).

Shapes: B images, H rows, W columns, C channels, K classes.
"""

import keras
from keras import layers

from models.layers import (
    AlignCornersResize,
    FixedPadding,
    PointwiseConv2D,
    RunningBatchNormalization,
    normalization,
)
from models.recompute import naming

MIDDLE_UNITS = 16
BACKBONE_PREFIXES = ("entry_flow_", "middle_flow_", "exit_flow_")
ASPP_RATES = (6, 12, 18)
# When the network is streamed: behind the entry flow a cell looks at 91 px, at the end of the backbone at 1915.
KEPT_WHEN_STREAMED = "entry_flow_block3_add"
# In training every tile keeps what its backward pass needs, so tiles of 728 channels are small, and halos cost more.
KEPT_IN_TRAINING = r"entry_flow_block3_add|middle_flow_unit_(4|8|12|16)_add|concat_projection_relu"
BACKBONE_EPSILON = 1e-3
DECODER_EPSILON = 1e-5
MOMENTUM = 0.99

# What is computed again as one (see models.recompute): the blocks of the papers' figures; in those of high resolution
# single convolutions, and their halves. Dropout is in none.
_LARGE = r"(entry_flow_block[12]_separable_conv\d|decoder_conv\d)"
SEGMENTS = (
    naming(
        {
            r"(entry_flow_conv1|(?:entry|exit)_flow_block\d|middle_flow_unit_\d+|image_pooling|aspp\d)": r"\1",
            r"aspp_concat|concat_projection": "projection",
            r"decoder_(resize|concat|conv0)|feature_projection0": "decoder 0",
            r"decoder_conv1": "decoder 1",
        }
    ),
    naming(
        {
            _LARGE: r"\1",
            r"(entry_flow_conv1_\d)": r"\1",
            r".*_shortcut": "shortcut",
            r"feature_projection0": "feature projection",
        }
    ),
    naming({_LARGE + "_(relu|pad|depthwise)": "depthwise", _LARGE + "_pointwise": "pointwise"}),
)


def build(hw: tuple[int, int], classes: int, channels: int = 3) -> keras.Model:
    """Builds DeepLabV3+ Xception-65 for images of `hw` (rows, columns); see `models.build` for the others."""
    image = keras.Input((*hw, channels), dtype="float32", name="image")
    fine, coarse = _xception65(image)
    x = _aspp(coarse)
    x = _decoder(x, fine)
    x = layers.Conv2D(classes, 1, name="logits")(x)
    logits = AlignCornersResize(hw, name="logits_resize")(x)
    return keras.Model(image, logits, name="deeplab")


def _xception65(image_BHWC: keras.KerasTensor) -> tuple[keras.KerasTensor, keras.KerasTensor]:
    """Returns the features of stride 4 (256 channels, before their ReLU) and of stride 16 (2048 channels)."""
    x = _conv_bn_relu(image_BHWC, 32, "entry_flow_conv1_1", kernel=3, stride=2)
    x = _conv_bn_relu(x, 64, "entry_flow_conv1_2", kernel=3)
    x, _ = _block(x, (128, 128, 128), "entry_flow_block1", shortcut="conv", stride=2)
    x, fine = _block(x, (256, 256, 256), "entry_flow_block2", shortcut="conv", stride=2)
    x, _ = _block(x, (728, 728, 728), "entry_flow_block3", shortcut="conv", stride=2)
    for unit in range(1, MIDDLE_UNITS + 1):
        x, _ = _block(x, (728, 728, 728), f"middle_flow_unit_{unit}", shortcut="sum")
    x, _ = _block(x, (728, 1024, 1024), "exit_flow_block1", shortcut="conv")
    x, _ = _block(x, (1536, 1536, 2048), "exit_flow_block2", shortcut="none", rate=2, activate_inside=True)
    return fine, x


def _block(
    x_BHWC: keras.KerasTensor,
    filters: tuple[int, int, int],
    prefix: str,
    shortcut: str,
    stride: int = 1,
    rate: int = 1,
    activate_inside: bool = False,
) -> tuple[keras.KerasTensor, keras.KerasTensor]:
    """One Xception block: three separable convolutions, the last one strided, and a shortcut around them.

    Args:
        x_BHWC: Input features.
        filters: Channels after each convolution.
        prefix: Start of the layer names.
        shortcut: "conv" (1x1 convolution of the input), "sum" (the input itself) or "none".
        stride: Of the third convolution and of the shortcut.
        rate: Dilation of the depthwise convolutions.
        activate_inside: ReLU after each of the two halves of a separable convolution, instead of one before it.

    Returns:
        The block's output, and the output of its second convolution (input size, DeepLab's decoder takes it).
    """
    x = x_BHWC
    outputs = []
    for index, count in enumerate(filters, start=1):
        name = f"{prefix}_separable_conv{index}"
        x = _separable(x, count, name, stride if index == 3 else 1, rate, activate_inside, BACKBONE_EPSILON)
        outputs.append(x)
    if shortcut == "conv":
        around = _conv_bn(x_BHWC, filters[-1], f"{prefix}_shortcut", stride=stride)
        x = layers.Add(name=f"{prefix}_add")([x, around])
    elif shortcut == "sum":
        x = layers.Add(name=f"{prefix}_add")([x, x_BHWC])
    return x, outputs[1]


def _separable(
    x_BHWC: keras.KerasTensor,
    filters: int,
    prefix: str,
    stride: int = 1,
    rate: int = 1,
    activate_inside: bool = True,
    epsilon: float = DECODER_EPSILON,
) -> keras.KerasTensor:
    """Depthwise 3x3 (atrous) and pointwise 1x1 convolution, each with batch normalization; arguments as in `_block`."""
    x = x_BHWC
    if not activate_inside:
        x = layers.ReLU(name=f"{prefix}_relu")(x)
    padding = "same"
    if stride > 1:
        x = FixedPadding(3, rate, name=f"{prefix}_pad")(x)
        padding = "valid"
    x = layers.DepthwiseConv2D(
        3, strides=stride, dilation_rate=rate, padding=padding, use_bias=False, name=f"{prefix}_depthwise"
    )(x)
    x = _bn(x, f"{prefix}_depthwise_BN", epsilon)
    if activate_inside:
        x = layers.ReLU(name=f"{prefix}_depthwise_relu")(x)
    x = _conv_bn(x, filters, f"{prefix}_pointwise", epsilon=epsilon)
    return layers.ReLU(name=f"{prefix}_pointwise_relu")(x) if activate_inside else x


def _aspp(x_BHWC: keras.KerasTensor) -> keras.KerasTensor:
    """Atrous spatial pyramid pooling: image pooling, 1x1 and three atrous convolutions, joined, projected to 256."""
    pooled = layers.GlobalAveragePooling2D(keepdims=True, name="image_pooling_mean")(x_BHWC)
    pooled = layers.Conv2D(256, 1, use_bias=False, name="image_pooling")(pooled)
    pooled = RunningBatchNormalization(epsilon=DECODER_EPSILON, name="image_pooling_BN")(pooled)
    pooled = layers.ReLU(name="image_pooling_relu")(pooled)
    # Bilinear interpolation of a single pixel is a repetition.
    pooled = layers.UpSampling2D(x_BHWC.shape[1:3], interpolation="nearest", name="image_pooling_resize")(pooled)
    branches = [pooled, _conv_bn_relu(x_BHWC, 256, "aspp0", epsilon=DECODER_EPSILON)]
    branches += [_separable(x_BHWC, 256, f"aspp{i}", rate=rate) for i, rate in enumerate(ASPP_RATES, start=1)]
    x = layers.Concatenate(name="aspp_concat")(branches)
    x = _conv_bn_relu(x, 256, "concat_projection", epsilon=DECODER_EPSILON)
    return layers.Dropout(0.1, name="concat_dropout")(x)


def _decoder(x_BHWC: keras.KerasTensor, fine_BHWC: keras.KerasTensor) -> keras.KerasTensor:
    """Brings the context features to stride 4 and refines them with 48 channels of the backbone's."""
    x = AlignCornersResize(fine_BHWC.shape[1:3], name="decoder_resize")(x_BHWC)
    fine = _conv_bn_relu(fine_BHWC, 48, "feature_projection0", epsilon=DECODER_EPSILON)
    x = layers.Concatenate(name="decoder_concat")([x, fine])
    x = _separable(x, 256, "decoder_conv0")
    return _separable(x, 256, "decoder_conv1")


def _conv_bn_relu(
    x_BHWC: keras.KerasTensor,
    filters: int,
    name: str,
    kernel: int = 1,
    stride: int = 1,
    epsilon: float = BACKBONE_EPSILON,
) -> keras.KerasTensor:
    x = _conv_bn(x_BHWC, filters, name, kernel, stride, epsilon)
    return layers.ReLU(name=f"{name}_relu")(x)


def _conv_bn(
    x_BHWC: keras.KerasTensor,
    filters: int,
    name: str,
    kernel: int = 1,
    stride: int = 1,
    epsilon: float = BACKBONE_EPSILON,
) -> keras.KerasTensor:
    x = x_BHWC
    if kernel == stride == 1:
        return _bn(PointwiseConv2D(filters, name=name)(x), f"{name}_BN", epsilon)
    padding = "same"
    if stride > 1 and kernel > 1:
        x = FixedPadding(kernel, name=f"{name}_pad")(x)
        padding = "valid"
    x = layers.Conv2D(filters, kernel, strides=stride, padding=padding, use_bias=False, name=name)(x)
    return _bn(x, f"{name}_BN", epsilon)


def _bn(x_BHWC: keras.KerasTensor, name: str, epsilon: float) -> keras.KerasTensor:
    return normalization(momentum=MOMENTUM, epsilon=epsilon, name=name)(x_BHWC)
