"""Public Keras weight files: files of the same structure from independent networks, and the activations they give."""

from pathlib import Path

import keras
import numpy as np
import pytest

import models
from models import deeplab, efficientnet
from models.weights import MISSING_IN_FILE, MISSING_IN_MODEL, load_weights
from tests.support.deeplab_reference import DeepLab
from tests.support.naive import difference
from tests.support.weight_files import keras2_file

MEAN_RGB = (0.485, 0.456, 0.406)
STD_RGB = (0.229, 0.224, 0.225)


def write(path: Path, layers: dict[str, dict[str, np.ndarray]]) -> None:
    """A file as Keras 2's `save_weights` leaves it: every layer in the model's order, arrays at LAYER/LAYER/NAME:0."""
    named = {layer: {f"{layer}/{name}:0": array for name, array in arrays.items()} for layer, arrays in layers.items()}
    keras2_file(path, named)


def test_deeplab_takes_all_of_the_public_file_but_its_classes(tmp_path: Path) -> None:
    # 128 px give even maps down to 8, where SAME padding with stride 2 would be off by a pixel.
    image_HWC = np.random.default_rng(6).uniform(-1, 1, (128, 128, 3))
    reference = DeepLab(classes=21)
    expected = reference(image_HWC)
    nameless = {"input_1": {}, "activation_1": {}, "lambda_1": {}}
    write(tmp_path / "deeplabv3_xception_tf_dim_ordering_tf_kernels.h5", nameless | reference.layers)

    model = models.build("deeplab", 128, 21)
    report = load_weights(model, tmp_path)
    assert len(report.loaded) == len(reference.layers) - 1 == 292
    assert report.skipped == [("logits", MISSING_IN_FILE), ("logits_semantic", MISSING_IN_MODEL)]
    model.get_layer("logits").set_weights(list(reference.layers["logits_semantic"].values()))

    places = {
        "fine": "entry_flow_block2_separable_conv2_pointwise_BN",
        "coarse": "exit_flow_block2_separable_conv3_pointwise_relu",
        "context": "concat_projection_relu",
        "features": "decoder_conv1_pointwise_relu",
        "logits": "logits_resize",
    }
    probe = keras.Model(model.input, [model.get_layer(layer).output for layer in places.values()])
    got = probe(image_HWC[None].astype(np.float32), training=False)
    worst = {name: difference(ours[0], expected[name]) for name, ours in zip(places, got, strict=True)}
    assert max(worst.values()) < 1e-4, worst


def test_pyramid_at_a_size_where_all_taps_of_all_rates_count(tmp_path: Path) -> None:
    x_HWC = np.random.default_rng(8).normal(size=(21, 38, 5))
    reference = DeepLab(classes=21)
    expected = reference.context(x_HWC)
    write(tmp_path / "pyramid.h5", reference.layers)
    features = keras.Input(x_HWC.shape)
    model = keras.Model(features, deeplab._aspp(features))
    assert load_weights(model, tmp_path / "pyramid.h5").skipped == []
    assert difference(model(x_HWC[None].astype(np.float32), training=False)[0], expected) < 1e-4


def published(variant: str, top: bool) -> keras.Model:
    """Keras' own EfficientNet for 64x96 px, with weights that show a wrong order, epsilon or missing layer."""
    network = {"b0": keras.applications.EfficientNetB0, "b4": keras.applications.EfficientNetB4}[variant]
    keras.utils.set_random_seed(3)
    keras.backend.clear_session()  # nameless layers are numbered from here: "normalization"
    rng = np.random.default_rng(7)
    source = network(weights=None, include_top=top, input_shape=(64, 96, 3), classes=1000)
    for layer in source.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            low_high = ((0.8, 1.2), (-0.2, 0.2), (-0.2, 0.2), (0.5, 1.5))
            layer.set_weights([rng.uniform(*limits, layer.gamma.shape) for limits in low_high])
        elif isinstance(layer, keras.layers.Conv2D) and layer.use_bias:
            layer.set_weights([layer.get_weights()[0], rng.uniform(-0.2, 0.2, layer.bias.shape)])
    # As in the published files: the standard deviations stand where variances belong.
    normalization = source.get_layer("normalization")
    normalization.set_weights([np.array(v) for v in (MEAN_RGB, STD_RGB, 0)])
    normalization.finalize_state()
    return source


def keras2_arrays(layer: keras.Layer) -> dict[str, np.ndarray]:
    """A layer's arrays under the names of Keras 2."""
    depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
    names = ["depthwise_kernel" if depthwise else weight.name for weight in layer.weights]
    return dict(zip(names, layer.get_weights(), strict=True))


@pytest.mark.parametrize(
    ("variant", "top", "layers", "outputs"),
    [
        ("b0", True, 128, ["project_bn 1a", "add 2b", "add 3b", "add 5c", "project_bn 7a"]),
        ("b4", False, 254, ["add 1b", "add 2d", "add 3d", "add 5f", "add 7b"]),
    ],
)
def test_backbone_from_the_public_file(
    variant: str, top: bool, layers: int, outputs: list[str], tmp_path: Path
) -> None:
    source = published(variant, top)
    write(tmp_path / "efficientnet.h5", {layer.name: keras2_arrays(layer) for layer in source.layers})
    image = keras.Input((64, 96, 3))
    ours = keras.Model(image, efficientnet.features(variant, image))
    report = load_weights(ours, tmp_path / "efficientnet.h5")
    assert len(report.loaded) == layers
    assert (report.loaded[0], report.loaded[-1]) == ("stem_conv", f"block7{'a' if variant == 'b0' else 'b'}_project_bn")
    left = ["normalization", "top_conv", "top_bn", *["predictions"] * top]
    assert report.skipped == [(name, MISSING_IN_MODEL) for name in left]

    # The published graph divides by sqrt(std) twice; an untrained one lacks the second division: fold it into the stem.
    stem = source.get_layer("stem_conv")
    root = np.sqrt(np.array(STD_RGB, np.float32))
    stem.set_weights([stem.get_weights()[0] / root[:, None]])
    names = [f"block{block}_{layer}" for layer, block in (output.split() for output in outputs)]
    probe = keras.Model(source.input, [source.get_layer(name).output for name in names])
    bytes_BHWC = np.random.default_rng(20).integers(0, 256, (2, 64, 96, 3)).astype(np.float32)
    got, expected = ours(bytes_BHWC / 127.5 - 1.0), probe(bytes_BHWC)
    assert [64 // feature.shape[1] for feature in got] == [2, 4, 8, 16, 32]
    worst = [difference(a, np.asarray(b)) for a, b in zip(got, expected, strict=True)]
    assert max(worst) < 1e-4, worst
