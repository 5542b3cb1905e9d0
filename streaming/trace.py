"""The TensorFlow functions of a segment: one for forward, one for backward, for tiles of any size and place.

Sizes, crops and paddings are integers given at every call, so a segment is traced once. Where a window is the tensor
itself and nothing is padded, TensorFlow's slice and pad pass their input on without a copy: only tiles at the sides of
the image pay for them.

Shapes: B images, H rows, W columns, C channels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import keras
import tensorflow as tf

from streaming.nodes import Value, variables_of
from streaming.regions import Interval
from streaming.rules import Detail
from streaming.segments import Segment
from streaming.tiles import Band, placed

Accumulators = Mapping[int, Any]  # id of a Keras variable -> tf.Variable that its gradients are added to


class Finish(Protocol):
    """A loss behind the late map that takes every cell by itself: its gradient is known where the cell is.

    Attributes:
        specs: of what `given` returns.
    """

    @property
    def specs(self) -> Sequence[Any]:
        """See the class."""
        ...

    def given(self, rows: Interval, columns: Interval) -> Sequence[Any] | None:
        """What belongs to a box of the late map, such as its labels, arrays; None where the gradient is zero."""
        ...

    def cotangents(self, outputs: Sequence[Any], given: Sequence[Any]) -> Sequence[Any]:
        """Gradients of the loss at a box of the late map, in the traced function; may add to variables of its own."""
        ...


class Trace:
    """A segment as TensorFlow functions.

    Args:
        segment: what is done.
        sources: inputs whose gradient is returned by `backward`.
        variables: those whose gradients are wanted, of any segment.
        accumulators: what gradients of variables are added to; filled before the first backward pass.
        finish: what makes cotangents of what `backward` is given; None where it is given cotangents.

    Attributes:
        cotangent_types: types of what `backward` takes.
        variables: those of the segment whose gradients are wanted.
    """

    def __init__(
        self,
        segment: Segment,
        sources: Sequence[Value],
        variables: Sequence[Any],
        accumulators: Accumulators,
        finish: Finish | None = None,
    ) -> None:
        self.segment, self.sources, self._finish = segment, list(sources), finish
        used = Counter(v.index for node in segment.nodes for v in placed(node))
        used.update(v.index for v in segment.targets)
        # The only consumer of a tensor, if it pads nothing, asked for exactly what the tensor holds.
        self._alone = {index for index, count in used.items() if count == 1}
        trained = {id(v) for v in variables}
        self.variables = [v for v in variables_of(segment.nodes) if id(v) in trained]
        self._accumulators = accumulators
        extras = [tf.TensorSpec([None] * node.rule.extra_rank, tf.float64) for node in self._with_extra()]
        place: list[Any] = [
            [_spec(value) for value in segment.inputs],
            tf.TensorSpec([2, None, 4], tf.int32),
            tf.TensorSpec([2, None, 2], tf.int32),
            [extras, extras],
        ]
        cotangents = [_spec(v) for v in segment.maps] + [_sum_spec(node) for node in segment.sums]
        cotangents = cotangents if finish is None else list(finish.specs)
        self.cotangent_types = [spec.dtype for spec in cotangents]
        self._forward = tf.function(self._run, input_signature=place, autograph=False)
        self._backward = tf.function(self._vjp, input_signature=[*place, cotangents], autograph=False)
        self._recorded = tf.function(self._run_for_gradients, input_signature=place, autograph=False)
        for function in (self._forward, self._backward, self._recorded):
            # Every segment is traced once. TensorFlow, which goes by the line of code, would warn of retracing.
            function._omit_frequent_tracing_warning = True

    @property
    def accumulators(self) -> list[Any]:
        """One for each of `variables`."""
        return [self._accumulators[id(v)] for v in self.variables]

    def forward(self, inputs: Sequence[Any], bands: tuple[Band, Band]) -> list[Any]:
        """One tile.

        Args:
            inputs: windows of `Segment.inputs`, of the cells that the bands hold.
            bands: of rows and of columns.

        Returns:
            Boxes of `Segment.maps`, then parts of `Segment.sums`.
        """
        out: list[Any] = self._forward(*_arguments(inputs, bands))
        return out

    def backward(self, inputs: Sequence[Any], bands: tuple[Band, Band], cotangents: Sequence[Any]) -> list[Any]:
        """Vector-Jacobian product of one tile; adds gradients of variables to the accumulators.

        Args:
            inputs: as for `forward`.
            bands: as for `forward`.
            cotangents: of all that `forward` returns; with a finish what belongs to the tile.

        Returns:
            Gradients of the windows of `sources`.
        """
        out: list[Any] = self._backward(*_arguments(inputs, bands), list(cotangents))
        return out

    def record(self, inputs: Sequence[Any], bands: tuple[Band, Band]) -> Record:
        """As `forward`, and keeps the intermediate results.

        Args:
            inputs: as for `forward`.
            bands: as for `forward`.
        """
        windows, *place = _arguments(inputs, bands)
        windows = [tf.convert_to_tensor(x) for x in windows]
        wanted = {value.index for value in self.sources}
        watched = [x for value, x in zip(self.segment.inputs, windows, strict=True) if value.index in wanted]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(watched)
            tape.watch([v.value for v in self.variables])
            out = self._recorded(windows, *place)
        return Record(self, tape, watched, out)

    def _with_extra(self) -> list[Any]:
        return [node for node in self.segment.nodes if node.rule is not None and node.rule.extra_rank]

    def _run(self, inputs: Sequence[Any], cuts: Any, trims: Any, extras: Any) -> list[Any]:
        known = {value.index: x for value, x in zip(self.segment.inputs, inputs, strict=True)}
        edges = iter(range(10**9))
        extra = iter(range(10**9))
        for number, node in enumerate(self.segment.nodes):
            rule = node.rule
            assert rule is not None
            windows = []
            for value in node.inputs:
                if value.rank != 4:
                    windows.append(known[value.index])
                    continue
                edge = next(edges)
                windows.append(self._window(known[value.index], value, cuts[:, edge], rule.pads, rule.fill))
            mine = [extras[axis][at] for at in ([next(extra)] if rule.extra_rank else []) for axis in (0, 1)]
            out = rule.apply(node.run, windows, Detail(trims[:, number], mine))
            if rule.trims:
                first, count = trims[:, number, 0], trims[:, number, 1]
                out = tf.slice(out, [0, first[0], first[1], 0], [-1, count[0], count[1], -1])
            out.set_shape((None, None, None, node.output.channels))
            known[node.output.index] = out
        boxes = [self._window(known[v.index], v, cuts[:, next(edges)], False, 0.0) for v in self.segment.targets]
        count = len(self.segment.maps)
        sums = [_part(node, box) for node, box in zip(self.segment.sums, boxes[count:], strict=True)]
        return [*boxes[:count], *sums]

    def _run_for_gradients(self, inputs: Sequence[Any], cuts: Any, trims: Any, extras: Any) -> list[Any]:
        """As `_run`. The gradient of a function is that of all its inputs, unless it is stopped there."""
        wanted = {value.index for value in self.sources}
        pairs = zip(self.segment.inputs, inputs, strict=True)
        inputs = [x if value.index in wanted else tf.stop_gradient(x) for value, x in pairs]
        trained = {id(v) for v in self.variables}
        frozen = {id(v): v for node in self.segment.nodes for v in getattr(node.layer, "variables", ())}
        fixed = [(v, tf.stop_gradient(v.value)) for key, v in frozen.items() if key not in trained]
        with keras.StatelessScope(state_mapping=fixed):
            return self._run(inputs, cuts, trims, extras)

    def _window(self, x_BHWC: Any, value: Value, cut: Any, pads: bool, fill: float) -> Any:
        """A window of a tensor; `cut` (2, 4): rows and columns of `regions.Cut`."""
        if pads or value.index not in self._alone:
            start, size = cut[:, 0], cut[:, 1]
            x_BHWC = tf.slice(x_BHWC, [0, start[0], start[1], 0], [-1, size[0], size[1], -1])
        if pads:
            around = tf.concat([[[0, 0]], cut[:, 2:], [[0, 0]]], 0)
            # TensorFlow pads bfloat16 by its own numbers only.
            number = tf.cast(max(fill, x_BHWC.dtype.min), x_BHWC.dtype) if fill < 0 else tf.cast(fill, x_BHWC.dtype)
            x_BHWC = tf.pad(x_BHWC, around, constant_values=number)
        x_BHWC.set_shape((None, None, None, value.channels))
        return x_BHWC

    def _vjp(self, inputs: Sequence[Any], cuts: Any, trims: Any, extras: Any, cotangents: Sequence[Any]) -> list[Any]:
        wanted = {value.index for value in self.sources}
        watched = [x for value, x in zip(self.segment.inputs, inputs, strict=True) if value.index in wanted]
        variables = [v.value for v in self.variables]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(watched)
            tape.watch(variables)
            out = self._run(inputs, cuts, trims, extras)
        if self._finish is not None:
            cotangents = self._finish.cotangents([tf.stop_gradient(x) for x in out], cotangents)
        given = [tf.cast(g, x.dtype) for g, x in zip(cotangents, out, strict=True)]
        none = tf.UnconnectedGradients.ZERO
        found = tape.gradient(out, [*watched, *variables], given, unconnected_gradients=none)
        added = [a.assign_add(g) for a, g in zip(self.accumulators, found[len(watched) :], strict=True)]
        with tf.control_dependencies(added):
            return [tf.identity(g) for g in found[: len(watched)]]


@dataclass(eq=False)
class Record:
    """Intermediate results of one tile, kept for its backward pass, which can be done once.

    Attributes:
        trace: made it.
        tape: has the results.
        watched: windows of the trace's `sources`.
        out: all that `Trace.forward` returns.
    """

    trace: Trace
    tape: Any
    watched: list[Any]
    out: list[Any]

    def backward(self, cotangents: Sequence[Any]) -> list[Any]:
        """As `Trace.backward`, without computing the tile again."""
        given = [tf.cast(g, x.dtype) for g, x in zip(cotangents, self.out, strict=True)]
        sources = [*self.watched, *(v.value for v in self.trace.variables)]
        none = tf.UnconnectedGradients.ZERO
        found = self.tape.gradient(self.out, sources, given, unconnected_gradients=none)
        for accumulator, gradient in zip(self.trace.accumulators, found[len(self.watched) :], strict=True):
            accumulator.assign_add(gradient)
        return list(found[: len(self.watched)])


def _spec(value: Value) -> Any:
    return tf.TensorSpec([*[None] * (value.rank - 1), value.channels], value.dtype)


def _sum_spec(node: Any) -> Any:
    shape = [None, 2, node.inputs[0].channels] if node.moments else [None, node.inputs[0].channels]
    return tf.TensorSpec(shape, tf.float64 if node.inputs[0].dtype == "float64" else tf.float32)


def _part(node: Any, box_BHWC: Any) -> Any:
    """What a tile adds to a sum, float32 or wider."""
    wide = tf.float64 if box_BHWC.dtype == tf.float64 else tf.float32
    moments: Callable[[Any], Any] | None = node.moments
    return moments(box_BHWC) if moments else tf.reduce_sum(tf.cast(box_BHWC, wide), (1, 2))


def _arguments(inputs: Sequence[Any], bands: tuple[Band, Band]) -> list[Any]:
    """Arguments of the traced functions."""
    cuts = tf.stack([band.cuts for band in bands])
    trims = tf.stack([band.trims for band in bands])
    return [list(inputs), cuts, trims, [[tf.constant(e) for e in band.extras] for band in bands]]


def once(node: Any, inputs: Sequence[Any], variables: Sequence[Any], slope: Any) -> list[Any]:
    """Gradients of an operation that is done once, for its inputs and then for variables; `slope` of its output."""
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(inputs)
        tape.watch([v.value for v in variables])
        out = node.run(*inputs)
    sources = [*inputs, *(v.value for v in variables)]
    given = tf.cast(tf.constant(slope), out.dtype)
    found: list[Any] = tape.gradient(out, sources, given, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    return found
