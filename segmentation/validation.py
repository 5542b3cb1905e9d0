"""Validation on all ranks: fixed patches, each counted once, summed over ranks at the end.

Shapes: B patches, H, W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from metrics import confusion
from parallel.comm import Comm
from segmentation.losses import Loss, total
from segmentation.pixel_counts import PixelCounts
from training.log import Picture
from training.step import scaled

Counts = npt.NDArray[np.int64]

PICTURES = 4  # patches kept to look at, on rank 0


def numbers(confusion_KK: Counts, histogram_2N: Counts, loss: float) -> dict[str, float]:
    """Scores of summed counts by the names used in logs; NaN where one is undefined.

    `dice` is that of tumor (class 1), the usual single number of the field; `miou` is over all classes.
    """
    iou_K, dice_K = confusion.iou_K(confusion_KK), confusion.dice_K(confusion_KK)
    named = {
        "loss": loss,
        "miou": confusion.miou(confusion_KK),
        "dice": dice_K[1],
        "auc": confusion.auc(histogram_2N),
        "accuracy": confusion.accuracy(confusion_KK),
    }
    for cls, (iou, dice) in enumerate(zip(iou_K, dice_K, strict=True)):
        named |= {f"iou_{cls}": iou, f"dice_{cls}": dice}
    return {name: float(value) for name, value in named.items()}


class Validator:
    """Scores a model on batches.

    Args:
        model: (B, H, W, C) in [-1, 1] -> logits_BHWK.
        classes: number of classes K.
        loss: scored along with the rest.
    """

    def __init__(self, model: Any, classes: int, loss: Loss) -> None:
        self._model = model
        self._counts = PixelCounts(classes)
        self._loss = loss

    @tf.function
    def _forward(self, image_BHWC: Any, label_BHW: Any) -> tuple[Any, Any]:
        return self._scored(self._model(scaled(image_BHWC), training=False), label_BHW)

    def _scored(self, logits_BHWK: Any, label_BHW: Any) -> tuple[Any, Any]:
        """Counts pixels; their classes, and their sums of the loss."""
        self._counts.update(logits_BHWK, label_BHW)
        predicted_BHW = tf.cast(tf.argmax(logits_BHWK, -1), tf.uint8)
        return predicted_BHW, tf.reduce_sum(self._loss.sums(logits_BHWK, label_BHW), 0)

    def run(
        self, batches: Iterable[tuple[Any, Any, Any]], comm: Comm, stop: Callable[[], bool] = lambda: False
    ) -> tuple[dict[str, float], list[Picture]] | None:
        """Score this rank's batches and sum over ranks; every rank must call it.

        Args:
            batches: (image_BHWC uint8, label_BHW uint8, meta) of this rank; the numbers of batches may differ by rank.
            comm: the ranks.
            stop: whether this rank was asked to stop; called before every batch.

        Returns:
            `numbers` over all ranks, up to `PICTURES` pictures of this rank (those with the most mixed truth first);
            None on all ranks when one was asked to stop.
        """
        sums_S = np.zeros(2 + 3 * len(self._loss.class_weights_K))
        pictures: list[tuple[int, Picture]] = []
        asked = False
        for image_BHWC, label_BHW, _ in batches:
            if asked := stop():
                break
            predicted_BHW, batch_sums_S = self._forward(image_BHWC, label_BHW)
            sums_S += batch_sums_S.numpy()
            # The first view; a context view is not shown.
            _keep(pictures, image_BHWC.numpy()[..., :3], label_BHW.numpy(), predicted_BHW.numpy())
        # Ranks: the only collective calls, the same number on every rank whatever its share of patches.
        confusion_KK, histogram_2N = self._counts.totals(comm)
        *joint_S, stopped = comm.sum_array(np.append(sums_S, asked))
        if stopped:
            return None
        loss = total(self._loss, np.array(joint_S))
        return numbers(confusion_KK, histogram_2N, loss), [p for _, p in pictures]


def _keep(
    kept: list[tuple[int, Picture]],
    image_BHWC: npt.NDArray[np.uint8],
    label_BHW: npt.NDArray[np.uint8],
    predicted_BHW: npt.NDArray[np.uint8],
) -> None:
    """Keep the patches whose truth is most mixed, by the smaller of tumor and normal area."""
    for image_HWC, label_HW, predicted_HW in zip(image_BHWC, label_BHW, predicted_BHW, strict=True):
        normal, tumor = int((label_HW == 0).sum()), int(((label_HW > 0) & (label_HW != 255)).sum())
        if normal + tumor == 0:
            continue
        kept.append((min(normal, tumor), Picture(image_HWC, label_HW, predicted_HW)))
        kept.sort(key=lambda pair: -pair[0])
        del kept[PICTURES:]
