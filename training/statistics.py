"""BatchNorm's moving statistics: they leave their start values quickly and are equal on all ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from parallel.comm import Comm


class MovingStatistics:
    """Moving means and variances of a model.

    Keras' BatchNorm with momentum 0.99 still carries 37 % of its start values (0 and 1) after 100 steps and 13 % after
    200. Stacked over a hundred layers that makes predictions of a young network worthless while its training loss is
    already low. So step t (from 0) takes at least 9 / (10 + t) of the batch's statistics, the warm-up of TensorFlow's
    ExponentialMovingAverage; from step 890 on that is below 0.01 and the layer's own momentum rules.

    Args:
        model: a functional Keras model; layers with other statistics than BatchNorm's are only averaged over ranks.
        warm_up: False for a model with pre-trained statistics, which must not be forgotten at once.
    """

    def __init__(self, model: Any, warm_up: bool = True) -> None:
        momenta = {
            variable.path: layer.momentum
            for layer in model.layers
            if warm_up and isinstance(layer, keras.layers.BatchNormalization)
            for variable in (layer.moving_mean, layer.moving_variance)
        }
        # Not the weights of frozen layers, which never change.
        moving = [v for layer in model.layers if layer.trainable for v in layer.non_trainable_variables]
        kept = [v for v in moving if v.dtype == "float32"]
        self._variables = [v.value for v in kept]
        # share of a batch in the layer's own update; 1 leaves an update as it is
        self._shares = [1.0 - momenta[v.path] if v.path in momenta else 1.0 for v in kept]

    def before(self) -> list[Any]:
        """Values before a training pass."""
        return [tf.identity(v) for v in self._variables]

    def update(self, before: Sequence[Any], steps: Any, comm: Comm) -> None:
        """After a training pass: warm up, average over ranks, assign.

        Args:
            before: what `before` returned.
            steps: training steps done, scalar tensor.
            comm: the ranks.
        """
        if not self._variables:
            return
        warm = 9.0 / (10.0 + tf.cast(steps, tf.float32))
        values = [
            old + tf.maximum(1.0, warm / share) * (new - old) if share < 1 else new.read_value()
            for old, new, share in zip(before, self._variables, self._shares, strict=True)
        ]
        # Ranks: one grouped call, always in float32; the means of equal old values and own batches stay equal.
        for variable, old, value in zip(self._variables, before, comm.mean(values), strict=True):
            # A step that loss scaling skips must not spoil them.
            variable.assign(tf.where(tf.math.is_finite(value), value, old))
