"""ResNets equal torchvision's: parameters, sizes of maps, and logits from the same weights."""

from pathlib import Path

import keras
import numpy as np
import pytest

from benchmarks.torch_resnet import CLASSES, random_image, random_weight
from models import resnet, torch_files
from models.weights import MisfitError, load_weights
from options.choices import RESNETS
from tests.support.torch_files import torch_file

# Of torchvision's networks with 1000 classes: what its documentation lists as num_params.
PARAMETERS = {"resnet18": 11689512, "resnet34": 21797672, "resnet50": 25557032}


@pytest.mark.parametrize("name", PARAMETERS)
def test_as_many_parameters_as_torchvision(name: str) -> None:
    network = resnet.build(name, 1000)
    assert sum(int(np.prod(weight.shape)) for weight in network.trainable_weights) == PARAMETERS[name]


def torch_state(network: keras.Model) -> dict[str, np.ndarray]:
    """Weights of a network as torchvision's state dictionary would hold them, from their names."""
    state = {}
    for layer in network.layers:
        if not layer.weights:
            continue
        stem, _, last = layer.name.rpartition("_downsample_")
        name = f"{stem}_downsample.{last}" if stem else layer.name
        name = name.replace("_", ".")
        parts = ("weight", "bias", "running_mean", "running_var")
        for part, weight in zip(parts, layer.weights, strict=False):
            shape = tuple(weight.shape)
            torch_shape = (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape[::-1]
            state[f"{name}.{part}"] = random_weight(f"{name}.{part}", torch_shape)
    return state


# benchmarks/torch_resnet.py write: logits of torchvision's networks, average pooling, 65 x 94 px.
LOGITS = {
    "resnet18": [
        [0.07191, 0.35199, -0.86467, -0.09095, 0.07894, -0.36971, -0.55463],
        [0.08549, 0.33057, -0.84485, -0.12759, 0.11417, -0.45517, -0.53949],
    ],
    "resnet50": [
        [0.13361, -0.34203, 0.34599, 0.24340, -0.44405, 0.39398, -0.23776],
        [0.12084, -0.33707, 0.32438, 0.25433, -0.45509, 0.38931, -0.22589],
    ],
}


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_logits_equal_those_of_torchvision(tmp_path: Path, name: str) -> None:
    network = resnet.build(name, CLASSES, "average")
    torch_file(tmp_path / "weights.pth", torch_state(network))
    report = load_weights(network, tmp_path / "weights.pth")
    assert report.skipped == []
    logits = np.asarray(network(random_image((65, 94)), training=False))
    np.testing.assert_allclose(logits, LOGITS[name], atol=1e-4 * np.abs(LOGITS[name]).max(), rtol=0)


def test_maps_are_a_32nd_rounded_up_and_pooled_as_asked() -> None:
    image = random_image((65, 94))
    for pool, reduce in (("max", np.max), ("average", np.mean)):
        network = resnet.build("resnet18", 2, pool, width=4)
        inner = keras.Model(network.input, [network.get_layer("layer4_1").output, network.get_layer("pool").output])
        maps, pooled = (np.asarray(x) for x in inner(image, training=False))
        assert maps.shape == (2, 3, 3, 32)
        np.testing.assert_allclose(pooled, reduce(maps, axis=(1, 2)), rtol=1e-5)


def test_maximum_pooling_is_that_with_minus_infinity_outside() -> None:
    network = resnet.build("resnet18", 2, width=4, img_size=(9, 12))
    inner = keras.Model(network.input, [network.get_layer("bn1").output, network.get_layer("maxpool").output])
    before, after = (np.asarray(x) for x in inner(random_image((9, 12)), training=False))
    padded = np.pad(before, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    rows, columns = -(-before.shape[1] // 2), -(-before.shape[2] // 2)
    expected = [
        [padded[:, 2 * r : 2 * r + 3, 2 * c : 2 * c + 3].max((1, 2)) for c in range(columns)] for r in range(rows)
    ]
    np.testing.assert_array_equal(after, np.moveaxis(np.array(expected), 2, 0))


def test_weights_with_other_classes_leave_the_head(tmp_path: Path) -> None:
    network = resnet.build("resnet18", 2, width=4)
    state = {**torch_state(network), "fc.weight": np.zeros((1000, 32), np.float32)}
    torch_file(tmp_path / "weights.pth", state)
    report = load_weights(network, tmp_path / "weights.pth")
    assert report.skipped == [("fc", "shapes 32x1000 2 in the file, 32x2 2 in the model")]
    assert len(report.loaded) == 40


def test_weights_of_another_network_are_an_error(tmp_path: Path) -> None:
    torch_file(tmp_path / "weights.pth", {"stem.weight": np.zeros((4, 3, 3, 3), np.float32)})
    with pytest.raises(MisfitError, match="do not fit model resnet18"):
        load_weights(resnet.build("resnet18", 2, width=4), tmp_path / "weights.pth")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "resnet101"}, "network 'resnet101' is unknown; choose one of resnet18, resnet34, resnet50"),
        ({"pool": "sum"}, "pool 'sum' is unknown; choose one of max, average"),
        ({"outputs": 0}, "outputs is 0; a classifier needs at least 1"),
        ({"channels": 4}, "channels is 4; every view of an image has 3"),
    ],
)
def test_bad_arguments_are_named(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resnet.build(**{"name": "resnet18", "outputs": 2, **given})


def test_names_of_choices_are_those_of_the_networks() -> None:
    assert tuple(resnet.VARIANTS) == RESNETS


def test_names_of_torch_become_names_of_layers() -> None:
    assert list(torch_files.layers_of({"layer2.0.downsample.0.weight": np.zeros((2, 2, 1, 1))})) == [
        "layer2_0_downsample_0"
    ]
