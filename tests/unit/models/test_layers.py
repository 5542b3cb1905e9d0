"""The layers Keras lacks: resize, fixed padding, fast fusion, batch norm with running statistics."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from models.layers import (
    AlignCornersResize,
    BatchNormalization,
    FastFusion,
    FixedPadding,
    RunningBatchNormalization,
    interpolation_matrix,
)


def test_interpolation_keeps_the_corners() -> None:
    np.testing.assert_array_equal(
        interpolation_matrix(3, 5), np.float32([[1, 0, 0], [0.5, 0.5, 0], [0, 1, 0], [0, 0.5, 0.5], [0, 0, 1]])
    )
    np.testing.assert_array_equal(interpolation_matrix(1, 3), np.float32([[1], [1], [1]]))
    np.testing.assert_array_equal(interpolation_matrix(4, 1), np.float32([[1, 0, 0, 0]]))
    np.testing.assert_array_equal(interpolation_matrix(4, 4), np.eye(4, dtype=np.float32))


def test_resize_by_hand() -> None:
    image_BHWC = np.float32([[0, 3], [6, 9], [12, 15]])[None, :, :, None]
    got = np.asarray(AlignCornersResize((5, 4))(image_BHWC))[0, :, :, 0]
    expected = [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9], [9, 10, 11, 12], [12, 13, 14, 15]]
    np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("hw_out", [(21, 12), (3, 40), (7, 5)])
def test_resize_equals_tensorflow_align_corners(hw_out: tuple[int, int]) -> None:
    image_BHWC = np.random.default_rng(0).normal(size=(2, 7, 5, 3)).astype(np.float32)
    layer = AlignCornersResize(hw_out)
    expected = tf.raw_ops.ResizeBilinear(images=image_BHWC, size=hw_out, align_corners=True)
    np.testing.assert_allclose(layer(image_BHWC), expected, atol=1e-5)
    assert layer.compute_output_shape((None, 7, 5, 3)) == (None, *hw_out, 3)


def test_resize_computes_in_float32_under_mixed_precision() -> None:
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        layer = AlignCornersResize((3, 5))
    finally:
        keras.config.set_dtype_policy("float32")
    # bfloat16 would round 1.001 to 1.
    got = layer(np.full((1, 2, 3, 1), 1.001, np.float32))
    assert got.dtype == tf.float32
    np.testing.assert_allclose(got, np.full((1, 3, 5, 1), 1.001), rtol=1e-6)


@pytest.mark.parametrize(("dilation", "before", "after"), [(1, 1, 1), (2, 2, 2)])
def test_fixed_padding(dilation: int, before: int, after: int) -> None:
    got = np.asarray(FixedPadding(3, dilation)(np.ones((1, 4, 6, 1), np.float32)))[0, :, :, 0]
    expected = np.pad(np.ones((4, 6)), (before, after))
    np.testing.assert_array_equal(got, expected)


def test_fixed_padding_of_an_even_kernel_has_the_odd_row_after() -> None:
    got = np.asarray(FixedPadding(4)(np.ones((1, 1, 2, 1), np.float32)))[0, :, :, 0]
    np.testing.assert_array_equal(got, [[0] * 5, [0, 1, 1, 0, 0], [0] * 5, [0] * 5])


def test_fusion_by_hand() -> None:
    layer = FastFusion()
    maps = [np.full((1, 2, 3, 1), value, np.float32) for value in (2.0, 10.0, 100.0)]
    # A sum of 112 over 3.0001, so large that swish leaves it.
    np.testing.assert_allclose(layer(maps), np.full((1, 2, 3, 1), 37.332089), rtol=1e-6)
    layer.set_weights([np.array([1.0, 3.0, -5.0])])
    # Now x = (2 + 30) / 4.0001 = 7.9998, as a negative weight counts as zero; swish is x / (1 + exp(-x)).
    np.testing.assert_allclose(layer(maps), np.full((1, 2, 3, 1), 7.997117), rtol=1e-6)


def running(momentum: float = 0.75) -> RunningBatchNormalization:
    layer = RunningBatchNormalization(momentum=momentum, epsilon=0.0)
    layer.build((None, 1, 1, 2))
    layer.set_weights([np.array([1.0, 2.0]), np.array([0.0, 5.0]), np.array([10.0, 0.0]), np.array([4.0, 1.0])])
    return layer


def test_running_norm_by_hand_with_batch_1() -> None:
    layer = running()
    x_BHWC = np.float32([14.0, 3.0]).reshape(1, 1, 1, 2)
    # (14 - 10) / 2 = 2; 3 * 2 + 5 = 11
    np.testing.assert_allclose(np.ravel(layer(x_BHWC, training=True)), [2.0, 11.0])
    # mean 0.75 * 10 + 0.25 * 14, 0.25 * 3; variance 0.75 * 4 + 0.25 * 16, 0.75 + 0.25 * 9
    np.testing.assert_allclose(layer.moving_mean, [11.0, 0.75])
    np.testing.assert_allclose(layer.moving_variance, [7.0, 3.0])


def test_running_norm_gives_the_same_output_in_training_and_inference() -> None:
    x_BHWC = np.random.default_rng(1).normal(5, 2, (3, 1, 1, 2)).astype(np.float32)
    inference = np.asarray(running()(x_BHWC, training=False))
    np.testing.assert_array_equal(running()(x_BHWC, training=True), inference)
    # ... and what an image becomes does not depend on its batch.
    np.testing.assert_array_equal(running()(x_BHWC[1:2], training=True), inference[1:2])
    assert np.ptp(inference, axis=0).min() > 0.1


def test_running_norm_statistics_of_two_ranks_average_to_those_of_the_joint_batch() -> None:
    x_BHWC = np.float32([[1, 2], [3, 7], [4, -1], [9, 0]]).reshape(4, 1, 1, 2)
    joint, ranks = running(), [running(), running()]
    joint(x_BHWC, training=True)
    for rank, layer in enumerate(ranks):
        layer(x_BHWC[rank::2], training=True)
    mean = np.mean([layer.moving_mean for layer in ranks], axis=0)
    variance = np.mean([layer.moving_variance for layer in ranks], axis=0)
    np.testing.assert_allclose(mean, joint.moving_mean, rtol=1e-6)
    np.testing.assert_allclose(variance, joint.moving_variance, rtol=1e-6)
    # The mean of 1, 3, 4 and 9 is 4.25: 7.5 + 1.0625.
    assert float(joint.moving_mean[0]) == pytest.approx(8.5625)


def test_running_norm_agrees_with_keras_at_inference_and_shares_its_weights() -> None:
    ours, keras_norm = RunningBatchNormalization(epsilon=1e-3), keras.layers.BatchNormalization(epsilon=1e-3)
    x_BHWC = np.random.default_rng(2).normal(size=(2, 3, 4, 5)).astype(np.float32)
    keras_norm(x_BHWC, training=True)
    ours.build(x_BHWC.shape)
    assert [weight.name for weight in ours.weights] == [weight.name for weight in keras_norm.weights]
    ours.set_weights(keras_norm.get_weights())
    np.testing.assert_allclose(ours(x_BHWC), keras_norm(x_BHWC), atol=1e-6)


def test_frozen_running_norm_keeps_its_statistics() -> None:
    layer = running()
    layer.trainable = False
    layer(np.ones((1, 1, 1, 2), np.float32), training=True)
    np.testing.assert_array_equal(layer.moving_mean, [10.0, 0.0])
    np.testing.assert_array_equal(layer.moving_variance, [4.0, 1.0])


def test_running_norm_settles_on_the_inputs_statistics() -> None:
    layer = RunningBatchNormalization(momentum=0.9)
    rng = np.random.default_rng(4)
    outputs = np.stack(
        [layer(rng.normal(50.0, 0.5, (1, 1, 1, 64)).astype(np.float32), training=True) for _ in range(150)]
    )
    late = outputs[100:]
    assert abs(late.mean()) < 0.1
    # The moving mean itself wanders by sqrt((1 - a) / (1 + a)) deviations.
    assert 0.8 < late.std() < 1.4


def test_batch_1_trains_through_the_pooled_branch() -> None:
    image = keras.Input((4, 6, 3))
    x = keras.layers.GlobalAveragePooling2D(keepdims=True)(image)
    x = keras.layers.Conv2D(8, 1, use_bias=False)(x)
    x = keras.layers.ReLU()(RunningBatchNormalization(name="norm")(x))
    model = keras.Model(image, keras.layers.Conv2D(1, 1)(x))
    keras.utils.set_random_seed(1)
    rng = np.random.default_rng(6)
    optimizer = keras.optimizers.Adam(1e-2)
    optimizer.build(model.trainable_variables)

    @tf.function
    def step(image_BHWC: tf.Tensor, target: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(image_BHWC, training=True) - target) ** 2)
        gradients = tape.gradient(loss, [variable.value for variable in model.trainable_variables])
        optimizer.apply(gradients, model.trainable_variables)
        return loss

    losses = []
    for _ in range(200):
        target = rng.choice([-1.0, 1.0])
        image_BHWC = (rng.normal(size=(1, 4, 6, 3)) * 0.1 + 0.2 * target).astype(np.float32)
        losses.append(float(step(tf.constant(image_BHWC), tf.constant(target, tf.float32))))
    # With ordinary batch norm every image gives the same output, and the loss stays at 1.
    assert np.mean(losses[-50:]) < 0.2


def outcome(call, inputs, variables):
    """Result and gradients of a weighted sum of it, with respect to inputs and variables."""
    inputs = [tf.constant(x) for x in inputs]
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        y = call(*inputs)
        weight = np.random.default_rng(9).normal(size=y.shape).astype(np.float32)
        loss = tf.reduce_sum(y * weight)
    return [y, *tape.gradient(loss, [*inputs, *(v.value for v in variables)])]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("synced", [True, False])
@pytest.mark.parametrize("activation", [None, "relu", "swish"])
@pytest.mark.parametrize("shape", [(3, 5, 7, 4), (1, 2, 1, 4)])
def test_fused_batch_normalization_is_that_of_keras(shape, activation, synced, training):
    options = {"momentum": 0.7, "epsilon": 2e-3}
    ours, theirs = BatchNormalization(activation, **options), keras.layers.BatchNormalization(**options)
    ours.total = list if synced else None  # one rank
    behind = keras.layers.Activation(activation or "linear")
    rng = np.random.default_rng(0)
    x = rng.normal(3, 2, shape).astype(np.float32)
    values = [rng.uniform(0.5, 2, 4).astype(np.float32) for _ in range(4)]
    found = []
    for layer, call in (
        (ours, lambda x: ours(x, training=training)),
        (theirs, lambda x: behind(theirs(x, training=training))),
    ):
        layer.build(shape)
        layer.set_weights(values)
        found.append([*outcome(call, [x], [layer.gamma, layer.beta]), *layer.get_weights()])
    for mine, expected in zip(*found, strict=True):
        np.testing.assert_allclose(mine, expected, rtol=5e-4, atol=5e-5)
    moved = bool(np.abs(found[0][-1] - values[-1]).max() > 1e-3)
    assert moved is training


@pytest.mark.parametrize("count", [2, 3])
def test_fusion_and_its_gradient_are_the_formula(count):
    rng = np.random.default_rng(count)
    maps = [rng.normal(size=(2, 3, 4, 5)).astype(np.float32) for _ in range(count)]
    layer = FastFusion()
    layer.build([x.shape for x in maps])
    layer.set_weights([np.array([0.7, 1.4, -0.2][:count], np.float32)])

    def formula(*maps):
        weights = tf.nn.relu(layer.fusion_weights.value)
        weighted = [w * x for w, x in zip(tf.unstack(weights), maps, strict=True)]
        return tf.nn.silu(sum(weighted) / (tf.reduce_sum(weights) + 1e-4))

    expected = outcome(formula, maps, [layer.fusion_weights])
    for call in (lambda *x: layer(x, training=True), lambda *x: layer(x, training=False)):
        for mine, wanted in zip(outcome(call, maps, [layer.fusion_weights]), expected, strict=True):
            np.testing.assert_allclose(mine, wanted, rtol=1e-4, atol=1e-5)


def test_fused_batch_normalization_that_is_frozen_keeps_its_statistics():
    layer = BatchNormalization()
    layer.build((2, 4, 4, 3))
    layer.trainable = False
    x = np.random.default_rng(0).normal(5, 3, (2, 4, 4, 3)).astype(np.float32)
    np.testing.assert_allclose(layer(x, training=True), x / np.sqrt(1.001), rtol=1e-5)
    assert (layer.moving_mean.numpy() == 0).all()


def test_fused_batch_normalization_of_half_precision_keeps_statistics_in_float32():
    layer = BatchNormalization(dtype=keras.DTypePolicy("mixed_bfloat16"))
    x = tf.constant(np.random.default_rng(0).normal(5, 3, (2, 8, 8, 3)), tf.bfloat16)
    y = layer(x, training=True)
    assert y.dtype == tf.bfloat16
    assert layer.moving_mean.dtype == "float32"
    np.testing.assert_allclose(layer.moving_mean, 0.01 * tf.reduce_mean(tf.cast(x, tf.float32), (0, 1, 2)), rtol=1e-3)
