"""Every optimizer against Keras' own, or against its paper's lines in NumPy; what decays, what is kept."""

from collections.abc import Callable

import keras
import numpy as np
import pytest
import tensorflow as tf

from options.choices import OPTIMIZERS
from training.optimizer import Optimizer, build

RATES = (0.1, 0.1, 0.05)  # one change of the rate, as schedules have


def weights() -> list[keras.Variable]:
    """A kernel and a bias."""
    rng = np.random.default_rng(3)
    return [keras.Variable(rng.normal(size=size), dtype="float32") for size in ((3, 4), (4,))]


def gradients() -> list[list[tf.Tensor]]:
    rng = np.random.default_rng(4)
    return [[tf.constant(rng.normal(size=s), tf.float32) for s in ((3, 4), (4,))] for _ in RATES]


def after(optimizer: str, momentum: float = 0.9, weight_decay: float = 0.2) -> list[np.ndarray]:
    """Kernel and bias after three updates."""
    variables = weights()
    made = build(optimizer, variables, momentum, weight_decay)
    run = tf.function(made.apply)
    for grads, rate in zip(gradients(), RATES, strict=True):
        run(grads, tf.constant(rate))
    assert int(made.steps) == 3
    return [v.numpy() for v in variables]


def after_keras(make: Callable[[], keras.optimizers.Optimizer], decays: bool = False) -> list[np.ndarray]:
    """The same by Keras; what decays is the kernel only."""
    variables = weights()
    made = make()
    made.build(variables)
    if decays:
        made.exclude_from_weight_decay(var_list=[variables[1]])
    for grads, rate in zip(gradients(), RATES, strict=True):
        made.learning_rate = rate
        made.apply(grads, variables)
    return [v.numpy() for v in variables]


@pytest.mark.parametrize(
    ("name", "make", "decays"),
    [
        ("adam", lambda: keras.optimizers.Adam(0.1), False),
        ("adamw", lambda: keras.optimizers.AdamW(0.1, weight_decay=0.2), True),
    ],
)
def test_as_keras_does(name: str, make: Callable[[], keras.optimizers.Optimizer], decays: bool) -> None:
    for ours, keras_own in zip(after(name), after_keras(make, decays), strict=True):
        # 1 - 0.999^t in float32 is good to 6e-5, its root to 3e-5, of updates of 0.1.
        np.testing.assert_allclose(ours, keras_own, atol=3 * 0.1 * 3e-5)


def test_lamb_as_keras_does_on_kernels() -> None:
    """Keras scales biases, too, and its decay is not part of the scaled update."""
    kernel, _ = after("lamb", weight_decay=0.0)
    expected, _ = after_keras(lambda: keras.optimizers.Lamb(0.1, epsilon=1e-6))
    np.testing.assert_allclose(kernel, expected, rtol=2e-5, atol=3 * 0.1 * 3e-5)
    assert np.abs(kernel - weights()[0].numpy()).max() > 0.1


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="optimizer 'adagrad' is unknown"):
        build("adagrad", weights(), 0.9, 0.0)


def by_hand(
    update: Callable[[np.ndarray, np.ndarray, float, int, dict[str, np.ndarray]], np.ndarray],
) -> list[np.ndarray]:
    """Three updates w -> update(w, g, rate, step from 1, kept), in float64."""
    found = []
    for at, variable in enumerate(weights()):
        w, kept = variable.numpy().astype(np.float64), {"m": np.zeros(variable.shape), "v": np.zeros(variable.shape)}
        for step, (grads, rate) in enumerate(zip(gradients(), RATES, strict=True), 1):
            w = update(w, grads[at].numpy().astype(np.float64), rate, step, kept)
        found.append(w)
    return found


def sgd(w, g, rate, step, kept):
    kept["m"] = 0.9 * kept["m"] + g + (0.2 * w if w.ndim > 1 else 0)
    return w - rate * kept["m"]


def lars(w, g, rate, step, kept):
    if w.ndim > 1:
        size, slope = np.sqrt((w**2).sum()), np.sqrt((g**2).sum())
        rate, g = rate * 0.001 * size / (slope + 0.2 * size), g + 0.2 * w
    kept["m"] = 0.9 * kept["m"] + rate * g
    return w - kept["m"]


def lamb(w, g, rate, step, kept):
    kept["m"] = 0.9 * kept["m"] + 0.1 * g
    kept["v"] = 0.999 * kept["v"] + 0.001 * g * g
    r = kept["m"] / (1 - 0.9**step) / (np.sqrt(kept["v"] / (1 - 0.999**step)) + 1e-6)
    if w.ndim > 1:
        r = r + 0.2 * w
        r = r * np.sqrt((w**2).sum()) / np.sqrt((r**2).sum())
    return w - rate * r


@pytest.mark.parametrize("update", [sgd, lars, lamb])
def test_as_the_paper_says(update: Callable[..., np.ndarray]) -> None:
    for ours, expected in zip(after(update.__name__), by_hand(update), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars", "lamb"])
def test_weight_decay_is_for_kernels(name: str) -> None:
    decayed, plain = after(name), after(name, weight_decay=0.0)
    assert np.abs(decayed[0] - plain[0]).max() > 1e-5
    np.testing.assert_array_equal(decayed[1], plain[1])


@pytest.mark.parametrize("name", ["lars", "lamb"])
def test_a_kernel_at_0_leaves_it(name: str) -> None:
    kernel = keras.Variable(np.zeros((2, 3)), dtype="float32")
    build(name, [kernel], 0.9, 0.0).apply([tf.ones((2, 3))], tf.constant(0.5))
    assert np.isfinite(kernel.numpy()).all()
    assert (kernel.numpy() < 0).all()


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_going_on_from_what_is_kept_is_bit_equal(name: str) -> None:
    def one(made: Optimizer, at: int) -> None:
        made.apply(gradients()[at], tf.constant(0.05))

    whole = weights()
    optimizer = build(name, whole, 0.9, 0.1)
    one(optimizer, 0)
    kept = [v.numpy() for v in (*(w.value for w in whole), *optimizer.variables)]
    one(optimizer, 1)
    again = weights()
    resumed = build(name, again, 0.9, 0.1)
    for variable, value in zip((*(w.value for w in again), *resumed.variables), kept, strict=True):
        variable.assign(value)
    one(resumed, 1)
    for a, b in zip(whole, again, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    assert len({v.shape for v in resumed.variables}) == 3
