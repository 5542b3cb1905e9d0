"""A moving average of the weights: often a better model than the weights of the last update."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import tensorflow as tf
from numpy.typing import NDArray


class Average:
    """Average of weights over the updates, a <- d a + (1 - d) w (Polyak and Juditsky 1992; Tan and Le 2019, section 5).

    d is `decay`, but (1 + n) / (10 + n) where that is less, n updates after the start, so that the first weights, which
    have learned nothing yet, leave the average soon.

    Ranks: the weights are equal on all ranks, so the averages are.

    Args:
        variables: Keras variables that are trained; the others do not change.
        decay: of an update, at least 0 and below 1; 0 is the weights themselves.
    """

    def __init__(self, variables: Sequence[Any], decay: float) -> None:
        self._decay = decay
        self._weights = [v.value for v in variables]
        self._averages = [tf.Variable(w, trainable=False) for w in self._weights]

    @tf.function
    def update(self, updates: Any) -> None:
        """After an update of the weights; `updates` is their number, a scalar tensor or variable."""
        count = tf.cast(updates, tf.float32)
        decay = tf.minimum(self._decay, (1.0 + count) / (10.0 + count))
        for average, weight in zip(self._averages, self._weights, strict=True):
            average.assign_sub((1.0 - decay) * (average - tf.cast(weight, average.dtype)))

    def start(self) -> None:
        """The average is the weights as they are now."""
        for average, weight in zip(self._averages, self._weights, strict=True):
            average.assign(weight)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the average as its weights inside; afterwards its own, to the bit."""
        own = [tf.identity(weight) for weight in self._weights]
        try:
            for weight, average in zip(self._weights, self._averages, strict=True):
                weight.assign(average)
            yield
        finally:
            for weight, value in zip(self._weights, own, strict=True):
                weight.assign(value)

    def state(self) -> dict[str, NDArray[Any]]:
        """What a checkpoint must keep, by names that start with `average/`."""
        return {f"average/{i:05d}": average.numpy() for i, average in enumerate(self._averages)}

    def restore(self, arrays: dict[str, NDArray[Any]]) -> bool:
        """Take what `state` returned; False, and the weights as they are, where there is none (the option is new)."""
        if not all(f"average/{i:05d}" in arrays for i in range(len(self._averages))):
            self.start()
            return False
        for i, average in enumerate(self._averages):
            average.assign(arrays[f"average/{i:05d}"])
        return True
