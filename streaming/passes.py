"""Forward and backward pass over the segments of one image.

With the late map F = f(x; w) in disjoint boxes B, and G the gradient of the loss at F, dL/dw is the sum over boxes of
the vector-Jacobian product of w -> F[B] at G[B], by linearity. So is the gradient of every map that was kept.

Shapes: B images, H rows, W columns, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from streaming.images import Source, alike
from streaming.nodes import Graph, Node, Value, variables_of
from streaming.segments import Segment
from streaming.storage import Storage, wide
from streaming.tiles import Band, Sizes
from streaming.trace import Accumulators, Trace

Array = NDArray[Any]


@dataclass
class Counts:
    """Tiles of the passes over the last image.

    Attributes:
        forward: tiles computed.
        forward_reused: tiles whose result was that of another one: all inputs of one value, the same sides.
        backward: tiles computed.
        backward_reused: tiles whose gradient was added to that of another one before it was computed.
        skipped: tiles whose gradient is zero everywhere.
    """

    forward: int = 0
    forward_reused: int = 0
    backward: int = 0
    backward_reused: int = 0
    skipped: int = 0


@dataclass(eq=False)
class Part:
    """A segment laid out for one size of image.

    Attributes:
        segment: what is done.
        rows: bands of rows.
        columns: bands of columns.
    """

    segment: Segment
    rows: Sequence[Band]
    columns: Sequence[Band]

    def tiles(self) -> Iterator[tuple[tuple[int, int], tuple[Band, Band]]]:
        """Every tile: a key that is equal for tiles in which operations do the same, and its bands."""
        keys = [[next(i for i, other in enumerate(bands) if band.same(other)) for band in bands]
                for bands in (self.rows, self.columns)]  # fmt: skip
        for row, row_key in zip(self.rows, keys[0], strict=True):
            for column, column_key in zip(self.columns, keys[1], strict=True):
                yield (row_key, column_key), (row, column)


@dataclass(eq=False)
class Layout:
    """A network laid out for one size of image.

    Attributes:
        graph: the network.
        parts: its segments in order.
        sizes: rows and columns of every value.
    """

    graph: Graph
    parts: list[Part]
    sizes: tuple[Sizes, Sizes]


@dataclass(eq=False)
class State:
    """What a forward pass leaves for the backward pass.

    Attributes:
        image: the source.
        known: value's index -> kept map (B, H, W, C) or small value.
        counts: tiles done.
    """

    image: Source
    known: dict[int, Any] = field(default_factory=dict)
    counts: Counts = field(default_factory=Counts)


class Passes:
    """Both passes over one image.

    Args:
        layout: the network for the image's size.
        trace: from a segment and the inputs whose gradients are wanted to its functions.
        storage: makes arrays for maps.
    """

    def __init__(self, layout: Layout, trace: Callable[[Segment, Sequence[Value]], Trace], storage: Storage) -> None:
        self.layout, self.trace, self.storage = layout, trace, storage

    # --- Forward ------------------------------------------------------------------------------------------------------

    def forward(self, image: Source, release: bool) -> State:
        """Computes every kept map and small value.

        Args:
            image: what is streamed.
            release: drop maps as soon as no later segment needs them; then there is no backward pass.
        """
        state = State(image)
        outputs = {value.index for value in self.layout.graph.outputs}
        for number, part in enumerate(self.layout.parts):
            for node in part.segment.first:
                state.known[node.output.index] = node.run(*[self._tensor(state, value) for value in node.inputs])
            self._forward_part(part, state)
            if release:
                later = [v.index for p in self.layout.parts[number + 1 :] for v in p.segment.inputs]
                later += [v.index for p in self.layout.parts[number + 1 :] for n in p.segment.first for v in n.inputs]
                for index in set(state.known) - outputs - set(later):
                    del state.known[index]
        return state

    def _tensor(self, state: State, value: Value) -> Any:
        return tf.convert_to_tensor(state.known[value.index])

    def _forward_part(self, part: Part, state: State) -> None:
        """Every tile of a segment."""
        segment = part.segment
        if not segment.targets:
            return
        images = state.image.shape[0]
        for value in segment.maps:
            hw = (self.layout.sizes[0][value.index], self.layout.sizes[1][value.index])
            state.known[value.index] = self.storage.zeros((images, *hw, value.channels), value.dtype)
        totals: list[Any] = [0.0] * len(segment.sums)
        trace = self.trace(segment, ())
        made: dict[Any, list[Any]] = {}
        for key, bands in part.tiles():
            inputs = self._inputs(part, state, bands)
            same = _likeness(key, segment, inputs)
            if same in made:
                out = made[same]
                state.counts.forward_reused += 1
            else:
                out = [x.numpy() for x in trace.forward(inputs, bands)]
                state.counts.forward += 1
                if same is not None:
                    made[same] = out
            for place, value in enumerate(segment.maps):
                (top, bottom), (left, right) = bands[0].boxes[place], bands[1].boxes[place]
                state.known[value.index][:, top:bottom, left:right] = out[place]
            for number, found in enumerate(out[len(segment.maps) :]):
                totals[number] = totals[number] + found.astype(np.float64)
        for node, total in zip(segment.sums, totals, strict=True):
            state.known[node.output.index] = self._sum(node, total)

    def _sum(self, node: Node, total: Array) -> Any:
        """The value of a sum from all its parts."""
        found = total / self._places(node)
        if node.moments is None and node.output.rank == 4:
            found = found[:, None, None]
        return tf.cast(tf.constant(found), node.output.dtype)

    def _places(self, node: Node) -> int:
        """What a sum is divided by."""
        index = node.inputs[0].index
        return self.layout.sizes[0][index] * self.layout.sizes[1][index] if node.mean else 1

    def _inputs(self, part: Part, state: State, bands: tuple[Band, Band]) -> list[Any]:
        """Windows of a tile, arrays; small values whole."""
        found = []
        for value in part.segment.inputs:
            if value.small:
                found.append(state.known[value.index])
                continue
            rows, columns = (band.held[value.index] for band in bands)
            if value.index == 0:
                window = state.image.read(rows, columns)
                found.append(np.ascontiguousarray(window, tf.as_dtype(value.dtype).as_numpy_dtype))
            else:
                window = state.known[value.index][:, rows[0] : rows[1], columns[0] : columns[1]]
                found.append(np.ascontiguousarray(window))
        return found

    # --- Backward -----------------------------------------------------------------------------------------------------

    def backward(
        self, state: State, gradients: Sequence[Array], accumulators: Accumulators, image_gradient: Array | None
    ) -> None:
        """Adds the gradients of variables to the accumulators, and that of the image to an array.

        Args:
            state: what `forward` left.
            gradients: of every output, of its shape.
            accumulators: see `Trace`.
            image_gradient: (B, H, W, C) of zeros to be filled; None if it is not wanted.
        """
        wanted = self._wanted(accumulators, image_gradient is not None)
        slopes: dict[int, Any] = {} if image_gradient is None else {0: image_gradient}
        for value, gradient in zip(self.layout.graph.outputs, gradients, strict=True):
            slopes[value.index] = slopes[value.index] + gradient if value.index in slopes else gradient
        given = set(slopes) - {0}
        for part in reversed(self.layout.parts):
            sources = [value for value in part.segment.inputs if value.index in wanted]
            for value in [*sources, *(v for n in part.segment.first for v in n.inputs if v.index in wanted)]:
                if value.index in given:  # the caller's array stays as it is
                    slopes[value.index] = np.array(slopes[value.index])
                    given.remove(value.index)
                elif value.index not in slopes:
                    shape = state.known[value.index].shape
                    make = np.zeros if value.small else self.storage.zeros
                    slopes[value.index] = make(tuple(shape), wide(value.dtype))
            if sources or any(id(v) in accumulators for v in variables_of(part.segment.nodes)):
                self._backward_part(part, state, slopes, sources)
            for node in reversed(part.segment.first):
                self._backward_once(node, state, slopes, wanted, accumulators)
            for value in part.segment.maps:
                slopes.pop(value.index, None)

    def _wanted(self, accumulators: Accumulators, image: bool) -> set[int]:
        """Values whose gradient somebody needs."""
        wanted = {0} if image else set()
        for node in self.layout.graph.nodes:
            mine = any(id(v) in accumulators for v in variables_of([node]))
            if mine or any(value.index in wanted for value in node.inputs):
                wanted.add(node.output.index)
        return wanted

    def _backward_part(self, part: Part, state: State, slopes: dict[int, Any], sources: Sequence[Value]) -> None:
        """Every tile of a segment."""
        segment = part.segment
        trace = self.trace(segment, sources)
        sums = [self._sum_slope(node, state, slopes) for node in segment.sums]
        waiting: dict[Any, tuple[list[Any], tuple[Band, Band], list[Any]]] = {}
        for key, bands in part.tiles():
            boxes = [self._box(slopes, v, place, bands, state) for place, v in enumerate(segment.maps)]
            if not any(np.any(g) for g in [*boxes, *sums]):
                state.counts.skipped += 1
                continue
            inputs = self._inputs(part, state, bands)
            # Tiles of one value differ in their gradients only; those of variables are linear in them.
            same = None if sources else _likeness(key, segment, inputs)
            if same is None:
                self._backward_tile(trace, inputs, bands, [*boxes, *sums], slopes)
                state.counts.backward += 1
            elif same in waiting:
                before = waiting[same][2]
                added = [a + b for a, b in zip(before, [*boxes, *sums], strict=True)]
                waiting[same] = (inputs, bands, added)
                state.counts.backward_reused += 1
            else:
                waiting[same] = (inputs, bands, [*boxes, *sums])
        for inputs, bands, summed in waiting.values():
            self._backward_tile(trace, inputs, bands, summed, slopes)
            state.counts.backward += 1

    def _backward_tile(
        self, trace: Trace, inputs: list[Any], bands: tuple[Band, Band], given: list[Any], slopes: dict[int, Any]
    ) -> None:
        """One tile; the gradients of its windows are added at their places."""
        cast = [tf.cast(g, spec) for g, spec in zip(given, trace.cotangent_types, strict=True)]
        for value, found in zip(trace.sources, trace.backward(inputs, bands, cast), strict=True):
            if value.small:
                slopes[value.index] += found.numpy()
            else:
                (top, bottom), (left, right) = (band.held[value.index] for band in bands)
                slopes[value.index][:, top:bottom, left:right] += found.numpy()

    def _box(
        self, slopes: Mapping[int, Any], value: Value, place: int, bands: tuple[Band, Band], state: State
    ) -> Array:
        """The part of a map's gradient that belongs to a tile."""
        (top, bottom), (left, right) = bands[0].boxes[place], bands[1].boxes[place]
        if value.index not in slopes:
            return np.zeros((state.image.shape[0], bottom - top, right - left, value.channels), wide(value.dtype))
        box: Array = slopes[value.index][:, top:bottom, left:right]
        return box

    def _sum_slope(self, node: Node, state: State, slopes: Mapping[int, Any]) -> Array:
        """Gradient of every part of a sum, (B, C), or (B, 2, C) of two moments."""
        index = node.output.index
        slope = np.asarray(slopes[index] if index in slopes else np.zeros(state.known[index].shape, np.float32))
        slope = slope / self._places(node)
        return slope[:, 0, 0] if node.moments is None and node.output.rank == 4 else slope

    def _backward_once(
        self, node: Node, state: State, slopes: dict[int, Any], wanted: set[int], accumulators: Accumulators
    ) -> None:
        """An operation on small values or on a whole map."""
        if node.output.index not in slopes or node.output.index not in wanted:
            return
        inputs = [self._tensor(state, value) for value in node.inputs]
        variables = [v for v in variables_of([node]) if id(v) in accumulators]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(inputs)
            tape.watch([v.value for v in variables])
            out = node.run(*inputs)
        slope = tf.cast(tf.constant(slopes[node.output.index]), out.dtype)
        none = tf.UnconnectedGradients.ZERO
        sources = [*inputs, *(v.value for v in variables)]
        found = tape.gradient(out, sources, slope, unconnected_gradients=none)
        for value, gradient in zip(node.inputs, found, strict=False):
            if value.index in wanted:
                slopes[value.index] += gradient.numpy()
        for variable, gradient in zip(variables, found[len(inputs) :], strict=True):
            accumulators[id(variable)].assign_add(gradient)


def _likeness(key: tuple[int, int], segment: Segment, inputs: Sequence[Any]) -> Any:
    """Equal for tiles of one value with one result; None for others."""
    windows = [x for value, x in zip(segment.inputs, inputs, strict=True) if not value.small]
    if not windows or not all(alike(window) for window in windows):
        return None
    return (*key, *(window[:, 0, 0].tobytes() for window in windows))
