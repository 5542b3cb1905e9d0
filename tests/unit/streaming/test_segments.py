"""Operations over the whole image are exact: their sums and maps are finished between segments."""

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

from models import deeplab, efficientnet
from models.layers import BatchNormalization
from streaming import Streamed
from streaming.nodes import Value
from tests.support.streams import Compared, assert_exact, compared, difference, image_of, policy, randomize, randomized
from tests.support.thin import thin_networks


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    with policy("float64"):
        yield


def kept(result: Compared) -> list[list[str]]:
    """Names of the maps that each segment leaves."""
    layout = next(iter(result.stream._layouts.values()))
    return [[value.name for value in part.segment.maps] for part in layout.parts]


def gated(x: Any, filters: int, name: str, flat: bool) -> Any:
    """An inverted residual block of EfficientNet: the gate is a mean over the whole image."""
    wide = layers.Conv2D(6, 1, activation="swish", name=f"{name}_expand")(x)
    wide = layers.DepthwiseConv2D(3, padding="same", activation="tanh", name=f"{name}_depthwise")(wide)
    gate = layers.GlobalAveragePooling2D(keepdims=not flat)(wide)
    if flat:
        gate = layers.Reshape((1, 1, 6))(gate)
    gate = layers.Conv2D(6, 1, activation="sigmoid")(layers.Conv2D(2, 1, activation="swish")(gate))
    return layers.Conv2D(filters, 1, name=f"{name}_project")(layers.Multiply()([wide, gate]))


@pytest.mark.parametrize("flat", [False, True])
def test_squeeze_and_excitation(flat: bool) -> None:
    image = keras.Input((None, None, 3))
    x = layers.Conv2D(2, 3, 2, padding="same", name="stem")(image)
    x = layers.Add(name="added")([x, gated(x, 2, "a", flat)])
    x = gated(x, 4, "b", flat)
    model = randomized(image, layers.Conv2D(3, 3, padding="same", name="last")(x))
    result = compared(Streamed(model, tile=(17, 9, 9)), model, image_of(29, 37, 3))
    assert min(result.bands) >= (2, 3)
    assert_exact(result, result.bands)
    # The smallest maps between the gates: the blocks' narrow ends, not the wide maps inside.
    assert kept(result) == [["stem"], ["added"], ["last"]]


def test_image_pooling_and_a_head_of_a_mean() -> None:
    image = keras.Input((None, None, 3))
    x = layers.Conv2D(4, 3, 2, padding="same")(image)
    mean = ops.mean(x, axis=(1, 2), keepdims=True)
    x = layers.Concatenate()([x * 1.0, x - mean])
    x = layers.Conv2D(4, 3, activation="relu")(x)
    model = randomized(image, layers.Dense(2)(layers.GlobalAveragePooling2D()(x)))
    result = compared(Streamed(model, tile=(17, 9)), model, image_of(29, 37, 3))
    assert result.bands[0] >= (2, 3)
    assert_exact(result, result.bands)


def test_a_maximum_over_the_image_skips_tiles_without_one() -> None:
    image = keras.Input((None, None, 3))
    x = layers.Conv2D(2, 3, padding="same", name="map")(image)
    model = randomized(image, layers.Dense(2)(layers.GlobalMaxPooling2D()(x)))
    result = compared(Streamed(model, tile=12), model, image_of(45, 61, 3))
    assert_exact(result, result.bands)
    assert kept(result)[0] == ["map"]
    assert 1 <= result.stream.counts.backward <= 2
    assert result.stream.counts.skipped >= 16


def normalized(x: Any) -> Any:
    x = layers.Conv2D(4, 3, 2, padding="same", name="first")(x)
    y = layers.ReLU()(layers.BatchNormalization(name="bn1")(x))
    y = layers.BatchNormalization(name="bn2", momentum=0.8)(layers.Conv2D(4, 3, padding="same")(y))
    return layers.Conv2D(2, 1)(layers.Add()([x, y]))


def test_batch_statistics_of_the_whole_image() -> None:
    image = keras.Input((None, None, 3))
    model = randomized(image, normalized(image))
    before = model.get_weights()
    stream = Streamed(model, tile=(15, 12, 12), batch_statistics=True)
    result = compared(stream, model, np.random.default_rng(0).normal(size=(2, 29, 37, 3)), training=True)
    assert len(result.bands) == 3
    assert result.bands[0] >= (2, 3)
    assert result.output < 1e-12
    assert result.variables < 1e-10
    assert result.image < 1e-10
    place = next(i for i, v in enumerate(model.weights) if v is model.get_layer("bn1").moving_mean)
    expected = model.get_weights()  # moved by the whole image's pass
    model.set_weights(before)
    stream.update_statistics()
    assert not np.array_equal(expected[place], before[place])
    assert max(difference(a, b) for a, b in zip(model.get_weights(), expected, strict=True)) < 1e-12


def test_batch_statistics_of_nested_models_whose_layers_have_one_name() -> None:
    def block(name: str) -> keras.Model:
        inner = keras.Input((None, None, 2))
        return keras.Model(inner, layers.BatchNormalization(name="norm")(layers.Conv2D(2, 1)(inner)), name=name)

    image = keras.Input((None, None, 2))
    model = randomized(image, block("second")(block("first")(image)))
    before = model.get_weights()
    stream = Streamed(model, tile=8, segments=["first/norm"], batch_statistics=True)
    with pytest.raises(ValueError, match="update_statistics needs a forward pass"):
        stream.update_statistics()
    image_BHWC = image_of(16, 16, 2)
    stream.forward(image_BHWC)
    stream.update_statistics()
    found = model.get_weights()
    model.set_weights(before)
    model(image_BHWC, training=True)
    assert max(difference(a, b) for a, b in zip(found, model.get_weights(), strict=True)) < 1e-12


def test_batch_statistics_of_our_layer_with_its_activation() -> None:
    with policy("float32"):
        image = keras.Input((None, None, 3))
        x = BatchNormalization("swish")(layers.Conv2D(4, 3, padding="same", use_bias=False)(image))
        model = randomized(image, layers.Conv2D(2, 3)(x))
        stream = Streamed(model, tile=16, batch_statistics=True)
        result = compared(stream, model, image_of(29, 37, 3).astype(np.float32), training=True)
    assert result.bands[0] >= (2, 3)
    assert result.output < 1e-5
    assert max(result.variables, result.image) < 1e-4


def test_frozen_normalization_needs_no_segment() -> None:
    image = keras.Input((None, None, 3))
    model = randomized(image, normalized(image))
    for name in ("bn1", "bn2"):
        model.get_layer(name).trainable = False
    stream = Streamed(model, tile=20, batch_statistics=True)
    result = compared(stream, model, image_of(29, 37, 3))
    assert len(result.bands) == 1
    assert_exact(result, result.bands)


def test_a_connection_around_two_segments_is_kept() -> None:
    image = keras.Input((None, None, 3))
    a = layers.Conv2D(2, 3, padding="same", name="a")(image)
    b = layers.Conv2D(4, 3, padding="same", name="b")(a)
    c = layers.Conv2D(4, 3, padding="same", name="c")(b)
    model = randomized(image, layers.Concatenate(name="end")([a, c]))
    result = compared(Streamed(model, tile=12, segments=["b", "c"]), model, image_of(29, 37, 3))
    assert kept(result) == [["a", "b"], ["c"], ["end"]]
    assert_exact(result, result.bands)


def test_without_a_backward_pass_maps_are_dropped() -> None:
    image = keras.Input((None, None, 3))
    x = image
    for name in "abcd":
        x = layers.Conv2D(2, 3, padding="same", name=name)(x)
    model = randomized(image, x)
    stream = Streamed(model, tile=12, segments=["a", "b", "c"])
    seen: list[int] = []
    zeros = stream._storage.zeros

    def counted(shape: Any, dtype: str) -> Any:
        seen.append(1)
        return zeros(shape, dtype)

    stream._storage.zeros = counted  # type: ignore[method-assign]
    out = stream.forward(image_of(29, 37, 3), backward=False)
    assert len(seen) == 4
    assert difference(out, model(image_of(29, 37, 3))) < 1e-12
    with pytest.raises(ValueError, match="backward needs a forward pass"):
        stream.backward(np.zeros(out.shape))


def test_the_efficientnet_backbone() -> None:
    with thin_networks():
        image = keras.Input((None, None, 3))
        model = keras.Model(image, efficientnet.features("b0", image))
    randomize(model)
    result = compared(Streamed(model, tile=60), model, image_of(107, 143, 3))
    assert len(result.bands) == 7  # six gates
    assert result.bands[0] >= (2, 3)
    assert_exact(result, result.bands)


def test_the_deeplab_backbone() -> None:
    with thin_networks():
        image = keras.Input((None, None, 3))
        model = keras.Model(image, deeplab._xception65(image))
    randomize(model)
    middle = ("entry_flow_block2_add", "entry_flow_block3_add")
    result = compared(Streamed(model, tile=(80, 16, 13), segments=middle), model, image_of(171, 203, 3))
    assert result.bands[0] >= (3, 3)
    assert result.bands[1] >= (2, 2)
    assert_exact(result, result.bands)


def test_values_are_told_apart_by_identity() -> None:
    assert Value(0, "a", 1, 4, "float32") != Value(0, "a", 1, 4, "float32")
