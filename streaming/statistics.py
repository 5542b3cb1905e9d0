"""Tile statistics: how much border of every layer is lost when a network gets a tile instead of the whole image.

`streaming.Streamed` does not need them: it derives exact regions. They are what the predecessors derive and print for a
network and a tile, for comparison and for choosing a tile as they do: Pinckaers et al., Streaming Convolutional Neural
Networks for End-to-End Learning with Multi-Megapixel Images, https://arxiv.org/abs/1911.04432, and the library
lightstream.

    python -m streaming.statistics --model resnet18 --tile 2880
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from options.choices import RESNETS
from streaming.borders import Layer, Lost, Statistics, checked_statistics
from system.atomic_files import write_bytes

if TYPE_CHECKING:
    from streaming.nodes import Graph, Node


def graph_hash(layers: Sequence[Layer]) -> str:
    """Key of a network in the stored statistics: what its layers do and how they hang together."""
    return hashlib.sha256(json.dumps([asdict(layer) for layer in layers]).encode()).hexdigest()[:16]


def layers_of(model: Any, cut: str | None = None) -> list[Layer]:
    """The layers of a Keras network that look at more than one cell, and its sums.

    Args:
        model: functional, of convolutions, pooling, padding, normalization, activations and sums.
        cut: the layer whose output is the late map; the input of the global pooling if None.

    Raises:
        ValueError: the statistics are not defined for one of its layers; names it.
    """
    import keras

    from streaming.graph import read
    from streaming.rules import AveragePooling, Kernel, MaxPooling, Padding

    pooling = (keras.layers.GlobalMaxPooling2D, keras.layers.GlobalAveragePooling2D)
    if cut is None:
        cut = next((at.input._keras_history.operation.name for at in model.layers if isinstance(at, pooling)), None)
    graph = read(model, cut, False, "inactive")
    layers: list[Layer] = []
    place = {graph.values[0].index: 0}
    padded: dict[int, int] = {}
    for node in _in_order_of_calls(graph):
        rule, inputs = node.rule, [value.index for value in node.inputs]
        padding = padded.get(inputs[0], 0)
        if isinstance(rule, Padding):
            padded[node.output.index] = padding + _equal(node.name, (*rule.before, *rule.after))
            place[node.output.index] = place[inputs[0]]
            continue
        if isinstance(rule, Kernel):
            kernel, stride = _equal(node.name, rule.extents), _equal(node.name, rule.strides)
            padding += _same_padding(node.name, kernel, stride) if rule.same else 0
            kind = "conv"
            if isinstance(rule, (MaxPooling, AveragePooling)):
                kind = "max" if isinstance(rule, MaxPooling) else "average"
            text = _torch_text(node.layer, kind, padding)
            layers.append(Layer(kind, (place[inputs[0]],), text, kernel, stride, padding))
        elif padding or node.kind != "local" or type(rule).__name__ != "Rule":
            raise ValueError(
                f"{node.name}: tile statistics are defined for convolutions, pooling, sums and layers that take every "
                "cell by itself"
            )
        elif len(inputs) > 1:
            layers.append(Layer("sum", tuple(place[index] for index in inputs)))
        else:
            place[node.output.index] = place[inputs[0]]
            continue
        place[node.output.index] = len(layers)
    return layers


def _in_order_of_calls(graph: Graph) -> list[Node]:
    """Nodes as torch runs them: all that leads to a sum's first input before its second, the shortcut."""
    made_by = {node.output.index: node for node in graph.nodes}
    ordered: list[Node] = []
    done: set[int] = set()
    open_nodes = [made_by[graph.outputs[0].index]]
    while open_nodes:
        node = open_nodes[-1]
        missing = [v.index for v in node.inputs if v.index in made_by and v.index not in done]
        if missing:
            open_nodes.append(made_by[missing[0]])
            continue
        open_nodes.pop()
        if node.output.index not in done:
            done.add(node.output.index)
            ordered.append(node)
    return ordered


def _equal(name: str, numbers: Sequence[int]) -> int:
    """The one number in a sequence."""
    if len(set(numbers)) != 1:
        raise ValueError(f"{name}: tile statistics are defined for layers alike on all sides, not {tuple(numbers)}")
    return int(numbers[0])


def _same_padding(name: str, kernel: int, stride: int) -> int:
    """Padding of a SAME layer, if it is the same on every side for every size of the map."""
    if stride != 1 or kernel % 2 == 0:
        raise ValueError(f"{name}: its SAME padding depends on the size of the map; tile statistics need a fixed one")
    return kernel // 2


def _torch_text(layer: Any, kind: str, padding: int) -> str:
    """A layer as torch prints it."""
    if kind != "conv":
        (size, _), (stride, _) = layer.pool_size, layer.strides
        if kind == "average":
            return f"AvgPool2d(kernel_size={size}, stride={stride}, padding={padding})"
        return f"MaxPool2d(kernel_size={size}, stride={stride}, padding={padding}, dilation=1, ceil_mode=False)"
    inputs, outputs = layer.input.shape[-1], layer.output.shape[-1]
    text = f"Conv2d({inputs}, {outputs}, kernel_size={tuple(layer.kernel_size)}, stride={tuple(layer.strides)}"
    if padding:
        text += f", padding={(padding, padding)}"
    if tuple(layer.dilation_rate) != (1, 1):
        text += f", dilation={tuple(layer.dilation_rate)}"
    groups = inputs if "Depthwise" in type(layer).__name__ else getattr(layer, "groups", 1)
    return text + (f", groups={groups}" if groups != 1 else "") + ("" if layer.use_bias else ", bias=False") + ")"


def cached_statistics(layers: Sequence[Layer], tile: int | None, folder: Path | None) -> Statistics:
    """`checked_statistics`, kept in FOLDER/tile_statistics_HASH_TILE.json; the hash is that of the network's layers.

    Args:
        layers: of a network; `layers_of`.
        tile: its side, px; None: the smallest that works, which is looked for every time.
        folder: where to keep them; None: nowhere.

    Raises:
        ValueError: the tile is too small.
    """
    if folder is None or tile is None:
        return checked_statistics(layers, tile)
    path = folder / f"tile_statistics_{graph_hash(layers)}_{tile}.json"
    try:
        return from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        found = checked_statistics(layers, tile)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, json.dumps(asdict(found), indent=1).encode())
        return found


def from_json(stored: dict[str, Any]) -> Statistics:
    """Statistics from what `dataclasses.asdict` made of them."""
    pairs = {key: tuple((text, Lost(**lost)) for text, lost in stored[key]) for key in ("forward", "backward")}
    borders = {key: Lost(**stored[key]) for key in ("output", "gradient")}
    return Statistics(**{**stored, **pairs, **borders})


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `python -m streaming.statistics`."""
    parser = argparse.ArgumentParser(prog="python -m streaming.statistics", description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", required=True, choices=RESNETS, help="network")
    parser.add_argument("--tile", type=int, metavar="PX", help="side of the tile; default: the smallest that works")
    parser.add_argument("--cut", metavar="LAYER", help="layer of the late map; default: the input of the pooling")
    parser.add_argument("--cache", type=Path, metavar="FOLDER", help="keep the statistics here, by network and tile")
    given = parser.parse_args(arguments)
    from models import resnet

    try:
        layers = layers_of(resnet.build(given.model, 1), given.cut)
        found = cached_statistics(layers, given.tile, given.cache)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    lines = [
        *found.lines(),
        "",
        f"Tile {found.tile} px: a cell of the output is {found.stride} px; the backward pass moves by {found.step} px.",
        f"Smallest tile that works: {found.smallest} px",
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
