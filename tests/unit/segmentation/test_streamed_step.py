"""A step of a streamed network against the step of the whole field of view."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from models.layers import BatchNormalization, RunningBatchNormalization
from parallel.comm import SoloComm
from segmentation.losses import Loss
from segmentation.pixel_counts import PixelCounts
from segmentation.streamed_step import StreamedStep
from streaming import Streamed
from tests.support.ranks import on_ranks
from tests.support.streams import difference, randomize
from training.optimizer import Sgd
from training.precision import LossScale
from training.step import TrainStep

SIDE, TILE = 52, 12
WEIGHTS = (1.0, 3.0)


def network(frozen: bool) -> keras.Model:
    """Convolutions with normalization, and a branch of the mean over the image, as in DeepLab."""
    layers = keras.layers
    image = keras.Input((SIDE, SIDE, 3))
    x = BatchNormalization(name="a_BN")(layers.Conv2D(6, 5, 2, padding="same", use_bias=False, name="a")(image))
    x = layers.ReLU()(x)
    mean = layers.GlobalAveragePooling2D(keepdims=True)(x)
    mean = RunningBatchNormalization(name="mean_BN")(layers.Conv2D(6, 1, name="mean")(mean))
    x = layers.Add()([x, mean])
    x = BatchNormalization(name="b_BN")(layers.Conv2D(6, 3, padding="same", name="b")(x))
    x = layers.UpSampling2D(2, interpolation="nearest")(layers.ReLU()(x))
    model = keras.Model(image, layers.Conv2D(2, 1, name="logits")(x))
    randomize(model)
    for layer in model.layers:
        layer.trainable = not (frozen and layer.name.endswith("_BN"))
    return model


def batch(patches: int, side: int = SIDE) -> tuple[Any, Any]:
    """Random patches; the first one has no truth in its upper half, and all of them none in places."""
    rng = np.random.default_rng(11)
    image_BHWC = rng.integers(0, 256, (patches, side, side, 3)).astype(np.uint8)
    label_BHW = rng.choice(np.array([0, 1, 255], np.uint8), (patches, side, side), p=[0.6, 0.3, 0.1])
    label_BHW[0, : side // 2] = 255
    return image_BHWC, label_BHW


def steps(
    model: keras.Model, other: keras.Model, loss: Loss, tile: Any, keep: Any = (), **options: Any
) -> tuple[TrainStep, StreamedStep, PixelCounts, PixelCounts]:
    """The step of a model, and the streamed one of its twin."""
    counts = PixelCounts(2), PixelCounts(2)
    trained = model.get_layer("a_BN").trainable
    stream = Streamed(other, tile=tile, segments=keep, batch_statistics=trained, dropout="inactive")
    scales = [LossScale(), LossScale()] if options.pop("scaled", False) else [None, None]
    plain = TrainStep(
        model, Sgd(model.trainable_variables, 0.9, 0.0), SoloComm(), loss, False, counts[0], loss_scale=scales[0],
        **options,
    )  # fmt: skip
    streamed = StreamedStep(
        other, stream, Sgd(other.trainable_variables, 0.9, 0.0), SoloComm(), loss, False, counts[1],
        loss_scale=scales[1], **options,
    )  # fmt: skip
    return plain, streamed, *counts


def assert_equal_steps(
    model: keras.Model, other: keras.Model, found: tuple[Any, ...], data: tuple[Any, Any], count: int = 3
) -> None:
    """Loss, gradients, counts, and all weights after some steps."""
    plain, streamed, *counts = found
    if plain._parts == 1 and not streamed._stream.batch_statistics:  # a look at gradients moves statistics
        expected, mine = plain.gradients(*map(tf.constant, data))[2], streamed.gradients(*data)[2]
        for a, b in zip(mine, expected, strict=True):
            # The bias of the logits is a sum of all pixels that nearly cancels: the whole image's is rounded, too.
            assert np.linalg.norm(a - b) <= (5e-5 if b.shape == (2,) else 1e-5) * np.linalg.norm(b)
    for number in range(count):
        a, b = (step(*map(tf.constant, data), 0.05, stop=number == 1) for step in (plain, streamed))
        assert b.loss == pytest.approx(a.loss, rel=1e-5)
        assert b.sample_loss_B == pytest.approx(a.sample_loss_B, rel=1e-4)
        assert (b.finite, b.stop) == (True, number == 1)
    assert streamed.mean_loss() == pytest.approx(plain.mean_loss(), rel=1e-5)
    for mine, expected in zip(other.weights, model.weights, strict=True):
        assert difference(mine.numpy(), expected.numpy()) < 1e-4, mine.path
    (mine_KK, _), (expected_KK, _) = (each.totals(SoloComm()) for each in (counts[1], counts[0]))
    assert mine_KK.sum() == expected_KK.sum()
    assert np.abs(mine_KK - expected_KK).sum() <= 2e-3 * expected_KK.sum()


@pytest.mark.parametrize("name", ["ce", "focal", "dice", "ce+dice"])
def test_losses(name: str) -> None:
    model, other = network(True), network(True)
    found = steps(model, other, Loss(name, WEIGHTS, 0.1 if name == "ce" else 0.0), TILE)
    assert_equal_steps(model, other, found, batch(3))
    assert min(min(len(p.rows), len(p.columns)) for p in found[1]._stream.layout((SIDE, SIDE)).parts) >= 3


@pytest.mark.parametrize("name", ["ce", "ce+dice"])
def test_passes_of_a_step_that_are_summed(name: str) -> None:
    model, other = network(True), network(True)
    assert_equal_steps(model, other, steps(model, other, Loss(name, WEIGHTS), TILE, parts=2), batch(4))


@pytest.mark.parametrize(("name", "parts"), [("ce", 1), ("ce", 2), ("dice", 1)])
def test_statistics_of_the_batch(name: str, parts: int) -> None:
    """Normalized with those of all patches of a pass; moving statistics move as in `TrainStep`."""
    model, other = network(False), network(False)
    found = steps(model, other, Loss(name, WEIGHTS), TILE, parts=parts)
    assert_equal_steps(model, other, found, batch(4))
    assert not np.allclose(
        other.get_layer("mean_BN").moving_mean.numpy(), network(False).get_layer("mean_BN").moving_mean
    )


def test_loss_scaling() -> None:
    model, other = network(True), network(True)
    found = steps(model, other, Loss("ce", WEIGHTS), TILE, scaled=True)
    assert_equal_steps(model, other, found, batch(2))
    assert int(found[1]._loss_scale.good) == 3


def test_a_step_whose_gradient_overflows_is_skipped() -> None:
    other = network(True)
    _, streamed, *_ = steps(network(True), other, Loss("ce", WEIGHTS), TILE, scaled=True)
    streamed._loss_scale.scale.assign(float("inf"))
    before = [w.numpy() for w in other.weights]
    result = streamed(*batch(2), 0.05)
    assert result.finite
    assert np.isnan(result.loss)
    assert streamed._loss_scale.skipped == 1
    for weight, old in zip(other.weights, before, strict=True):
        np.testing.assert_array_equal(weight.numpy(), old)


def test_without_any_truth_nothing_is_done() -> None:
    other = network(True)
    _, streamed, *_ = steps(network(True), other, Loss("ce", WEIGHTS), TILE)
    before = [w.numpy() for w in other.weights]
    result = streamed(batch(1)[0], np.full((1, SIDE, SIDE), 255, np.uint8), 0.05)
    assert (result.loss, result.finite) == (0.0, True)
    assert streamed._stream.counts.backward == 0
    for weight, old in zip(other.weights, before, strict=True):
        np.testing.assert_array_equal(weight.numpy(), old)


class Rank(SoloComm):
    """One of several ranks that are threads."""

    def __init__(self, sharing: Any) -> None:
        self._sharing, self.rank, self.size = sharing, sharing.rank, sharing.size

    def sum(self, tensors: Any) -> Any:
        return [tf.constant(x) for x in self._sharing.sum([np.asarray(x) for x in tensors])]

    def mean(self, tensors: Any, fp16: bool = False) -> Any:
        assert not fp16
        return [x / self.size for x in self.sum(tensors)]


@pytest.mark.parametrize("name", ["ce", "ce+dice"])
def test_two_ranks_are_one(name: str) -> None:
    """Each with a patch of its own, of which one has half of the truth."""
    image_BHWC, label_BHW = batch(2)

    def gradients(comm: Any, mine: slice) -> tuple[float, list[Any]]:
        model = network(True)
        stream = Streamed(model, tile=TILE, dropout="inactive")
        optimizer = Sgd(model.trainable_variables, 0.9, 0.0)
        step = StreamedStep(model, stream, optimizer, comm, Loss(name, WEIGHTS), False, None)
        loss, _, grads = step.gradients(image_BHWC[mine], label_BHW[mine])
        return float(loss), [np.asarray(g) for g in grads]

    alone = gradients(SoloComm(), slice(None))
    for loss, grads in on_ranks(2, lambda sharing: gradients(Rank(sharing), slice(sharing.rank, sharing.rank + 1))):
        assert loss == pytest.approx(alone[0], rel=1e-6)
        assert max(difference(a, b) for a, b in zip(grads, alone[1], strict=True)) < 1e-5
