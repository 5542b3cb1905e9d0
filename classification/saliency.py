"""What in an image matters for the output of a network: input gradient and class activation, with the memory of a tile.

B images, H, W rows and columns of px, C channels, R, S rows and columns of cells, K outputs.
"""

from __future__ import annotations

from typing import Any, Protocol

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from classification.saliency_files import Saliency
from classification.targets import Targets
from streaming import Streamed, graph
from streaming.images import Source
from streaming.places import centers

Array = NDArray[Any]

# A map has at most this many cells a side, unless the image's are more than 8 px each even so.
MOST_CELLS = 1024
LEAST_CELL_PX = 8


class Network(Protocol):
    """A classifier in three parts."""

    @property
    def stream(self) -> Streamed:
        """From an image to the map of the cut."""
        ...

    @property
    def late(self) -> keras.Model:
        """From the map of the cut to the last map."""
        ...

    @property
    def head(self) -> keras.Model:
        """From the last map to logits_BK."""
        ...


def explained(targets: Targets, logits_K: Array, output: int | None = None) -> tuple[int, NDArray[np.float32]]:
    """Which output to explain, and the weights of the logits in what is explained.

    Args:
        targets: meaning of the outputs.
        logits_K: of the image.
        output: number of the output; None: the second of two classes, so that maps of all slides show the same, the
            predicted one of more classes, the most probable label, the number.

    Returns:
        Number of the output, and weight_K: of a class, its logit less the mean of the others', since probabilities
        depend on differences only; of a label or a number, its own.

    Raises:
        ValueError: there is no such output.
    """
    count = len(targets.names)
    if output is not None and not 0 <= output < count:
        raise ValueError(f"output {output}: the network has outputs 0 to {count - 1} ({', '.join(targets.names)})")
    classes = targets.kind == "classes"
    if output is None:
        output = 1 if classes and count == 2 else int(np.argmax(logits_K))
    weight_K = np.zeros(count, np.float32)
    if classes and count > 1:
        weight_K -= np.float32(1 / (count - 1))
    weight_K[output] = 1
    return output, weight_K


def gradient(
    network: Network, image: Source, targets: Targets, output: int | None = None, cell: int | None = None
) -> Saliency:
    """Input gradient: how much the output changes with each px, |gradient| summed over channels and cells.

    Source: Simonyan et al. 2014, https://arxiv.org/abs/1312.6034. The image is streamed forward and backward; of its
    gradient a few rows of tiles are in memory at a time.

    Args:
        network: the classifier.
        image: one image, in the range that the network takes.
        targets: meaning of the outputs.
        output: see `explained`.
        cell: side of a cell, px; None: as few px as make at most 1024 cells a side, 8 at least.
    """
    early_BHWC = tf.constant(network.stream.forward(image))
    with tf.GradientTape() as tape:
        tape.watch(early_BHWC)
        logits_BK = network.head(network.late(early_BHWC, training=False), training=False)
        number, weight_K = explained(targets, logits_BK[0].numpy(), output)
        score = tf.reduce_sum(tf.cast(logits_BK, tf.float32) * weight_K)
    slope_BHWC = tape.gradient(score, early_BHWC)
    _, height, width, channels = image.shape
    cell = cell or max(LEAST_CELL_PX, -(-max(height, width) // MOST_CELLS))
    sums = CellSums((1, height, width, channels), cell)
    if _read_once(network.stream, (height, width)) and not network.stream.shared:
        network.stream.backward(slope_BHWC.numpy(), image_gradient=sums)
    else:
        # Several segments read the image, each from top to bottom, or ranks share its tiles.
        whole_BHWC = network.stream.backward(slope_BHWC.numpy(), image_gradient=True).image
        sums[:, slice(0, height), slice(0, width)] = whole_BHWC
    return Saliency("gradient", targets.names[number], sums.finished(), (0.0, 0.0), (float(cell), float(cell)))


def activation(network: Network, image: Source, targets: Targets, output: int | None = None) -> Saliency:
    """Class activation: what every cell of the last map adds to the output; only what speaks for it is kept.

    A cell's share is the sum over channels of its value times the gradient there. Behind global average pooling and a
    linear layer that is the class activation map of Zhou et al. 2016, https://arxiv.org/abs/1512.04150; behind maximum
    pooling the weighted maxima, each where it is found. Either way the shares, those against the output included, add
    up to what is explained, but for its bias.

    Args:
        network: the classifier.
        image: one image, in the range that the network takes.
        targets: meaning of the outputs.
        output: see `explained`.
    """
    early_BHWC = tf.constant(network.stream.forward(image, backward=False))
    last_BHWC = network.late(early_BHWC, training=False)
    with tf.GradientTape() as tape:
        tape.watch(last_BHWC)
        logits_BK = network.head(last_BHWC, training=False)
        number, weight_K = explained(targets, logits_BK[0].numpy(), output)
        score = tf.reduce_sum(tf.cast(logits_BK, tf.float32) * weight_K)
    slope_BHWC = tape.gradient(score, last_BHWC)
    share_RS = tf.reduce_sum(tf.cast(last_BHWC, tf.float32) * tf.cast(slope_BHWC, tf.float32), axis=-1)[0].numpy()
    places = _places(network, image.shape[1:3], tuple(early_BHWC.shape[1:3]))
    corner = tuple(center - step / 2 for center, step in places)
    steps = tuple(step for _, step in places)
    return Saliency(
        "activation", targets.names[number], np.maximum(share_RS, 0), (corner[0], corner[1]), (steps[0], steps[1])
    )


def _places(network: Network, hw: tuple[int, int], early_hw: tuple[int, int]) -> list[tuple[float, float]]:
    """For x and y: center of what cell 0 of the last map looks at, and the distance between two cells, px."""
    late = graph.read(network.late, None, batch_statistics=False, dropout="inactive")
    found = []
    for (first, step), (late_first, late_step) in zip(
        centers(network.stream.graph, hw), centers(late, early_hw), strict=True
    ):
        # The center of a cell e of the first map is e + 0.5 in the frame of the second.
        found.append((first + (late_first - 0.5) * step, late_step * step))
    return found


def _read_once(stream: Streamed, hw: tuple[int, int]) -> bool:
    """Whether a single segment reads the image."""
    return sum(any(v.index == 0 for v in part.segment.inputs) for part in stream.layout(hw).parts) == 1


class CellSums:
    """Takes the gradient of an image window by window and keeps sums of its absolute values over cells.

    Windows overlap, and absolute values can be taken only of complete sums: rows wait until the windows have passed.

    Args:
        shape: 1, H, W and C of the image.
        cell: side of a cell, px; the last ones may be smaller.
    """

    def __init__(self, shape: tuple[int, int, int, int], cell: int) -> None:
        self.shape, self._cell = shape, cell
        _, height, width, _ = shape
        self._map_RS = np.zeros((-(-height // cell), -(-width // cell)), np.float64)
        self._starts = np.arange(0, width, cell)
        self._top = 0
        self._waiting_BHWC = np.zeros((1, 0, *shape[2:]), np.float32)

    def __getitem__(self, key: tuple[slice, slice, slice]) -> Array:
        """The part of the rows that wait."""
        _, rows, columns = key
        first, end = rows.start, rows.stop
        assert first >= self._top, f"row {first} is complete: windows come from top to bottom"
        self._pass(first - self._top)
        missing = end - self._top - self._waiting_BHWC.shape[1]
        if missing > 0:
            more = np.zeros((1, missing, *self.shape[2:]), np.float32)
            self._waiting_BHWC = np.concatenate([self._waiting_BHWC, more], axis=1)
        window: Array = self._waiting_BHWC[:, first - self._top : end - self._top, columns]
        return window

    def __setitem__(self, key: tuple[slice, slice, slice], window: Array) -> None:
        """Store a window."""
        self[key][...] = window

    def finished(self) -> NDArray[np.float32]:
        """The sums of all rows, map_RS."""
        self._pass(self._waiting_BHWC.shape[1])
        return self._map_RS.astype(np.float32)

    def _pass(self, rows: int) -> None:
        """Add the first rows that wait to their cells; nothing comes for them any more."""
        taken = min(rows, self._waiting_BHWC.shape[1])
        if taken:
            sum_HW = np.abs(self._waiting_BHWC[0, :taken]).sum(axis=-1, dtype=np.float64)
            sum_HS = np.add.reduceat(sum_HW, self._starts, axis=1)
            np.add.at(self._map_RS, np.arange(self._top, self._top + taken) // self._cell, sum_HS)
            self._waiting_BHWC = self._waiting_BHWC[:, taken:]
        self._top += rows
