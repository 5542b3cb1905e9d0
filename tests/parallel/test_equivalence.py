"""Ranks do what one rank does with the joint batch. Run by `mpirun -np 2 python -m pytest tests/parallel`, and with 3.

Every test runs on all ranks; each rank also computes the one-rank answer by itself, with `SoloComm`.

Tolerances: float32 sums of n terms in another order differ by about n * 2^-24 relative at worst, sqrt(n) * 2^-24 as
a rule. The largest sum here is a gradient over 6 x 64 pixels: 384 * 6e-8 = 2.3e-5 at worst, so 2e-5 relative. The
bound of fp16 is derived in docs/distributed.md.
"""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

import models
from artifacts.checkpoints import named_variables
from models.recompute import Recomputed, naming
from options.choices import LOSSES, OPTIMIZERS
from parallel.comm import AgreedError, SoloComm, connect, together
from samplers.hard_pool import Entry
from samplers.pipeline import Feed, grid_feed, rank_indices
from segmentation.losses import Loss
from segmentation.pixel_counts import PixelCounts
from segmentation.validation import Validator
from tests.support.network import network
from tests.support.patches import load, pool
from training.optimizer import Adam, build
from training.schedule import Schedule, scaling
from training.step import TrainStep, require_finite

RTOL = 2e-5


@pytest.fixture(scope="session")
def comm():
    found = connect(horovod=True)
    assert found.size >= 2, "run me with mpirun -np 2"
    return found


def joint_batch(size, side=8, per_rank=2):
    """Batch of all ranks; rank 0's patches have many ignored pixels, so ranks have unequal numbers of valid ones."""
    rng = np.random.default_rng(5)
    image_BHWC = rng.integers(0, 256, (size * per_rank, side, side, 3)).astype(np.uint8)
    label_BHW = rng.integers(0, 2, (size * per_rank, side, side)).astype(np.uint8)
    label_BHW[0, : side - 1] = 255
    label_BHW[1, :, 0] = 255
    return image_BHWC, label_BHW


def mine(array, comm, per_rank=2):
    return array[comm.rank * per_rank : (comm.rank + 1) * per_rank]


def steps(model, comm, fp16=False, loss="ce", **options):
    return TrainStep(model, Adam(model.trainable_variables), comm, Loss(loss, (1.0, 3.0)), fp16, None, **options)


def same_on_all_ranks(comm, variables):
    """Bit-equal, compared as bytes."""
    contents = comm.gather([v.numpy().tobytes() for v in variables])
    assert len(contents[0]) > 0
    return all(other == contents[0] for other in contents[1:])


@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradients_equal_the_joint_batch(comm, name):
    image_BHWC, label_BHW = joint_batch(comm.size)
    model = network()
    many, one = steps(model, comm, loss=name), steps(model, SoloComm(), loss=name)
    loss, sample_loss_B, grads = many.gradients(mine(image_BHWC, comm), mine(label_BHW, comm))
    joint_loss, joint_patch_B, joint_grads = one.gradients(image_BHWC, label_BHW)
    assert float(loss) == pytest.approx(float(joint_loss), rel=RTOL)
    assert sample_loss_B.numpy() == pytest.approx(mine(joint_patch_B.numpy(), comm), rel=RTOL)
    assert len(grads) == 4
    for grad, joint in zip(grads, joint_grads, strict=True):
        np.testing.assert_allclose(grad, joint, rtol=RTOL, atol=RTOL * np.abs(joint).max())


def test_mean_of_rank_losses_would_be_wrong(comm):
    """The test above can fail: averaging each rank's own mean loss gives another number."""
    image_BHWC, label_BHW = joint_batch(comm.size)
    solo = steps(network(), SoloComm())
    own = float(solo.gradients(mine(image_BHWC, comm), mine(label_BHW, comm))[0])
    joint = float(solo.gradients(image_BHWC, label_BHW)[0])
    assert abs(np.mean(comm.gather(own)) - joint) > 10 * RTOL * joint


def test_fp16_gradients_stay_within_their_bound(comm):
    """|result - g| <= G(n + 1) A + 2 e (1 + u)^n of docs/distributed.md, for every entry."""
    image_BHWC, label_BHW = joint_batch(comm.size)
    model = network()
    batch = mine(image_BHWC, comm), mine(label_BHW, comm)
    plain = steps(model, comm)
    owns = comm.gather([g.numpy().astype(np.float64) for g in plain._own_gradients(*batch)[2]])
    rounded = [g.numpy() for g in steps(model, comm, fp16=True).gradients(*batch)[2]]
    n, u, e = comm.size, 2.0**-11, 2.0**-25
    growth = (n + 1) * u / (1 - (n + 1) * u)
    differ = False
    for at, r in enumerate(rounded):
        exact, size = (np.mean(x, 0) for x in ([own[at] for own in owns], [np.abs(own[at]) for own in owns]))
        # 2^-22: the float32 sums that the exact mean is compared with.
        assert (np.abs(exact - r) <= growth * size + 2 * e * (1 + u) ** n + 2.0**-22 * size).all()
        differ |= bool((np.abs(exact - r) > 2.0**-20 * size).any())
    assert differ  # otherwise the flag did nothing


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_weights_after_some_steps(comm, name):
    """Five steps of a schedule with every optimizer; the rate is that of the joint batch on both sides."""
    image_BHWC, label_BHW = joint_batch(comm.size)
    ranks, joint = network(), network()

    def step(model, communicator):
        optimizer = build(name, model.trainable_variables, 0.9, 0.01)
        return TrainStep(model, optimizer, communicator, Loss("ce", (1.0, 3.0)), False, None)

    many, one = step(ranks, comm), step(joint, SoloComm())
    base = 0.01 * OPTIMIZERS[name].base_lr / OPTIMIZERS["adam"].base_lr
    schedule = Schedule("cyclic", base * scaling("sqrt", comm.size), 4, 20, 8)
    start = [w.numpy() for w in ranks.weights]
    for images in range(0, 20, 4):
        rate = schedule.rate(images)
        loss = many(mine(image_BHWC, comm), mine(label_BHW, comm), rate).loss
        assert loss == pytest.approx(one(image_BHWC, label_BHW, rate).loss, rel=1e-4)
    assert same_on_all_ranks(comm, [v.value for v in ranks.weights])
    for a, b, was in zip(ranks.weights, joint.weights, start, strict=True):
        # Adam and LAMB divide by the gradient's size: where it is near 0, an error of 1e-5 of the largest entry may
        # move a weight by a thousandth of what the steps have moved them.
        np.testing.assert_allclose(a.numpy(), b.numpy(), atol=2e-3 * np.abs(b.numpy() - was).max())


def test_all_stop_when_one_was_asked(comm):
    image_BHWC, label_BHW = joint_batch(comm.size)
    step = steps(network(), comm)
    batch = mine(image_BHWC, comm), mine(label_BHW, comm), 0.01
    found = [step(*batch, stop=asked).stop for asked in (False, comm.rank == comm.size - 1, False)]
    assert found == [False, True, False]


def test_counts_of_an_interrupted_interval_go_on(comm):
    """Counts saved by all ranks and restored on one are the counts of all, once."""
    image_BHWC, label_BHW = joint_batch(comm.size)
    model = network()

    def counts(batches):
        made = PixelCounts(2)
        for images, labels in batches:
            made.update(model(images / 127.5 - 1), labels)
        return made

    own = mine(image_BHWC, comm), mine(label_BHW, comm)
    kept = counts([own]).state(comm)
    again = counts([own])
    if comm.rank == 0:
        again.restore(kept + again.state(SoloComm()))
    joint = counts([(image_BHWC, label_BHW)] * 2)
    for found, expected in zip(again.totals(comm), joint.totals(SoloComm()), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_everything_is_bit_equal_with_batch_norm_and_fp16(comm):
    image_BHWC, label_BHW = joint_batch(comm.size)
    model = network(norm=True)
    step = steps(model, comm, fp16=True)
    for _ in range(3):
        step(mine(image_BHWC, comm), mine(label_BHW, comm), 0.01)
    assert same_on_all_ranks(comm, named_variables(model, step._optimizer).values())


def test_moving_statistics_are_the_mean_over_ranks(comm):
    image_BHWC, label_BHW = joint_batch(comm.size)
    batch = mine(image_BHWC, comm), mine(label_BHW, comm)
    joint, own = network(norm=True), network(norm=True)
    steps(joint, comm)(*batch, 0.01)
    steps(own, SoloComm())(*batch, 0.01)
    for name in ("moving_mean", "moving_variance"):
        owns = comm.gather(getattr(own.get_layer("norm"), name).numpy())
        assert np.abs(owns[0] - owns[1]).max() > 1e-4
        np.testing.assert_allclose(getattr(joint.get_layer("norm"), name).numpy(), np.mean(owns, 0), rtol=1e-6)


def test_passes_of_all_ranks_equal_the_joint_batch(comm):
    """Every rank's two patches in two passes, with unequal truth in each; one update of the weights."""
    image_BHWC, label_BHW = (tf.constant(x) for x in joint_batch(comm.size))
    many, one = network(), network()
    result = steps(many, comm, parts=2)(mine(image_BHWC, comm), mine(label_BHW, comm), 0.01)
    expected = steps(one, SoloComm())(image_BHWC, label_BHW, 0.01)
    assert result.loss == pytest.approx(expected.loss, rel=RTOL)
    for mine_, joint in zip(many.weights, one.weights, strict=True):
        np.testing.assert_allclose(mine_.numpy(), joint.numpy(), atol=1e-5)
    assert same_on_all_ranks(comm, [w.value for w in many.weights])


def normed_network():
    """Convolutions with each kind of batch normalization behind them."""
    keras.utils.set_random_seed(1)
    x = image = keras.Input((8, 8, 3))
    for activation in (None, "relu", "swish"):
        x = keras.layers.Conv2D(5, 3, padding="same", use_bias=False)(x)
        x = models.layers.BatchNormalization(activation)(x)
    return keras.Model(image, keras.layers.Conv2D(2, 1)(x))


def test_synced_norm_equals_the_joint_batch(comm):
    """Loss, gradients and moving statistics, also recomputed; each rank normalising alone gets others."""
    image_BHWC, label_BHW = joint_batch(comm.size)
    found = {}
    for kind in ("synced", "recomputed", "joint", "alone"):
        model = normed_network()
        if kind in ("synced", "recomputed"):
            assert models.synchronize(model, comm.sum) == 3
        training_pass = Recomputed(model, [naming({"": "all"})]) if kind == "recomputed" else model
        ranks = SoloComm() if kind == "joint" else comm
        batch = [x if kind == "joint" else mine(x, comm) for x in (image_BHWC, label_BHW)]
        step = steps(model, ranks, training_pass=training_pass)
        loss, _, grads = tf.function(step.gradients, autograph=False)(*batch)
        statistics = [v.numpy() for v in model.non_trainable_variables if v.dtype == "float32"]
        found[kind] = [np.concatenate([np.ravel(v) for v in values]) for values in ([loss], grads, statistics)]
    for kind in ("synced", "recomputed"):
        for synced, joint in zip(found[kind], found["joint"], strict=True):
            np.testing.assert_allclose(synced, joint, rtol=RTOL, atol=RTOL * np.abs(joint).max())
    for alone, joint in zip(found["alone"], found["joint"], strict=True):
        assert np.abs(alone - joint).max() > 10 * RTOL * np.abs(joint).max()


def test_effdetd0_with_frozen_norm_equals_the_joint_batch(comm):
    """The real network; BatchNorm in inference mode, since its batch statistics are each rank's own."""
    keras.utils.set_random_seed(1)
    model = models.build("effdetd0", 128, 2)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False
    image_BHWC, label_BHW = joint_batch(comm.size, side=128, per_rank=1)
    many = tf.function(steps(model, comm).gradients, autograph=False)
    one = tf.function(steps(model, SoloComm()).gradients, autograph=False)
    loss, _, grads = many(mine(image_BHWC, comm, 1), mine(label_BHW, comm, 1))
    joint_loss, _, joint_grads = one(image_BHWC, label_BHW)
    assert float(comm.mean([loss])[0]) == pytest.approx(float(joint_loss), rel=1e-4)
    norms = [(float(tf.norm(a - b)), float(tf.norm(b))) for a, b in zip(grads, joint_grads, strict=True)]
    total = np.sqrt(sum(n**2 for _, n in norms))
    assert total > 0
    assert max(error for error, _ in norms) < 1e-3 * total


def test_initial_broadcast(comm):
    model = network(seed=10 + comm.rank)
    variables = list(named_variables(model, Adam(model.trainable_variables)).values())
    assert not same_on_all_ranks(comm, variables)
    comm.broadcast(variables)
    assert same_on_all_ranks(comm, variables)
    assert (variables[0].numpy() == network(seed=10).weights[0].numpy()).all()


def test_validation_is_the_same_for_any_number_of_ranks(comm):
    """Five patches over the ranks: shares are uneven and the last batch is padded, yet each counts once."""
    keras.utils.set_random_seed(2)
    model = network(side=4)

    class Reader:
        img_size, channels = 4, 3

        def read(self, request):
            return load(request)

    def scores(communicator):
        left_out = []
        feed = grid_feed(Reader(), [1, 2, 3, 4, 7], communicator.rank, communicator.size, 2, 1, left_out.append)
        return Validator(model, 2, Loss("ce", (1.0, 1.0))).run(feed, communicator)[0]

    together_scores, alone = scores(comm), scores(SoloComm())
    assert together_scores == pytest.approx(alone, rel=1e-6, nan_ok=True)
    assert np.isfinite(together_scores["miou"])


def test_sample_stream_is_disjoint_and_complete(comm):
    batch, count = 2, 3
    indices = itertools.islice(rank_indices(0, batch, comm.rank, comm.size), batch * count)
    seen = [int(i) for _, _, meta_BM in Feed(load, list(indices), batch, 4, 2) for i in meta_BM[:, 0]]
    everyone = sorted(i for part in comm.gather(seen) for i in part)
    assert everyone == list(range(batch * count * comm.size))


def test_hard_pool_is_equal_on_all_ranks(comm):
    hard = pool()
    own = [Entry(i, 0, i % 2, 10.0 * i, 5.0, float(i)) for i in range(comm.rank, 8, comm.size)]
    hard.feed([e for part in comm.gather(own) for e in part], 8)
    drawn = comm.gather([hard.request(i) for i in range(8, 16)])
    assert len(drawn[0]) == 8
    assert all(other == drawn[0] for other in drawn)
    assert {r.origin for r in drawn[0]} == {"hard", "stream"}


def test_sums_of_integers_are_exact(comm):
    big = np.array([[2**53 + 1, comm.rank]], np.int64)
    assert comm.sum_array(big).tolist() == [[comm.size * (2**53 + 1), sum(range(comm.size))]]
    assert comm.sum_array(np.array([0.5])).dtype == np.float64


def test_error_on_one_rank_reaches_all(comm):
    def only_last():
        if comm.rank == comm.size - 1:
            raise ValueError("tumor_009.tif: truncated")

    with pytest.raises(AgreedError, match=rf"^rank {comm.size - 1}: tumor_009.tif: truncated$"):
        together(comm, only_last)


def test_non_finite_loss_stops_all_ranks_and_names_the_patch(comm):
    model = network()
    image_BHWC, label_BHW = joint_batch(comm.size)
    step = steps(model, comm)
    indices_B = np.arange(2) + 40 + 2 * comm.rank
    require_finite(step(mine(image_BHWC, comm), mine(label_BHW, comm), 0.0), indices_B, 0, comm)
    result = step(mine(image_BHWC, comm), mine(label_BHW, comm), 0.0)
    broken = np.where(indices_B == 41, np.nan, result.sample_loss_B)
    poisoned = type(result)(float(comm.mean([tf.constant(broken.sum())])[0]), broken, finite=False)
    with pytest.raises(AgreedError, match=r"step at image 40.*is not finite: \[41\]"):
        require_finite(poisoned, indices_B, 40, comm)


def test_tensors_of_a_large_network_are_remembered(comm, capfd):
    # Beyond its capacity Horovod's cache forgets, warns, and negotiates every tensor again in every step.
    for _ in range(2):
        found = comm.mean([tf.fill([1], float(comm.rank)) for _ in range(1500)])
    assert float(found[-1][0]) == (comm.size - 1) / 2
    assert "evicted" not in capfd.readouterr().err
