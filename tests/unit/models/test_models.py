"""The networks: their sizes, their arithmetic against independent references, saving and exporting."""

import functools
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import models
from models import deeplab, efficientdet
from options.choices import MODELS
from tests.support.thin import thin_networks

RNG = np.random.default_rng(20)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    keras.utils.set_random_seed(3)


@functools.cache
def built(name: str) -> keras.Model:
    """A network of 2 classes for tests that only look at its layers: building one takes 2 to 4 s."""
    return models.build(name, 128, 2)


def random_image(batch: int, size: int) -> np.ndarray:
    return np.random.default_rng(5).uniform(-1, 1, (batch, size, size, 3)).astype(np.float32)


def disturb_batch_norms(model: keras.Model) -> None:
    """Moves every batch norm away from its start, so that a wrong epsilon, order or missing layer shows."""
    rng = np.random.default_rng(7)
    for layer in model.layers:
        if "BatchNormalization" in type(layer).__name__:
            shape = layer.gamma.shape
            layer.set_weights(
                [
                    rng.uniform(0.8, 1.2, shape),
                    rng.normal(0, 0.1, shape),
                    rng.normal(0, 0.1, shape),
                    rng.uniform(0.5, 1.5, shape),
                ]
            )


@pytest.mark.parametrize(
    ("name", "classes", "count"),
    [("effdetd0", 2, 4_085_621), ("effdetd0", 5, 4_087_160), ("effdetd4", 2, 21_428_593), ("deeplab", 2, 41_253_330)],
)
def test_parameters(name: str, classes: int, count: int) -> None:
    model = built(name) if classes == 2 else models.build(name, 128, classes)
    assert model.count_params() == count


@pytest.mark.parametrize(("name", "size", "classes"), [("effdetd0", 384, 3), ("deeplab", 128, 7)])
def test_logits_are_float32_at_full_resolution(name: str, size: int, classes: int) -> None:
    logits = models.build(name, size, classes)(random_image(1, size))
    assert logits.shape == (1, size, size, classes)
    assert logits.dtype == tf.float32


@pytest.mark.parametrize(
    ("size", "nearest"), [(0, "allowed: 128"), (100, "allowed: 128"), (200, "allowed: 128, 256"), (1000, "896, 1024")]
)
def test_size_must_be_a_multiple_of_128(size: int, nearest: str) -> None:
    with pytest.raises(ValueError, match=f"img_size {size} is not a positive multiple of 128.*{nearest}$"):
        models.build("effdetd0", size, 2)


def test_name_and_classes_are_checked() -> None:
    with pytest.raises(ValueError, match="model 'unet' is unknown; choose one of effdetd0, effdetd4, deeplab"):
        models.build("unet", 128, 2)
    with pytest.raises(ValueError, match="classes is 1; "):
        models.build("deeplab", 128, 1)


def batch_norm(x_HWC: np.ndarray, weights: list[np.ndarray], epsilon: float) -> np.ndarray:
    gamma, beta, mean, variance = weights
    return (x_HWC - mean) / np.sqrt(variance + epsilon) * gamma + beta


def depthwise(x_HWC: np.ndarray, kernel: np.ndarray, stride: int, rate: int) -> np.ndarray:
    """A 3x3 depthwise convolution as sums: padded by `rate` on every side, computed at every `stride`-th place."""
    rows, columns, channels = x_HWC.shape
    padded = np.zeros((rows + 2 * rate, columns + 2 * rate, channels))
    padded[rate : rate + rows, rate : rate + columns] = x_HWC
    out = np.zeros((-(-rows // stride), -(-columns // stride), channels))
    for row, column, channel in np.ndindex(out.shape):
        for i, j in np.ndindex(3, 3):
            value = padded[row * stride + i * rate, column * stride + j * rate, channel]
            out[row, column, channel] += value * kernel[i, j, channel, 0]
    return out


@pytest.mark.parametrize(("stride", "rate", "activate_inside", "epsilon"), [(2, 1, False, 1e-3), (1, 2, True, 1e-5)])
def test_separable_convolution_against_sums(stride: int, rate: int, activate_inside: bool, epsilon: float) -> None:
    image = keras.Input((6, 8, 3))
    model = keras.Model(image, deeplab._separable(image, 2, "unit", stride, rate, activate_inside, epsilon))
    disturb_batch_norms(model)
    # Tiny variances: a wrong epsilon would show.
    for name in ("unit_depthwise_BN", "unit_pointwise_BN"):
        layer = model.get_layer(name)
        layer.set_weights([*layer.get_weights()[:3], layer.get_weights()[3] * 1e-3])
    x_HWC = RNG.normal(size=(6, 8, 3))
    relu = lambda values: np.maximum(values, 0)  # noqa: E731
    y = x_HWC if activate_inside else relu(x_HWC)
    y = depthwise(y, model.get_layer("unit_depthwise").get_weights()[0], stride, rate)
    y = batch_norm(y, model.get_layer("unit_depthwise_BN").get_weights(), epsilon)
    y = relu(y) if activate_inside else y
    y = y @ model.get_layer("unit_pointwise").get_weights()[0][0, 0]
    y = batch_norm(y, model.get_layer("unit_pointwise_BN").get_weights(), epsilon)
    y = relu(y) if activate_inside else y
    got = np.asarray(model(x_HWC[None].astype(np.float32)))[0]
    assert got.shape == ((3, 4, 2) if stride == 2 else (6, 8, 2))
    assert np.abs(got - y).max() / np.abs(y).max() < 1e-5


def test_bifpn_node_against_sums() -> None:
    fine, coarse = keras.Input((4, 6, 3)), keras.Input((2, 3, 3))
    upsampled = keras.layers.UpSampling2D(2)(coarse)
    model = keras.Model([fine, coarse], efficientdet._fused([fine, upsampled], 3, "node"))
    disturb_batch_norms(model)
    model.get_layer("node_fuse").set_weights([np.array([0.5, -2.0])])
    fine_HWC, coarse_HWC = RNG.normal(size=(4, 6, 3)), RNG.normal(size=(2, 3, 3))
    kernel, pointwise, _ = model.get_layer("node_conv").get_weights()
    bias = np.array([0.1, -0.2, 0.3])
    model.get_layer("node_conv").set_weights([kernel, pointwise, bias])

    def node(weight_fine: float, weight_coarse: float) -> np.ndarray:
        repeated = coarse_HWC.repeat(2, axis=0).repeat(2, axis=1)
        total = max(weight_fine, 0) + max(weight_coarse, 0) + 1e-4
        x = (max(weight_fine, 0) * fine_HWC + max(weight_coarse, 0) * repeated) / total
        x = x / (1 + np.exp(-x))
        x = depthwise(x, kernel, 1, 1) @ pointwise[0, 0] + bias
        return batch_norm(x, model.get_layer("node_bn").get_weights(), 1e-3)

    inputs = [fine_HWC[None].astype(np.float32), coarse_HWC[None].astype(np.float32)]
    # A negative weight counts as zero.
    np.testing.assert_allclose(np.asarray(model(inputs))[0], node(0.5, 0.0), atol=1e-5)
    model.get_layer("node_fuse").set_weights([np.array([0.5, 1.5])])
    np.testing.assert_allclose(np.asarray(model(inputs))[0], node(0.5, 1.5), atol=1e-5)


def test_bifpn_has_29_fusion_weights_per_cell() -> None:
    model = built("effdetd0")
    sizes = [layer.fusion_weights.shape[0] for layer in model.layers if layer.name.endswith("_fuse")]
    assert (len(sizes), sum(sizes)) == (36, 87)


def test_deeplab_layer_names_are_the_public_ones() -> None:
    names = [layer.name for layer in built("deeplab").layers if layer.weights]
    expected = ["entry_flow_conv1_1", "entry_flow_conv1_2"]
    units = [("entry_flow_block1", 1), ("entry_flow_block2", 1), ("entry_flow_block3", 1)]
    units += [(f"middle_flow_unit_{unit}", 0) for unit in range(1, 17)] + [
        ("exit_flow_block1", 1),
        ("exit_flow_block2", 0),
    ]
    for unit, shortcut in units:
        expected += [f"{unit}_separable_conv{i}_{half}" for i in (1, 2, 3) for half in ("depthwise", "pointwise")]
        expected += [f"{unit}_shortcut"] * shortcut
    expected += ["image_pooling", "aspp0", "concat_projection", "feature_projection0"]
    expected += [
        f"{unit}_{half}"
        for unit in ("aspp1", "aspp2", "aspp3", "decoder_conv0", "decoder_conv1")
        for half in ("depthwise", "pointwise")
    ]
    expected += [f"{name}_BN" for name in expected] + ["logits"]
    assert sorted(names) == sorted(expected)


def sources(model: keras.Model, name: str) -> list[str]:
    """Names of the layers a layer takes its inputs from, in order."""
    return [tensor._keras_history.operation.name for tensor in model.get_layer(name).input]


def test_deeplab_joins_its_branches_in_the_public_order() -> None:
    model = built("deeplab")
    assert sources(model, "aspp_concat") == [
        "image_pooling_resize",
        "aspp0_relu",
        "aspp1_pointwise_relu",
        "aspp2_pointwise_relu",
        "aspp3_pointwise_relu",
    ]
    assert sources(model, "decoder_concat") == ["decoder_resize", "feature_projection0_relu"]
    assert model.get_layer("feature_projection0").input is (
        model.get_layer("entry_flow_block2_separable_conv2_pointwise_BN").output
    )


def test_bifpn_joins_its_levels_as_in_the_paper() -> None:
    model = built("effdetd0")
    assert sources(model, "fpn_cell0_td6_fuse") == ["resample_p6_maxpool", "fpn_cell0_td6_upsample"]
    assert sources(model, "fpn_cell0_bu4_fuse") == [
        "fpn_cell0_bu4_lateral_bn",
        "fpn_cell0_td4_bn",
        "fpn_cell0_bu4_maxpool",
    ]
    assert sources(model, "fpn_cell1_bu4_fuse") == ["fpn_cell0_bu4_bn", "fpn_cell1_td4_bn", "fpn_cell1_bu4_maxpool"]
    assert sources(model, "fpn_cell2_bu7_fuse") == ["fpn_cell1_bu7_bn", "fpn_cell2_bu7_maxpool"]
    assert sources(model, "head_up1_concat") == ["head_up1_bn", "fpn_cell2_td1_bn"]
    assert sources(model, "head_up6_concat") == ["head_up6_bn", "fpn_cell2_bu6_bn"]


def test_strided_convolutions_of_deeplab_are_centred_on_even_pixels() -> None:
    image = keras.Input((4, 6, 1))
    model = keras.Model(image, deeplab._conv_bn_relu(image, 1, "conv", kernel=3, stride=2))
    kernel = np.zeros((3, 3, 1, 1))
    kernel[1, 1] = np.sqrt(1 + 1e-3)  # Undoes the untrained batch norm.
    model.get_layer("conv").set_weights([kernel])
    image_BHWC = np.arange(24, dtype=np.float32).reshape(1, 4, 6, 1)
    np.testing.assert_allclose(model(image_BHWC)[0, :, :, 0], [[0, 2, 4], [12, 14, 16]], rtol=1e-6)


def test_deeplab_epsilons_and_strides() -> None:
    model = built("deeplab")
    assert model.get_layer("middle_flow_unit_3_separable_conv2_pointwise_BN").epsilon == 1e-3
    assert model.get_layer("aspp2_depthwise_BN").epsilon == 1e-5
    assert model.get_layer("image_pooling_BN").epsilon == 1e-5
    assert model.get_layer("decoder_conv1_pointwise_BN").epsilon == 1e-5
    assert model.get_layer("entry_flow_block2_separable_conv2_pointwise_BN").output.shape == (None, 32, 32, 256)
    assert model.get_layer("exit_flow_block2_separable_conv3_pointwise_relu").output.shape == (None, 8, 8, 2048)
    assert [model.get_layer(f"aspp{i}_depthwise").dilation_rate for i in (1, 2, 3)] == [(6, 6), (12, 12), (18, 18)]
    assert model.get_layer("exit_flow_block2_separable_conv1_depthwise").dilation_rate == (2, 2)


SERVE_AND_LOAD = """
import sys, numpy as np, tensorflow as tf
image = np.load("image.npy")
model = tf.saved_model.load("served")
np.save("served.npy", model.serve(image))
assert "models" not in sys.modules
sys.path.insert(0, sys.argv[1])
import keras, models
np.save("loaded.npy", keras.models.load_model("model.keras")(image, training=False))
"""


def every_custom_layer() -> keras.Model:
    """DeepLab's and EfficientDet's own layers in a model that saves quickly."""
    image = keras.Input((128, 128, 3), name="image")
    x = models.layers.FixedPadding(3)(image)
    x = keras.layers.Conv2D(3, 3, strides=2)(x)
    x = models.layers.RunningBatchNormalization(momentum=0.5, epsilon=0.1)(x)
    x = models.layers.AlignCornersResize((128, 128))(x)
    return keras.Model(image, models.layers.FastFusion()([x, image]))


@pytest.mark.parametrize("name", ["every custom layer", "effdetd0"])
def test_saved_and_exported_models_give_the_same_logits(name: str, tmp_path, pytestconfig) -> None:
    with thin_networks():
        model = models.build(name, 128, 3) if name in MODELS else every_custom_layer()
    disturb_batch_norms(model)
    image = random_image(1, 128)
    np.save(tmp_path / "image.npy", image)
    expected = np.asarray(model(image, training=False))
    model.save(tmp_path / "model.keras")
    model.export(tmp_path / "served", verbose=False)
    command = [sys.executable, "-c", SERVE_AND_LOAD, str(pytestconfig.rootpath)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for file in ("served.npy", "loaded.npy"):
        logits = np.load(tmp_path / file)
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_backbone_and_segments_of_every_model_are_known() -> None:
    assert tuple(models.BACKBONE_PREFIXES) == tuple(models.SEGMENTS) == MODELS
