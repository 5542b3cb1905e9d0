"""Weights of SURF's public trainer: DeepLab's class layer, and EfficientDet with a BiFPN over levels 1 to 7."""

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import models
from models import automl
from models.weights import MISSING_IN_FILE, LoadReport, load_weights
from tests.support.deeplab_reference import DeepLab
from tests.support.efficientdet_reference import Detector
from tests.support.naive import difference
from tests.support.weight_files import keras2_file

SIZE, CLASSES = 128, 2


def checkpoint(prefix: Path, variables: dict[str, np.ndarray]) -> None:
    """A checkpoint of variables by name."""
    tensors = [tf.constant(value) for value in variables.values()]
    tf.raw_ops.SaveV2(
        prefix=str(prefix), tensor_names=list(variables), shape_and_slices=[""] * len(tensors), tensors=tensors
    )


class Network:
    """SURF's EfficientDet-D0: its variables, and its logits for one image, as sums over them."""

    def __init__(self) -> None:
        self.image_HWC = np.random.default_rng(4).integers(0, 256, (SIZE, SIZE, 3)).astype(np.float64)
        detector = Detector("b0", 64, first_level=1)
        levels = detector.features(self.image_HWC)
        levels |= detector.coarser(levels[5])
        for cell in range(3):
            maps = detector.cell(cell, levels)
            # Of level 1 the last node down is the output, of the others the node up.
            levels = dict(zip(range(1, 8), maps[12:], strict=True))
        self.logits_HWK = detector.head(levels, CLASSES)
        self.variables = detector.variables

    def differs_from(self, model: keras.Model) -> float:
        """Largest difference of a model's logits, relative to the largest value."""
        image_BHWC = (self.image_HWC[None] / 127.5 - 1).astype(np.float32)
        return difference(np.asarray(model(image_BHWC, training=False))[0], self.logits_HWK)


@pytest.fixture(scope="module")
def network() -> Network:
    return Network()


def untrained() -> keras.Model:
    keras.utils.set_random_seed(1)
    return models.build("effdetd0", SIZE, CLASSES)


def test_the_whole_network_from_a_checkpoint_by_name(network: Network, tmp_path: Path) -> None:
    checkpoint(tmp_path / "model", network.variables)
    model = untrained()
    report = load_weights(model, tmp_path / "model")
    assert report == LoadReport([layer.name for layer in model.layers if layer.weights], [])
    assert network.differs_from(model) < 1e-4


def test_fusion_weights_come_from_the_node_of_the_same_level_and_direction(network: Network, tmp_path: Path) -> None:
    checkpoint(tmp_path / "model", network.variables)
    model = untrained()
    load_weights(model, tmp_path / "model")
    # 6 nodes down, from level 6; then up from level 2: fnode4 is level 2 downwards, fnode6 level 2 upwards.
    for ours, theirs, inputs in (("td6", 0, 2), ("td2", 4, 2), ("bu2", 6, 3), ("bu4", 8, 3), ("bu7", 11, 2)):
        scope = f"fpn_cells/cell_1/fnode{theirs}/WSM"
        expected = [network.variables[scope + end] for end in ("", "_1", "_2")[:inputs]]
        (got,) = model.get_layer(f"fpn_cell1_{ours}_fuse").get_weights()
        np.testing.assert_array_equal(got, expected)


def test_the_whole_network_from_a_keras_file(network: Network, tmp_path: Path) -> None:
    layers: dict[str, dict[str, np.ndarray]] = {"input_1": {}}
    for name, value in network.variables.items():
        layers.setdefault(name.split("/")[0], {})[f"{name}:0"] = value
    keras2_file(tmp_path / "surf.h5", layers)
    model = untrained()
    assert load_weights(model, tmp_path / "surf.h5").skipped == []
    assert network.differs_from(model) < 1e-4


def test_batch_norms_of_the_head_without_an_order_are_left_and_named(network: Network, tmp_path: Path) -> None:
    kept = {name: value for name, value in network.variables.items() if "segmentation_head/bn_" not in name}
    checkpoint(tmp_path / "model", kept)
    report = load_weights(untrained(), tmp_path / "model")
    assert report.skipped == [
        *[(f"head_up{level}_bn", MISSING_IN_FILE) for level in (6, 5, 4, 3, 2, 1)],
        ("segmentation_head/bn", "the model has no such part"),
    ]


@pytest.mark.parametrize(("nodes", "level"), [(0, 3), (8, 3), (10, 2), (12, 1)])
def test_the_number_of_nodes_tells_the_first_level(nodes: int, level: int) -> None:
    assert automl.first_level([f"fpn_cells/cell_0/fnode{i}/WSM" for i in range(nodes)]) == level


def test_deeplab_class_layer_under_its_other_name(tmp_path: Path) -> None:
    layers = DeepLab(classes=3)
    layers(np.zeros((128, 128, 3)))
    stored = {"custom_logits_semantic" if name == "logits_semantic" else name: a for name, a in layers.layers.items()}
    named = {layer: {f"{layer}/{name}:0": array for name, array in arrays.items()} for layer, arrays in stored.items()}
    keras2_file(tmp_path / "surf.h5", named)
    model = models.build("deeplab", 128, 3)
    report = load_weights(model, tmp_path / "surf.h5")
    assert report.skipped == []
    assert report.loaded[-1] == "logits"
    kernel, bias = model.get_layer("logits").get_weights()
    expected = list(stored["custom_logits_semantic"].values())
    np.testing.assert_array_equal(kernel, expected[0].astype(np.float32))
    np.testing.assert_array_equal(bias, expected[1].astype(np.float32))


def test_deeplab_class_layer_of_other_classes_is_named(tmp_path: Path) -> None:
    arrays = {"custom_logits_semantic/kernel:0": np.ones((1, 1, 256, 5)), "custom_logits_semantic/bias:0": np.ones(5)}
    norm = {f"aspp0_BN/{name}:0": np.ones(256) for name in ("gamma", "beta", "moving_mean", "moving_variance")}
    keras2_file(tmp_path / "surf.h5", {"custom_logits_semantic": arrays, "aspp0_BN": norm})
    report = load_weights(models.build("deeplab", 128, 2), tmp_path / "surf.h5")
    assert report.loaded == ["aspp0_BN"]
    assert ("logits", "shapes 1x1x256x5 5 in the file, 1x1x256x2 2 in the model") in report.skipped
