"""Group normalization: literal values, every network with it, and the way through files."""

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import models
from artifacts.loading import any_size, open_model
from models.layers import GroupNormalization, normalized_by
from models.weights import load_weights
from options.train import train_options
from tests.support.models_on_disk import by_hand, disturb, noise, run_options, save
from tests.support.thin import thin_networks


def test_each_group_of_each_image_has_mean_0_and_variance_1() -> None:
    layer = GroupNormalization(epsilon=0.0)
    x_BHWC = np.random.default_rng(0).normal(3, 5, (2, 3, 4, 24)).astype(np.float32)
    out = np.asarray(layer(x_BHWC)).reshape(2, 12, 3, 8)
    # 24 channels are three groups of eight.
    assert layer.groups == 3
    np.testing.assert_allclose(out.mean((1, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(out.var((1, 3)), 1, atol=1e-4)
    # Another image in the batch changes nothing, nor does training.
    np.testing.assert_allclose(np.asarray(layer(x_BHWC[:1], training=True))[0], np.asarray(layer(x_BHWC))[0], atol=1e-6)


@pytest.mark.parametrize(("channels", "groups"), [(3, 1), (16, 2), (40, 5), (48, 6), (320, 32), (728, 28), (1152, 32)])
def test_groups_divide_the_channels(channels: int, groups: int) -> None:
    layer = GroupNormalization()
    layer.build((None, 4, 4, channels))
    assert layer.groups == groups


def test_scale_offset_and_activation_follow() -> None:
    layer = GroupNormalization("relu", epsilon=0.0)
    x_BHWC = np.array([-1.0, 1.0], np.float32).reshape(1, 2, 1, 1)
    layer.build(x_BHWC.shape)
    layer.set_weights([np.array([2.0]), np.array([0.5])])
    np.testing.assert_allclose(np.asarray(layer(x_BHWC)).ravel(), [0.0, 2.5], atol=1e-6)


def group(name: str) -> keras.Model:
    with normalized_by("group"):
        return models.build(name, 128, 2)


@pytest.mark.parametrize("name", ["effdetd0", "deeplab"])
def test_networks_have_it_everywhere_and_train_with_recomputation(name: str) -> None:
    with thin_networks():
        keras.utils.set_random_seed(0)
        model = group(name)
        assert not [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
        assert (models.norm_of(model), models.norm_of(models.build(name, 128, 2))) == ("group", "batch")
        image = tf.constant(np.random.default_rng(1).uniform(-1, 1, (2, 128, 128, 3)).astype(np.float32))
        gradients = []
        for recompute in ("none", "blocks"):
            keras.utils.set_random_seed(2)
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(models.training_pass(model, recompute)(image, training=True)))
            gradients.append(tape.gradient(loss, model.trainable_variables))
        assert all(g is not None for g in gradients[0])
        largest = max(float(tf.reduce_max(tf.abs(g))) for g in gradients[0])
        for one, other in zip(*gradients, strict=True):
            if name == "effdetd0":  # DeepLab has dropout, which is random
                np.testing.assert_allclose(one, other, atol=1e-4 * largest)


def test_a_run_opens_with_its_normalization_at_any_size(tmp_path: Path) -> None:
    with thin_networks():
        keras.utils.set_random_seed(1)
        model = group("effdetd0")
        disturb(model)
        save(tmp_path, model, run_options("--model", "effdetd0", "--norm", "group"))
        trained = open_model(tmp_path)
        image = noise(2, 128, 128, 3)
        np.testing.assert_allclose(trained.probabilities(image), by_hand(model, image), atol=1e-5)
        assert (trained.info.norm, models.norm_of(any_size(trained).source)) == ("group", "group")
        with pytest.raises(ValueError, match="--adapt_bn: model effdetd0 has no batch normalization"):
            trained.adaptation()


def test_weights_with_batch_normalization_give_the_rest_and_say_so(tmp_path: Path) -> None:
    with thin_networks():
        source = models.build("effdetd0", 128, 2)
        source.save(tmp_path / "batch.keras")
        report = load_weights(group("effdetd0"), tmp_path / "batch.keras")
    assert "stem_conv" in report.loaded
    reasons = dict(report.skipped)
    assert reasons["stem_bn"].endswith("in the model")
    assert set(reasons) == {layer.name for layer in source.layers if layer.name.endswith("_bn")}


@pytest.mark.parametrize("flag", ["--sync_bn", "--freeze_bn"])
def test_options_of_batch_statistics_are_refused(flag: str) -> None:
    words = ["--slide_path", "s", "--label_path", "m", "--norm", "group", "--weights_path", "w", flag]
    with pytest.raises(ValueError, match=rf"{flag}: --norm group has no batch statistics; omit one of the two"):
        train_options(words, raises=True)
