"""Losses, schedule, step, optimizer, counts, checkpoints, and the communicator of one rank."""

import json
import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from artifacts.checkpoints import CheckpointError, Checkpoints, State, named_variables, read_arrays, state_of
from metrics import confusion
from parallel.comm import SoloComm, connect, together
from parallel.launchers import RANK_VARIABLES, SIZE_VARIABLES, launched_rank, launched_size
from segmentation.losses import Loss
from segmentation.pixel_counts import PixelCounts
from segmentation.validation import Validator
from tests.support.network import batch, network
from training.optimizer import Adam
from training.step import TrainStep, scaled

RNG = np.random.default_rng(7)
LOSS = Loss("ce", (1.0, 1.0))


def test_images_are_scaled_to_plus_minus_one():
    assert scaled(tf.constant([0, 51, 255], tf.uint8)).numpy() == pytest.approx([-1, -0.6, 1])
    levels = np.arange(256, dtype=np.uint8)
    # Bit-equal to the plain arithmetic that is done on GPUs.
    plain = levels.astype(np.float32) * np.float32(2 / 255) - np.float32(1)
    np.testing.assert_array_equal(scaled(tf.constant(levels)).numpy(), plain)


# ----------------------------------------------------------------------------------------------------------------- step


def test_step_matches_keras_by_hand():
    """Loss and two Adam updates equal Keras' own loss, tape and optimizer."""
    image_BHWC, label_BHW = batch()
    ours, keras_model = network(), network()
    step = TrainStep(ours, Adam(ours.trainable_variables), SoloComm(), Loss("ce", (1.0, 3.0)), False, None)
    optimizer = keras.optimizers.Adam(0.01)
    weight_BHW = np.where(label_BHW == 255, 0, np.where(label_BHW == 1, 3, 1)).astype(np.float32)
    for _ in range(2):
        result = step(image_BHWC, label_BHW, 0.01)
        with tf.GradientTape() as tape:
            p_BHWK = keras.ops.softmax(keras_model(image_BHWC / np.float32(127.5) - 1))
            target_BHW = tf.one_hot(np.minimum(label_BHW, 1), 2)
            entropy_BHW = -tf.reduce_sum(target_BHW * tf.math.log(p_BHWK), -1)
            loss = tf.reduce_sum(entropy_BHW * weight_BHW) / weight_BHW.sum()
        variables = keras_model.trainable_variables
        optimizer.apply(tape.gradient(loss, [v.value for v in variables]), variables)
        assert result.loss == pytest.approx(float(loss), rel=1e-5)
    by_patch = (entropy_BHW.numpy() * weight_BHW).sum((1, 2)) / weight_BHW.sum((1, 2))
    assert result.sample_loss_B == pytest.approx(by_patch, rel=1e-5)
    for mine, reference in zip(ours.weights, keras_model.weights, strict=True):
        np.testing.assert_allclose(mine.numpy(), reference.numpy(), atol=2e-6)
    assert step.mean_loss() > 0
    assert math.isnan(step.mean_loss())


def test_batch_without_any_truth_changes_no_weight_by_a_gradient():
    model = network()
    before = [w.numpy() for w in model.weights]
    step = TrainStep(model, Adam(model.trainable_variables), SoloComm(), LOSS, False, None)
    result = step(batch()[0], np.full((2, 8, 8), 255, np.uint8), 0.1)
    assert result.loss == 0
    for w, b in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(w.numpy(), b)


def test_moving_statistics_leave_their_start_at_once_and_keep_the_momentum_later():
    model = network(norm=True)
    layer, optimizer = model.get_layer("norm"), Adam(model.trainable_variables)
    step = TrainStep(model, optimizer, SoloComm(), LOSS, False, None)
    image_BHWC, label_BHW = batch()
    mean_C = model.get_layer("first")(scaled(image_BHWC)).numpy().mean((0, 1, 2))
    step(image_BHWC, label_BHW, 0.0)
    assert layer.moving_mean.numpy() == pytest.approx(0.9 * mean_C, rel=1e-4)
    step(image_BHWC, label_BHW, 0.0)
    assert layer.moving_mean.numpy() == pytest.approx((0.9 + 0.1 * 9 / 11) * mean_C, rel=1e-4)
    optimizer.steps.assign(2000)
    layer.moving_mean.assign(np.zeros(4))
    step(image_BHWC, label_BHW, 0.0)
    assert layer.moving_mean.numpy() == pytest.approx(0.01 * mean_C, rel=1e-4)


def test_moving_statistics_move_and_nan_is_seen():
    model = network(norm=True)
    step = TrainStep(model, Adam(model.trainable_variables), SoloComm(), LOSS, False, None)
    step(*batch(), 0.01)
    assert np.abs(model.get_layer("norm").moving_mean.numpy()).max() > 0
    model.get_layer("first").kernel.assign(np.full((3, 3, 3, 4), np.nan))
    result = step(*batch(), 0.01)
    assert math.isnan(result.loss)
    assert not result.finite


def test_infinite_gradient_is_seen_although_the_loss_is_a_number():
    class Overflowing(SoloComm):
        def mean(self, tensors, fp16=False):
            return [t * np.inf if fp16 else t for t in tensors]

    model = network()
    step = TrainStep(model, Adam(model.trainable_variables), Overflowing(), LOSS, True, None)
    result = step(*batch(), 0.0)
    assert math.isfinite(result.loss)
    assert not result.finite


def test_pretrained_statistics_are_not_forgotten():
    model = network(norm=True)
    layer = model.get_layer("norm")
    layer.moving_mean.assign(np.full(4, 5.0))
    TrainStep(model, Adam(model.trainable_variables), SoloComm(), LOSS, False, None, warm_up=False)(*batch(), 0.0)
    assert layer.moving_mean.numpy() == pytest.approx(np.full(4, 4.95), abs=0.02)


@pytest.mark.parametrize("name", ["ce", "focal"])
def test_parts_of_a_step_are_as_good_as_the_whole(name):
    """Without BatchNorm: the same losses, and weights after two updates, although the parts hold unequal truth."""
    loss = Loss(name, (1.0, 3.0))
    image_BHWC, label_BHW = batch(patches=4, ignored=8)
    label_BHW[0, 1:] = 255
    whole, cut = network(), network()
    for model, parts in ((whole, 1), (cut, 2)):
        step = TrainStep(model, Adam(model.trainable_variables), SoloComm(), loss, False, None, parts=parts)
        results = [step(tf.constant(image_BHWC), tf.constant(label_BHW), 0.01) for _ in range(2)]
        if parts == 1:
            expected = results
    for mine, wanted in zip(results, expected, strict=True):
        assert mine.loss == pytest.approx(wanted.loss, rel=1e-6)
        assert mine.sample_loss_B == pytest.approx(wanted.sample_loss_B, rel=1e-5)
    for mine, wanted in zip(cut.weights, whole.weights, strict=True):
        np.testing.assert_allclose(mine.numpy(), wanted.numpy(), atol=2e-6)


def test_dice_of_parts_is_their_mean():
    loss = Loss("ce+dice", (1.0, 1.0))
    image_BHWC, label_BHW = (tf.constant(x) for x in batch(patches=4, ignored=0))
    model = network()
    logits_BHWK = model(scaled(image_BHWC))
    ce = Loss("ce", (1.0, 1.0))
    halves = [loss.sums(logits_BHWK[i : i + 2], label_BHW[i : i + 2]) for i in (0, 2)]
    dice = [Loss("dice", (1.0, 1.0)).value(tf.reduce_sum(half, 0)) for half in halves]
    expected = float(ce.value(tf.reduce_sum(ce.sums(logits_BHWK, label_BHW), 0))) + float(sum(dice)) / 2
    step = TrainStep(model, Adam(model.trainable_variables), SoloComm(), loss, False, None, parts=2)
    assert step(image_BHWC, label_BHW, 0.01).loss == pytest.approx(expected, rel=1e-5)


# --------------------------------------------------------------------------------------------------- counts, validation


def test_pixels_are_counted_like_numpy():
    logits_BHWK = RNG.normal(size=(2, 5, 7, 2)).astype(np.float32)
    label_BHW = RNG.choice([0, 1, 255], (2, 5, 7)).astype(np.uint8)
    counts = PixelCounts(2)
    for half in (0, 1):
        counts.update(logits_BHWK[half : half + 1], label_BHW[half : half + 1])
    confusion_KK, histogram_2N = counts.totals(SoloComm())
    p_BHW = 1 / (1 + np.exp(logits_BHWK[..., 0] - logits_BHWK[..., 1]))
    expected_KK = confusion.confusion_from_labels(label_BHW, logits_BHWK.argmax(-1).astype(np.uint8), 2)
    assert confusion_KK.tolist() == expected_KK.tolist()
    assert histogram_2N.sum(1).tolist() == expected_KK.sum(1).tolist()
    expected_2N = confusion.histogram_from_probabilities(label_BHW, p_BHW, confusion.BINS)
    assert np.abs(histogram_2N.cumsum(1) - expected_2N.cumsum(1)).max() <= 1  # one pixel may fall into the next bin
    assert counts.totals(SoloComm())[0].sum() == 0


def test_validation_counts_every_pixel_once_and_keeps_pictures():
    model = network()
    image_BHWC, label_BHW = batch(4)
    validator = Validator(model, 2, LOSS)
    batches = [(tf.constant(image_BHWC[i : i + 2]), tf.constant(label_BHW[i : i + 2]), None) for i in (0, 2)]
    scores, pictures = validator.run(batches, SoloComm())
    logits_BHWK = model.predict(image_BHWC / 127.5 - 1, verbose=0)
    expected_KK = confusion.confusion_from_labels(label_BHW, logits_BHWK.argmax(-1).astype(np.uint8), 2)
    assert expected_KK.sum() == 4 * 64 - 5
    assert scores["miou"] == pytest.approx(confusion.miou(expected_KK))
    assert scores["dice"] == scores["dice_1"] == pytest.approx(confusion.dice_K(expected_KK)[1])
    assert 0 < scores["loss"] < 5
    assert len(pictures) == 4
    assert pictures[0].image_HWC.shape == (8, 8, 3)


# ---------------------------------------------------------------------------------------------------------- checkpoints


def trained(images, folder):
    model = network(norm=True)
    optimizer = Adam(model.trainable_variables)
    step = TrainStep(model, optimizer, SoloComm(), LOSS, False, None)
    for _ in range(images):
        step(*batch(), 0.01)
    Checkpoints(folder).save(
        f"images-{images:09d}.npz", model, optimizer, State(images, 0.5, {"seed": 1}, {"hard_pool": np.eye(2)})
    )
    return model, optimizer, step


def test_resume_goes_on_bit_equal(tmp_path):
    model, optimizer, step = trained(3, tmp_path)
    fresh = network(norm=True, seed=99)
    state, path, notes = Checkpoints(tmp_path).resume(
        "auto", fresh, fresh_optimizer := Adam(fresh.trainable_variables), {"seed": 1}
    )
    assert (state.images, state.best_score, path.name, notes) == (3, 0.5, "images-000000003.npz", [])
    assert state.arrays["hard_pool"].tolist() == [[1, 0], [0, 1]]
    again = TrainStep(fresh, fresh_optimizer, SoloComm(), LOSS, False, None)
    assert step(*batch(), 0.01).loss == pytest.approx(again(*batch(), 0.01).loss, abs=1e-6)
    pairs = zip(
        named_variables(model, optimizer).values(), named_variables(fresh, fresh_optimizer).values(), strict=True
    )
    differences = [float(np.abs(a.numpy() - b.numpy()).max()) for a, b in pairs]
    assert len(differences) == 8 + 1 + 2 * 6
    assert max(differences) < 1e-6


def test_truncated_checkpoint_falls_back_and_says_so(tmp_path):
    trained(1, tmp_path)
    trained(2, tmp_path)
    newest = tmp_path / "images-000000002.npz"
    newest.write_bytes(newest.read_bytes()[:-100])
    model = network(norm=True)
    optimizer = Adam(model.trainable_variables)
    # another run's checkpoints are only read
    for wanted in (str(newest), str(tmp_path)):
        state, path, notes = Checkpoints(tmp_path / "own").resume(wanted, model, optimizer, {})
        assert (state.images, path.name) == (1, "images-000000001.npz")
        assert len(notes) == 1
        assert "images-000000002.npz: damaged checkpoint" in notes[0]
    state, path, notes = Checkpoints(tmp_path).resume("auto", model, optimizer, {})
    assert (state.images, path.name) == (1, "images-000000001.npz")
    assert [note.split(":")[0] for note in notes] == [str(newest), f"{newest} is of a later image"]
    (tmp_path / "images-000000001.npz").write_bytes(b"")
    with pytest.raises(CheckpointError, match="no readable checkpoint"):
        Checkpoints(tmp_path).resume("auto", model, optimizer, {})


def test_checkpoints_after_the_one_resumed_from_are_abandoned(tmp_path):
    for images in (1, 2, 3):
        model, optimizer, _ = trained(images, tmp_path)
    checkpoints = Checkpoints(tmp_path)
    first = tmp_path / "images-000000001.npz"
    state, path, notes = checkpoints.resume(str(first), model, optimizer, {})
    assert (state.images, path) == (1, first)
    assert len(notes) == 2
    assert notes[1].endswith("images-000000002.npz is of a later image: renamed to abandoned-images-000000002.npz.")
    # the next checkpoint is the newest, although the other way had come further
    checkpoints.save("images-000000002.npz", model, optimizer, State(2, 0.75, {}))
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "abandoned-images-000000002.npz",
        "abandoned-images-000000003.npz",
        "images-000000001.npz",
        "images-000000002.npz",
    ]
    assert checkpoints.resume("auto", model, optimizer, {})[0].best_score == 0.75


def test_a_kept_checkpoint_outlives_the_newest(tmp_path):
    for images in (1, 2, 3, 4, 5):
        model, optimizer, _ = trained(images, tmp_path)
        if images == 1:
            Checkpoints(tmp_path).keep(tmp_path / "images-000000001.npz", "epoch-0001.npz")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "epoch-0001.npz", "images-000000003.npz", "images-000000004.npz", "images-000000005.npz",
    ]  # fmt: skip
    state, _, _ = Checkpoints(tmp_path).resume(str(tmp_path / "epoch-0001.npz"), model, optimizer, {})
    assert state.images == 1


def test_a_best_score_under_its_old_name_is_read(tmp_path):
    trained(1, tmp_path)
    arrays = read_arrays(tmp_path / "images-000000001.npz")
    stored = json.loads(arrays["state"].tobytes())
    stored["best_miou"] = stored.pop("best_score")
    arrays["state"] = np.frombuffer(json.dumps(stored).encode(), np.uint8)
    assert state_of(arrays).best_score == 0.5


def test_flipped_byte_is_noticed(tmp_path):
    trained(1, tmp_path)
    path = tmp_path / "images-000000001.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    model = network(norm=True)
    with pytest.raises(CheckpointError, match="damaged"):
        Checkpoints(tmp_path).resume("auto", model, Adam(model.trainable_variables), {})


def test_other_model_or_stream_is_refused_and_nothing_changes(tmp_path):
    trained(1, tmp_path)
    other = network(classes=3, norm=True)
    before = [w.numpy() for w in other.weights]
    with pytest.raises(CheckpointError, match="of another model"):
        Checkpoints(tmp_path).resume("auto", other, Adam(other.trainable_variables), {})
    assert all((w.numpy() == b).all() for w, b in zip(other.weights, before, strict=True))
    same = network(norm=True)
    with pytest.raises(CheckpointError, match="was trained with --seed 1"):
        Checkpoints(tmp_path).resume("auto", same, Adam(same.trainable_variables), {"seed": 2})
    # An option that did not exist then.
    with pytest.raises(CheckpointError, match="was trained with --younger None"):
        Checkpoints(tmp_path).resume("auto", same, Adam(same.trainable_variables), {"seed": 1, "younger": 0.05})
    Checkpoints(tmp_path).resume(
        "auto", same, Adam(same.trainable_variables), {"seed": 1, "younger": 0.0, "norm": "none"}
    )


def test_nothing_to_resume(tmp_path):
    assert Checkpoints(tmp_path).resume("auto", None, None, {}) is None
    with pytest.raises(CheckpointError, match="no such file"):
        Checkpoints(tmp_path).resume(str(tmp_path / "x.npz"), None, None, {})


def test_failed_write_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    model, optimizer, _ = trained(1, tmp_path)

    def full(file, **_):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space"):
        Checkpoints(tmp_path).save("images-000000001.npz", model, optimizer, State(1, 0.0, {}))
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["images-000000001.npz"]
    assert Checkpoints(tmp_path).resume("auto", model, optimizer, {})[0].best_score == 0.5


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    model, optimizer, _ = trained(1, tmp_path)
    for images in (9, 10, 11):
        Checkpoints(tmp_path).save(f"images-{images:09d}.npz", model, optimizer, State(images, 0.0, {}))
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["images-000000009.npz", "images-000000010.npz", "images-000000011.npz"]


# --------------------------------------------------------------------------------------------------------- communicator


@pytest.fixture
def no_launcher(monkeypatch):
    for name in (*SIZE_VARIABLES, *RANK_VARIABLES, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("environment", "size", "rank"),
    [
        ({}, 1, 0),
        ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "2"}, 4, 2),
        ({"PMI_SIZE": "2", "PMI_RANK": "1"}, 2, 1),
        ({"HOROVOD_SIZE": "3", "HOROVOD_RANK": "1"}, 3, 1),
        ({"PMIX_RANK": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "5"}, 8, 5),
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, 1, 0),  # a bare batch script is one process
    ],
)
def test_launchers_are_recognised(no_launcher, environment, size, rank):
    for name, value in environment.items():
        no_launcher.setenv(name, value)
    assert (launched_size(), launched_rank()) == (size, rank)


def test_one_process_needs_no_horovod(no_launcher):
    assert isinstance(connect(horovod=True), SoloComm)
    no_launcher.setenv("PMI_SIZE", "2")
    with pytest.raises(ValueError, match="--no-horovod under a launcher that started 2"):
        connect(horovod=False)


class Pair(SoloComm):
    """Two ranks of which the other one reports `other`."""

    size = 2

    def __init__(self, other):
        self.other = other

    def gather(self, value):
        return [value, self.other]


def test_together_fails_on_all_ranks_if_any_failed():
    assert together(Pair(None), lambda: 5) == 5
    with pytest.raises(ValueError, match=r"^rank 1: tumor_003: truncated$"):
        together(Pair("tumor_003: truncated"), lambda: 5)

    def fail():
        raise OSError("no such folder")

    with pytest.raises(ValueError, match=r"^no such folder$"):
        together(Pair("no such folder"), fail)
