"""Frozen layers: which they are, and that a training step leaves them alone."""

import numpy as np
import pytest

import models
from parallel.comm import SoloComm
from segmentation.losses import Loss
from tests.support.thin import thin_networks
from training.optimizer import Adam
from training.step import TrainStep


def parameters(model, chosen):
    return sum(int(np.prod(w.shape)) for layer in model.layers if chosen(layer) for w in layer.weights)


@pytest.mark.parametrize(("batch_norm", "backbone"), [(True, False), (False, True)])
def test_a_step_moves_what_is_not_frozen_and_nothing_else(batch_norm, backbone):
    with thin_networks():
        model = models.build("effdetd0", 128, 2)

    def frozen(layer):
        is_norm = "BatchNormalization" in type(layer).__name__
        return (batch_norm and is_norm) or (backbone and layer.name.startswith(("stem_", "block")))

    trained_before = sum(int(np.prod(w.shape)) for w in model.trainable_weights)
    assert models.freeze(model, batch_norm, backbone) == trained_before - sum(
        int(np.prod(w.shape)) for w in model.trainable_weights
    )
    before = {layer.name: layer.get_weights() for layer in model.layers}
    step = TrainStep(model, Adam(model.trainable_variables), SoloComm(), Loss("ce", (1.0, 1.0)), False, None)
    rng = np.random.default_rng(0)
    image_BHWC = rng.integers(0, 256, (2, 128, 128, 3)).astype(np.uint8)
    for _ in range(2):
        step(image_BHWC, (image_BHWC[..., 0] > 128).astype(np.uint8), 0.01)
    moved = {
        layer.name: any((a != b).any() for a, b in zip(before[layer.name], layer.get_weights(), strict=True))
        for layer in model.layers
        if layer.weights
    }
    assert not any(moved[layer.name] for layer in model.layers if layer.weights and frozen(layer))
    trained = [moved[layer.name] for layer in model.layers if layer.weights and not frozen(layer)]
    assert np.mean(trained) > 0.8  # levels of a single px, behind statistics that were never learnt, get no gradient


def test_backbones_are_found_by_name():
    for name in ("effdetd0", "deeplab"):  # one network of each kind of backbone
        model = models.build(name, 128, 2)
        inside = [layer.name for layer in model.layers if layer.name.startswith(models.BACKBONE_PREFIXES[name])]
        assert 100 < len(inside) < len(model.layers)
        assert parameters(model, lambda layer, inside=inside: layer.name in inside) > 3e6
