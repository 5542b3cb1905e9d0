"""A training pass of the real networks: every variable learns, the loss falls, and recomputing changes no number.

Tracing one costs 15 s of Python, so each network is traced twice, once as it is and once with everything recomputed.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import keras
import numpy as np
import pytest

import models
from tests.support.passes import Outcome, TrainingPass, distance
from tests.support.thin import thin_networks

SIDE, CLASSES = 128, 3

# Of DeepLab's 262,144 ReLUs behind the backbone's last normalization, one that rounding puts on the other side of 0 is
# 0.2 to 0.3 % of the gradient; what rounds otherwise, such as another kernel of a convolution, changes it by 1 %.
TOLERANCE = {"effdetd0": 1e-4, "deeplab": 2e-2}


def batch() -> tuple[np.ndarray, np.ndarray]:
    """Two images of noise (B, H, W, 3) in [-1, 1], and labels (B, H, W) with three classes."""
    image_BHWC = np.random.default_rng(5).uniform(-1, 1, (2, SIDE, SIDE, 3)).astype(np.float32)
    label_BHW = np.zeros((2, SIDE, SIDE), np.int32)
    label_BHW[0, :50] = 1
    label_BHW[1, :, 70:] = 2
    return image_BHWC, label_BHW


def traced(name: str, recompute: str) -> TrainingPass:
    """A pass of a new network, which has the same weights each time."""
    keras.utils.set_random_seed(3)
    model = models.build(name, SIDE, CLASSES)
    if name == "deeplab":
        model.get_layer("concat_dropout").rate = 0.0  # random numbers would be others each time
    return TrainingPass(model, models.training_pass(model, recompute), *batch())


@dataclass
class Plain:
    """A network's own training pass, and what its first call gave."""

    name: str
    run: TrainingPass
    first: Outcome


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.xdist_group(f"real {name}")) for name in ("effdetd0", "deeplab")],
)
def plain(request: pytest.FixtureRequest) -> Iterator[Plain]:
    run = traced(request.param, "none")
    yield Plain(request.param, run, run())
    keras.backend.clear_session()


def same(found: Outcome, expected: Outcome, tolerance: float) -> None:
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    assert distance(found.gradients, expected.gradients) < tolerance
    assert distance(found.moved, expected.moved) < 1e-5


def test_gradient_reaches_every_variable_and_the_loss_falls(plain: Plain) -> None:
    variables = plain.run.model.trainable_variables
    assert len(plain.first.gradients) == len(variables) == {"effdetd0": 484, "deeplab": 440}[plain.name]
    dead = [v.path for v, gradient in zip(variables, plain.first.gradients, strict=True) if not np.any(gradient)]
    assert dead == []
    outcome = plain.first
    for _ in range(4):
        for variable, gradient in zip(variables, outcome.gradients, strict=True):
            variable.assign(variable - 1e-3 * np.sign(gradient))  # Adam's first step; the optimizer is traced in 10 s
        outcome = plain.run()
    assert outcome.loss < 0.9 * plain.first.loss


def test_recomputing_everything_changes_no_number(plain: Plain) -> None:
    same(traced(plain.name, "fine")(), plain.first, TOLERANCE[plain.name])


def test_recomputing_blocks_changes_no_number() -> None:
    with thin_networks():
        same(traced("effdetd0", "blocks")(), traced("effdetd0", "none")(), TOLERANCE["effdetd0"])
