"""A streamed network against the same network on the whole image."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from streaming import Streamed


@contextmanager
def policy(name: str) -> Iterator[None]:
    """Layers made inside compute in this precision."""
    before = keras.config.dtype_policy(), keras.config.floatx()
    keras.config.set_dtype_policy(name)
    keras.config.set_floatx("float64" if name == "float64" else "float32")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before[0])
        keras.config.set_floatx(before[1])


def randomized(inputs: Any, outputs: Any, seed: int = 3) -> keras.Model:
    """A model whose every variable is random: gammas and variances near 1, none of them equal."""
    model = keras.Model(inputs, outputs)
    randomize(model, seed)
    return model


def randomize(model: keras.Model, seed: int = 3) -> None:
    """Gives every variable random numbers."""
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        numbers = rng.normal(size=variable.shape)
        positive = variable.name in ("gamma", "moving_variance", "fusion_weights")
        fan = max(1, int(np.prod(variable.shape[:-1])))
        variable.assign(1 + 0.3 * np.abs(numbers) if positive else numbers * (1.5 / fan**0.5))


def in_type(model: keras.Model, dtype: str) -> keras.Model:
    """A network of the same layers that all compute in a type, those with one of their own, too."""

    def clone(layer: Any) -> Any:
        return type(layer).from_config({**layer.get_config(), "dtype": dtype})

    image = keras.Input(model.input_shape[1:], dtype=dtype)
    return keras.models.clone_model(model, input_tensors=image, clone_function=clone)


def image_of(*shape: int, seed: int = 0) -> Any:
    """Random px (1, rows, columns, channels)."""
    return np.random.default_rng(seed).normal(size=(1, *shape))


@dataclass
class Compared:
    """Differences of a stream from the whole image, relative to the largest number of each.

    Attributes:
        output: of all outputs.
        variables: of the gradients of all variables.
        image: of the gradient of the image.
        bands: numbers of tiles along rows and columns, a pair per segment.
        stream: what was tested.
        live: every gradient of the whole image has numbers other than zero.
    """

    output: float
    variables: float
    image: float
    bands: list[tuple[int, int]]
    stream: Streamed
    live: bool


def compared(stream: Streamed, model: Any, image: Any, training: bool = False) -> Compared:
    """Streams an image forward and backward and compares all numbers with `model(image)` under a tape.

    Args:
        stream: the streamed network.
        model: from the image to what the stream returns.
        image: (B, H, W, C).
        training: the mode of the whole network.
    """
    rng = np.random.default_rng(5)
    x = tf.constant(image)
    with tf.GradientTape() as tape:
        tape.watch(x)
        outputs = as_list(model(x, training=training))
        given = [rng.normal(size=out.shape).astype(out.dtype.as_numpy_dtype) for out in outputs]
        loss = sum(tf.reduce_sum(out * g) for out, g in zip(outputs, given, strict=True))
    expected = tape.gradient(loss, [x, *(v.value for v in stream.variables)])
    found = as_list(stream.forward(image))
    gradients = stream.backward(given if len(given) > 1 else given[0], image_gradient=True)
    layout = stream.layout(image.shape[1:3])
    most = max((float(np.abs(g).max()) for g in expected[1:]), default=0.0)
    return Compared(
        max(difference(a, b) for a, b in zip(found, outputs, strict=True)),
        # A bias in front of batch statistics has a gradient of zero, and rounding.
        max(
            (difference(a, b, most / 1e3) for a, b in zip(gradients.variables, expected[1:], strict=True)), default=0.0
        ),
        difference(gradients.image, expected[0]),
        [(len(part.rows), len(part.columns)) for part in layout.parts],
        stream,
        all(np.any(np.asarray(g)) for g in expected),
    )


def as_list(value: Any) -> list[Any]:
    """One or several outputs as a list."""
    return list(value) if isinstance(value, (list, tuple)) else [value]


def difference(found: Any, expected: Any, least: float = 0.0) -> float:
    """Largest difference over the largest number."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), least, 1e-300))


def assert_exact(result: Compared, bands: Sequence[tuple[int, int]]) -> None:
    """The limits of float64: outputs to 1e-12, gradients to 1e-10."""
    assert result.bands == list(bands)
    assert result.live
    assert result.output < 1e-12
    assert result.variables < 1e-10
    assert result.image < 1e-10


def small_resnet(channels: int = 4, bottleneck: bool = False) -> keras.Model:
    """Stem, pool and four residual blocks as in ResNet, with its paddings: 3 and 1 on all sides."""
    layers = keras.layers
    image = keras.Input((None, None, 3))

    def conv(x: Any, filters: int, kernel: int, stride: int = 1) -> Any:
        if kernel > 1:
            x = layers.ZeroPadding2D(kernel // 2)(x)
        x = layers.Conv2D(filters, kernel, stride, use_bias=False)(x)
        return layers.BatchNormalization(epsilon=1e-5)(x)

    x = layers.ReLU(name="stem")(conv(image, channels, 7, 2))
    x = layers.MaxPooling2D(3, 2)(layers.ZeroPadding2D(1)(x))
    for number, (filters, stride) in enumerate([(1, 1), (2, 2), (3, 2), (4, 2)], start=1):
        y = layers.ReLU()(conv(x, filters * channels, 1 if bottleneck else 3, stride))
        y = conv(y, filters * channels, 3)
        if stride > 1:
            x = conv(x, filters * channels, 1, stride)
        x = layers.ReLU(name=f"layer{number}")(layers.Add()([x, y]))
    return randomized(image, x)
