"""Intermediate results that the forward pass keeps: which tiles have them, and gradients are the same with them."""

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from models.layers import BatchNormalization
from streaming import Streamed
from streaming.costs import Costs, kept_tiles, peak_bytes
from tests.support.ranks import on_ranks
from tests.support.streams import difference, image_of, policy, randomized

PLENTY = 2**30


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    with policy("float64"):
        yield


def network() -> keras.Model:
    """Two segments, if "middle" is kept; the last normalization is frozen."""
    image = keras.Input((None, None, 3))
    x = layers.Conv2D(4, 3, 2, "same", activation="tanh", name="first")(image)
    x = BatchNormalization("relu", name="norm")(x)
    x = layers.Conv2D(3, 3, padding="same", activation="tanh", name="middle")(x)
    x = layers.Conv2D(5, 3, padding="same", name="third")(x)
    x = BatchNormalization(None, name="frozen", trainable=False)(x)
    return randomized(image, layers.Conv2D(2, 3, 2, "same", name="last")(layers.ReLU()(x)))


def expected(model: keras.Model, image: Any) -> tuple[Any, list[Any]]:
    """The gradient of the late map's squares, and of all variables, of the whole image."""
    with tf.GradientTape() as tape:
        late = model(tf.constant(image), training=False)
        loss = tf.reduce_sum(late**2) / 2
    return late, tape.gradient(loss, [v.value for v in model.trainable_variables])


def assert_same(stream: Streamed, model: keras.Model, image: Any) -> None:
    late, gradients = expected(model, image)
    found = stream.backward(late).variables
    assert len(found) == len(gradients) == 10
    for mine, whole in zip(found, gradients, strict=True):
        assert difference(mine, whole) < 1e-12
        assert np.any(np.asarray(whole))


@pytest.mark.parametrize(("spare", "kept"), [(0, 2), (PLENTY, 24)])
def test_gradients_from_kept_results_are_exact(spare: int, kept: int) -> None:
    model = network()
    image = image_of(31, 45, 3)
    stream = Streamed(model, tile=(17, 9), segments=["middle"], spare=spare)
    found = stream.forward(image)
    assert difference(found, expected(model, image)[0]) < 1e-12
    assert_same(stream, model, image)
    tiles = [len(part.rows) * len(part.columns) for part in stream.layout((31, 45)).parts]
    assert tiles == [12, 12]
    assert stream.counts.kept == kept
    assert stream.counts.backward == 24
    # What was kept is gone; the same again without it.
    assert_same(stream, model, image)
    assert stream.counts.kept == 0


def test_the_gradient_of_the_image_is_exact_although_it_was_not_foreseen() -> None:
    model = network()
    image = image_of(21, 19, 3)
    stream = Streamed(model, tile=(64, 64), segments=["middle"])
    x = tf.constant(image)
    with tf.GradientTape() as tape:
        tape.watch(x)
        late = model(x, training=False)
        loss = tf.reduce_sum(late**2) / 2
    stream.forward(image)
    found = stream.backward(late, image_gradient=True)
    assert difference(found.image, tape.gradient(loss, x)) < 1e-12
    assert (stream.counts.backward, stream.counts.kept) == (2, 1)  # the second segment's only


def test_training_after_a_first_pass_without_gradients() -> None:
    model = network()
    image = image_of(21, 19, 3)
    stream = Streamed(model, tile=17)
    stream.forward(image, backward=False)
    stream.forward(image)
    assert_same(stream, model, image)


def test_a_new_image_drops_what_the_last_one_kept() -> None:
    model = network()
    stream = Streamed(model, tile=64, spare=PLENTY)
    stream.forward(image_of(21, 19, 3))
    image = image_of(17, 23, 3, seed=1)
    stream.forward(image)
    assert stream._state is not None
    assert len(stream._state.records) == 1
    assert_same(stream, model, image)
    assert not stream._state.records


def test_tiles_of_one_value_and_of_zero_gradient_need_nothing_kept() -> None:
    model = network()
    image = image_of(31, 45, 3)
    image[:, :, 20:] = 0.5
    stream = Streamed(model, tile=17, spare=PLENTY)
    late = np.array(stream.forward(image))
    assert stream.counts.forward_reused > 0
    late[:, :4] = 0
    gradients = stream.backward(late).variables
    counts = vars(stream.counts) | {}
    assert counts["skipped"] > 0
    assert 0 < counts["kept"] < counts["backward"]
    again = Streamed(model, tile=64)
    again.forward(image)
    for mine, other in zip(gradients, again.backward(late).variables, strict=True):
        assert difference(mine, other) < 1e-12


def test_ranks_that_share_an_image_keep_their_own() -> None:
    models = [network(), network()]  # tracing changes layers for a moment: not those of another thread
    image = image_of(31, 45, 3)
    late, gradients = expected(models[0], image)

    def step(sharing: Any) -> tuple[list[Any], int]:
        stream = Streamed(models[sharing.rank], tile=17, sharing=sharing, spare=PLENTY)
        stream.forward(image)
        return stream.backward(late).variables, stream.counts.kept

    for found, kept in on_ranks(2, step):
        assert kept >= 4
        for mine, whole in zip(found, gradients, strict=True):
            assert difference(mine, whole) < 1e-12


def tiles(*saved: float, work: float, back: bool = True) -> Costs:
    count = len(saved)
    return Costs(np.array(saved), np.full(count, work), np.full(count, 10.0), np.full(count, 20.0), back)


def test_the_last_tiles_keep_what_the_largest_one_needs_anyway() -> None:
    first, second = tiles(50, 60, 50, work=30), tiles(10, 20, 30, 20, work=5)
    # 90 at the peak: 20 + 30 + 20 and 5 at work, 10 more are 85
    assert kept_tiles([first, second], 0) == [0, 4]
    assert peak_bytes([first, second], [0, 4]) == 90
    # 80 of the second segment, 50 of the last tile of the first and 30 at work
    assert kept_tiles([first, second], 69) == [0, 4]
    assert kept_tiles([first, second], 70) == [1, 4]
    assert peak_bytes([first, second], [1, 4]) == 160
    assert first.multiplications(1) + second.multiplications(4) == 20 + 90 + 120
    # A frozen segment has no backward pass, and nothing to keep.
    assert kept_tiles([tiles(50, work=30, back=False), second], 10**6) == [0, 4]
    assert tiles(50, work=30, back=False).multiplications(0) == 10


def test_spare_memory_is_a_number_of_bytes() -> None:
    with pytest.raises(ValueError, match="spare -1: give bytes, or 0"):
        Streamed(network(), spare=-1)
