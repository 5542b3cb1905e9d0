"""Where operations look: for an interval of an output, the window of every input, and the operation itself on windows.

A rule belongs to one operation of a network. Its methods get one axis at a time, 0 for rows and 1 for columns; sizes
are those of the whole image's maps, in cells.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from streaming.regions import Interval, clipped, same_padding

Matrix = NDArray[np.float64]


class Detail:
    """What a rule gets besides its windows, in the traced function.

    Args:
        trim: int32 (2, 2): for either axis the first cell of the result that is wanted, and how many.
        extras: for either axis what `Rule.weights` made, a tensor; None if it makes nothing.
    """

    def __init__(self, trim: Any, extras: Sequence[Any]) -> None:
        self.trim = trim
        self.extras = extras


class Rule:
    """An operation that takes every cell by itself; inputs of size 1 along an axis are repeated along it.

    Attributes:
        pads: windows may reach beyond the map.
        fill: what stands there.
        trims: the result is larger than the interval asked for, and is cut by `Detail.trim`.
        extra_rank: dimensions of what `weights` makes for either axis; 0 for nothing.
    """

    pads = False
    fill = 0.0
    trims = False
    extra_rank = 0

    def __init__(self, operation: Any) -> None:
        self.operation = operation

    def size(self, axis: int, sizes: Sequence[int]) -> int:
        """Cells of the whole output along an axis.

        Args:
            axis: 0 or 1.
            sizes: cells of the whole inputs.

        Raises:
            ValueError: the inputs do not fit each other.
        """
        largest = max(sizes)
        if any(size not in (1, largest) for size in sizes):
            raise ValueError(f"{self.operation.name}: maps of {list(sizes)} cells along axis {axis} do not fit")
        return largest

    def windows(self, axis: int, out: Interval, sizes: Sequence[int]) -> list[Interval]:
        """The window of every input that an interval of the output needs."""
        del axis
        return [(0, 1) if size == 1 else out for size in sizes]

    def first(self, axis: int, out: Interval, size: int) -> int:
        """The first cell of the result that is wanted, counted in the result; for rules that trim."""
        raise NotImplementedError

    def weights(self, axis: int, out: Interval, size: int) -> Matrix:
        """Weights that depend on the place; for rules with an `extra_rank`."""
        raise NotImplementedError

    def apply(self, run: Callable[..., Any], windows: Sequence[Any], detail: Detail) -> Any:
        """The operation on windows (B, H, W, C), in the traced function.

        Args:
            run: the operation as the network calls it, a function of its inputs.
            windows: one tensor per input, as `windows` asked for them.
            detail: see there.
        """
        del detail
        return run(*windows)


@contextmanager
def valid(operation: Any) -> Iterator[None]:
    """The operation pads nothing by itself inside; its windows have the padding already."""
    before = operation.padding
    operation.padding = "valid"
    try:
        yield
    finally:
        operation.padding = before


class Kernel(Rule):
    """Convolution or pooling: a kernel moved by a stride.

    Args:
        operation: with `strides` and `padding`, "same" or "valid".
        kernels: taps along either axis.
        dilations: cells between taps along either axis.
    """

    def __init__(self, operation: Any, kernels: Sequence[int], dilations: int | Sequence[int] = 1) -> None:
        super().__init__(operation)
        dilated = pair(dilations)
        self.extents = tuple((k - 1) * d + 1 for k, d in zip(pair(kernels), dilated, strict=True))
        self.strides = pair(operation.strides if operation.strides is not None else kernels)
        self.same = operation.padding == "same"
        self.pads = self.same and self.extents != (1, 1)

    def size(self, axis: int, sizes: Sequence[int]) -> int:
        """See `Rule.size`."""
        (size,) = sizes
        if self.same:
            return -(-size // self.strides[axis])
        if size < self.extents[axis]:
            raise ValueError(
                f"{self.operation.name}: the image is too small, {size} cells remain along axis {axis} for a kernel of "
                f"{self.extents[axis]}; use a larger image"
            )
        return (size - self.extents[axis]) // self.strides[axis] + 1

    def before(self, axis: int, size: int) -> int:
        """Cells of padding in front of the map."""
        return same_padding(size, self.extents[axis], self.strides[axis]) if self.same else 0

    def windows(self, axis: int, out: Interval, sizes: Sequence[int]) -> list[Interval]:
        """See `Rule.windows`."""
        stride, extent = self.strides[axis], self.extents[axis]
        lo = out[0] * stride - self.before(axis, sizes[0])
        return [(lo, lo + (out[1] - 1 - out[0]) * stride + extent)]

    def apply(self, run: Callable[..., Any], windows: Sequence[Any], detail: Detail) -> Any:
        """See `Rule.apply`."""
        del detail
        with valid(self.operation):
            return run(*windows)


class MaxPooling(Kernel):
    """Padding is never the maximum."""

    fill = -np.inf


class AveragePooling(Kernel):
    """Under SAME padding the mean is over the cells inside the map."""

    def __init__(self, operation: Any, kernels: Sequence[int]) -> None:
        super().__init__(operation, kernels)
        self.extra_rank = 1 if self.pads else 0

    def weights(self, axis: int, out: Interval, size: int) -> Matrix:
        """Cells of the kernel over those inside the map, for every output."""
        extent = self.extents[axis]
        lo = np.arange(*out) * self.strides[axis] - self.before(axis, size)
        inside = np.minimum(lo + extent, size) - np.maximum(lo, 0)
        return np.asarray(extent / inside, np.float64)

    def apply(self, run: Callable[..., Any], windows: Sequence[Any], detail: Detail) -> Any:
        """See `Rule.apply`."""
        out_BHWC = super().apply(run, windows, detail)
        if not self.pads:
            return out_BHWC
        rows, columns = (tf.cast(extra, out_BHWC.dtype) for extra in detail.extras)
        return out_BHWC * rows[:, None, None] * columns[:, None]


class Padding(Rule):
    """Adds cells around a map; the window does all of it.

    Args:
        operation: shown in messages.
        before: cells in front, along either axis.
        after: cells behind.
        fill: their value.
    """

    pads = True

    def __init__(self, operation: Any, before: Sequence[int], after: Sequence[int], fill: float = 0.0) -> None:
        super().__init__(operation)
        self.before, self.after, self.fill = tuple(before), tuple(after), fill

    def size(self, axis: int, sizes: Sequence[int]) -> int:
        """See `Rule.size`."""
        size = sizes[0] + self.before[axis] + self.after[axis]
        if size < 1:
            raise ValueError(f"{self.operation.name}: nothing remains of {sizes[0]} cells along axis {axis}")
        return size

    def windows(self, axis: int, out: Interval, sizes: Sequence[int]) -> list[Interval]:
        """See `Rule.windows`."""
        del sizes
        return [(out[0] - self.before[axis], out[1] - self.before[axis])]

    def apply(self, run: Callable[..., Any], windows: Sequence[Any], detail: Detail) -> Any:
        """See `Rule.apply`."""
        del run, detail
        dtype = getattr(self.operation, "compute_dtype", None)
        return windows[0] if dtype is None else tf.cast(windows[0], dtype)


class Cropping(Padding):
    """Takes cells off the sides of a map."""

    pads = False

    def __init__(self, operation: Any, before: Sequence[int], after: Sequence[int]) -> None:
        super().__init__(operation, [-cells for cells in before], [-cells for cells in after])


class Repeat(Rule):
    """Enlarges by whole factors, every cell repeated."""

    trims = True

    def __init__(self, operation: Any, factors: Sequence[int]) -> None:
        super().__init__(operation)
        self.factors = pair(factors)

    def size(self, axis: int, sizes: Sequence[int]) -> int:
        """See `Rule.size`."""
        return sizes[0] * self.factors[axis]

    def windows(self, axis: int, out: Interval, sizes: Sequence[int]) -> list[Interval]:
        """See `Rule.windows`."""
        del sizes
        factor = self.factors[axis]
        return [(out[0] // factor, (out[1] - 1) // factor + 1)]

    def first(self, axis: int, out: Interval, size: int) -> int:
        """See `Rule.first`."""
        del size
        return out[0] % self.factors[axis]


class Transposed(Rule):
    """Transposed convolution: every cell writes a kernel, a stride apart.

    Args:
        operation: with `strides` and `padding`.
        kernels: taps along either axis.
    """

    trims = True

    def __init__(self, operation: Any, kernels: Sequence[int]) -> None:
        super().__init__(operation)
        self.kernels, self.strides = pair(kernels), pair(operation.strides)
        self.same = operation.padding == "same"

    def size(self, axis: int, sizes: Sequence[int]) -> int:
        """See `Rule.size`."""
        over = 0 if self.same else max(self.kernels[axis] - self.strides[axis], 0)
        return sizes[0] * self.strides[axis] + over

    def _before(self, axis: int) -> int:
        """Cells cut off in front under SAME padding."""
        return max(self.kernels[axis] - self.strides[axis], 0) // 2 if self.same else 0

    def windows(self, axis: int, out: Interval, sizes: Sequence[int]) -> list[Interval]:
        """See `Rule.windows`."""
        before, stride = self._before(axis), self.strides[axis]
        lo = -(-(out[0] + before - self.kernels[axis] + 1) // stride)
        # Without a gap between kernels every output is written; with one the cell in front of the gap stands for it.
        return [clipped((min(lo, (out[0] + before) // stride), (out[1] - 1 + before) // stride + 1), sizes[0])]

    def first(self, axis: int, out: Interval, size: int) -> int:
        """See `Rule.first`."""
        ((lo, _),) = self.windows(axis, out, [size])
        return out[0] + self._before(axis) - lo * self.strides[axis]

    def apply(self, run: Callable[..., Any], windows: Sequence[Any], detail: Detail) -> Any:
        """See `Rule.apply`."""
        del detail
        with valid(self.operation):
            return run(*windows)


class Resize(Rule):
    """A separable resize: a matrix of weights per axis, a row per output cell.

    Args:
        operation: the layer.
        out_size: cells of the output from the axis and the cells of the input.
        weights: from output cells (N,), input and output cells of the whole maps: the first input cell of every output
            and the weights of the cells from there on (N, taps).
    """

    extra_rank = 2

    def __init__(
        self,
        operation: Any,
        out_size: Callable[[int, int], int],
        weights: Callable[[NDArray[np.int64], int, int], tuple[NDArray[np.int64], Matrix]],
    ) -> None:
        super().__init__(operation)
        self._out_size, self._weights = out_size, weights

    def size(self, axis: int, sizes: Sequence[int]) -> int:
        """See `Rule.size`."""
        return self._out_size(axis, sizes[0])

    def windows(self, axis: int, out: Interval, sizes: Sequence[int]) -> list[Interval]:
        """See `Rule.windows`."""
        size = sizes[0]
        starts, weights = self._weights(np.array([out[0], out[1] - 1]), size, self._out_size(axis, size))
        return [clipped((int(starts[0]), int(starts[1]) + weights.shape[1]), size)]

    def weights(self, axis: int, out: Interval, size: int) -> Matrix:
        """The weights of a window, (output cells, window cells)."""
        ((lo, hi),) = self.windows(axis, out, [size])
        cells = np.arange(*out)
        starts, weights = self._weights(cells, size, self._out_size(axis, size))
        matrix = np.zeros((len(cells), hi - lo))
        for tap in range(weights.shape[1]):
            # Taps beyond the map weigh nothing or fall on its last cell.
            np.add.at(matrix, (cells - out[0], np.minimum(starts + tap, hi - 1) - lo), weights[:, tap])
        return matrix

    def apply(self, run: Callable[..., Any], windows: Sequence[Any], detail: Detail) -> Any:
        """See `Rule.apply`."""
        del run
        dtype = getattr(self.operation, "compute_dtype", None) or windows[0].dtype
        x = tf.cast(windows[0], dtype)
        rows, columns = (tf.cast(extra, x.dtype) for extra in detail.extras)
        channels = x.shape[-1]
        batch, height, width = tf.unstack(tf.shape(x)[:3])
        x = tf.matmul(rows, tf.reshape(x, (batch, height, width * channels)))
        out_shape = (batch, tf.shape(rows)[0], tf.shape(columns)[0], channels)
        x = tf.matmul(columns, tf.reshape(x, (batch * out_shape[1], width, channels)))
        return tf.reshape(x, out_shape)


def pair(value: int | Sequence[int]) -> tuple[int, int]:
    """A number for both axes, or one for each."""
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def half_pixel_weights(cells: NDArray[np.int64], size_in: int, size_out: int) -> tuple[NDArray[np.int64], Matrix]:
    """Bilinear weights as `tf.image.resize` has them, whose places are single precision; see `Resize`."""
    scale = np.float32(size_in) / np.float32(size_out)
    places = (cells.astype(np.float32) + np.float32(0.5)) * scale - np.float32(0.5)
    below = np.floor(places)
    share = (places - below).astype(np.float64)
    # Before the first cell both taps are that cell.
    share = np.where(below < 0, 0.0, share)
    return np.maximum(below, 0).astype(np.int64), np.stack([1.0 - share, share], 1)


def nearest_weights(cells: NDArray[np.int64], size_in: int, size_out: int) -> tuple[NDArray[np.int64], Matrix]:
    """The cell around the center of every output cell, as `tf.image.resize` takes it; see `Resize`."""
    scale = np.float32(size_in) / np.float32(size_out)
    places = np.floor((cells.astype(np.float32) + np.float32(0.5)) * scale).astype(np.int64)
    return np.minimum(places, size_in - 1), np.ones((len(cells), 1))


def align_corners_weights(cells: NDArray[np.int64], size_in: int, size_out: int) -> tuple[NDArray[np.int64], Matrix]:
    """Weights of `models.layers.interpolation_matrix`, rounded to single precision as there; see `Resize`."""
    steps = max(size_out - 1, 1)
    left, rest = np.divmod(cells * (size_in - 1), steps)
    share = rest / steps
    return left, np.stack([1.0 - share, share], 1).astype(np.float32).astype(np.float64)
