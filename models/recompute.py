"""Training passes that keep little: the inside of a segment of the network is computed again for its gradient.

Chen et al. 2016, Training Deep Nets with Sublinear Memory Cost, https://arxiv.org/abs/1604.06174. A segment keeps its
inputs alone. Batch statistics are taken and moved in the forward pass only, and used again in the recomputed one, so
that both passes see the same numbers and the moving statistics move once.

Segments lie within segments, one level for each function that names them: the inside of an outer one is computed again
in inner ones. More time, less memory.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from graphlib import TopologicalSorter
from typing import Any

import keras
import tensorflow as tf

# The name of a layer to the name of its segment; None for layers that stay outside. Those of random numbers must.
Naming = Callable[[str], str | None]


def naming(patterns: Mapping[str, str]) -> Naming:
    r"""Names segments by the first pattern that a layer's name begins with.

    Args:
        patterns: Regular expressions, and the segment's name, in which `\1` stands for their first group.
    """

    def name(layer: str) -> str | None:
        matches = ((re.match(pattern, layer), segment) for pattern, segment in patterns.items())
        return next((match.expand(segment) for match, segment in matches if match), None)

    return name


class _Statistics:
    """What the batch normalizations found, by layer, in the forward pass that is being traced.

    Attributes:
        found: The statistics.
        again: Whether this is a recomputed pass, in which they are taken from `found`.
    """

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}
        self.again = False


_current: list[_Statistics] = []  # at most one: a stack, so that one network may be traced within another


def statistics_of(layer: str) -> Any:
    """What a batch normalization found in the forward pass; None in that pass itself."""
    return _current[-1].found[layer] if _current and _current[-1].again else None


def keep_statistics(layer: str, statistics: Any) -> None:
    """Keep what a batch normalization found, for the recomputed pass."""
    if _current:
        _current[-1].found[layer] = statistics


@dataclass(frozen=True)
class _Segment:
    """Layers and segments in the order of their use; tensors by the identity of the network's symbolic ones.

    Attributes:
        steps: What is run.
        inputs: Tensors from outside, in the order of the segment's arguments.
        outputs: Tensors that are used outside, in the order of its results.
    """

    steps: Sequence[Any]
    inputs: Sequence[int]
    outputs: Sequence[int]


class Recomputed:
    """The training pass of a network in recomputed segments; results and gradients are those of the network itself.

    Args:
        model: A functional network of layers with one argument each.
        levels: How segments are named, the outermost first.

    Attributes:
        segments: Number of outermost segments.

    Raises:
        ValueError: Segments that need one another.
    """

    def __init__(self, model: keras.Model, levels: Sequence[Naming]) -> None:
        layers = [layer for layer in model.layers if not isinstance(layer, keras.layers.InputLayer)]
        self._whole = _segment(layers, levels, {id(tensor) for tensor in model.outputs})
        self._inputs = [id(tensor) for tensor in model.inputs]
        self._outputs = [id(tensor) for tensor in model.outputs]
        self.segments = sum(isinstance(step, _Segment) for step in self._whole.steps)

    def __call__(self, image_BHWC: Any, training: bool = True) -> Any:
        """Returns the network's output."""
        assert training, "inference keeps nothing anyway"
        statistics = _Statistics()
        values = dict(zip(self._inputs, [image_BHWC], strict=True))
        with _tracing(statistics, again=False):
            _run(self._whole, values, statistics)
        return values[self._outputs[0]]


@contextmanager
def _tracing(statistics: _Statistics, again: bool) -> Iterator[None]:
    before = statistics.again
    statistics.again = again
    _current.append(statistics)
    try:
        yield
    finally:
        _current.pop()
        statistics.again = before


def _segment(layers: Sequence[keras.Layer], levels: Sequence[Naming], used: set[int]) -> _Segment:
    """Layers as one segment, in smaller ones by the first of the levels.

    Args:
        layers: In an order in which they can be run.
        levels: Namings, the outermost first.
        used: Tensors that are used outside.
    """
    made = [id(tensor) for layer in layers for tensor in keras.tree.flatten(layer.output)]
    taken = {layer: [id(tensor) for tensor in keras.tree.flatten(layer.input)] for layer in layers}
    inputs = list(dict.fromkeys(tensor for tensors in taken.values() for tensor in tensors if tensor not in set(made)))
    outputs = [tensor for tensor in made if tensor in used]
    if not levels:
        return _Segment(layers, inputs, outputs)
    groups: dict[str, list[keras.Layer]] = {}
    for layer in layers:
        groups.setdefault(levels[0](layer.name) or f"{layer.name} alone", []).append(layer)
    owner = {
        id(tensor): name
        for name, group in groups.items()
        for layer in group
        for tensor in keras.tree.flatten(layer.output)
    }
    needs = {
        name: {owner[t] for layer in group for t in taken[layer] if t in owner} - {name}
        for name, group in groups.items()
    }
    steps: list[Any] = []
    for name in TopologicalSorter(needs).static_order():
        group = groups[name]
        others = {tensor for layer in layers if layer not in group for tensor in taken[layer]}
        # One layer keeps no more than its inputs as it is.
        steps.append(group[0] if len(group) == 1 else _segment(group, levels[1:], used | others))
    return _Segment(steps, inputs, outputs)


def _run(segment: _Segment, values: dict[int, Any], statistics: _Statistics) -> None:
    """Runs the steps of a segment; `values` holds its inputs and receives everything that is made."""
    for step in segment.steps:
        if isinstance(step, _Segment):
            made = _recomputed(step, [values[tensor] for tensor in step.inputs], statistics)
            values.update(zip(step.outputs, made, strict=True))
        else:
            given = keras.tree.map_structure(lambda tensor: values[id(tensor)], step.input)
            options = {"training": True} if "training" in inspect.signature(step.call).parameters else {}
            values[id(step.output)] = step(given, **options)


def _recomputed(segment: _Segment, inputs: Sequence[Any], statistics: _Statistics) -> Sequence[Any]:
    """The outputs of a segment, of which the gradient keeps the inputs alone."""

    def outputs(inputs: Sequence[Any]) -> list[Any]:
        values = dict(zip(segment.inputs, inputs, strict=True))
        _run(segment, values, statistics)
        return [values[tensor] for tensor in segment.outputs]

    @tf.custom_gradient
    def run(*inputs: Any) -> Any:
        def gradient(*out_gradients: Any, variables: Sequence[Any] = ()) -> Any:
            # Not before the gradient has come this far: everything else is there since the forward pass, and the
            # segment would be computed again at once.
            with tf.control_dependencies(out_gradients):
                again = [tf.identity(x) for x in inputs]
            with _tracing(statistics, again=True), tf.GradientTape() as tape:
                tape.watch(again)
                made = outputs(again)
            found = tape.gradient(made, [*again, *variables], out_gradients)
            # Nor does the gradient go on before all of this segment's are there, whose inside can be given back then.
            with tf.control_dependencies([x for x in found if x is not None]):
                passed_on = [None if x is None else tf.identity(x) for x in found[: len(again)]]
            return (passed_on, found[len(again) :]) if variables else passed_on

        return outputs(inputs), gradient

    recomputed: Sequence[Any] = run(*inputs)
    return recomputed
