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

FILTERS = (16, 32, 64, 128)


def unet(
    name: str,  # noqa: ARG001  # frame of models.build
    img_size: int,
    classes: int,
    channels: int = 3,
    precision: str = "float32",
) -> keras.Model:
    """Four levels, two convolutions each, as in `models.build`; 0.5 million parameters."""
    assert precision == "float32"
    x = image = keras.Input((img_size, img_size, channels))
    finer = []
    for filters in FILTERS[:-1]:
        x = _double(x, filters)
        finer.append(x)
        x = layers.MaxPooling2D()(x)
    x = _double(x, FILTERS[-1])
    for filters, skip in zip(FILTERS[-2::-1], finer[::-1], strict=True):
        x = layers.Concatenate()([layers.Conv2DTranspose(filters, 2, strides=2)(x), skip])
        x = _double(x, filters)
    return keras.Model(image, layers.Conv2D(classes, 1, name="logits")(x), name="unet")


def _double(x: keras.KerasTensor, filters: int) -> keras.KerasTensor:
    for _ in range(2):
        x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
    return x


if __name__ == "__main__":
    models.build = unet
    sys.exit(train.main())
