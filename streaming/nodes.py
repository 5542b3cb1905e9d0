"""What a network consists of once it is read: values and the operations between them.

Every value is a map (B, H, W, C), or small: what follows from sums over the image, such as a mean per channel, and has
no places. Kinds of operations:

- local: has a rule (`streaming.rules`); done tile by tile
- sum: a mean or sum over all places; its parts are added up over tiles
- whole: needs its whole input in one place, such as a maximum over all places
- small: takes small values only; done as the network does it
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from streaming.rules import Rule, Transposed

Kind = Literal["local", "sum", "whole", "small"]


@dataclass(eq=False)
class Value:
    """A tensor of the network.

    Attributes:
        index: its place in `Graph.values`.
        name: of the operation that makes it.
        channels: of the last axis.
        rank: dimensions, 4 for maps.
        dtype: as the network has it.
        small: it has no places.
    """

    index: int
    name: str
    channels: int
    rank: int
    dtype: str
    small: bool = False


@dataclass(eq=False)
class Node:
    """One operation.

    Attributes:
        name: of the layer or operation.
        kind: see the module.
        inputs: values it takes, in the order of `run`.
        output: the value it makes.
        run: the operation, a function of the tensors of `inputs`.
        rule: where it looks, if it is local.
        layer: whose variables it uses.
        mean: a sum that is divided by the number of places.
        moments: which numbers of every place a sum adds up; the place itself if None.
    """

    name: str
    kind: Kind
    inputs: tuple[Value, ...]
    output: Value
    run: Callable[..., Any]
    rule: Rule | None = None
    layer: Any = None
    mean: bool = True
    moments: Callable[[Any], Any] | None = None


@dataclass
class Graph:
    """Nodes in an order in which they can be computed.

    Attributes:
        nodes: all that the outputs need.
        values: every value, the image first.
        outputs: what the stream returns.
        norms: calls of batch normalization with batch statistics: the layer, and its value of mean and variance.
    """

    nodes: list[Node] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    norms: list[tuple[Any, Value]] = field(default_factory=list)

    def value(self, name: str, shape: Sequence[int | None], dtype: str, small: bool = False) -> Value:
        """Add a value."""
        made = Value(len(self.values), name, int(shape[-1] or 0), len(shape), dtype, small)
        self.values.append(made)
        return made

    def add(self, node: Node) -> Value:
        """Add a node; its output."""
        self.nodes.append(node)
        return node.output


def variables_of(nodes: Iterable[Node]) -> list[Any]:
    """Trainable variables that some nodes use, each once, in order."""
    found: dict[int, Any] = {}
    for node in nodes:
        for variable in getattr(node.layer, "trainable_variables", ()):
            found.setdefault(id(variable), variable)
    return list(found.values())


def multiplications(node: Node) -> int:
    """Multiplications of an operation for one output cell."""
    weights = [v for v in getattr(node.layer, "weights", ()) if len(v.shape) in (2, 4)]
    count = sum(int(np.prod(v.shape)) for v in weights)
    return count // int(np.prod(node.rule.strides)) if isinstance(node.rule, Transposed) else count
