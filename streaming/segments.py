"""Segments: parts of a network that are streamed one after the other, with maps kept between them.

The level of a value is the number of the segment that makes it. It rises behind sums over the image, whose parts are
complete only after the last tile, and behind maps that the caller wants kept. What segment k needs of the level before
is kept whole: the smallest set of maps that separates the two, by bytes (a minimum cut). Behind that cut the level's
operations are done again, such as the expansion of a block whose gate had to wait for a mean.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

from streaming.layers import refused
from streaming.nodes import Graph, Node, Value

MOST = 2**30  # of a flow, which scipy counts in int32
FINENESS = 2**20  # sum of all capacities that can be cut


@dataclass(eq=False)
class Segment:
    """A part of a network without sums in its inside.

    Attributes:
        index: its place.
        first: operations on small values and whole maps, done once before the tiles.
        nodes: local operations, done in every tile.
        sums: sums over the image of values made here.
        maps: values made here that are kept whole, for later segments or the caller.
        inputs: what tiles take: the image, kept maps and small values.
    """

    index: int
    first: list[Node] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    sums: list[Node] = field(default_factory=list)
    maps: list[Value] = field(default_factory=list)
    inputs: list[Value] = field(default_factory=list)

    @property
    def targets(self) -> list[Value]:
        """Maps whose every cell belongs to one tile: kept ones, and those that are summed."""
        return [*self.maps, *(node.inputs[0] for node in self.sums)]


def segments(graph: Graph, keep: Iterable[Value], cells: Mapping[int, int]) -> list[Segment]:
    """The segments of a network.

    Args:
        graph: the network.
        keep: maps that the caller wants kept between two segments.
        cells: rows x columns of every map by the value's index, for any size of image.

    Raises:
        ValueError: an operation needs the image itself in one place.
    """
    kept = {value.index for value in keep}
    level = _levels(graph, kept)
    made_by = {node.output.index: node for node in graph.nodes}
    stored = {value.index for value in graph.outputs if not value.small} | kept | _whole(graph)
    count = max([level[node.output.index] for node in graph.nodes] or [0]) + 1
    for index in range(1, count):
        stored |= _kept_for(index, graph, level, made_by, stored, cells)
    found = [Segment(index) for index in range(count)]
    for value in graph.values:
        if value.index in stored and value.index:
            found[level[value.index]].maps.append(value)
    for node in graph.nodes:
        if node.kind in ("small", "whole"):
            found[level[node.output.index]].first.append(node)
        elif node.kind == "sum":
            found[level[node.output.index] - 1].sums.append(node)
    for segment in found:
        _fill(segment, graph, level, stored)
    return found


def _whole(graph: Graph) -> set[int]:
    """Maps that an operation needs in one place."""
    found = [node for node in graph.nodes if node.kind == "whole"]
    for node in found:
        if node.inputs[0].index == 0:
            raise refused(node.layer, "it needs the image in one place")
    return {node.inputs[0].index for node in found}


def _levels(graph: Graph, kept: set[int]) -> dict[int, int]:
    """The segment that makes every value."""
    level = {0: 0}
    for node in graph.nodes:
        base = max((level[value.index] + (value.index in kept) for value in node.inputs), default=0)
        level[node.output.index] = base + (node.kind in ("sum", "whole"))
    return level


def _base(node: Node, level: Mapping[int, int]) -> int:
    """The segment in whose tiles a local operation or a sum is done."""
    return level[node.output.index] - (node.kind == "sum")


def _kept_for(
    index: int,
    graph: Graph,
    level: Mapping[int, int],
    made_by: Mapping[int, Node],
    stored: set[int],
    cells: Mapping[int, int],
) -> set[int]:
    """Maps that must be kept so that a segment can be computed."""
    wanted = {
        value.index
        for node in graph.nodes
        if node.kind in ("local", "sum") and _base(node, level) == index
        for value in node.inputs
        if not value.small and level[value.index] < index
    }
    must = {v for v in wanted if level[v] < index - 1 and v}
    # The level before: values between its sources and what is wanted.
    inside: list[int] = []
    edges: list[tuple[int, int]] = []
    sources: set[int] = set()
    pending = [v for v in wanted if level[v] == index - 1 and v]
    while pending:
        value = pending.pop()
        if value in inside:
            continue
        inside.append(value)
        if value == 0:  # the image can be read again
            sources.add(0)
            continue
        for before in made_by[value].inputs:
            if before.small:
                continue
            if level[before.index] == index - 1:
                edges.append((before.index, value))
                pending.append(before.index)
            else:
                sources.add(value)
    sinks = [v for v in inside if v in wanted]
    sizes = {v: 0 if v in stored else cells[v] * graph.values[v].channels for v in inside}
    if 0 in sizes:  # rather the image than a map of its size
        sizes[0] = sizes[0] * 9 // 10
    return must | (_minimum_cut(inside, edges, sources, sinks, sizes) - {0})


def _minimum_cut(
    inside: Sequence[int],
    edges: Sequence[tuple[int, int]],
    sources: Iterable[int],
    sinks: Iterable[int],
    sizes: Mapping[int, int],
) -> set[int]:
    """The vertices of the least total size that separate sources from sinks, the nearest to the sinks of several."""
    if not inside:
        return set()
    place = {v: i for i, v in enumerate(inside)}
    count = len(inside)
    unit = max(sum(sizes.values()) / FINENESS, 1.0)
    capacity: dict[tuple[int, int], int] = {}
    start, end = 2 * count, 2 * count + 1
    for v, i in place.items():
        capacity[2 * i, 2 * i + 1] = 1 + round(sizes[v] / unit)
    for a, b in edges:
        capacity[2 * place[a] + 1, 2 * place[b]] = MOST
    for v in sources:
        capacity[start, 2 * place[v]] = MOST
    for v in sinks:
        capacity[2 * place[v] + 1, end] = MOST
    rows, columns = np.array(list(capacity)).T
    graph = csr_matrix((np.array(list(capacity.values()), np.int32), (rows, columns)), shape=(end + 1, end + 1))
    rest = graph - maximum_flow(graph, start, end).flow
    rest.data = np.maximum(rest.data, 0)
    rest.eliminate_zeros()
    # Vertices from which the sink can still be reached, found from the sink against the edges.
    reach = set(breadth_first_order(rest.T.tocsr(), end, return_predecessors=False).tolist())
    return {v for v, i in place.items() if 2 * i + 1 in reach and 2 * i not in reach}


def _fill(segment: Segment, graph: Graph, level: Mapping[int, int], stored: set[int]) -> None:
    """Finds the operations and inputs of a segment's tiles from its targets."""
    needed = {value.index for value in segment.targets}
    inputs: set[int] = set()
    held = {v for v in stored if level[v] < segment.index} | {0}
    for node in reversed(graph.nodes):
        index = node.output.index
        if index not in needed or index in held or node.kind != "local":
            continue
        segment.nodes.append(node)
        needed.update(value.index for value in node.inputs)
    segment.nodes.reverse()
    made = {node.output.index for node in segment.nodes}
    inputs = {value for value in needed if value not in made}
    segment.inputs = [value for value in graph.values if value.index in inputs]
