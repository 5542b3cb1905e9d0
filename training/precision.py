"""Loss scaling: small gradients of float16 kept from vanishing, and steps that overflowed left out."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

START, GROW_AFTER = 2.0**15, 2000


class LossScale:
    """Dynamic loss scaling (Micikevicius et al. 2018, Mixed Precision Training, https://arxiv.org/abs/1710.03740).

    The loss is multiplied before the gradient is taken, and the gradient divided afterwards. A step whose gradient is
    no number is left out, and the factor halved; after 2,000 steps that were, it is doubled.

    Ranks: decided on the joint gradient, so all ranks agree.

    Attributes:
        scale: the factor, float32 variable.
        good: steps since it changed, int64 variable.
        left_out: steps left out since the last call of `report`.
    """

    def __init__(self) -> None:
        self.scale = tf.Variable(START, trainable=False)
        self.good = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.left_out = 0

    def state(self) -> np.ndarray:
        """What a checkpoint must keep: factor and steps since it changed, float64 (2,)."""
        return np.array([self.scale.numpy(), self.good.numpy()], np.float64)

    def restore(self, state: np.ndarray) -> None:
        """Take what `state` returned."""
        self.scale.assign(state[0])
        self.good.assign(int(state[1]))

    def update(self, finite: Any) -> None:
        """After a step, inside `tf.function`; `finite` is a scalar bool tensor: its gradient was a number."""
        grown = self.good + 1 >= GROW_AFTER
        factor = tf.where(finite, tf.where(grown, 2.0, 1.0), 0.5)
        self.good.assign(tf.where(finite & ~grown, self.good + 1, 0))
        self.scale.assign(self.scale * factor)

    @property
    def exhausted(self) -> bool:
        """Whether even a gradient that is not scaled up at all was no number: the fault is not one of scaling."""
        return bool(self.scale < 1.0)

    def report(self) -> str | None:
        """One line if steps were left out since the last call."""
        if not self.left_out:
            return None
        left_out, self.left_out = self.left_out, 0
        steps = "1 step" if left_out == 1 else f"{left_out} steps"
        return f"float16     {steps} left out, whose gradient overflowed; loss scale now {float(self.scale):g}"
