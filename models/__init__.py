"""Segmentation networks by name, with one interface: images in, full-resolution class logits out.

Importing this package registers its custom layers, so that `keras.models.load_model` opens a saved model after
`import models`.

Shapes: B images, H rows, W columns, C channels, K classes. Every network maps image_BHWC, float32 RGB in [-1, 1], to
logits_BHWK, float32. C is 3 for each view: a context view at a coarser spacing adds 3.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras

from models import deeplab, efficientdet, efficientnet
from models.fused import Total
from models.layers import BatchNormalization, GroupNormalization, RunningBatchNormalization, normalized_by
from models.recompute import Recomputed
from options.choices import MODELS, PRECISIONS, SIZE_MULTIPLE

# How the names of backbone layers start, by network.
BACKBONE_PREFIXES = {
    "effdetd0": efficientnet.PREFIXES,
    "effdetd4": efficientnet.PREFIXES,
    "deeplab": deeplab.BACKBONE_PREFIXES,
}

SEGMENTS = {"effdetd0": efficientdet.SEGMENTS, "effdetd4": efficientdet.SEGMENTS, "deeplab": deeplab.SEGMENTS}

# Networks whose every layer takes images of any size; DeepLab's resizing layers are made for one.
ANY_SIZE = ("effdetd0", "effdetd4")

_KEPT_WHEN_STREAMED = {
    "effdetd0": efficientdet.KEPT_WHEN_STREAMED,
    "effdetd4": efficientdet.KEPT_WHEN_STREAMED,
    "deeplab": deeplab.KEPT_WHEN_STREAMED,
}
_KEPT_IN_TRAINING = _KEPT_WHEN_STREAMED | {"deeplab": deeplab.KEPT_IN_TRAINING}


def build(
    name: str, img_size: int | tuple[int, int] | None, classes: int, channels: int = 3, precision: str = "float32"
) -> keras.Model:
    """Builds an untrained network.

    Args:
        name: One of `MODELS`: "effdetd0", "effdetd4" (EfficientDet segmentation), "deeplab" (DeepLabV3+, Xception-65).
        img_size: Side of the square field of view in output pixels, a positive multiple of 128, or rows and columns
            that are; None for a network of `ANY_SIZE` that takes images of any such sides. No weight depends on it.
        classes: Number of classes K, at least 2.
        channels: Channels C of the image, 3 for each view.
        precision: One of `PRECISIONS`, of what is computed and kept between layers; weights, statistics and logits are
            float32.

    Returns:
        A model from image_BHWC (B, rows, columns, channels), float32 in [-1, 1], to logits_BHWK (B, rows, columns,
        classes), float32.

    Raises:
        ValueError: Unknown name, no size for a network that needs one, a size that is not a positive multiple of 128,
            channels that are not, of 3, or fewer than 2 classes.
    """
    if name not in MODELS:
        raise ValueError(f"model {name!r} is unknown; choose one of {', '.join(MODELS)}")
    hw = (img_size, img_size) if img_size is None or isinstance(img_size, int) else img_size
    for size in hw:
        if size is not None and (size < SIZE_MULTIPLE or size % SIZE_MULTIPLE):
            _refuse_size(size)
    if classes < 2:
        raise ValueError(f"classes is {classes}; a segmentation needs at least 2 (background and one more)")
    if channels < 3 or channels % 3:
        raise ValueError(f"channels is {channels}; every view of a patch has 3")
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r} is unknown; choose one of {', '.join(PRECISIONS)}")
    with policy(precision):
        if name in ANY_SIZE:
            return efficientdet.build(name, hw, classes, channels)
        rows, columns = hw
        if rows is None or columns is None:
            raise ValueError(f"{name} needs an img_size; {', '.join(ANY_SIZE)} can be built without")
        return deeplab.build((rows, columns), classes, channels)


def kept_when_streamed(model: keras.Model, training: bool = False) -> tuple[str, ...]:
    """Names of layers whose maps are worth keeping when a network is streamed (`streaming.Streamed`, segments).

    Args:
        model: A network of `build`, or another, of which none are known.
        training: Forward and backward, not forward only.
    """
    pattern = (_KEPT_IN_TRAINING if training else _KEPT_WHEN_STREAMED).get(model.name)
    if pattern is None:
        return ()
    return tuple(layer.name for layer in model.layers if re.fullmatch(pattern, layer.name))


def _refuse_size(img_size: int) -> None:
    below = img_size // SIZE_MULTIPLE * SIZE_MULTIPLE
    near = [size for size in (below, below + SIZE_MULTIPLE) if size > 0] or [SIZE_MULTIPLE]
    raise ValueError(
        f"img_size {img_size} is not a positive multiple of {SIZE_MULTIPLE}; "
        f"the nearest allowed: {', '.join(str(size) for size in near)}"
    )


def in_float32(model: keras.Model) -> keras.Model:
    """A network of `build` with the same weights that computes in float32; itself if it does already."""
    if model.dtype_policy.name == "float32":
        return model
    _, rows, columns, channels = model.input_shape
    size = None if rows is None or columns is None else (rows, columns)
    with normalized_by(norm_of(model)):
        plain = build(model.name, size, model.output_shape[-1], channels)
    plain.set_weights(model.get_weights())
    return plain


def norm_of(model: keras.Model) -> str:
    """Returns the normalization of a network, one of `NORMS`."""
    return "group" if any(isinstance(layer, GroupNormalization) for layer in model.layers) else "batch"


@contextmanager
def policy(precision: str) -> Iterator[None]:
    """Layers made inside compute in this precision, one of `PRECISIONS`."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision if precision == "float32" else f"mixed_{precision}")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def freeze(model: keras.Model, batch_norm: bool, backbone: bool) -> int:
    """Takes layers out of training: their weights stay, and batch normalization uses its moving statistics.

    Args:
        model: A network of `build`.
        batch_norm: Every batch normalization.
        backbone: Every layer of the pre-trained backbone.

    Returns:
        The number of parameters taken out.
    """
    norms = (keras.layers.BatchNormalization, RunningBatchNormalization)
    before = _trainable(model)
    for layer in model.layers:
        in_backbone = layer.name.startswith(BACKBONE_PREFIXES[model.name])
        if (batch_norm and isinstance(layer, norms)) or (backbone and in_backbone):
            layer.trainable = False
    return before - _trainable(model)


def _trainable(model: keras.Model) -> int:
    """Number of trainable parameters."""
    return sum(int(weight.value.shape.num_elements()) for weight in model.trainable_weights)


def training_pass(model: keras.Model, recompute: str) -> Callable[..., Any]:
    """The training pass of a network, called like the network itself.

    Args:
        model: A network of `build`.
        recompute: One of `RECOMPUTATIONS`: what the backward pass computes again to save memory. "none": nothing;
            "blocks": the inside of blocks; "fine": that, in parts which are again computed again.
    """
    if recompute == "none":
        network: Callable[..., Any] = model
        return network
    segments = SEGMENTS[model.name]
    return Recomputed(model, segments if recompute == "fine" else segments[:1])


def synchronize(model: keras.Model, total: Total) -> int:
    """Lets every batch normalization of a network take the statistics of all ranks' batches together.

    `RunningBatchNormalization` needs none of it: it normalises with moving statistics, which are equal on all ranks.

    Args:
        model: A network of `build`.
        total: Sums tensors over ranks.

    Returns:
        The number of layers.
    """
    norms = [layer for layer in model.layers if isinstance(layer, BatchNormalization)]
    for layer in norms:
        layer.total = total
    return len(norms)
