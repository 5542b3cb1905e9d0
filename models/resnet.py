"""ResNet-18, -34 and -50 as torchvision and timm have them, so that their published weights load by name.

Paper: He et al., Deep Residual Learning for Image Recognition, https://arxiv.org/abs/1512.03385. As in torchvision, the
strided convolution of a bottleneck is the one of 3x3 (ResNet 1.5), and every padding is the same on all sides,
whatever the size of the map: TensorFlow's SAME would shift maps of even size by a pixel against the trained weights.

Names are torchvision's with "_" for ".": `layer2.0.downsample.0` is the layer `layer2_0_downsample_0`. The outputs of
blocks are `layer1_0` ...: places where a stream may be cut.

Shapes: B images, H rows, W columns, C channels, K outputs.
"""

from dataclasses import dataclass

import keras
from keras import layers

from models.efficientnet import imagenet_standardized
from models.layers import FixedPadding, normalization
from options.choices import POOLS


@dataclass(frozen=True)
class Variant:
    """One column of the paper's table 1.

    Attributes:
        blocks: of stage 1 to 4.
        bottleneck: blocks of 1x1, 3x3 and 1x1 convolutions, the last with four times the filters.
    """

    blocks: tuple[int, int, int, int]
    bottleneck: bool = False


VARIANTS = {
    "resnet18": Variant((2, 2, 2, 2)),
    "resnet34": Variant((3, 4, 6, 3)),
    "resnet50": Variant((3, 4, 6, 3), bottleneck=True),
}
STEM_FILTERS = 64
EXPANSION = 4


def build(
    name: str,
    outputs: int,
    pool: str = "max",
    channels: int = 3,
    img_size: int | tuple[int, int] | None = None,
    width: int = STEM_FILTERS,
) -> keras.Model:
    """Builds an untrained classifier of images.

    Args:
        name: one of `VARIANTS`.
        outputs: K, at least 1: logits of classes, or numbers to predict.
        pool: "max" or "average", over the whole map, before the linear layer. torchvision's is "average"; for a
            finding that fills a small part of a large image, "max" keeps it from being diluted.
        channels: C of the image, 3 for each view.
        img_size: rows and columns of the input, px; None for any.
        width: filters of the stem; 64 in the paper. Thinner networks serve tests.

    Returns:
        A model from image_BHWC, float32 RGB in [-1, 1], to `fc`, logits_BK, float32.

    Raises:
        ValueError: unknown name or pool, no outputs, or channels that are not a multiple of 3.
    """
    if name not in VARIANTS:
        raise ValueError(f"network {name!r} is unknown; choose one of {', '.join(VARIANTS)}")
    if pool not in POOLS:
        raise ValueError(f"pool {pool!r} is unknown; choose one of {', '.join(POOLS)}")
    if outputs < 1:
        raise ValueError(f"outputs is {outputs}; a classifier needs at least 1")
    if channels < 3 or channels % 3:
        raise ValueError(f"channels is {channels}; every view of an image has 3")
    rows, columns = (img_size, img_size) if img_size is None or isinstance(img_size, int) else img_size
    image_BHWC = layers.Input((rows, columns, channels), name="image")
    x = features(name, image_BHWC, width)
    pooling = layers.GlobalMaxPooling2D if pool == "max" else layers.GlobalAveragePooling2D
    x = pooling(name="pool", dtype="float32")(x)
    # torch's Linear starts from a uniform distribution of the same kind; published classifiers replace it anyway.
    logits_BK = layers.Dense(outputs, name="fc", dtype="float32")(x)
    return keras.Model(image_BHWC, logits_BK, name=name)


def features(name: str, image_BHWC: keras.KerasTensor, width: int = STEM_FILTERS) -> keras.KerasTensor:
    """Adds the convolutional part to a graph.

    Args:
        name: one of `VARIANTS`.
        image_BHWC: RGB in [-1, 1].
        width: filters of the stem.

    Returns:
        Features at 1/32 of the image's rows and columns, rounded up; 8 x width channels, 32 x width of "resnet50".
    """
    variant = VARIANTS[name]
    x = imagenet_standardized(image_BHWC)
    x = _conv_bn(x, width, 7, "conv1", "bn1", strides=2, activation="relu")
    # Padded with zeros instead of -infinity: behind the ReLU no value is below 0, so the maximum is the same.
    x = layers.MaxPooling2D(3, 2, name="maxpool")(FixedPadding(3, name="maxpool_pad")(x))
    block = _bottleneck if variant.bottleneck else _basic_block
    for stage, repeats in enumerate(variant.blocks):
        for repeat in range(repeats):
            strides = 2 if stage > 0 and repeat == 0 else 1
            x = block(x, width * 2**stage, strides, f"layer{stage + 1}_{repeat}")
    return x


def _basic_block(x_BHWC: keras.KerasTensor, filters: int, strides: int, name: str) -> keras.KerasTensor:
    """Two convolutions of 3x3."""
    x = _conv_bn(x_BHWC, filters, 3, f"{name}_conv1", f"{name}_bn1", strides, "relu")
    x = _conv_bn(x, filters, 3, f"{name}_conv2", f"{name}_bn2")
    return _joined(x, _shortcut(x_BHWC, filters, strides, name), name)


def _bottleneck(x_BHWC: keras.KerasTensor, filters: int, strides: int, name: str) -> keras.KerasTensor:
    """Convolutions of 1x1, 3x3 and 1x1."""
    x = _conv_bn(x_BHWC, filters, 1, f"{name}_conv1", f"{name}_bn1", activation="relu")
    x = _conv_bn(x, filters, 3, f"{name}_conv2", f"{name}_bn2", strides, "relu")
    x = _conv_bn(x, EXPANSION * filters, 1, f"{name}_conv3", f"{name}_bn3")
    return _joined(x, _shortcut(x_BHWC, EXPANSION * filters, strides, name), name)


def _shortcut(x_BHWC: keras.KerasTensor, filters: int, strides: int, name: str) -> keras.KerasTensor:
    """The block's input, projected where its shape changes."""
    if strides == 1 and x_BHWC.shape[-1] == filters:
        return x_BHWC
    return _conv_bn(x_BHWC, filters, 1, f"{name}_downsample_0", f"{name}_downsample_1", strides)


def _joined(x_BHWC: keras.KerasTensor, shortcut_BHWC: keras.KerasTensor, name: str) -> keras.KerasTensor:
    """ReLU of the sum; the block's output."""
    return layers.Activation("relu", name=name)(layers.Add(name=f"{name}_add")([x_BHWC, shortcut_BHWC]))


def _conv_bn(
    x_BHWC: keras.KerasTensor,
    filters: int,
    kernel: int,
    conv: str,
    norm: str,
    strides: int = 1,
    activation: str | None = None,
) -> keras.KerasTensor:
    """Convolution padded by kernel // 2 on every side, batch normalization as torch has it, activation."""
    if kernel > 1 and strides > 1:
        x_BHWC = FixedPadding(kernel, name=f"{conv}_pad")(x_BHWC)
    padding = "valid" if strides > 1 else "same"
    x = layers.Conv2D(filters, kernel, strides, padding, use_bias=False, kernel_initializer="he_normal", name=conv)(
        x_BHWC
    )
    # torch's momentum 0.1 is Keras' 0.9.
    return normalization(activation, momentum=0.9, epsilon=1e-5, name=norm)(x)
