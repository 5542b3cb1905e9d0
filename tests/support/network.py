"""A network small enough that a training step costs milliseconds; for tests of everything around the network."""

import keras

from models.layers import BatchNormalization


def network(classes=2, norm=False, seed=3, side=8, channels=3):
    """Two convolutions on (side, side, channels), logits at full resolution; with `norm` a BatchNorm between them."""
    keras.utils.set_random_seed(seed)
    image = keras.Input((side, side, channels))
    x = keras.layers.Conv2D(4, 3, padding="same", activation="swish", name="first")(image)
    if norm:
        x = BatchNormalization(name="norm")(x)
    return keras.Model(image, keras.layers.Conv2D(classes, 3, padding="same", name="logits")(x))
