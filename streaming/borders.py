"""What is lost at the border of every layer when a network gets a tile; the method of `streaming.statistics`.

On one channel: every weight is 1 and the tile is 1 everywhere. Forward, what is below the maximum behind a convolution
or pooling is lost, and the map goes on as 0 there and 1 inside. Backward, the gradient of the output is 1 where nothing
was lost; behind a layer, cells at the maximum count as valid (9) and all others as not (-1). If the stride is above 1
and the kernel is larger than the stride, their rectangle shrinks by kernel - stride on every side. Maximum pooling
passes gradients on as average pooling of its 0/1 input does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Map = NDArray[np.float32]

EPS = 1e-5
"""Cells within this share of the maximum count as the maximum."""


@dataclass(frozen=True)
class Lost:
    """Border that is lost, in cells of a map, on each side."""

    top: int
    left: int
    bottom: int
    right: int

    def __str__(self) -> str:
        return f"Lost(top:{self.top}.0, left:{self.left}.0, bottom:{self.bottom}.0, right:{self.right}.0)"

    def grown(self, cells: int) -> Lost:
        """More on every side."""
        return Lost(self.top + cells, self.left + cells, self.bottom + cells, self.right + cells)


@dataclass(frozen=True)
class Layer:
    """One step of a network, on maps of one channel.

    Attributes:
        kind: "conv", "max", "average" or "sum" (of its inputs).
        inputs: maps it takes; 0 is the image, i + 1 the output of layer i.
        text: as torch prints the layer.
        kernel, stride, padding: rows and columns alike; padding on every side.
    """

    kind: str
    inputs: tuple[int, ...]
    text: str = ""
    kernel: int = 1
    stride: int = 1
    padding: int = 0


@dataclass(frozen=True)
class Statistics:
    """Result of `tile_statistics`.

    Attributes:
        tile: side of the tile, px.
        stride: px of the image per cell of the output.
        forward: (layer, lost of its output), from the image on.
        output: lost of the network's output, cells.
        backward: (layer, lost of the gradient of its output), from the output back.
        gradient: lost of the gradient of the image, px.
        smallest: side of the smallest tile that works, px; 0 if it was not looked for.
    """

    tile: int
    stride: int
    forward: tuple[tuple[str, Lost], ...]
    output: Lost
    backward: tuple[tuple[str, Lost], ...]
    gradient: Lost
    smallest: int = 0

    @property
    def step(self) -> int:
        """Px by which the backward pass moves its tile: what is valid of the image's gradient, in whole cells."""
        return (self.tile - self.gradient.top - self.gradient.bottom) // self.stride * self.stride

    def lost(self) -> tuple[Lost, ...]:
        """Every border in the order in which it is printed."""
        return (*(lost for _, lost in self.forward), self.output, *(lost for _, lost in self.backward), self.gradient)

    def lines(self) -> list[str]:
        """The text of lightstream's `verbose` output."""
        forward = [f"{text} \n {lost}" for text, lost in self.forward]
        backward = [f"{text} \n {lost}" for text, lost in self.backward]
        return [*forward, f"\n Output lost {self.output}", "", *backward, f"\n Input gradient lost {self.gradient}"]


class NoValidCellError(ValueError):
    """Nothing of a map is valid: the tile is too small."""


def border(values: Map) -> Lost:
    """Cells on each side of the bounding box of all that is at the maximum."""
    top = float(values.max())
    valid = values >= top - abs(top) * EPS
    rows, columns = np.flatnonzero(valid.any(1)), np.flatnonzero(valid.any(0))
    height, width = values.shape
    return Lost(int(rows[0]), int(columns[0]), height - 1 - int(rows[-1]), width - 1 - int(columns[-1]))


def rectangle(shape: tuple[int, int], lost: Lost) -> Map:
    """1 inside, 0 in the border."""
    if lost.top + lost.bottom >= shape[0] or lost.left + lost.right >= shape[1]:
        raise NoValidCellError
    inside = np.zeros(shape, np.float32)
    inside[lost.top : shape[0] - lost.bottom, lost.left : shape[1] - lost.right] = 1
    return inside


def box_sums(values: Map, kernel: int) -> Map:
    """Sums over kernel x kernel cells, where they fit."""
    rows = np.add.reduce([values[i : values.shape[0] - kernel + 1 + i] for i in range(kernel)])
    result: Map = np.add.reduce([rows[:, i : rows.shape[1] - kernel + 1 + i] for i in range(kernel)])
    return result


def windows(values: Map, layer: Layer, outside: float = 0) -> Map:
    """Sums over a layer's windows."""
    padded = np.pad(values, layer.padding, constant_values=outside)
    return box_sums(padded, layer.kernel)[:: layer.stride, :: layer.stride]


def spread(gradient: Map, shape: tuple[int, int], layer: Layer) -> Map:
    """The transpose of `windows`: gradient of the layer's output -> of its input."""
    full = tuple(size + 2 * layer.padding - layer.kernel + 1 for size in shape)
    wide = np.zeros(full, np.float32)
    wide[:: layer.stride, :: layer.stride] = gradient
    padding = layer.padding
    sums = box_sums(np.pad(wide, layer.kernel - 1), layer.kernel)
    return sums[padding : padding + shape[0], padding : padding + shape[1]]


def pooled_gradient(gradient: Map, values: Map, layer: Layer) -> Map:
    """Gradient of maximum pooling's input, as average pooling of its 0/1 input has it, repeated by the stride."""
    share = gradient * windows(values, layer, -1) / layer.kernel**2
    repeated = share.repeat(layer.stride, 0).repeat(layer.stride, 1)
    result = np.zeros(values.shape, np.float32)
    rows, columns = (min(a, b) for a, b in zip(repeated.shape, values.shape, strict=True))
    result[:rows, :columns] = repeated[:rows, :columns]
    return result


def marked(gradient: Map, layer: Layer) -> Map:
    """Valid cells as 9, all others as -1."""
    overlap = layer.kernel - layer.stride
    if layer.stride > 1 and overlap > 0:
        valid = rectangle((gradient.shape[0], gradient.shape[1]), border(gradient).grown(overlap))
    else:
        valid = (gradient > (1 - EPS) * gradient.max()).astype(np.float32)
    return valid * 10 - 1


def tile_statistics(layers: Sequence[Layer], tile: int) -> Statistics:
    """Borders lost in every layer of a network that gets a tile, without a check whether the tile is large enough.

    Args:
        layers: in the order in which they are computed; `layers_of`.
        tile: its side, px.

    Raises:
        NoValidCellError: no cell of some map is valid.
    """
    maps: list[Map] = [np.ones((tile, tile), np.float32)]
    strides = [1]
    forward: list[tuple[str, Lost]] = []
    for layer in layers:
        strides.append(strides[layer.inputs[0]] * layer.stride)
        if layer.kind == "sum":
            maps.append(np.asarray(sum(maps[i] for i in layer.inputs)))
            continue
        result = windows(maps[layer.inputs[0]], layer)
        lost = border(result)
        forward.append((layer.text, lost))
        maps.append(rectangle((result.shape[0], result.shape[1]), lost))
    output = border(maps[-1])
    gradients: dict[int, Map] = {len(layers): rectangle((maps[-1].shape[0], maps[-1].shape[1]), output)}
    backward: list[tuple[str, Lost]] = []
    for index in reversed(range(len(layers))):
        layer, gradient = layers[index], gradients.pop(index + 1)
        for place in layer.inputs:
            passed = gradient
            if layer.kind != "sum":
                backward.append((layer.text, border(gradient)))
                passed = _passed(gradient, maps[place], layer)
            gradients[place] = gradients[place] + passed if place in gradients else passed
    return Statistics(tile, strides[-1], tuple(forward), output, tuple(backward), border(gradients[0]))


def _passed(gradient: Map, values: Map, layer: Layer) -> Map:
    """What a layer passes on to its input."""
    if layer.kind == "max":
        return marked(pooled_gradient(gradient, values, layer), layer)
    passed = spread(gradient, (values.shape[0], values.shape[1]), layer)
    return passed if layer.kind == "average" else marked(passed, layer)


def smallest_tile(layers: Sequence[Layer], largest: int = 16384) -> int:
    """The smallest tile that works, in whole cells of the output.

    Its borders are those of ever larger tiles, and at least one cell of the image's gradient is valid.

    Raises:
        ValueError: none up to `largest` px works.
    """
    stride = total_stride(layers)

    def borders(tile: int) -> Statistics | None:
        try:
            return tile_statistics(layers, tile)
        except NoValidCellError:
            return None

    tile, found = 4 * stride, borders(4 * stride)
    while 2 * tile <= largest:
        doubled = borders(2 * tile)
        if found and doubled and found.lost() == doubled.lost() and found.step > 0:
            break
        tile, found = 2 * tile, doubled
    else:
        raise ValueError(f"no tile up to {largest} px has a valid gradient; cut the network earlier")
    low, high = tile // 2 // stride, tile // stride
    assert found is not None
    while high - low > 1:
        middle = (low + high) // 2
        tried = borders(middle * stride)
        if tried and tried.lost() == found.lost() and tried.step > 0:
            high = middle
        else:
            low = middle
    return high * stride


def total_stride(layers: Sequence[Layer]) -> int:
    """Px of the image per cell of the output."""
    strides = [1]
    for layer in layers:
        strides.append(strides[layer.inputs[0]] * layer.stride)
    return strides[-1]


def checked_statistics(layers: Sequence[Layer], tile: int | None = None) -> Statistics:
    """`tile_statistics` of a tile that works, with the smallest one.

    Args:
        layers: see `tile_statistics`.
        tile: its side, px; None: the smallest.

    Raises:
        ValueError: the tile is too small; names the smallest.
    """
    smallest = smallest_tile(layers)
    tile = smallest if tile is None else tile
    if tile < smallest:
        raise ValueError(
            f"a tile of {tile} px is too small: its gradient would be wrong; the smallest is {smallest} px"
        )
    return replace(tile_statistics(layers, tile), smallest=smallest)
