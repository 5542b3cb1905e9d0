"""A network with random weights starts with statistics that fit its images."""

import keras
import numpy as np

from classification.calibration import SIDE, calibrate, windows
from classification.network import build
from streaming import ArrayImage


def slide(seed, hw=(700, 520), spot=256):
    """White glass with tissue in its lower right corner."""
    rng = np.random.default_rng(seed)
    image_BHWC = np.full((1, *hw, 3), 243, np.uint8)
    image_BHWC[:, -spot:, -spot:] = rng.integers(90, 230, (1, spot, spot, 3))
    return image_BHWC


def test_windows_are_those_with_most_in_them():
    found = windows(ArrayImage(slide(0)))
    assert [window.shape for window in found] == [(SIDE, SIDE, 3)] * 4
    stds = [float(window.std()) for window in found]
    assert min(stds) > 0.1
    assert max(abs(window).max() for window in found) <= 1
    corner = slide(0)[0, -SIDE:, -SIDE:].astype(np.float32) / 127.5 - 1
    assert any(np.allclose(window, corner, atol=1e-6) for window in found)
    small = windows(ArrayImage(slide(0, (120, 90), 50)))
    assert [window.shape for window in small] == [(120, 90, 3)]


def test_frozen_statistics_give_what_the_statistics_of_the_windows_gave():
    keras.utils.set_random_seed(4)
    classifier, _ = build("resnet18", 2, width=4)
    images = [ArrayImage(slide(seed, (300, 280))) for seed in range(3)]
    for layer in classifier.model.layers:  # not the identities that blocks start as
        if "bn" in layer.name:
            layer.gamma.assign(np.ones(layer.gamma.shape))
    px = np.stack([window[:256, :256] for image in images for window in windows(image)])
    wild = float(np.abs(classifier.late(classifier.early(px))).max())
    assert calibrate(classifier.model, images) == 3
    calm = np.asarray(classifier.late(classifier.early(px)))
    assert np.abs(calm).max() < 0.2 * wild
    kept = [layer for layer in classifier.model.layers if "bn" in layer.name or "downsample_1" in layer.name]
    expected = []
    for layer in kept:
        layer.momentum = 0.0
    classifier.model(px, training=True)
    for layer in kept:
        expected += [layer.moving_mean.numpy(), layer.moving_variance.numpy()]
    calibrate(classifier.model, images)
    found = [w for layer in kept for w in (layer.moving_mean.numpy(), layer.moving_variance.numpy())]
    assert len(found) == 40
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-4)


def test_without_images_nothing_moves():
    classifier, _ = build("resnet18", 2, width=4)
    before = [w.numpy() for w in classifier.model.non_trainable_weights]
    assert calibrate(classifier.model, []) == 0
    assert all((w.numpy() == b).all() for w, b in zip(classifier.model.non_trainable_weights, before, strict=True))
