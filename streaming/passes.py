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

from streaming.costs import kept_tiles, wanted
from streaming.images import Source
from streaming.layout import Layout, Part, Sink, State, boxes_of, likeness
from streaming.nodes import Node, Value, variables_of
from streaming.regions import Interval
from streaming.sharing import Alone, Sharing, Totals, added, check_alike, completed, labels, only_first, owners
from streaming.storage import Storage, wide, widened
from streaming.tiles import Band
from streaming.trace import Accumulators, Finish, Trace, once

Array = NDArray[Any]


class Passes:
    """Both passes over one image.

    Args:
        layout: the network for the image's size.
        trace: from a segment, the inputs whose gradients are wanted, and a `Finish`, if there is one, to its functions.
        storage: makes arrays for maps.
        sharing: the ranks that share the image.
        spare: bytes for intermediate results, see `costs.kept_tiles`.
    """

    def __init__(
        self,
        layout: Layout,
        trace: Callable[..., Trace],
        storage: Storage,
        sharing: Sharing | None = None,
        spare: int = 0,
    ) -> None:
        self.layout, self.trace, self.storage = layout, trace, storage
        self.sharing, self.spare = sharing or Alone(), spare

    # --- Forward ------------------------------------------------------------------------------------------------------

    def forward(
        self,
        image: Source,
        release: bool,
        *,
        accumulators: Accumulators | None = None,
        last: bool = True,
        sink: Sink | None = None,
        watch: Callable[[], object] | None = None,
    ) -> State:
        """Computes every kept map and small value.

        Args:
            image: what is streamed.
            release: drop maps as soon as no later segment needs them; then there is no backward pass.
            accumulators: see `Trace`; without them no tile keeps its intermediate results.
            last: do the tiles of the last segment, too; not where `backward` has a `Finish`.
            sink: takes what the last segment makes, in place of a map; that must be the only output. If ranks share the
                image, each takes the boxes that it makes.
            watch: called after every tile.
        """
        check_alike(self.sharing, image.shape)
        state = State(image)
        outputs = {value.index for value in self.layout.graph.outputs}
        costs = [part.costs for part in self.layout.parts]
        kept = [0] * len(costs) if release or not accumulators else kept_tiles(costs, self.spare / image.shape[0])
        for number, part in enumerate(self.layout.parts):
            for node in part.segment.first:
                state.known[node.output.index] = node.run(*[self._tensor(state, value) for value in node.inputs])
            end = number == len(self.layout.parts) - 1
            if last or not end:
                recorder = self._recorder(part, kept[number], accumulators or {})
                self._forward_part(part, state, recorder, sink if end else None, watch)
            if release:
                later = [v.index for p in self.layout.parts[number + 1 :] for v in p.segment.inputs]
                later += [v.index for p in self.layout.parts[number + 1 :] for n in p.segment.first for v in n.inputs]
                for index in set(state.known) - outputs - set(later):
                    del state.known[index]
        return state

    def _tensor(self, state: State, value: Value) -> Any:
        return tf.convert_to_tensor(state.known[value.index])

    def _recorder(self, part: Part, kept: int, accumulators: Accumulators) -> Callable[[int], Trace | None]:
        """For the number of a tile what keeps its intermediate results, None unless it is among the last `kept`."""
        needed = wanted(self.layout.graph, accumulators, False)
        trace = self.trace(part.segment, [value for value in part.segment.inputs if value.index in needed])
        first = len(part.rows) * len(part.columns) - kept
        return lambda number: trace if number >= first else None

    def _forward_part(
        self,
        part: Part,
        state: State,
        recorder: Callable[[int], Trace | None],
        sink: Sink | None,
        watch: Callable[[], object] | None,
    ) -> None:
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
            out = self._forward_tile(part, state, number, key, bands, made, recorder)
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
        recorder: Callable[[int], Trace | None],
    ) -> list[Any]:
        """What one tile makes; one like another before is not computed again."""
        same, inputs = self._look(part, state, number, key, bands, made)
        if same in made:
            state.counts.forward_reused += 1
            return made[same]
        state.counts.forward += 1
        recording = recorder(number) if same is None else None
        if recording is None:
            out = [x.numpy() for x in self.trace(part.segment, ()).forward(inputs, bands)]
        else:
            record = recording.record(inputs, bands)
            state.records[part.segment.index, number] = record
            out = [x.numpy() for x in record.out]
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
        """`likeness` of a tile, and its windows; these are not read where it is known to be like one `before`."""
        known = state.labels.get(part.segment.index)
        if known is not None and known[number] in before:
            return known[number], []
        inputs = self._inputs(part, state, bands)
        return (likeness(key, part.segment, inputs) if known is None else known[number]), inputs

    def _mine(self, part: Part, state: State) -> Container[int]:
        """Numbers of the tiles that this rank computes."""
        if self.sharing.size == 1:
            return range(len(part.rows) * len(part.columns))
        tiles = list(part.tiles())
        same = labels(self.sharing, lambda number: self._corners_alike(part, state, *tiles[number]), len(tiles))
        state.labels[part.segment.index] = same
        ranks = owners(part.work(), same, self.sharing.size)
        return {number for number, rank in enumerate(ranks) if rank == self.sharing.rank}

    def _corners_alike(self, part: Part, state: State, key: tuple[int, int], bands: tuple[Band, Band]) -> Any:
        """`likeness` of a tile; most are known to be like no other by their corners, and not read for it."""
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
        return likeness(key, part.segment, self._inputs(part, state, bands))

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
        self,
        state: State,
        gradients: Sequence[Array] | Finish,
        accumulators: Accumulators,
        image_gradient: Array | None,
    ) -> None:
        """Adds the gradients of variables to the accumulators, and that of the image to an array.

        Args:
            state: what `forward` left.
            gradients: of every output, of its shape; or what makes them tile by tile.
            accumulators: see `Trace`.
            image_gradient: (B, H, W, C) of zeros to be filled; None if it is not wanted.
        """
        needed = wanted(self.layout.graph, accumulators, image_gradient is not None)
        slopes: dict[int, Any] = {} if image_gradient is None else {0: image_gradient}
        finish = None if isinstance(gradients, Sequence) else gradients
        known = zip(self.layout.graph.outputs, gradients, strict=True) if isinstance(gradients, Sequence) else ()
        for value, gradient in known:
            before = slopes.get(value.index)
            slopes[value.index] = gradient if before is None else widened(before) + gradient
        given = set(slopes) - {0}
        for part in reversed(self.layout.parts):
            sources = [value for value in part.segment.inputs if value.index in needed]
            for value in [*sources, *(v for n in part.segment.first for v in n.inputs if v.index in needed)]:
                self._ready(value, state, slopes, given)
            finishing = finish is not None and part is self.layout.parts[-1]
            if finishing or sources or any(id(v) in accumulators for v in variables_of(part.segment.nodes)):
                for value in sources:
                    only_first(self.sharing, slopes[value.index])
                if finish is not None and finishing:
                    self._finish_part(part, state, slopes, sources, finish)
                else:
                    self._backward_part(part, state, slopes, sources)
                for value in sources:
                    added(self.sharing, slopes[value.index])
            for node in reversed(part.segment.first):
                self._backward_once(node, state, slopes, needed, accumulators)
            for value in part.segment.maps:
                slopes.pop(value.index, None)

    def _ready(self, value: Value, state: State, slopes: dict[int, Any], given: set[int]) -> None:
        """An array for the gradient of a value; the caller's stays as it is."""
        if value.index in given:
            slopes[value.index] = np.array(slopes[value.index], wide(value.dtype))
            given.remove(value.index)
        elif value.index not in slopes:
            make = np.zeros if value.small else self.storage.zeros
            slopes[value.index] = make(tuple(state.known[value.index].shape), wide(value.dtype))

    def _backward_part(self, part: Part, state: State, slopes: dict[int, Any], sources: Sequence[Value]) -> None:
        """Every tile of a segment."""
        segment = part.segment
        trace = self.trace(segment, sources)
        sums = [self._sum_slope(node, state, slopes) for node in segment.sums]
        waiting: dict[Any, tuple[list[Any], tuple[Band, Band], list[Any]]] = {}
        mine = self._mine_back(part, state, slopes, sums, bool(sources))
        tiles = list(enumerate(part.tiles()))
        if not any(value.index == 0 for value in sources):  # windows of the image's gradient come from top to bottom
            tiles.reverse()  # the intermediate results of the last tiles may have been kept
        for number, (key, bands) in tiles:
            record = state.records.pop((segment.index, number), None)
            if number not in mine:
                continue
            boxes = boxes_of(slopes, segment, bands, state)
            if not any(np.any(g) for g in [*boxes, *sums]):
                state.counts.skipped += 1
                continue
            if record is not None and record.trace is trace:  # not if the gradient of the image is wanted as well
                self._add(trace, bands, record.backward([*boxes, *sums]), slopes)
                state.counts.backward += 1
                state.counts.kept += 1
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
                waiting[same] = (inputs, bands, [widened(g) for g in (*boxes, *sums)])
        for inputs, bands, summed in waiting.values():
            self._backward_tile(trace, inputs, bands, summed, slopes)
            state.counts.backward += 1

    def _mine_back(
        self, part: Part, state: State, slopes: Mapping[int, Any], sums: Sequence[Array], sources: bool
    ) -> Container[int]:
        """Numbers of the tiles whose gradients this rank computes, or skips as zero."""
        work = part.work()
        if self.sharing.size == 1:
            return range(len(work))
        same = list(state.labels[part.segment.index])
        for number, (_, bands) in enumerate(part.tiles()):
            if not any(np.any(g) for g in [*boxes_of(slopes, part.segment, bands, state), *sums]):
                work[number], same[number] = 0, None
        ranks = owners(work, [None] * len(same) if sources else same, self.sharing.size)
        return {number for number, rank in enumerate(ranks) if rank == self.sharing.rank}

    def _finish_part(
        self, part: Part, state: State, slopes: dict[int, Any], sources: Sequence[Value], finish: Finish
    ) -> None:
        """Every tile of the last segment, forward, through the loss, and backward."""
        trace = self.trace(part.segment, sources, finish)
        for _, bands in part.tiles():
            given = finish.given(bands[0].boxes[0], bands[1].boxes[0])
            if given is None:
                state.counts.skipped += 1
                continue
            self._backward_tile(trace, self._inputs(part, state, bands), bands, list(given), slopes)
            state.counts.backward += 1

    def _backward_tile(
        self, trace: Trace, inputs: list[Any], bands: tuple[Band, Band], given: list[Any], slopes: dict[int, Any]
    ) -> None:
        """One tile; the gradients of its windows are added at their places."""
        cast = [tf.cast(g, spec) for g, spec in zip(given, trace.cotangent_types, strict=True)]
        self._add(trace, bands, trace.backward(inputs, bands, cast), slopes)

    def _add(self, trace: Trace, bands: tuple[Band, Band], gradients: Sequence[Any], slopes: dict[int, Any]) -> None:
        """Adds the gradients of a tile's windows at their places."""
        for value, found in zip(trace.sources, gradients, strict=True):
            if value.small:
                slopes[value.index] += found.numpy()
            else:
                (top, bottom), (left, right) = (band.held[value.index] for band in bands)
                slopes[value.index][:, top:bottom, left:right] += found.numpy()

    def _sum_slope(self, node: Node, state: State, slopes: Mapping[int, Any]) -> Array:
        """Gradient of every part of a sum, (B, C), or (B, 2, C) of two moments."""
        index = node.output.index
        slope = np.asarray(slopes[index] if index in slopes else np.zeros(state.known[index].shape, np.float32))
        slope = slope / self._places(node)
        return slope[:, 0, 0] if node.moments is None and node.output.rank == 4 else slope

    def _backward_once(
        self, node: Node, state: State, slopes: dict[int, Any], needed: set[int], accumulators: Accumulators
    ) -> None:
        """An operation on small values or on a whole map."""
        if node.output.index not in slopes or node.output.index not in needed:
            return
        inputs = [self._tensor(state, value) for value in node.inputs]
        variables = [v for v in variables_of([node]) if id(v) in accumulators]
        found = once(node, inputs, variables, slopes[node.output.index])
        for value, gradient in zip(node.inputs, found, strict=False):
            if value.index in needed:
                slopes[value.index] += gradient.numpy()
        # Ranks: all do this for the gradients of the inputs; those of variables are summed over ranks.
        if self.sharing.rank == 0:
            for variable, gradient in zip(variables, found[len(inputs) :], strict=True):
                accumulators[id(variable)].assign_add(gradient)
