"""What in an image matters for the output of a network: input gradient and class activation, with the memory of a tile.

B images, H, W rows and columns of px, C channels, R, S rows and columns of cells, K outputs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from classification.saliency_files import Saliency
from classification.stream import Prepared, Stream
from classification.targets import Targets
from streaming import Streamed
from streaming.images import Source
from streaming.places import centers

Array = NDArray[Any]

# A map has at most this many cells a side, unless the image's are more than 8 px each even so.
MOST_CELLS = 1024
LEAST_CELL_PX = 8


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
    stream: Stream, image: Source, targets: Targets, output: int | None = None, cell: int | None = None
) -> Saliency:
    """Input gradient: how much the output changes with each px, |gradient| summed over channels and cells.

    Source: Simonyan et al. 2014, https://arxiv.org/abs/1312.6034. The image is streamed forward and backward; of its
    gradient a few rows of tiles are in memory at a time.

    Args:
        stream: the classifier.
        image: one image, 8 bit or in [-1, 1].
        targets: meaning of the outputs.
        output: see `explained`.
        cell: side of a cell, px; None: as few px as make at most 1024 cells a side, 8 at least.
    """
    early = stream.early_for(image)
    middle_BHWC = early.forward(Prepared(image))
    late = stream.late_for(middle_BHWC)
    number, slope_BHWC, scale = _slope(stream, late.forward(middle_BHWC), targets, output)
    slope_BHWC = late.backward(slope_BHWC, image_gradient=True).image
    _, height, width, channels = image.shape
    cell = cell or max(LEAST_CELL_PX, -(-max(height, width) // MOST_CELLS))
    sums = CellSums((1, height, width, channels), cell)
    if _read_once(early, (height, width)) and not early.shared:
        early.backward(slope_BHWC, image_gradient=sums)
    else:
        # Several segments read the image, each from top to bottom, or ranks share its tiles.
        whole_BHWC = early.backward(slope_BHWC, image_gradient=True).image
        sums[:, slice(0, height), slice(0, width)] = whole_BHWC
    stream.release()
    return Saliency("gradient", targets.names[number], sums.finished() / scale, (0.0, 0.0), (float(cell), float(cell)))


def activation(stream: Stream, image: Source, targets: Targets, output: int | None = None) -> Saliency:
    """Class activation: what every cell of the last map adds to the output; only what speaks for it is kept.

    A cell's share is the sum over channels of its value times the gradient there. Behind global average pooling and a
    linear layer that is the class activation map of Zhou et al. 2016, https://arxiv.org/abs/1512.04150; behind maximum
    pooling the weighted maxima, each where it is found. Either way the shares, those against the output included, add
    up to what is explained, but for its bias.

    Args:
        stream: the classifier.
        image: one image, 8 bit or in [-1, 1].
        targets: meaning of the outputs.
        output: see `explained`.
    """
    early = stream.early_for(image)
    middle_BHWC = early.forward(Prepared(image), backward=False)
    late = stream.late_for(middle_BHWC)
    last_BHWC = late.forward(middle_BHWC, backward=False)
    number, slope_BHWC, scale = _slope(stream, last_BHWC, targets, output)
    share_RS = (last_BHWC.astype(np.float32) * slope_BHWC / scale).sum(axis=-1)[0]
    # For x and y: center of what cell 0 looks at, and the distance between two cells.
    places = []
    for (first, step), (late_first, late_step) in zip(
        centers(early.graph, image.shape[1:3]), centers(late.graph, middle_BHWC.shape[1:3]), strict=True
    ):
        # The center of a cell e of the first map is e + 0.5 in the frame of the second.
        places.append((first + (late_first - 0.5) * step, late_step * step))
    (x, step_x), (y, step_y) = places
    corner_xy = x - step_x / 2, y - step_y / 2
    return Saliency("activation", targets.names[number], np.maximum(share_RS, 0), corner_xy, (step_x, step_y))


def _slope(
    stream: Stream, last_BHWC: Array, targets: Targets, output: int | None
) -> tuple[int, NDArray[np.float32], float]:
    """Number of the output that is explained, its gradient at the last map, and what that is too large by.

    Behind the mean over a large map the gradient is too small for 16 bits; it is computed times the number of cells.
    """
    last = tf.constant(last_BHWC)
    _, rows, columns, _ = last.shape
    scales = [float(rows * columns), 1.0] if last.dtype == tf.float16 else [1.0]
    for scale in scales:
        with tf.GradientTape() as tape:
            tape.watch(last)
            logits_BK = stream.classifier.head(last, training=False)
            number, weight_K = explained(targets, logits_BK[0].numpy(), output)
            score = tf.reduce_sum(tf.cast(logits_BK, tf.float32) * weight_K) * scale
        slope_BHWC = tape.gradient(score, last).numpy()
        if np.isfinite(slope_BHWC).all():
            break
    return number, slope_BHWC.astype(np.float32), scale


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
