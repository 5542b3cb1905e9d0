"""First statistics of batch normalization for a network that starts from random weights.

They stay as they are (an image is a batch of one), so they must fit from the start: with means of 0 and variances of 1
the numbers in a ResNet grow from block to block, and training diverges at once.

Shapes: B windows, H rows, W columns, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import keras
import numpy as np
from numpy.typing import NDArray

from classification.stream import Prepared
from models.adaptation import Adaptation
from parallel.comm import Comm, together
from streaming import Source
from system.csv_tables import counted

IMAGES = 8  # of the training, whose px are looked at
SIDE = 256  # px of a window
GRID = 4  # windows along each side of an image, of which those with most in them are taken
WINDOWS = 4  # of an image: 32 in all, 1.2 GiB in resnet34


def calibrate(model: keras.Model, images: Iterable[Source]) -> int:
    """Set the statistics of every batch normalization to those of windows of some images, all windows together.

    For a network with random weights, before its first step; never for a trained one. Each layer is behind layers that
    are normalized by the windows, so that afterwards the network computes the same with its statistics frozen.

    Args:
        model: from images in [-1, 1], of any size, to logits.
        images: 8-bit px or px in [-1, 1], (1, H, W, 3).

    Returns:
        The number of images.
    """
    found = [windows(image) for image in images]
    if not found:
        return 0
    side = min(min(window_HWC.shape[:2]) for of_image in found for window_HWC in of_image)
    together_BHWC = np.stack([window_HWC[:side, :side] for of_image in found for window_HWC in of_image])
    Adaptation(model).adapt([together_BHWC], prior_images=0)
    return len(found)


def first_statistics(model: keras.Model, views: Callable[[int], Iterable[Source]], comm: Comm) -> str:
    """`calibrate` by the first views of the training, on rank 0, which gives its variables to the others afterwards.

    Args:
        model: see `calibrate`.
        views: gives this many views of the training.
        comm: the ranks.

    Returns:
        A line for the log.

    Raises:
        AgreedError: an image cannot be read.
    """
    count = together(comm, lambda: calibrate(model, views(IMAGES)) if comm.rank == 0 else 0)
    return f"batch norm  statistics of {counted(comm.gather(count)[0], 'training image')}"


def windows(image: Source) -> list[NDArray[np.float32]]:
    """Windows of an image, (H, W, C) in [-1, 1]: of a grid over all of it those whose px differ most from the next.

    White margins tell nothing: a channel that does not vary would be divided by nearly 0.

    Args:
        image: see `calibrate`.
    """
    prepared = Prepared(image)
    places = [(row, column) for row in _starts(image.shape[1]) for column in _starts(image.shape[2])]
    found = [
        prepared.read((row, min(row + SIDE, image.shape[1])), (column, min(column + SIDE, image.shape[2])))[0]
        for row, column in places
    ]
    # Of equal ones the first, so that every run takes the same.
    best = sorted(range(len(found)), key=lambda at: (-float(np.abs(np.diff(found[at], axis=1)).mean()), at))[:WINDOWS]
    return [found[at] for at in sorted(best)]


def _starts(size: int) -> list[int]:
    """First px of windows spread evenly over a side."""
    last = max(0, size - SIDE)
    return sorted({round(last * number / (GRID - 1)) for number in range(GRID)})
