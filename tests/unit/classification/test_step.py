"""A streamed training step equals that of whole images, all of them at once."""

import numpy as np
import pytest
import tensorflow as tf

from classification.losses import Loss
from classification.network import build
from classification.step import StreamedStep, require_finite
from classification.stream import Stream
from parallel.comm import AgreedError, SoloComm
from streaming import ArrayImage
from tests.support.classifiers import images, small_classifier, small_stream, whole_gradients
from tests.support.streams import difference
from training.optimizer import build as optimizer
from training.precision import LossScale

TARGET_BK = np.eye(3, dtype=np.float32)[[2, 0, 1, 1]]
WEIGHTED = Loss("classes", (1.0, 2.0, 5.0))


def sources(arrays):
    return [ArrayImage(array) for array in arrays]


def step(stream, loss=WEIGHTED, name="sgd", comm=None, **options):
    return StreamedStep(stream, optimizer(name, stream.variables, 0.9, None), comm or SoloComm(), loss, **options)


@pytest.mark.parametrize("pool", ["max", "average"])
def test_logits_and_gradients_of_the_stream_are_those_of_the_whole_image(pool):
    """float64, every trained variable, gamma and beta of batch normalization included."""
    classifier = small_classifier(pool=pool, precision="float64")
    image = np.random.default_rng(1).normal(size=(1, 230, 187, 3))
    with tf.GradientTape() as tape:
        expected_1K = classifier.model(tf.constant(image), training=False)
    slope_1K = tf.constant([[0.3, -1.0, 2.0]], tf.float64)
    expected = tape.gradient(expected_1K, [v.value for v in classifier.trained], slope_1K)
    stream = small_stream(classifier)
    found_1K = stream.forward(ArrayImage(image))
    tiles = [stream.early_counts.forward, stream.late_counts.forward]
    grads = stream.backward(slope_1K)
    assert min(tiles) >= 6
    assert difference(found_1K, expected_1K) < 1e-12
    assert len(grads) == len(classifier.trained) == 38
    assert sum(v.name in ("gamma", "beta") for v in classifier.trained) == 24
    for found, wanted in zip(grads, expected, strict=True):
        assert difference(found, wanted) < 1e-10


def test_a_step_of_unequal_weights_is_the_joint_mean():
    classifier = small_classifier()
    batch = images(4)
    loss, logits_BK, expected = whole_gradients(classifier, batch[:, 0], WEIGHTED, TARGET_BK)
    found_loss, grads = step(small_stream(classifier)).gradients(sources(batch), TARGET_BK)
    assert found_loss == pytest.approx(loss, rel=1e-5)
    for found, wanted in zip(grads, expected, strict=True):
        assert difference(found, wanted) < 1e-5
    result = step(small_stream(classifier))(sources(batch), TARGET_BK, 0.0)
    assert result.loss == found_loss
    assert (result.finite, result.stop) == (True, False)
    np.testing.assert_allclose(result.logits_BK, logits_BK, rtol=1e-4, atol=1e-4)
    own = [float(WEIGHTED.value(s)) for s in WEIGHTED.sums(logits_BK, TARGET_BK)]
    np.testing.assert_allclose(result.sample_loss_B, own, rtol=1e-4)


def test_ten_steps_equal_those_on_whole_images():
    """Losses of both runs to 1e-5, of momentum and all."""
    streamed, whole = small_classifier(), small_classifier()
    batch = images(2)
    many = step(small_stream(streamed))
    update = optimizer("sgd", whole.trained, 0.9, None)
    found, expected = [], []
    for _ in range(10):
        found.append(many(iter(sources(batch)), TARGET_BK[:2], 1e-3).loss)
        loss, _, grads = whole_gradients(whole, batch[:, 0], WEIGHTED, TARGET_BK[:2])
        update.apply(grads, tf.constant(1e-3))
        expected.append(loss)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert found[-1] < 0.7 * found[0]
    assert many.mean_loss() == pytest.approx(np.mean(found))


def test_a_frozen_early_part_has_no_backward_pass_and_does_not_move():
    classifier = small_classifier()
    classifier.train(early=False, norm=True)
    assert [v.path.split("/")[0] for v in classifier.trained[-2:]] == ["fc", "fc"]
    before = [w.numpy() for w in classifier.early.weights]
    stream = small_stream(classifier)
    result = step(stream)(sources(images(1)), TARGET_BK[:1], 0.01)
    assert result.finite
    assert stream.early_counts.backward == 0
    assert stream.late_counts.backward > 0
    assert all((a.numpy() == b).all() for a, b in zip(classifier.early.weights, before, strict=True))


def test_maps_of_the_cut_give_the_logits_and_gradients_of_the_image():
    """Bit by bit: the three phases of a training start from the same logits."""
    classifier = small_classifier()
    classifier.train(early=False, norm=True)
    image = ArrayImage(images(1)[0])
    of_images, of_maps = small_stream(classifier), small_stream(classifier, features=True)
    cut_map = ArrayImage(of_images.map(image))
    assert cut_map.shape == (1, 15, 12, 12)
    classifier.train(early=True, norm=True)
    whole = small_stream(classifier)
    logits_1K = of_images.logits(image)
    assert (of_maps.logits(cut_map) == logits_1K).all()
    assert (whole.forward(image).numpy() == logits_1K).all()
    target = TARGET_BK[:1]
    classifier.train(early=False, norm=True)
    loss, grads = step(of_images).gradients([image], target)
    other_loss, other = step(of_maps).gradients([cut_map], target)
    assert loss == other_loss
    assert len(grads) == len(other) > 0
    assert all((a.numpy() == b.numpy()).all() for a, b in zip(grads, other, strict=True))


def test_frozen_norms_keep_gamma_and_beta():
    classifier = small_classifier()
    classifier.train(early=True, norm=False)
    names = {v.name for v in classifier.trained}
    assert names == {"kernel", "bias"}
    statistics = [w.numpy() for w in classifier.model.non_trainable_weights]
    step(small_stream(classifier))(sources(images(1)), TARGET_BK[:1], 0.01)
    assert len(statistics) == 48
    now = classifier.model.non_trainable_weights
    assert all((a == b.numpy()).all() for a, b in zip(statistics, now, strict=True))


def test_float16_scales_its_loss_and_skips_what_overflows():
    classifier = small_classifier(precision="mixed_float16")
    scale = LossScale()
    stream = small_stream(classifier)
    run = step(stream, loss_scale=scale)
    reference = small_classifier()
    _, _, expected = whole_gradients(reference, images(1)[0], WEIGHTED, TARGET_BK[:1])
    scale.scale.assign(64.0)
    _, grads = run.gradients(sources(images(1)), TARGET_BK[:1])
    norm = np.sqrt(sum(float(tf.norm(g)) ** 2 for g in expected))
    off = np.sqrt(sum(float(tf.norm(a - b)) ** 2 for a, b in zip(grads, expected, strict=True)))
    assert 0 < off < 0.05 * norm
    before = [v.numpy() for v in classifier.trained]
    scale.scale.assign(2.0**40)
    skipped = run(sources(images(1)), TARGET_BK[:1], 0.01)
    assert np.isnan(skipped.loss)
    assert skipped.finite
    assert float(scale.scale) == 2.0**39
    assert all((v.numpy() == b).all() for v, b in zip(classifier.trained, before, strict=True))
    assert np.isnan(run.mean_loss())


def test_an_unreadable_image_is_an_error_of_all_ranks():
    class Broken:
        shape = (1, 230, 187, 3)

        def read(self, rows, columns):
            raise ValueError("tumor_009.tif: truncated")

    run = step(small_stream(small_classifier()))
    with pytest.raises(AgreedError, match=r"^tumor_009\.tif: truncated$"):
        run([*sources(images(1)), Broken()], TARGET_BK[:2], 0.01)


def test_a_loss_that_is_not_finite_names_the_slide():
    classifier = small_classifier()
    run = step(small_stream(classifier))
    poisoned = images(1)[0].astype(np.float32)
    poisoned[0, 100, 100] = np.nan
    result = run([*sources(images(1)), ArrayImage(poisoned)], TARGET_BK[:2], 0.01)
    assert not result.finite
    with pytest.raises(AgreedError, match=r"step at image 8; slides whose own loss is not finite: b\. Try"):
        require_finite(result, ["a", "b"], 8, SoloComm())


def test_losses_of_an_interval_survive_a_checkpoint():
    first, second = (step(small_stream(small_classifier())) for _ in range(2))
    loss = first(sources(images(1)), TARGET_BK[:1], 0.0, stop=True)
    assert loss.stop
    second.restore(first.state())
    assert second.mean_loss() == loss.loss
    assert np.isnan(second.mean_loss())


def test_an_image_smaller_than_a_tile_is_one_tile():
    classifier = small_classifier()
    image = images(1, hw=(61, 45))[0]
    stream = small_stream(classifier)
    logits_1K = stream.logits(ArrayImage(image))
    assert [stream.early_counts.forward, stream.late_counts.forward] == [1, 1]
    np.testing.assert_allclose(logits_1K, classifier.model(image.astype(np.float32) / 127.5 - 1), rtol=1e-4)


def test_a_real_network_streams_in_its_segments():
    classifier, _ = build("resnet18", 2, width=4)
    image = np.random.default_rng(0).integers(0, 256, (1, 500, 331, 3)).astype(np.uint8)
    stream = Stream(classifier, tile=256, late_tile=24)
    found = stream.logits(ArrayImage(image))
    assert len(stream.early.layout((500, 331)).parts) == 2
    assert stream.stride == 16
    np.testing.assert_allclose(found, classifier.model(image.astype(np.float32) / 127.5 - 1), rtol=1e-4, atol=1e-5)


def test_wrong_uses_are_named():
    classifier = small_classifier()
    with pytest.raises(ValueError, match="cannot be trained on features"):
        small_stream(classifier, features=True)
    stream = small_stream(classifier)
    with pytest.raises(ValueError, match="the source has 2 images"):
        stream.forward(ArrayImage(images(2)[:, 0]))
    stream.forward(ArrayImage(images(1)[0]))
    stream.release()
    with pytest.raises(ValueError, match="backward needs a forward pass"):
        stream.backward(tf.zeros((1, 3)))
