"""Swaps the layers of `models` that were written for speed for Keras' own; for comparisons only."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from models import deeplab, efficientdet, efficientnet, layers


def plain_layers() -> None:
    """From now on `models.build` makes every step of its own by a layer of its own, as a tutorial would."""
    for module in (deeplab, efficientdet, efficientnet):
        module.BatchNormalization = batch_normalization  # type: ignore[attr-defined]
    efficientdet.FastFusion = PlainFusion  # type: ignore[attr-defined]
    deeplab.PointwiseConv2D = pointwise  # type: ignore[attr-defined]


def batch_normalization(activation: str | None = None, **options: Any) -> Callable[[Any], Any]:
    """Keras' batch normalization, and Keras' activation behind it."""
    norm = keras.layers.BatchNormalization(**options)
    return norm if activation is None else lambda x: keras.layers.Activation(activation)(norm(x))


def pointwise(filters: int, **options: Any) -> Any:
    """Keras' convolution of size 1."""
    return keras.layers.Conv2D(filters, 1, use_bias=False, **options)


class PlainFusion(layers.FastFusion):
    """Weighted mean and swish, one operation after the other."""

    def call(self, maps_BHWC: Sequence[Any], training: bool = False) -> Any:  # noqa: ARG002  # frame of FastFusion
        """See `FastFusion`."""
        weights = ops.relu(self.fusion_weights)
        weights = weights / (ops.sum(weights) + self.EPSILON)
        fused = maps_BHWC[0] * weights[0]
        for index in range(1, len(maps_BHWC)):
            fused = fused + maps_BHWC[index] * weights[index]
        return ops.swish(fused)
