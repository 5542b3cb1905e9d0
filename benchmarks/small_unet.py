"""train.py with a small U-Net in place of its networks: minutes instead of hours, for studies of sampling.

python benchmarks/small_unet.py OPTIONS of train.py. Everything but the network is that of train.py.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
# As train.py does before TensorFlow is imported, which here comes first.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
from keras import layers

import models
import train
from models.layers import normalization

FILTERS = (16, 32, 64, 128)


def unet(
    name: str,  # noqa: ARG001  # frame of models.build
    img_size: int,
    classes: int,
    channels: int = 3,
    precision: str = "float32",
    *,
    filters: tuple[int, ...] = FILTERS,
    stem: tuple[int, ...] = (),
) -> keras.Model:
    """U-Net of two convolutions per level, as in `models.build`; with the defaults four levels, 0.5 million parameters.

    Args:
        name: Not used.
        img_size: Side of the square input, px.
        classes: Number of classes K.
        channels: Channels of the image.
        precision: "float32".
        filters: Of each level, finest first.
        stem: Filters of convolutions of stride 2 before the finest level; the logits are enlarged by as much.
    """
    assert precision == "float32"
    x = image = keras.Input((img_size, img_size, channels))
    for width in stem:
        x = _convolved(x, width, strides=2)
    finer = []
    for width in filters[:-1]:
        x = _double(x, width)
        finer.append(x)
        x = layers.MaxPooling2D()(x)
    x = _double(x, filters[-1])
    for width, skip in zip(filters[-2::-1], finer[::-1], strict=True):
        x = layers.Concatenate()([layers.Conv2DTranspose(width, 2, strides=2)(x), skip])
        x = _double(x, width)
    logits = layers.Conv2D(classes, 1, name="logits")(x)
    if stem:
        logits = layers.UpSampling2D(2 ** len(stem), interpolation="bilinear")(logits)
    return keras.Model(image, logits, name="unet")


def _double(x: keras.KerasTensor, filters: int) -> keras.KerasTensor:
    return _convolved(_convolved(x, filters), filters)


def _convolved(x: keras.KerasTensor, filters: int, strides: int = 1) -> keras.KerasTensor:
    x = layers.Conv2D(filters, 3, strides, padding="same", use_bias=False)(x)
    return normalization("relu")(x)


if __name__ == "__main__":
    models.build = unet
    sys.exit(train.main())
