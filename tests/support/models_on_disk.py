"""Checkpoints of runs and models of others on disk, and what they must answer."""

from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from artifacts.checkpoints import Checkpoints, State
from options.fields import as_json
from options.train import train_options
from training import optimizer
from training.step import scaled

DATA = ("--slide_path", "slides", "--label_path", "labels")


def run_options(*words: str) -> dict:
    return as_json(train_options([*DATA, "--img_size", "128", "--resolution", "0.5", *words]))


def disturb(model: keras.Model) -> None:
    """Statistics that a trained network has: at the start of training images hardly change the output."""
    rng = np.random.default_rng(1)
    for v in model.weights:
        if v.path.endswith(("gamma", "moving_variance")):
            v.assign(rng.uniform(0.5, 1.5, v.shape))
        elif v.path.endswith(("beta", "moving_mean")):
            v.assign(rng.normal(0, 0.3, v.shape))


def save(folder: Path, model: keras.Model, options: dict, name: str = "best.npz") -> Path:
    adam = optimizer.build("adam", model.trainable_variables, None, None)
    return Checkpoints(folder / "checkpoints").save(name, model, adam, State(24, 0.5, options))


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(2).integers(0, 256, shape, np.uint8)


def by_hand(model: keras.Model, image_BHWC: np.ndarray) -> np.ndarray:
    return tf.nn.softmax(model(scaled(tf.constant(image_BHWC)), training=False)).numpy()


def red(side: int | None = 4, channels: int = 3, activation: str | None = None, dtype: str = "float32") -> keras.Model:
    """Logits (red, 0): the answer can be computed on paper."""
    image = keras.Input((side, side, channels), dtype=dtype)
    layer = keras.layers.Conv2D(2, 1, activation=activation, name="logits")
    model = keras.Model(image, layer(image), name="red")
    kernel_11CK = np.zeros((1, 1, channels, 2))
    kernel_11CK[0, 0, 0, 0] = 1
    layer.set_weights([kernel_11CK, np.zeros(2)])
    return model


class Served(tf.Module):
    """A SavedModel made without Keras; `operation` is what it does besides."""

    def __init__(self, operation=lambda image: image) -> None:
        self.operation = operation
        self.weight = tf.Variable([[2.0, 0.0], [0.0, 0.0], [0.0, 0.0]])

    @tf.function(input_signature=[tf.TensorSpec((None, None, None, 3), tf.float32)])
    def serve(self, image):
        return {"out": tf.linalg.matmul(self.operation(image), self.weight)}


def write_served(module: tf.Module, folder: Path) -> None:
    tf.saved_model.save(module, str(folder), signatures={"serving_default": module.serve})
