"""A streamed classifier with `fit` and `predict`, for notebooks and first trials: docs/streaming_tutorial.md.

It is a short way to the parts of the whole-slide classifier, whose program adds ranks, checkpoints, validation, scores
and reports. One process, constant learning rate.

Shapes: K outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from classification.losses import Loss
from classification.network import build
from classification.step import StreamedStep, require_finite
from classification.stream import Stream
from options.choices import TargetKind
from parallel.comm import SoloComm
from streaming import Source
from training import optimizer

Sample = Callable[[int], tuple[Source, NDArray[np.float32]]]


class StreamingResNet:
    """A network for whole images, trained by Adam with the gradient of the whole image.

    Args:
        model_name: one of `options.choices.CLASSIFIERS`, such as "resnet18".
        tile_size: side of a tile, px. It bounds memory and does not change results.
        num_classes: number of outputs K.
        train_streaming_layers: train all layers; False: only those behind the cut, which is faster, since the early
            layers then need no backward pass.
        learning_rate: of Adam.
        weights_path: pre-trained weights (docs/pretrained_weights.md); None: random ones.
        kind: what the outputs are, one of `options.choices.TARGET_KINDS`.
        pool: "max" or "average" over the whole image.

    Attributes:
        classifier: the network and its parts; `classifier.model` is the Keras model.

    Raises:
        ValueError: an unknown name, or weights that do not fit.
    """

    def __init__(
        self,
        model_name: str,
        tile_size: int,
        num_classes: int,
        train_streaming_layers: bool = True,
        learning_rate: float = 1e-3,
        weights_path: str | Path | None = None,
        kind: TargetKind = "classes",
        pool: str = "max",
    ) -> None:
        self.classifier, _ = build(model_name, num_classes, pool, weights_path=weights_path)
        self.classifier.train(early=train_streaming_layers, norm=True)
        self._kind, self._learning_rate = kind, learning_rate
        self._stream = Stream(self.classifier, tile_size)
        adam = optimizer.build("adam", self._stream.variables, 0.0, None)
        self._step = StreamedStep(self._stream, adam, SoloComm(), Loss(kind))
        self._images = 0

    def fit(self, sample: Sample, images: int, batch_size: int = 1) -> list[float]:
        """Train on some more images.

        Memory does not grow with the batch: its images are streamed one after the other.

        Args:
            sample: from an image counter, which continues that of the last `fit`, to an image (`streaming.Source`,
                8-bit px or [-1, 1]) and its target_K, float32: 1 for its class and 0 for the others.
            images: how many.
            batch_size: images of an update.

        Returns:
            The loss of every update, before it.

        Raises:
            ValueError: an image cannot be read, or the loss is not finite any more; names the image's place.
        """
        losses = []
        last = self._images + images
        while self._images < last:
            places = range(self._images, min(self._images + batch_size, last))
            batch = [sample(place) for place in places]
            targets_BK = np.stack([target_K for _, target_K in batch])
            result = self._step([source for source, _ in batch], targets_BK, self._learning_rate)
            require_finite(result, [f"image {place}" for place in places], self._images, SoloComm())
            losses.append(result.loss)
            self._images = places.stop
        return losses

    def predict(self, image: Source) -> NDArray[np.float32]:
        """What the network says of a whole image: probabilities_K, or numbers of a regression."""
        logits_K: Any = tf.constant(self._stream.logits(image))[0]
        if self._kind == "classes":
            logits_K = tf.nn.softmax(logits_K)
        elif self._kind == "multilabel":
            logits_K = tf.sigmoid(logits_K)
        found: NDArray[np.float32] = logits_K.numpy()
        return found

    def save(self, path: str | Path) -> None:
        """Write the Keras model; it opens by `keras.models.load_model` after `import models`."""
        self.classifier.model.save(path)
