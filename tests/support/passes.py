"""One training pass of a network, traced once: its loss, gradients and moving statistics."""

from collections.abc import Callable
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf


@dataclass(frozen=True)
class Outcome:
    """What one training pass gives.

    Attributes:
        loss: mean cross entropy.
        gradients: one per trainable variable, in their order.
        moved: moving statistics after the pass.
    """

    loss: float
    gradients: list[np.ndarray]
    moved: list[np.ndarray]


class TrainingPass:
    """The training pass of a network on one batch; calling it traces it the first time.

    Args:
        model: the network.
        call: what is called in its place, such as the network itself or a recomputing pass of it.
        image_BHWC: float32 in [-1, 1].
        label_BHW: class of each pixel.
    """

    def __init__(
        self, model: keras.Model, call: Callable[..., tf.Tensor], image_BHWC: np.ndarray, label_BHW: np.ndarray
    ) -> None:
        self.model = model
        variables = [v.value for v in model.trainable_variables]

        @tf.function(autograph=False)
        def run() -> tuple[tf.Tensor, list[tf.Tensor]]:
            with tf.GradientTape() as tape:
                logits_BHWK = call(image_BHWC, training=True)
                loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(label_BHW, logits_BHWK))
            return loss, tape.gradient(loss, variables)

        self._run = run

    def __call__(self) -> Outcome:
        loss, gradients = self._run()
        moved = [v.numpy() for v in self.model.non_trainable_variables if v.dtype == "float32"]
        return Outcome(float(loss), [g.numpy() for g in gradients], moved)


def distance(found: list[np.ndarray], expected: list[np.ndarray]) -> float:
    """Of all arrays together, relative: single gradients may be 0 but for rounding."""
    parts = [np.concatenate([np.ravel(x) for x in arrays]) for arrays in (found, expected)]
    return float(np.linalg.norm(parts[0] - parts[1]) / np.linalg.norm(parts[1]))
