"""A network small enough that a training step costs milliseconds; for tests of everything around the network."""

import keras
import numpy as np

from models.layers import BatchNormalization


def network(classes=2, norm=False, seed=3, side=8, channels=3):
    """Two convolutions on (side, side, channels), logits at full resolution; with `norm` a BatchNorm between them."""
    keras.utils.set_random_seed(seed)
    image = keras.Input((side, side, channels))
    x = keras.layers.Conv2D(4, 3, padding="same", activation="swish", name="first")(image)
    if norm:
        x = BatchNormalization(name="norm")(x)
    return keras.Model(image, keras.layers.Conv2D(classes, 3, padding="same", name="logits")(x))


def batch(patches=2, side=8, ignored=5):
    rng = np.random.default_rng(11)
    image_BHWC = rng.integers(0, 256, (patches, side, side, 3)).astype(np.uint8)
    label_BHW = rng.integers(0, 2, (patches, side, side)).astype(np.uint8)
    label_BHW[0, 0, :ignored] = 255
    return image_BHWC, label_BHW
