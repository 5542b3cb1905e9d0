"""Reads a Keras functional model into a flat graph, nested models opened (see `streaming.nodes`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from streaming.layers import is_random, refused, rule_of
from streaming.nodes import Graph, Kind, Node, Value
from streaming.normalization import add_batch_norm

MEANS = (keras.layers.GlobalAveragePooling2D,)
MAXIMA = (keras.layers.GlobalMaxPooling2D,)
REDUCING_OPS = {"Mean": "sum", "Sum": "sum", "Max": "whole", "Min": "whole", "Amax": "whole", "Amin": "whole"}


def read(model: keras.Model, cut: str | Sequence[str] | None, batch_statistics: bool, dropout: str) -> Graph:
    """The graph of a network up to its cut.

    Args:
        model: functional, with one image as its input.
        cut: names of the layers whose outputs are the late maps, also `outer/inner` for those of nested models; the
            model's outputs if None.
        batch_statistics: batch normalization in training mode, for layers that are trainable.
        dropout: "refuse", or "inactive" to let random layers pass everything on.

    Raises:
        ValueError: not a functional network, more than one input, no such layer, or a layer that cannot be streamed.
    """
    function = functional(model)
    if len(function.inputs) != 1 or len(function.inputs[0].shape) != 4:
        raise ValueError(f"{model.name}: streaming takes networks of one image (B, H, W, C); it has {function.inputs}")
    image = function.inputs[0]
    graph = Graph()
    graph.value("image", image.shape, image.dtype)
    reader = _Reader(graph, batch_statistics, dropout)
    known = {id(image): graph.values[0]}
    wanted = None if cut is None else ([cut] if isinstance(cut, str) else list(cut))
    reader.walk(function, known, "", wanted)
    graph.outputs = reader.outputs(function, known, wanted)
    _keep_needed(graph)
    for node in graph.nodes:
        if node.kind == "local" and node.rule is None:
            node.rule = rule_of(node.layer)
    return graph


def functional(model: Any) -> Any:
    """The functional model in a Sequential; the model itself if it is functional.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(model, keras.Sequential):
        if not model.built:
            raise ValueError(f"{model.name} is not built; give it an Input of rows, columns and channels")
        return model._functional
    if not hasattr(model, "_nodes_by_depth"):
        raise ValueError(f"{model.name} ({type(model).__name__}) is not a functional model; only those have a graph")
    return model


class _Reader:
    """Walks a model; see `read`."""

    def __init__(self, graph: Graph, batch_statistics: bool, dropout: str) -> None:
        self.graph, self.batch_statistics, self.dropout = graph, batch_statistics, dropout
        self.by_name: dict[str, Value] = {}

    def outputs(self, function: Any, known: dict[int, Value], wanted: list[str] | None) -> list[Value]:
        """The values that the stream returns."""
        if wanted is None:
            return [known[id(tensor)] for tensor in function.outputs]
        missing = [name for name in wanted if name not in self.by_name]
        if missing:
            last = list(self.by_name)[-8:]
            raise ValueError(
                f"cut {missing[0]!r}: the network has no such layer; its last layers are {', '.join(last)}"
            )
        return [self.by_name[name] for name in wanted]

    def walk(self, function: Any, known: dict[int, Value], prefix: str, wanted: list[str] | None) -> None:
        """Adds the nodes of a model; `known` gets the value of every tensor of it."""
        for depth in sorted(function._nodes_by_depth, reverse=True):
            for node in function._nodes_by_depth[depth]:
                if node.is_input or (wanted is not None and all(name in self.by_name for name in wanted)):
                    continue
                inner = node.operation
                if isinstance(inner, keras.Sequential) or hasattr(inner, "_nodes_by_depth"):
                    self._open(inner, node, known, prefix, wanted)
                else:
                    self._add(node, known, prefix)

    def _open(self, model: Any, node: Any, known: dict[int, Value], prefix: str, wanted: list[str] | None) -> None:
        """Adds the nodes of a model inside."""
        function = functional(model)
        inside = dict(zip((id(t) for t in function.inputs), (known[id(t)] for t in node.input_tensors), strict=True))
        self.walk(function, inside, f"{prefix}{model.name}/", wanted)
        for inner, outer in zip(function.outputs, node.outputs, strict=True):
            if id(inner) in inside:
                known[id(outer)] = inside[id(inner)]
                self.by_name[f"{prefix}{model.name}"] = inside[id(inner)]

    def _add(self, node: Any, known: dict[int, Value], prefix: str) -> None:
        """Adds one operation."""
        operation, tensors = node.operation, list(node.input_tensors)
        if any(id(tensor) not in known for tensor in tensors):
            return
        if len(node.outputs) != 1:
            raise refused(operation, f"it has {len(node.outputs)} outputs; one can be streamed")
        inputs = tuple(known[id(tensor)] for tensor in tensors)
        small = all(value.small for value in inputs) and _is_small(node.outputs[0])
        made = None
        if self._uses_batch(operation):
            made = add_batch_norm(self.graph, prefix + operation.name, operation, inputs[0])
        if made is None:
            kind: Kind = "small" if small else _kind(operation)
            output = self.graph.value(
                prefix + operation.name, node.outputs[0].shape, node.outputs[0].dtype, kind != "local"
            )
            made = self.graph.add(
                Node(output.name, kind, inputs, output, _runner(node), layer=operation, mean=_is_mean(operation))
            )
            if kind == "local":
                _check_constants(node)
                self._check_random(operation)
        known[id(node.outputs[0])] = made
        self.by_name[prefix + operation.name] = made

    def _check_random(self, operation: Any) -> None:
        if is_random(operation) and getattr(operation, "rate", True) and self.dropout == "refuse":
            raise refused(
                operation,
                "it draws numbers at random, others in every tile; cut before it, or let it pass everything on with "
                "dropout='inactive'",
            )

    def _uses_batch(self, operation: Any) -> bool:
        is_norm = isinstance(operation, keras.layers.BatchNormalization)
        return self.batch_statistics and is_norm and operation.trainable


def _is_small(tensor: Any) -> bool:
    return len(tensor.shape) != 4 or tuple(tensor.shape[1:3]) == (1, 1)


def _kind(operation: Any) -> Kind:
    """Kind of an operation on a map."""
    if isinstance(operation, MEANS):
        return "sum"
    if isinstance(operation, MAXIMA):
        return "whole"
    name = type(operation).__name__
    if type(operation).__module__.startswith("keras.src.ops.") and name in REDUCING_OPS:
        axis = getattr(operation, "axis", None)
        axes = {a % 4 for a in ([axis] if isinstance(axis, int) else axis or range(4))}
        if axes != {1, 2}:
            raise refused(operation, f"it reduces the axes {sorted(axes)}; rows and columns, (1, 2), can be streamed")
        return "sum" if REDUCING_OPS[name] == "sum" else "whole"
    return "local"


def _is_mean(operation: Any) -> bool:
    return type(operation).__name__ != "Sum"


def _runner(node: Any) -> Callable[..., Any]:
    """The operation as the network calls it at inference, a function of its tensors."""
    ids = [id(tensor) for tensor in node.input_tensors]
    operation, arguments = node.operation, node.arguments
    inference = getattr(operation, "_call_has_training_arg", False)

    def run(*tensors: Any) -> Any:
        args, kwargs = arguments.fill_in(dict(zip(ids, tensors, strict=True)))
        return operation(*args, **({**kwargs, "training": False} if inference else kwargs))

    return run


def _check_constants(node: Any) -> None:
    """Refuses constants with rows and columns of their own."""
    operation = node.operation
    constants = [x for x in node.arguments._flat_arguments if not isinstance(x, keras.KerasTensor)]
    for constant in constants:
        shape = getattr(constant, "shape", ())
        if len(shape) > 2 and any(size != 1 for size in shape[-3:-1]):
            raise refused(operation, f"it takes a constant of shape {tuple(shape)}, which belongs to one size of image")
    if type(operation).__name__ == "Pad" and any(c is not None and np.any(c) for c in constants):
        raise refused(operation, "it pads with a number; zeros can be streamed")


def _keep_needed(graph: Graph) -> None:
    """Drops what no output needs."""
    needed = {value.index for value in graph.outputs}
    kept: list[Node] = []
    for node in reversed(graph.nodes):
        if node.output.index in needed:
            kept.append(node)
            needed.update(value.index for value in node.inputs)
    graph.nodes = kept[::-1]
