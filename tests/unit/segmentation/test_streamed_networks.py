"""The streamed step of thin networks against the step of whole patches, with frozen statistics."""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import models
from parallel.comm import SoloComm
from segmentation import streamed_network
from segmentation.losses import Loss
from segmentation.streamed_step import StreamedStep
from tests.support.streams import randomize
from tests.support.thin import thin_networks
from training.optimizer import Sgd
from training.step import TrainStep

SIDE = 256


def built(name: str) -> Any:
    """A thin network with random weights and frozen statistics, without dropout."""
    with thin_networks():
        model = models.build(name, SIDE, 2)
    randomize(model)
    models.freeze(model, batch_norm=True, backbone=False)
    for layer in model.layers:
        if layer.name == "concat_dropout":
            layer.rate = 0.0
    return model


@pytest.mark.parametrize(("name", "tile", "loss"), [("deeplab", 144, "ce"), ("effdetd0", 128, "ce+dice")])
@pytest.mark.slow
@pytest.mark.kind("streamed steps of segmentation networks")
def test_a_streamed_step_is_the_step(name: str, tile: int, loss: str) -> None:
    rng = np.random.default_rng(1)
    image_BHWC = rng.integers(0, 256, (1, SIDE, SIDE, 3)).astype(np.uint8)
    label_BHW = rng.integers(0, 2, (1, SIDE, SIDE)).astype(np.uint8)
    model, other = built(name), built(name)
    plain = TrainStep(model, Sgd(model.trainable_variables, 0.9, 0.0), SoloComm(), Loss(loss, (1.0, 2.0)), False, None)
    stream = streamed_network.streamed(other, tile)
    assert len(stream.layout((SIDE, SIDE)).parts[0].rows) >= 2
    optimizer = Sgd(other.trainable_variables, 0.9, 0.0)
    streamed = StreamedStep(other, stream, optimizer, SoloComm(), Loss(loss, (1.0, 2.0)), False, None)
    expected = plain.gradients(tf.constant(image_BHWC), tf.constant(label_BHW))[2]
    found = streamed.gradients(image_BHWC, label_BHW)[2]
    joint = [np.concatenate([np.ravel(g) for g in grads]).astype(np.float64) for grads in (found, expected)]
    assert np.linalg.norm(joint[0] - joint[1]) <= 1e-4 * np.linalg.norm(joint[1])
    for _ in range(2):
        a = plain(tf.constant(image_BHWC), tf.constant(label_BHW), 1e-4)
        b = streamed(image_BHWC, label_BHW, 1e-4)
        assert b.loss == pytest.approx(a.loss, rel=1e-4)
