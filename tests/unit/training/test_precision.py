"""Mixed precision: what stays float32, loss scaling, steps that overflow."""

import math
from collections.abc import Iterator

import keras
import numpy as np
import pytest
import tensorflow as tf

import models
from parallel.comm import SoloComm
from segmentation.losses import Loss
from tests.support.network import batch, network
from tests.support.thin import thin_networks
from training.optimizer import Adam
from training.precision import GROW_AFTER, START, LossScale
from training.step import TrainStep

LOSS = Loss("ce", (1.0, 1.0))


def trained(model: keras.Model, scale: LossScale | None, parts: int = 1) -> TrainStep:
    optimizer = Adam(model.trainable_variables)
    return TrainStep(model, optimizer, SoloComm(), LOSS, False, None, loss_scale=scale, parts=parts)


def test_scale_by_hand() -> None:
    scale = LossScale()
    update = tf.function(scale.update)
    for _ in range(GROW_AFTER - 1):
        update(tf.constant(True))
    assert (float(scale.scale), int(scale.good)) == (START, GROW_AFTER - 1)
    update(tf.constant(True))
    assert (float(scale.scale), int(scale.good)) == (2 * START, 0)
    update(tf.constant(True))
    update(tf.constant(False))
    assert (float(scale.scale), int(scale.good)) == (START, 0)
    other = LossScale()
    update(tf.constant(True))
    other.restore(scale.state())
    assert (float(other.scale), int(other.good)) == (START, 1)


@pytest.mark.parametrize("parts", [1, 2])
def test_scaling_changes_no_step(parts: int) -> None:
    scaled, plain = network(norm=True), network(norm=True)
    with_scale, without = trained(scaled, LossScale(), parts), trained(plain, None, parts)
    for _ in range(3):
        assert with_scale(*batch(), 0.01).loss == pytest.approx(without(*batch(), 0.01).loss, rel=1e-6)
    for a, b in zip(scaled.weights, plain.weights, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), atol=1e-6)


class Overflowing(SoloComm):
    """What is averaged is multiplied by `factor`: infinity stands for an overflow of float16."""

    def __init__(self) -> None:
        self.factor = tf.Variable(1.0)

    def mean(self, tensors, fp16=False):  # frame of SoloComm
        return [t * self.factor for t in tensors]


@pytest.mark.parametrize("parts", [1, 2])
def test_a_step_that_overflows_is_skipped_and_the_next_ones_are_not(parts: int) -> None:
    model, scale, comm = network(norm=True), LossScale(), Overflowing()
    optimizer = Adam(model.trainable_variables)
    step = TrainStep(model, optimizer, comm, LOSS, False, None, loss_scale=scale, parts=parts)
    first = step(*batch(), 0.01).loss
    comm.factor.assign(np.inf)
    before = [w.numpy() for w in model.trainable_weights]
    result = step(*batch(), 0.01)
    assert result.finite
    assert math.isnan(result.loss)
    for was, weight in zip(before, model.trainable_weights, strict=True):
        np.testing.assert_array_equal(weight.numpy(), was)
    assert all(np.isfinite(w.numpy()).all() for w in model.weights)
    assert (float(scale.scale), scale.skipped, int(optimizer.steps)) == (START / 2, 1, 1)
    comm.factor.assign(1.0)
    assert step(*batch(), 0.01).loss < first
    assert math.isfinite(step.mean_loss())
    assert scale.report() == "float16     1 step skipped, whose gradient overflowed; loss scale now 16384"
    assert scale.report() is None


def test_moving_statistics_survive_a_step_that_is_not_finite() -> None:
    model = network(norm=True)
    scale = LossScale()
    step = trained(model, scale)
    kernel = model.get_layer("first").kernel.numpy()
    model.get_layer("first").kernel.assign(np.full_like(kernel, np.nan))
    result = step(*batch(), 0.01)
    assert result.finite
    np.testing.assert_array_equal(result.sample_loss_B, [0, 0])
    np.testing.assert_array_equal(model.get_layer("norm").moving_mean, np.zeros(4))
    # Left alone it would go on for ever: once nothing is scaled up any more, the fault is another one.
    scale.scale.assign(1.0)
    assert not step(*batch(), 0.01).finite


@pytest.fixture
def thin() -> Iterator[None]:
    with thin_networks():
        yield


@pytest.mark.usefixtures("thin")
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_networks_compute_in_it_and_keep_their_weights_in_float32(precision: str) -> None:
    keras.utils.set_random_seed(1)
    model = models.build("effdetd0", 128, 3, precision=precision)
    assert keras.config.dtype_policy().name == "float32"
    assert {w.dtype for w in model.weights} - {"uint32", "int64"} == {"float32"}
    assert model.get_layer("block3a_dwconv").output.dtype == precision
    assert model.get_layer("fpn_cell0_td4_fuse").output.dtype == precision
    image_BHWC = np.random.default_rng(2).uniform(-1, 1, (1, 128, 128, 3)).astype(np.float32)
    logits = model(image_BHWC)
    assert logits.dtype == tf.float32
    plain = models.in_float32(model)
    assert plain.get_layer("block3a_dwconv").output.dtype == "float32"
    expected = np.asarray(plain(image_BHWC))
    assert np.abs(logits - expected).max() < 0.1 * np.abs(expected).max()
    assert np.abs(logits - expected).max() > 0
    assert models.in_float32(plain) is plain


@pytest.mark.usefixtures("thin")
@pytest.mark.parametrize(("name", "recompute"), [("effdetd0", "none"), ("deeplab", "blocks")])
def test_networks_learn_in_bfloat16(name: str, recompute: str) -> None:
    keras.utils.set_random_seed(1)
    model = models.build(name, 128, 2, precision="bfloat16")
    training_pass = models.training_pass(model, recompute)
    optimizer = Adam(model.trainable_variables)
    step = TrainStep(model, optimizer, SoloComm(), LOSS, False, None, training_pass=training_pass)
    image_BHWC, label_BHW = batch(side=128)
    label_BHW[:, :, :64], label_BHW[:, :, 64:] = 0, 1
    image_BHWC[:, :, :64] //= 2
    losses = [step(image_BHWC, label_BHW, 1e-2).loss for _ in range(5)]
    assert losses[-1] < 0.8 * losses[0]


def test_unknown_precision() -> None:
    with pytest.raises(ValueError, match="precision 'int8' is unknown; choose one of float32, bfloat16, float16"):
        models.build("deeplab", 128, 2, precision="int8")
