"""Where on the image the cells of a late map look, from the regions of all operations."""

from __future__ import annotations

from streaming.nodes import Graph
from streaming.regions import Interval, joined
from streaming.tiles import Sizes, placed, sizes

Line = tuple[float, float]


def centers(graph: Graph, hw: tuple[int, int]) -> tuple[Line, Line]:
    """Centers of what the cells of the first output look at, along columns (x) and rows (y).

    Args:
        graph: of the network (`Streamed.graph`).
        hw: rows and columns of the image.

    Returns:
        For x and y: center of what cell 0 looks at, and the distance between two cells, px. The center of cell c is
        center + c * distance; px i covers [i, i + 1). Padding is counted as if the image continued.
    """
    cells = sizes(graph, hw)
    rows, columns = (_line(graph, axis, cells[axis]) for axis in (0, 1))
    return columns, rows


def _line(graph: Graph, axis: int, cells: Sizes) -> Line:
    middle = cells[graph.outputs[0].index] // 2
    one, two = (_center(graph, axis, cells, (cell, cell + 1)) for cell in (middle, middle + 1))
    return one - middle * (two - one), two - one


def _center(graph: Graph, axis: int, cells: Sizes, out: Interval) -> float:
    """Center of what an interval of the output looks at."""
    found: dict[int, Interval] = {graph.outputs[0].index: out}
    for node in reversed(graph.nodes):
        if node.rule is None or node.output.index not in found:
            continue
        inputs = [value for value in placed(node) if not value.small]
        windows = node.rule.windows(axis, found[node.output.index], [cells[value.index] for value in placed(node)])
        for value, window in zip(placed(node), windows, strict=True):
            if value in inputs:
                found[value.index] = joined(found.get(value.index), window)
    first, end = found[0]
    return (first + end) / 2
