"""Tiles of a segment: boxes that cover its maps once, and what every operation needs for a box.

Rows and columns are independent, so a tile is a band of rows and a band of columns, and everything is known per band.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streaming.nodes import Graph, Node, Value
from streaming.regions import Interval, clipped, cut, joined
from streaming.segments import Segment

Sizes = Mapping[int, int]  # value's index -> cells along an axis


@dataclass(frozen=True, eq=False)
class Band:
    """One tile along one axis.

    Attributes:
        boxes: of every target, in the order of `Segment.targets`: the cells that belong to this tile.
        held: value's index -> the cells that are needed of it.
        cuts: (edges, 4): `regions.Cut` of every input of every operation, then of every target.
        trims: (nodes, 2): first cell and number of cells of every operation's result.
        extras: what `Rule.weights` makes, for the operations that have it.
    """

    boxes: tuple[Interval, ...]
    held: Mapping[int, Interval]
    cuts: NDArray[np.int32]
    trims: NDArray[np.int32]
    extras: tuple[NDArray[np.float64], ...]

    def same(self, other: "Band") -> bool:
        """Whether operations do the same in both, on other places."""
        return (
            np.array_equal(self.cuts, other.cuts)
            and np.array_equal(self.trims, other.trims)
            and all(np.array_equal(a, b) for a, b in zip(self.extras, other.extras, strict=True))
        )


def sizes(graph: Graph, hw: tuple[int, int]) -> tuple[Sizes, Sizes]:
    """Rows and columns of every value's map for an image of `hw` px; 1 for small values.

    Raises:
        ValueError: the image is too small for a layer.
    """
    found: tuple[dict[int, int], dict[int, int]] = ({0: hw[0]}, {0: hw[1]})
    for node in graph.nodes:
        for axis, known in enumerate(found):
            if node.output.small:
                known[node.output.index] = 1
            else:
                assert node.rule is not None
                known[node.output.index] = node.rule.size(axis, [known[v.index] for v in placed(node)])
    return found


def placed(node: Node) -> list[Value]:
    """Inputs of an operation that have rows and columns."""
    return [value for value in node.inputs if value.rank == 4]


def bands(segment: Segment, sizes: tuple[Sizes, Sizes], tile: int) -> tuple[list[Band], list[Band]]:
    """The fewest bands of rows and of columns whose windows of the finest input have at most `tile` cells.

    Windows are about equal.

    Args:
        segment: what is streamed.
        sizes: rows and columns of every value.
        tile: cells of the finest input, px where it is the image.

    Raises:
        ValueError: `tile` is too small for one cell of the result; names the smallest.
    """
    walks = [_Walk(segment, axis, sizes[axis]) for axis in (0, 1)]
    smallest = [walk.smallest(tile) for walk in walks]
    if max(smallest) > tile:
        worst = walks[int(np.argmax(smallest))]
        what = "the image" if worst.finest.index == 0 else worst.finest.name
        raise ValueError(
            f"tile {tile} is too small: a cell of {worst.coarsest.name} needs {max(smallest)} cells of {what} along "
            f"{('rows', 'columns')[worst.axis]}; the smallest tile that works is {max(smallest)}"
        )
    rows, columns = ([w.band(lo, hi) for lo, hi in w.even(tile)] for w in walks)
    return rows, columns


def smallest_tile(segment: Segment, sizes: tuple[Sizes, Sizes]) -> tuple[Value, int]:
    """The finest input of a segment, and the cells of it that the least of its tiles needs.

    Args:
        segment: what is streamed.
        sizes: rows and columns of every value.
    """
    walks = [_Walk(segment, axis, sizes[axis]) for axis in (0, 1)]
    return walks[0].finest, max(walk.smallest(1) for walk in walks)


class _Walk:
    """From boxes of the targets back to the inputs, along one axis."""

    def __init__(self, segment: Segment, axis: int, sizes: Sizes) -> None:
        self.segment, self.axis, self.sizes = segment, axis, sizes
        self.coarsest = min(segment.targets, key=lambda value: sizes[value.index])
        self.finest = max(segment.inputs, key=lambda value: (value.rank == 4 and sizes[value.index], -value.index))
        # Ends of boxes lie on the coarsest grid of all maps inside, so that tiles in the middle look alike.
        inside = [sizes[v.index] for node in segment.nodes for v in (node.output, *placed(node)) if not v.small]
        cells = sizes[self.coarsest.index]
        self.unit = max(1, round(cells / min([cells, *(size for size in inside if size > 1)])))
        self.count = -(-cells // self.unit)
        self._steps: dict[int, Interval] = {}

    def boxes(self, lo: int, hi: int) -> tuple[Interval, ...]:
        """Boxes of all targets for an interval of steps."""
        return tuple((self._end(v, lo), self._end(v, hi)) for v in self.segment.targets)

    def _end(self, value: Value, step: int) -> int:
        size, cells = self.sizes[value.index], self.sizes[self.coarsest.index]
        if step == self.count:
            return size
        cell = step * self.unit
        ratio = round(size / cells)
        # Whole ratios let all tiles in the middle look alike; otherwise cells are shared out evenly.
        return cell * ratio if (cells - 1) * ratio < size else cell * size // cells

    def held(self, boxes: Sequence[Interval]) -> dict[int, Interval]:
        """What is needed of every value."""
        found: dict[int, Interval] = {}
        for value, box in zip(self.segment.targets, boxes, strict=True):
            found[value.index] = joined(found.get(value.index), box)
        for node in reversed(self.segment.nodes):
            for value, window in zip(placed(node), self.windows(node, found[node.output.index]), strict=True):
                inside = clipped(window, self.sizes[value.index])
                found[value.index] = joined(found.get(value.index), inside)
        return found

    def windows(self, node: Node, out: Interval) -> list[Interval]:
        """Windows of an operation's inputs."""
        assert node.rule is not None
        return node.rule.windows(self.axis, out, [self.sizes[value.index] for value in placed(node)])

    def reach(self, lo: int, hi: int) -> int:
        """Cells of the finest input that an interval of steps needs."""
        # The first cell of every window follows from the first of the result, the last from the last: few walks serve
        # all intervals.
        return self._of_step(hi - 1)[1] - self._of_step(lo)[0]

    def _of_step(self, step: int) -> Interval:
        """What one step needs of the finest input."""
        if step not in self._steps:
            self._steps[step] = self.held(self.boxes(step, step + 1)).get(self.finest.index, (0, 0))
        return self._steps[step]

    def smallest(self, tile: int) -> int:
        """The smallest window that works; some number up to `tile` if that does."""
        places = np.unique(np.linspace(0, self.count - 1, 97).astype(int)).tolist()
        found = max(self.reach(lo, lo + 1) for lo in places)
        # On large maps not every step was looked at.
        while self.ends(max(found, tile)) is None:
            found = max(found, tile) + 1
        return found

    def even(self, tile: int) -> list[Interval]:
        """The fewest intervals of steps, with windows as small as that allows."""
        best = self.ends(tile)
        assert best is not None
        low, high = 1, min(tile, self.sizes[self.finest.index])
        while low < high:
            middle = (low + high) // 2
            found = self.ends(middle)
            if found is not None and len(found) <= len(best):
                best, high = found, middle
            else:
                low = middle + 1
        return list(zip([0, *best[:-1]], best, strict=True))

    def ends(self, tile: int) -> list[int] | None:
        """Where bands end, each as long as it can be; None if one cell needs more than `tile`."""
        found: list[int] = []
        lo = 0
        while lo < self.count:
            least, most = lo, self.count  # what is known to fit, what is not known not to
            while least < most:
                middle = (least + most + 1) // 2
                if self.reach(lo, middle) <= tile:
                    least = middle
                else:
                    most = middle - 1
            if least == lo:
                return None
            found.append(least)
            lo = least
        return found

    def band(self, lo: int, hi: int) -> Band:
        """All that is known of the tile of an interval of steps."""
        boxes = self.boxes(lo, hi)
        held = self.held(boxes)
        cuts, trims, extras = [], [], []
        for node in self.segment.nodes:
            rule, out = node.rule, held[node.output.index]
            assert rule is not None
            inputs = placed(node)
            for value, window in zip(inputs, self.windows(node, out), strict=True):
                cuts.append(cut(window, held[value.index], self.sizes[value.index]))
            first = rule.first(self.axis, out, self.sizes[inputs[0].index]) if rule.trims else 0
            trims.append((first, out[1] - out[0]))
            if rule.extra_rank:
                extras.append(rule.weights(self.axis, out, self.sizes[inputs[0].index]))
        for value, box in zip(self.segment.targets, boxes, strict=True):
            cuts.append(cut(box, held[value.index], self.sizes[value.index]))
        edges = np.array(cuts, np.int32).reshape(-1, 4)
        return Band(boxes, held, edges, np.array(trims, np.int32).reshape(-1, 2), tuple(extras))
