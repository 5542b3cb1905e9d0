"""Intervals of cells along one axis of a map.

An interval (lo, hi) holds the cells lo, lo + 1 ... hi - 1 of the whole image's map, so that every number here has one
frame, that of its map, whatever tile is at work. A window is an interval that may reach beyond the map; what lies
outside is padding, exactly where the whole image has it.
"""

from typing import NamedTuple

Interval = tuple[int, int]


class Cut(NamedTuple):
    """How a window is made of a tensor that holds a part of its map.

    Attributes:
        start: first row or column taken, counted in the tensor.
        size: rows or columns taken.
        before: rows or columns of padding in front of them.
        after: rows or columns of padding behind them.
    """

    start: int
    size: int
    before: int
    after: int


def clipped(window: Interval, size: int) -> Interval:
    """The cells of a map of `size` cells that a window needs; never empty, the nearest cell of a window outside."""
    lo = min(max(window[0], 0), size - 1)
    return lo, max(min(window[1], size), lo + 1)


def joined(first: Interval | None, second: Interval) -> Interval:
    """The smallest interval around both; the second where there is no first."""
    return second if first is None else (min(first[0], second[0]), max(first[1], second[1]))


def cut(window: Interval, held: Interval, size: int) -> Cut:
    """How to make a window of a tensor.

    Args:
        window: what is wanted, may reach beyond the map.
        held: what the tensor holds; contains the part of the window that lies inside the map.
        size: cells of the whole map.
    """
    length = window[1] - window[0]
    lo, hi = (min(max(end, 0), size) for end in window)
    before = min(max(-window[0], 0), length)
    # A window outside the map takes nothing, from a place that exists.
    start = min(max(lo - held[0], 0), held[1] - held[0])
    return Cut(start, hi - lo, before, length - before - (hi - lo))


def same_padding(size: int, kernel: int, stride: int) -> int:
    """Padding in front of a map under TensorFlow's SAME rule, which depends on the size of the whole map.

    Args:
        size: cells of the map.
        kernel: cells between the first and the last tap, both included.
        stride: cells between outputs.

    Source: https://www.tensorflow.org/api_docs/python/tf/nn#notes_on_padding_2
    """
    out = -(-size // stride)
    return max((out - 1) * stride + kernel - size, 0) // 2
