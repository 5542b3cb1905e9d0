"""Every kind of layer on tiles gives the numbers of the whole image."""

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

import streaming
from models import layers as ours
from models.deeplab import PointwiseConv2D
from streaming import Streamed
from tests.support.streams import assert_exact, compared, image_of, policy, randomized


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    with policy("float64"):
        yield


def chained(*chain: Any) -> keras.Model:
    image = keras.Input((None, None, 3))
    x = image
    for layer in chain:
        x = layer(x)
    return randomized(image, x)


def strided_same(x: Any) -> Any:
    """SAME padding of kernels of even and odd size, strides and dilations."""
    x = layers.Conv2D(4, (4, 5), strides=(2, 1), padding="same", activation="swish")(x)
    x = layers.Conv2D(4, 3, dilation_rate=(2, 3), padding="same")(x)
    return layers.DepthwiseConv2D(3, strides=2, padding="same", depth_multiplier=2)(x)


def separable(x: Any) -> Any:
    x = layers.SeparableConv2D(4, 5, strides=2, padding="same")(x)
    x = layers.SeparableConv2D(3, 3, dilation_rate=2)(x)
    return layers.Conv2D(4, 3, groups=1, strides=3, activation="tanh")(x)


def pools(x: Any) -> Any:
    a = layers.MaxPooling2D(3, 2, padding="same")(x)
    b = layers.AveragePooling2D((4, 3), 2, padding="same")(x)
    x = layers.Concatenate()([a, b])
    x = layers.MaxPooling2D((2, 3), 1)(x)
    return layers.AveragePooling2D(2)(x)


def pads(x: Any) -> Any:
    x = layers.ZeroPadding2D(((5, 1), (0, 7)))(x)
    x = layers.Conv2D(3, 3)(x)
    x = layers.Cropping2D(((2, 0), (1, 6)))(x)
    x = ours.FixedPadding(3, 2)(x)
    x = layers.Conv2D(3, 3, strides=2, dilation_rate=1)(x)
    return ops.pad(x, ((0, 0), (1, 0), (2, 2), (0, 0)))


def channels(x: Any) -> Any:
    x = layers.Dense(6, activation="softmax")(x)
    x = layers.LayerNormalization()(x)
    x = layers.PReLU(shared_axes=[1, 2])(x)
    x = layers.Rescaling([1.0, 2.0, 3.0, 0.5, 0.2, 0.1], 0.5)(x)
    x = layers.Softmax()(x)
    return layers.LeakyReLU()(layers.BatchNormalization()(x))


def merges(x: Any) -> Any:
    a = layers.Conv2D(4, 3, padding="same")(x)
    b = layers.Conv2D(4, 1)(x)
    x = layers.Add()([a, b])
    x = layers.Multiply()([x, a])
    x = layers.Subtract()([layers.Maximum()([x, a]), layers.Average()([a, b])])
    x = ops.relu(x) * 2.0 + ops.sigmoid(b)
    return ops.concatenate([x, ops.tanh(x) / 3.0, x * x], axis=-1)


def upsampled(x: Any) -> Any:
    a = layers.Conv2D(4, 3, strides=4, padding="same")(x)
    b = layers.UpSampling2D((2, 3))(a)
    b = layers.Conv2D(4, 3, padding="same")(b)
    b = layers.Conv2DTranspose(3, 3, strides=2, padding="same")(b)
    b = layers.Conv2DTranspose(3, (2, 5), strides=(3, 2), activation="tanh")(b)
    return layers.Conv2DTranspose(2, 4, strides=2, padding="same")(b)


def own(x: Any) -> Any:
    x = ours.FixedPadding(3)(x)
    x = layers.Conv2D(4, 3, strides=2)(x)
    x = ours.BatchNormalization("swish")(x)
    y = PointwiseConv2D(4)(x)
    y = ours.BatchNormalization("relu")(y)
    y = ours.FastFusion()([x, y, layers.Conv2D(4, 3, padding="same")(y)])
    return ours.RunningBatchNormalization()(y)


LOCAL = (strided_same, separable, pools, pads, channels, merges, upsampled, own)


@pytest.mark.parametrize("build", LOCAL)
def test_a_layer_on_tiles_is_the_layer_on_the_image(build: Any) -> None:
    image = keras.Input((None, None, 3))
    x = layers.Conv2D(3, 3, padding="same", activation="tanh")(image)  # a map whose outside is not zero
    model = randomized(image, build(x))
    result = compared(Streamed(model, tile=46), model, image_of(67, 101, 3))
    rows, columns = result.bands[0]
    assert rows >= 2
    assert columns >= 3
    assert_exact(result, result.bands)


def fixed_resizes() -> keras.Model:
    image = keras.Input((60, 84, 3))
    x = layers.Conv2D(4, 3, strides=4, padding="same")(image)
    x = ours.AlignCornersResize((31, 50), dtype="float64")(x)
    x = layers.Resizing(47, 23, interpolation="nearest")(x)
    return randomized(image, layers.Conv2D(2, 3, padding="same")(x))


def test_resizes_to_a_fixed_size() -> None:
    result = compared(Streamed(model := fixed_resizes(), tile=36), model, image_of(60, 84, 3))
    assert result.bands[0] >= (2, 3)
    assert_exact(result, result.bands)


@pytest.mark.parametrize("layer", [layers.Resizing(29, 95), layers.UpSampling2D((2, 3), interpolation="bilinear")])
def test_bilinear_resizes_to_the_single_precision_of_tensorflow(layer: Any) -> None:
    # TensorFlow computes them in single precision whatever the type of the map is.
    image = keras.Input((40, 56, 3))
    model = randomized(image, layer(layers.Conv2D(4, 3, padding="same")(image)))
    result = compared(Streamed(model, tile=21), model, image_of(40, 56, 3))
    assert result.bands[0] >= (2, 3)
    assert result.output < 1e-6
    assert max(result.variables, result.image) < 1e-6


def test_large_factors_and_a_map_of_one_cell_are_repeated() -> None:
    image = keras.Input((None, None, 3))
    x = layers.AveragePooling2D(16)(layers.Conv2D(3, 3, padding="same")(image))
    model = randomized(image, layers.Conv2D(2, 3, padding="same")(layers.UpSampling2D((9, 16))(x)))
    result = compared(Streamed(model, tile=60), model, image_of(70, 100, 3))
    assert result.bands[0] >= (2, 2)
    assert_exact(result, result.bands)


def test_a_window_wholly_in_the_padding() -> None:
    model = chained(layers.ZeroPadding2D(40), layers.Conv2D(3, 3, dilation_rate=5))
    result = compared(Streamed(model, tile=20), model, image_of(33, 50, 3))
    assert result.bands[0] >= (3, 3)
    assert_exact(result, result.bands)


class Doubled(layers.ReLU):
    """A subclass that does something else."""

    def call(self, inputs: Any) -> Any:
        return ops.flip(inputs, 1)


class Scaled(layers.Layer):
    """Local, but unknown."""

    def call(self, inputs: Any) -> Any:
        return inputs * 3.0


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (layers.GroupNormalization(2, name="gn"), "gn (GroupNormalization) cannot be streamed: its statistics are"),
        (layers.Softmax(axis=1, name="soft"), "soft (Softmax) cannot be streamed: it works along axis 1"),
        (layers.Dropout(0.1, name="drop"), "drop (Dropout) cannot be streamed: it draws numbers at random"),
        (Doubled(name="mine"), "mine (Doubled) cannot be streamed: where it looks is unknown; declare it by"),
        (layers.Permute((2, 1, 3), name="turn"), "turn (Permute) cannot be streamed: it moves cells"),
        (lambda x: ops.flip(x, 1), "flip (Flip) cannot be streamed: where this operation looks is unknown"),
        (lambda x: ops.mean(x, axis=1, keepdims=True), "mean (Mean) cannot be streamed: it reduces the axes [1]"),
        (layers.UpSampling2D(2, interpolation="bicubic", name="up"), "up (UpSampling2D) cannot be streamed: interp"),
    ],
)  # fmt: skip
def test_what_is_not_local_is_refused_by_name(layer: Any, words: str) -> None:
    # Keras numbers the names of operations over all tests of a process.
    keras.utils.clear_session()
    with pytest.raises(ValueError, match="cannot be streamed") as raised:
        Streamed(chained(layers.Conv2D(4, 3), layer, layers.Conv2D(2, 1)))
    assert words in str(raised.value)


def test_a_constant_of_the_size_of_an_image_is_refused() -> None:
    image = keras.Input((8, 9, 3))
    model = keras.Model(image, image + np.ones((1, 8, 9, 1)))
    with pytest.raises(ValueError, match=r"\(Add\) cannot be streamed: it takes a constant of shape \(1, 8, 9, 1\)"):
        Streamed(model)


def test_a_layer_declares_where_it_looks() -> None:
    model = chained(layers.Conv2D(4, 3), Scaled())
    with pytest.raises(ValueError, match=r"unknown; declare it by streaming\.register"):
        Streamed(model)
    streaming.register(Scaled, streaming.Rule)
    result = compared(Streamed(model, tile=12), model, image_of(23, 31, 3))
    assert_exact(result, [(3, 3)])


def test_random_layers_can_be_inactive() -> None:
    model = chained(layers.Conv2D(4, 3), layers.Dropout(0.5), layers.Conv2D(2, 3))
    result = compared(Streamed(model, tile=14, dropout="inactive"), model, image_of(23, 31, 3))
    assert_exact(result, [(2, 3)])
