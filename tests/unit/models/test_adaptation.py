"""Batch statistics of other images: literal means, the way back, and what is left alone."""

import keras
import numpy as np
import pytest

from models.adaptation import Adaptation
from models.layers import BatchNormalization, RunningBatchNormalization


def network() -> keras.Model:
    image = keras.Input((2, 2, 1))
    x = BatchNormalization(epsilon=1e-5, name="first")(image)
    x = keras.layers.Dropout(0.5)(x)
    x = BatchNormalization(epsilon=1e-5, name="second")(x)
    return keras.Model(image, RunningBatchNormalization(name="running")(x))


def statistics(model: keras.Model, layer: str) -> list[float]:
    return [v.numpy().item() for v in (model.get_layer(layer).moving_mean, model.get_layer(layer).moving_variance)]


def test_statistics_are_those_of_the_images_with_a_little_of_the_trained() -> None:
    model = network()
    adapt = Adaptation(model)
    # Values 2 and 6, then 10 and 14: mean 8, variance 20 over all; two images of prior with mean 0 and variance 1.
    batches = [np.array([[2, 6], [2, 6]]), np.array([[10, 14], [10, 14]])]
    assert adapt.adapt(b.astype(np.float32).reshape(1, 2, 2, 1) for b in batches) == 2
    assert statistics(model, "first") == pytest.approx([4.0, 10.5])
    # Behind a layer that is normalized by each batch the mean is 0 and the variance 1, with no px dropped.
    assert statistics(model, "second") == pytest.approx([0.0, 1.0], abs=1e-4)
    assert statistics(model, "running") == [0.0, 1.0]


def test_every_call_starts_from_the_trained_statistics() -> None:
    model = network()
    adapt = Adaptation(model)
    image_BHWC = np.arange(8, dtype=np.float32).reshape(2, 2, 2, 1)
    adapt.adapt([image_BHWC])
    once = statistics(model, "first")
    adapt.adapt([image_BHWC])
    assert statistics(model, "first") == once != [0.0, 1.0]
    assert adapt.adapt([]) == 0
    assert statistics(model, "first") == [0.0, 1.0]


def test_shifted_images_give_the_outputs_of_the_originals() -> None:
    rng = np.random.default_rng(0)
    image_BHWC = rng.normal(size=(64, 2, 2, 1)).astype(np.float32)
    model = network()
    adapt = Adaptation(model)
    adapt.adapt([image_BHWC])
    expected = np.asarray(model(image_BHWC, training=False))
    off = np.abs(np.asarray(model(5 * image_BHWC + 3, training=False)) - expected).max()
    adapt.adapt([5 * image_BHWC + 3])
    near = np.abs(np.asarray(model(5 * image_BHWC + 3, training=False)) - expected).max()
    assert off > 5
    assert near < 0.4


def test_a_network_without_batch_normalization_is_refused() -> None:
    image = keras.Input((2, 2, 1))
    model = keras.Model(image, RunningBatchNormalization()(image), name="plain")
    with pytest.raises(ValueError, match="model plain has no batch normalization whose statistics could be adapted"):
        Adaptation(model)
