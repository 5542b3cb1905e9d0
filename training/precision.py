"""Loss scaling: keeps small gradients of float16 from vanishing, and skips steps that overflowed."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

START, GROW_AFTER = 2.0**15, 2000


class LossScale:
    """Dynamic loss scaling (Micikevicius et al. 2018, Mixed Precision Training, https://arxiv.org/abs/1710.03740).

    The loss is multiplied before the gradient is taken, and the gradient divided afterwards. A step whose gradient is
    not finite is skipped, and the factor halved; after 2,000 finite steps in a row it is doubled.

    Ranks: decided on the joint gradient, so all ranks agree.

    Attributes:
        scale: the factor, float32 variable.
        good: steps since it changed, int64 variable.
        skipped: steps skipped since the last call of `report`.
    """

    def __init__(self) -> None:
        self.scale = tf.Variable(START, trainable=False)
        self.good = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.skipped = 0

    def state(self) -> npt.NDArray[np.float64]:
        """What a checkpoint must keep: factor and steps since it changed, float64 (2,)."""
        return np.array([self.scale.numpy(), self.good.numpy()], np.float64)

    def restore(self, state: npt.NDArray[np.float64]) -> None:
        """Take what `state` returned."""
        self.scale.assign(state[0])
        self.good.assign(int(state[1]))

    def update(self, finite: Any) -> None:
        """After a step, inside `tf.function`; `finite` is a scalar bool tensor: whether its gradient was."""
        grown = self.good + 1 >= GROW_AFTER
        factor = tf.where(finite, tf.where(grown, 2.0, 1.0), 0.5)
        self.good.assign(tf.where(finite & ~grown, self.good + 1, 0))
        self.scale.assign(self.scale * factor)

    @property
    def exhausted(self) -> bool:
        """Whether even a gradient that is not scaled up was not finite: scaling is not the cause."""
        return bool(self.scale < 1.0)

    def report(self) -> str | None:
        """One line if steps were skipped since the last call."""
        if not self.skipped:
            return None
        skipped, self.skipped = self.skipped, 0
        steps = "1 step" if skipped == 1 else f"{skipped} steps"
        return f"float16     {steps} skipped, whose gradient overflowed; loss scale now {float(self.scale):g}"
