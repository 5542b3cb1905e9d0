"""Forward and backward pass over the segments of one image.

With the late map F = f(x; w) in disjoint boxes B, and G the gradient of the loss at F, dL/dw is the sum over boxes of
the vector-Jacobian product of w -> F[B] at G[B], by linearity. So is the gradient of every map that was kept.

Shapes: B images, H rows, W columns, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from streaming.images import Source, alike
from streaming.layout import Layout, Part, Sink, State
from streaming.nodes import Node, Value, variables_of
from streaming.regions import Interval
from streaming.segments import Segment
from streaming.sharing import Alone, Sharing, Totals, added, check_alike, completed, labels, only_first, owners
from streaming.storage import Storage, wide
from streaming.tiles import Band
from streaming.trace import Accumulators, Trace

Array = NDArray[Any]


class Passes:
    """Both passes over one image.

    Args:
        layout: the network for the image's size.
        trace: from a segment and the inputs whose gradients are wanted to its functions.
        storage: makes arrays for maps.
        sharing: the ranks that share the image.
    """

    def __init__(
        self,
        layout: Layout,
        trace: Callable[[Segment, Sequence[Value]], Trace],
        storage: Storage,
        sharing: Sharing | None = None,
    ) -> None:
        self.layout, self.trace, self.storage = layout, trace, storage
        self.sharing = sharing or Alone()

    # --- Forward ------------------------------------------------------------------------------------------------------

    def forward(
        self, image: Source, release: bool, *, sink: Sink | None = None, watch: Callable[[], object] | None = None
    ) -> State:
        """Computes every kept map and small value.

        Args:
            image: what is streamed.
            release: drop maps as soon as no later segment needs them; then there is no backward pass.
            sink: takes what the last segment makes, in place of a map; that must be the only output. If ranks share the
                image, each takes the boxes that it makes.
            watch: called after every tile.
        """
        check_alike(self.sharing, image.shape)
        state = State(image)
        outputs = {value.index for value in self.layout.graph.outputs}
        for number, part in enumerate(self.layout.parts):
            for node in part.segment.first:
                state.known[node.output.index] = node.run(*[self._tensor(state, value) for value in node.inputs])
            self._forward_part(part, state, sink if number == len(self.layout.parts) - 1 else None, watch)
            if release:
                later = [v.index for p in self.layout.parts[number + 1 :] for v in p.segment.inputs]
                later += [v.index for p in self.layout.parts[number + 1 :] for n in p.segment.first for v in n.inputs]
                for index in set(state.known) - outputs - set(later):
                    del state.known[index]
        return state

    def _tensor(self, state: State, value: Value) -> Any:
        return tf.convert_to_tensor(state.known[value.index])

    def _forward_part(self, part: Part, state: State, sink: Sink | None, watch: Callable[[], object] | None) -> None:
        """Every tile of a segment."""
        segment = part.segment
        if not segment.targets:
            return
        images = state.image.shape[0]
        kept = segment.maps if sink is None else []
        for value in kept:
            hw = (self.layout.sizes[0][value.index], self.layout.sizes[1][value.index])
            state.known[value.index] = self.storage.zeros((images, *hw, value.channels), value.dtype)
        totals = Totals(self.sharing, segment.sums, images, len(part.rows) * len(part.columns))
        made: dict[Any, list[Any]] = {}
        mine = self._mine(part, state)
        for number, (key, bands) in enumerate(part.tiles()):
            if number not in mine or not (sink is None or sink.wants(bands[0].boxes[0], bands[1].boxes[0])):
                continue
            out = self._forward_tile(part, state, number, key, bands, made)
            for place, value in enumerate(kept):
                (top, bottom), (left, right) = bands[0].boxes[place], bands[1].boxes[place]
                state.known[value.index][:, top:bottom, left:right] = out[place]
            if sink is not None:
                sink.take(bands[0].boxes[0], bands[1].boxes[0], out[0])
            totals.add(number, out[len(segment.maps) :])
            if watch is not None:
                watch()
        for value in kept:
            completed(self.sharing, state.known[value.index])
        for node, total in zip(segment.sums, totals.all(), strict=True):
            state.known[node.output.index] = self._sum(node, total)

    def _forward_tile(
        self,
        part: Part,
        state: State,
        number: int,
        key: tuple[int, int],
        bands: tuple[Band, Band],
        made: dict[Any, list[Any]],
    ) -> list[Any]:
        """What one tile makes; one like another before is not computed again."""
        same, inputs = self._look(part, state, number, key, bands, made)
        if same in made:
            state.counts.forward_reused += 1
            return made[same]
        out = [x.numpy() for x in self.trace(part.segment, ()).forward(inputs, bands)]
        state.counts.forward += 1
        if same is not None:
            made[same] = out
        return out

    def _look(
        self,
        part: Part,
        state: State,
        number: int,
        key: tuple[int, int],
        bands: tuple[Band, Band],
        before: Container[Any],
    ) -> tuple[Any, list[Any]]:
        """`_likeness` of a tile, and its windows; these are not read where it is known to be like one `before`."""
        known = state.labels.get(part.segment.index)
        if known is not None and known[number] in before:
            return known[number], []
        inputs = self._inputs(part, state, bands)
        return (_likeness(key, part.segment, inputs) if known is None else known[number]), inputs

    def _mine(self, part: Part, state: State) -> Container[int]:
        """Numbers of the tiles that this rank computes."""
        if self.sharing.size == 1:
            return range(len(part.rows) * len(part.columns))
        tiles = list(part.tiles())
        same = labels(self.sharing, lambda number: self._corners_alike(part, state, *tiles[number]), len(tiles))
        state.labels[part.segment.index] = same
        ranks = owners(part.costs(), same, self.sharing.size)
        return {number for number, rank in enumerate(ranks) if rank == self.sharing.rank}

    def _corners_alike(self, part: Part, state: State, key: tuple[int, int], bands: tuple[Band, Band]) -> Any:
        """`_likeness` of a tile; most are known to be like no other by their corners, and not read for it."""
        for value in part.segment.inputs:
            if not value.small:
                (top, bottom), (left, right) = (band.held[value.index] for band in bands)
                corners = [
                    self._window(state, value, (row, row + 1), (column, column + 1))
                    for row in (top, bottom - 1)
                    for column in (left, right - 1)
                ]
                if not all(np.array_equal(corners[0], other) for other in corners[1:]):
                    return None
        return _likeness(key, part.segment, self._inputs(part, state, bands))

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
            window = self._window(state, value, *(band.held[value.index] for band in bands))
            found.append(np.ascontiguousarray(window, tf.as_dtype(value.dtype).as_numpy_dtype))
        return found

    def _window(self, state: State, value: Value, rows: Interval, columns: Interval) -> Array:
        """A window of the image or of a kept map."""
        if value.index == 0:
            return state.image.read(rows, columns)
        window: Array = state.known[value.index][:, rows[0] : rows[1], columns[0] : columns[1]]
        return window

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
                self._ready(value, state, slopes, given)
            if sources or any(id(v) in accumulators for v in variables_of(part.segment.nodes)):
                for value in sources:
                    only_first(self.sharing, slopes[value.index])
                self._backward_part(part, state, slopes, sources)
                for value in sources:
                    added(self.sharing, slopes[value.index])
            for node in reversed(part.segment.first):
                self._backward_once(node, state, slopes, wanted, accumulators)
            for value in part.segment.maps:
                slopes.pop(value.index, None)

    def _ready(self, value: Value, state: State, slopes: dict[int, Any], given: set[int]) -> None:
        """An array for the gradient of a value; the caller's stays as it is."""
        if value.index in given:
            slopes[value.index] = np.array(slopes[value.index])
            given.remove(value.index)
        elif value.index not in slopes:
            make = np.zeros if value.small else self.storage.zeros
            slopes[value.index] = make(tuple(state.known[value.index].shape), wide(value.dtype))

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
        mine = self._mine_back(part, state, slopes, sums, bool(sources))
        for number, (key, bands) in enumerate(part.tiles()):
            if number not in mine:
                continue
            boxes = self._boxes(slopes, segment, bands, state)
            if not any(np.any(g) for g in [*boxes, *sums]):
                state.counts.skipped += 1
                continue
            # Tiles of one value differ in their gradients only; those of variables are linear in them.
            if sources:
                same, inputs = None, self._inputs(part, state, bands)
            else:
                same, inputs = self._look(part, state, number, key, bands, waiting)
            if same is None:
                self._backward_tile(trace, inputs, bands, [*boxes, *sums], slopes)
                state.counts.backward += 1
            elif same in waiting:
                inputs, first, before = waiting[same]
                waiting[same] = inputs, first, [a + b for a, b in zip(before, [*boxes, *sums], strict=True)]
                state.counts.backward_reused += 1
            else:
                waiting[same] = (inputs, bands, [*boxes, *sums])
        for inputs, bands, summed in waiting.values():
            self._backward_tile(trace, inputs, bands, summed, slopes)
            state.counts.backward += 1

    def _mine_back(
        self, part: Part, state: State, slopes: Mapping[int, Any], sums: Sequence[Array], sources: bool
    ) -> Container[int]:
        """Numbers of the tiles whose gradients this rank computes, or skips as zero."""
        costs = part.costs()
        if self.sharing.size == 1:
            return range(len(costs))
        same = list(state.labels[part.segment.index])
        for number, (_, bands) in enumerate(part.tiles()):
            if not any(np.any(g) for g in [*self._boxes(slopes, part.segment, bands, state), *sums]):
                costs[number], same[number] = 0, None
        ranks = owners(costs, [None] * len(same) if sources else same, self.sharing.size)
        return {number for number, rank in enumerate(ranks) if rank == self.sharing.rank}

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

    def _boxes(
        self, slopes: Mapping[int, Any], segment: Segment, bands: tuple[Band, Band], state: State
    ) -> list[Array]:
        """The part of every map's gradient that belongs to a tile."""
        boxes = []
        for place, value in enumerate(segment.maps):
            (top, bottom), (left, right) = bands[0].boxes[place], bands[1].boxes[place]
            if value.index in slopes:
                boxes.append(slopes[value.index][:, top:bottom, left:right])
            else:
                shape = (state.image.shape[0], bottom - top, right - left, value.channels)
                boxes.append(np.zeros(shape, wide(value.dtype)))
        return boxes

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
        # Ranks: all do this for the gradients of the inputs; those of variables are summed over ranks.
        if self.sharing.rank == 0:
            for variable, gradient in zip(variables, found[len(inputs) :], strict=True):
                accumulators[id(variable)].assign_add(gradient)


def _likeness(key: tuple[int, int], segment: Segment, inputs: Sequence[Any]) -> Any:
    """Equal for tiles of one value with one result; None for others."""
    windows = [x for value, x in zip(segment.inputs, inputs, strict=True) if not value.small]
    if not windows or not all(alike(window) for window in windows):
        return None
    return (*key, *(window[:, 0, 0].tobytes() for window in windows))
