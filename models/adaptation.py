"""Batch statistics of other images in a trained network: adaptation to another scanner or stain, without labels.

Source: Schneider et al., Improving robustness against common corruptions by covariate shift adaptation,
https://arxiv.org/abs/2006.16971.

Shapes: B images, H rows, W columns, C channels.
"""

from collections.abc import Iterable

import keras
import numpy as np
import tensorflow as tf

from models.layers import BatchNormalization

# Weight of the trained statistics, in images: a slide of few windows stays close to them.
PRIOR_IMAGES = 2.0


class Adaptation:
    """Sets the moving statistics of a network to those of given images, and back.

    Every other layer, also dropout, works as at inference. `RunningBatchNormalization`, which sees one value per image,
    keeps its statistics: those of a few images tell too little.

    Args:
        model: A network with layers `BatchNormalization` of this package.

    Raises:
        ValueError: It has none.
    """

    def __init__(self, model: keras.Model) -> None:
        self._model = model
        self._layers = [layer for layer in model.layers if isinstance(layer, BatchNormalization)]
        if not self._layers:
            raise ValueError(f"model {model.name} has no batch normalization whose statistics could be adapted")
        self._trained = [(layer.moving_mean.numpy(), layer.moving_variance.numpy()) for layer in self._layers]

    def restore(self) -> None:
        """Return to the trained statistics."""
        for layer, (mean_C, variance_C) in zip(self._layers, self._trained, strict=True):
            layer.moving_mean.assign(mean_C)
            layer.moving_variance.assign(variance_C)

    def adapt(self, batches: Iterable[tf.Tensor], prior_images: float = PRIOR_IMAGES) -> int:
        """Set the statistics of all layers, each behind layers that are normalized by the batch itself.

        The result depends on the images, their order and their batches alone.

        Args:
            batches: image_BHWC, float32, as the network takes them. None: the trained statistics stay.
            prior_images: weight of the trained statistics, in images; 0 for a network that was never trained.

        Returns:
            The number of images.
        """
        self.restore()
        images = 0
        first = [np.zeros(mean_C.shape) for mean_C, _ in self._trained]
        second = [np.zeros(mean_C.shape) for mean_C, _ in self._trained]
        for image_BHWC in batches:
            count = int(image_BHWC.shape[0])
            for layer in self._layers:
                layer.adapting = []
            try:
                self._model(image_BHWC, training=False)
                # Keras tracks a copy of the list: what was added is read from the layer.
                found = [(layer.adapting or [])[0] for layer in self._layers]
            finally:
                for layer in self._layers:
                    layer.adapting = None
            for number, statistics in enumerate(found):
                mean_C, variance_C = (np.asarray(one, np.float64) for one in statistics)
                first[number] += count * mean_C
                second[number] += count * (variance_C + mean_C**2)
            images += count
        if not images:
            return 0
        share = images / (images + prior_images)
        for number, (layer, (mean_C, variance_C)) in enumerate(zip(self._layers, self._trained, strict=True)):
            seen_C = first[number] / images
            spread_C = np.maximum(second[number] / images - seen_C**2, 0.0)
            layer.moving_mean.assign(share * seen_C + (1 - share) * mean_C)
            layer.moving_variance.assign(share * spread_C + (1 - share) * variance_C)
        return images
