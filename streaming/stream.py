"""`Streamed`: a network applied to a whole image tile by tile, with the outputs and gradients of the whole image."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from models.layers import RunningBatchNormalization
from streaming import graph as graphs
from streaming.costs import costs
from streaming.images import Source, source
from streaming.layout import Counts, Layout, Part, Sink, State, Windows
from streaming.nodes import Value, variables_of
from streaming.passes import Passes
from streaming.segments import Segment, segments
from streaming.sharing import Alone, Sharing, completed, only_first, summed
from streaming.storage import Storage, wide
from streaming.tiles import Band, bands, sizes
from streaming.trace import Finish, Trace

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Gradients:
    """What a backward pass returns.

    Attributes:
        variables: a tensor for every variable of `Streamed.variables`.
        image: (B, H, W, C), if it was asked for; what was given to take it.
    """

    variables: list[Any]
    image: Any


class Streamed:
    """A Keras network of local layers, streamed.

    The network is used as at inference, as by `model(image, training=False)`: normalization with frozen statistics, no
    dropout. Outputs and gradients are those of the whole image, not approximations; see docs/streaming.md.

    Use it for images whose feature maps do not fit into memory. For those that fit, calling the model is faster.

    Args:
        model: functional or sequential, of one image (B, H, W, C); nested models are opened.
        cut: name of the layer whose output is the late map, or several; what the model returns if None. Layers of
            nested models are `outer/inner`.
        tile: largest side of a window of a segment's finest input, in px where that is the image, in cells where it is
            a kept map; one number, or one for each segment.
        segments: names of layers whose outputs are kept whole, so that the parts before and after are streamed with
            tiles of their own.
        batch_statistics: batch normalization that is trainable uses the statistics of the whole image, with their
            gradient; each costs a segment. `update_statistics` then moves the moving statistics.
        dropout: "refuse" random layers, or let them be "inactive".
        scratch: folder for files of kept maps; they are in memory if None.
        sharing: the ranks among which the tiles of an image are shared; all of them call `forward` with the same image
            and `backward` after it, and get the same map and the same gradients, which are those of one rank.
        spare: bytes for intermediate results of tiles, which are then not computed again in the backward pass. What
            the largest tile takes is used in any case, since it costs no memory: see `streaming.costs`.

    Attributes:
        tile: see above.
        segments: see above.
        cut: see above.
        spare: see above.
        batch_statistics: see above.
        graph: the network as it was read.
        variables: trainable variables of the streamed part, in the order of gradients.
        counts: tiles of the last image that this rank did.

    Raises:
        ValueError: not such a network, or a layer that cannot be streamed, by its name.
    """

    def __init__(
        self,
        model: keras.Model,
        cut: str | Sequence[str] | None = None,
        tile: int | Sequence[int] = 2048,
        segments: Sequence[str] = (),
        batch_statistics: bool = False,
        dropout: Literal["refuse", "inactive"] = "refuse",
        scratch: str | Path | None = None,
        sharing: Sharing | None = None,
        *,
        spare: int = 0,
    ) -> None:
        if keras.backend.backend() != "tensorflow":
            raise ValueError(f"Keras runs on {keras.backend.backend()}; streaming needs KERAS_BACKEND=tensorflow")
        if dropout not in ("refuse", "inactive"):
            raise ValueError(f"dropout {dropout!r}; choose refuse or inactive")
        if any(side < 1 for side in ([tile] if isinstance(tile, int) else tile)):
            raise ValueError(f"tile {tile}: give a positive number of px")
        if spare < 0:
            raise ValueError(f"spare {spare}: give bytes, or 0")
        self.tile, self.cut, self.segments, self.spare = tile, cut, tuple(segments), spare
        self._model, self._sharing = model, sharing or Alone()
        self.batch_statistics = batch_statistics
        self.graph = graphs.read(model, cut, batch_statistics, dropout)
        self._keep = [self._named(name) for name in segments]
        self._storage = Storage(None if scratch is None else Path(scratch))
        self._layouts: dict[tuple[int, int], Layout] = {}
        self._traces: dict[Any, Trace] = {}
        self._accumulators: dict[int, Any] = {}
        self._state: State | None = None
        self.variables = variables_of(self.graph.nodes)

    def with_tile(
        self, tile: int | Sequence[int], scratch: str | Path | None = None, spare: int | None = None
    ) -> Streamed:
        """The same network with other tiles; both share what was traced.

        Args:
            tile: see the class.
            scratch: folder for files of kept maps, if not that of this one.
            spare: see the class, if not that of this one.
        """
        other = copy.copy(self)
        other.tile, other._layouts, other._state = tile, {}, None
        other._storage = self._storage if scratch is None else Storage(Path(scratch))
        other.spare = self.spare if spare is None else spare
        return other

    def alone(self) -> Streamed:
        """The same stream on this rank alone, with an image of its own; both share what was traced."""
        other = self.with_tile(self.tile)
        other._sharing = Alone()
        return other

    def small_size(self, hw: tuple[int, int], px: int) -> tuple[int, int]:
        """Rows and columns of an image of at most `px` a side, or of the only size that the network takes."""
        fixed = graphs.functional(self._model).inputs[0].shape[1:3]
        rows, columns = (int(size or min(given, px)) for size, given in zip(fixed, hw, strict=True))
        return rows, columns

    @property
    def shared(self) -> bool:
        """Whether ranks share the tiles of an image."""
        return self._sharing.size > 1

    @property
    def counts(self) -> Counts:
        """Tiles of the last image that this rank did."""
        return Counts() if self._state is None else self._state.counts

    def _named(self, name: str) -> Value:
        found = [v for v in self.graph.values if v.name == name and any(v is n.output for n in self.graph.nodes)]
        if not found or found[-1].small:
            raise ValueError(f"segments: {name!r} is not a map of the streamed part; name a layer before the cut")
        return found[-1]

    def layout(self, hw: tuple[int, int]) -> Layout:
        """Segments and tiles for an image of `hw` px.

        Raises:
            ValueError: a tile is too small, with the smallest that works; the image does not fit the model.
        """
        if hw not in self._layouts:
            cells = sizes(self.graph, hw)
            found = self.segments_of(hw)
            with_tiles = [segment for segment in found if segment.targets]
            tiles = self._tiles(len(with_tiles))
            parts = []
            for segment in found:
                side = tiles[with_tiles.index(segment)] if segment.targets else None
                axes = ([], []) if side is None else bands(segment, cells, side)
                parts.append(self.part(segment, *axes))
            self._layouts[hw] = Layout(self.graph, parts, cells)
        return self._layouts[hw]

    def part(self, segment: Segment, rows: Sequence[Band], columns: Sequence[Band]) -> Part:
        """A segment with its tiles and their costs."""
        trained = {id(v) for v in self.variables}
        return Part(segment, rows, columns, costs(self.graph, segment, rows, columns, trained))

    def segments_of(self, hw: tuple[int, int]) -> list[Segment]:
        """Segments for an image of `hw` px, without tiles.

        Raises:
            ValueError: the image does not fit the model.
        """
        self._check_size(hw)
        cells = sizes(self.graph, hw)
        return segments(self.graph, self._keep, {index: cells[0][index] * cells[1][index] for index in cells[0]})

    def _tiles(self, count: int) -> list[int]:
        if isinstance(self.tile, int):
            return [self.tile] * count
        if len(self.tile) != count:
            raise ValueError(f"tile has {len(self.tile)} numbers, but the network has {count} segments; give one each")
        return list(self.tile)

    def _check_size(self, hw: tuple[int, int]) -> None:
        fixed = graphs.functional(self._model).inputs[0].shape[1:3]
        if any(size is not None and size != given for size, given in zip(fixed, hw, strict=True)):
            raise ValueError(
                f"{self._model.name} was built for images of {fixed[0]} x {fixed[1]} px (rows x columns), this one has "
                f"{hw[0]} x {hw[1]}; build it with Input((None, None, channels)), or for this size"
            )

    def _trace(self, segment: Segment, sources: Sequence[Value], finish: Finish | None = None) -> Trace:
        """The functions of a segment; layouts of other sizes of image share those that are alike."""
        nodes = tuple(id(node) for node in segment.nodes)
        values = (segment.inputs, segment.targets, sources)
        key = (nodes, *(tuple(value.index for value in group) for group in values), len(segment.maps), id(finish))
        if key not in self._traces:
            self._traces[key] = Trace(segment, sources, self.variables, self._accumulators, finish)
        return self._traces[key]

    def _passes(self, layout: Layout) -> Passes:
        return Passes(layout, self._trace, self._storage, self._sharing, self.spare)

    def forward(self, image: Any, backward: bool = True, late: bool = True) -> Any:
        """The late map of an image.

        Args:
            image: (H, W, C) or (B, H, W, C), an array or a memory-mapped file, or anything with `shape` and `read` of
                `streaming.images.Source`, such as a `SlideImage`. It is read again in the backward pass.
            backward: keep what the backward pass needs.
            late: False to leave the last segment to a backward pass with a `Finish`.

        Returns:
            (B, H', W', C') of the cut layer, a list if there are several; None without `late`.

        Raises:
            ValueError: see `layout`; wrong number of channels.
        """
        read = self._source(image)
        if backward:
            self._prepare()
        self._state = None  # what the last image kept goes before this one keeps anything
        layout = self.layout(read.shape[1:3])
        passes, sums = self._passes(layout), self._accumulators
        self._state = passes.forward(read, release=not backward, accumulators=sums, last=late)
        if not late:
            return None
        found = [np.asarray(self._state.known[value.index]) for value in self.graph.outputs]
        if not backward:
            self._state.known.clear()
        return found[0] if len(found) == 1 else found

    def deliver(self, image: Any, sink: Sink, watch: Callable[[], object] | None = None) -> None:
        """The late map of an image box by box, where it is too large to be kept; no backward pass.

        Args:
            image: see `forward`.
            sink: takes the boxes, of ranks that share the image those of this rank. Unwanted ones are not computed.
            watch: called after every tile of every segment; may raise to end the pass.

        Raises:
            ValueError: see `forward`; there are several late maps, or the network needs them again itself.
        """
        read = self._source(image)
        layout = self.layout(read.shape[1:3])
        outputs = self.graph.outputs
        if len(outputs) != 1 or layout.parts[-1].segment.targets != outputs:
            raise ValueError(f"{self._model.name}: only a single map at the end of a network can be delivered in boxes")
        self._state = None
        state = self._passes(layout).forward(read, release=True, sink=sink, watch=watch)
        state.known.clear()
        self._state = state

    def _source(self, image: Any) -> Source:
        """The image as a source that fits the network."""
        read = source(image)
        channels = self.graph.values[0].channels
        if read.shape[3] != channels:
            raise ValueError(f"the image has {read.shape[3]} channels, {self._model.name} takes {channels}")
        return read

    def _prepare(self) -> None:
        """A place for the gradient of every variable."""
        for variable in self.variables:
            if id(variable) not in self._accumulators:
                self._accumulators[id(variable)] = tf.Variable(tf.zeros(variable.shape, variable.dtype))

    def backward(self, gradient: Any, image_gradient: bool | Array | Windows = False) -> Gradients:
        """Gradients of the last image of `forward`.

        With a `Finish` the last segment is done here only, tile by tile forward, through the loss and backward; without
        segments that is the whole network, for 3 instead of 4 times the work of a forward pass. The late map is never
        kept.

        Args:
            gradient: of the loss at the late map, of its shape; a list if there are several. Rank 0's is taken. Or a
                `Finish`, a loss that takes every cell of the late map by itself.
            image_gradient: whether that of the image is wanted, or an array (B, H, W, C), also in a file, to add it to;
                if ranks share the image, to rank 0's array, which all of them get. Otherwise also what takes windows of
                it one by one.

        Returns:
            Gradients of `variables`, and of the image.

        Raises:
            ValueError: no `forward` before, another shape, or windows of a shared image; with a `Finish`: several late
                maps, or one that is made before the last segment.
        """
        state = self._state
        if state is None or not (state.known or hasattr(gradient, "cotangents")):
            raise ValueError("backward needs a forward pass of the image before it, with backward=True")
        outputs = self.graph.outputs
        if hasattr(gradient, "cotangents"):
            self._check_finish(state)
            return self._backward(state, gradient, image_gradient)
        given = [gradient] if len(outputs) == 1 else list(gradient)
        arrays = [np.asarray(g) for g in given]
        for array, value in zip(arrays, outputs, strict=True):
            shape = tuple(state.known[value.index].shape)
            if array.shape != shape:
                raise ValueError(f"the gradient of {value.name} has shape {array.shape}, the map {shape}")
        return self._backward(state, arrays, image_gradient)

    def _check_finish(self, state: State) -> None:
        last = self.layout(state.image.shape[1:3]).parts[-1].segment
        if [value.index for value in last.maps] != [value.index for value in self.graph.outputs]:
            names = ", ".join(value.name for value in self.graph.outputs)
            raise ValueError(f"a Finish needs one late map, made in the last segment; this network returns {names}")
        if self.shared:
            raise ValueError("ranks that share an image give the gradient of the late map; a Finish is for one rank")

    def _backward(
        self, state: State, gradients: Sequence[Array] | Finish, image_gradient: bool | Array | Windows
    ) -> Gradients:
        place = self._place(image_gradient, state.image.shape)
        for accumulator in self._accumulators.values():
            accumulator.assign(tf.zeros_like(accumulator))
        counts = state.counts
        counts.backward = counts.backward_reused = counts.skipped = counts.kept = 0
        layout = self.layout(state.image.shape[1:3])
        # Ranks: a head's gradients may differ in their last bits on GPUs, and with them which tiles are skipped.
        if self._sharing.size > 1 and isinstance(gradients, list):
            gradients = [completed(self._sharing, only_first(self._sharing, np.array(array))) for array in gradients]
        self._passes(layout).backward(state, gradients, self._accumulators, place)
        found = [tf.identity(self._accumulators[id(v)]) for v in self.variables]
        return Gradients(summed(self._sharing, found), place)

    def _place(self, wanted: bool | Array | Windows, shape: tuple[int, int, int, int]) -> Any:
        """What the gradient of the image is added to; None if it is not wanted."""
        if isinstance(wanted, bool):
            return self._storage.zeros(shape, wide(self.graph.values[0].dtype)) if wanted else None
        place = wanted[None] if isinstance(wanted, np.ndarray) and wanted.ndim == 3 else wanted
        if place.shape != shape:
            raise ValueError(f"image_gradient has shape {place.shape}, the image {shape}")
        if self.shared and not isinstance(place, np.ndarray):
            raise ValueError("image_gradient: ranks that share an image fill an array; give one, or True")
        return place

    def release(self) -> None:
        """Forgets the maps of the last image, whose memory is free then; there is no backward pass after it."""
        if self._state is not None:
            self._state.known.clear()
            self._state.records.clear()

    def update_statistics(self) -> None:
        """Moves the moving statistics of batch normalization towards those of the last image, as Keras does.

        For `batch_statistics` only; otherwise nothing moves. After the backward pass, which uses the old ones.

        Raises:
            ValueError: no `forward` before.
        """
        if self._state is None:
            raise ValueError("update_statistics needs a forward pass of the image before it")
        for layer, found in self.graph.norms:
            if found.index not in self._state.known:
                continue
            mean_C, variance_C = tf.unstack(tf.convert_to_tensor(self._state.known[found.index]))
            for moving, value in ((layer.moving_mean, mean_C), (layer.moving_variance, variance_C)):
                moving.assign(moving * layer.momentum + tf.cast(value, moving.dtype) * (1.0 - layer.momentum))
        for node in self.graph.nodes if self.batch_statistics else ():
            if isinstance(node.layer, RunningBatchNormalization) and node.kind == "small":
                node.layer(self._state.known[node.inputs[0].index], training=True)
