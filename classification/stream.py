"""A classifier streamed over one whole image: logits, and the gradients of all variables that are trained.

Shapes: H rows, W columns, C channels, K outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from classification.network import KEPT, Classifier
from streaming import Source, Streamed
from streaming.images import in_unit_range
from streaming.layout import Counts
from streaming.sharing import Sharing
from streaming.tiles import sizes

Array = NDArray[Any]

# Cells of a kept map that a tile has at least. Fewer overlap more: 23 cells around one of the last map of resnet34.
LEAST_CELLS = 96
# Tiles of kept maps are this many times larger than the stride alone would have them: their layers keep less per cell.
WIDER = 2
NOMINAL = 4096  # px: strides of maps are those in an image of this side


@dataclass(frozen=True, eq=False)
class Prepared:
    """A source of 8-bit px as the network takes it, [-1, 1]; others pass as they are.

    Attributes:
        source: of px or of a map.
    """

    source: Source

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """See `Source.shape`."""
        return self.source.shape

    def read(self, rows: tuple[int, int], columns: tuple[int, int]) -> Array:
        """See `Source.read`."""
        window = self.source.read(rows, columns)
        return in_unit_range(window) if window.dtype == np.uint8 else window


class Stream:
    """A classifier applied to one image after the other, tile by tile; exactly, see docs/streaming.md.

    Early and late part are streamed, the head sees the whole last map. A frozen early part has no backward pass and
    keeps no maps. The same code takes maps of the cut in place of images, so that training starts from the same logits
    whether maps come from an archive or from the image.

    Args:
        classifier: after `Classifier.train`.
        tile: largest side of a window of the image, px.
        late_tile: largest side of a window of the cut's map, cells; None: in proportion to `tile`.
        keep: layers of the early part whose maps are kept between segments; None: `classification.network.KEPT`.
        scratch: folder for files of kept maps; they are in memory if None.
        features: images are maps of the cut, as `map` returns them; the early part is then not streamed.
        sharing: ranks that share the tiles of every image, see `Streamed`: all call with the same images, and get the
            same logits and gradients.

    Attributes:
        classifier: see above.
        features: see above.
        shared: whether several ranks share every image.
        early: the streamed early part.
        late: the streamed late part.
        stride: px of the image along a cell of the cut's map.
        variables: that are trained, in the order of gradients: `Classifier.trained` when the stream was made.

    Raises:
        ValueError: see `Streamed`; or the early part is to be trained on maps of it.
    """

    def __init__(
        self,
        classifier: Classifier,
        tile: int = 2048,
        late_tile: int | None = None,
        keep: Sequence[str] | None = None,
        scratch: str | Path | None = None,
        features: bool = False,
        sharing: Sharing | None = None,
    ) -> None:
        self._through = classifier.trains_early
        if features and self._through:
            raise ValueError("the early part cannot be trained on features, which it has made; train it on images")
        self.classifier, self.features = classifier, features
        if keep is None:
            inside = {layer.name for layer in classifier.early.layers} - {classifier.cut}
            keep = [name for name in KEPT.get(classifier.name, ()) if name in inside]
        self.shared = sharing is not None and sharing.size > 1
        self._tile, self._late_tile = tile, late_tile
        early = Streamed(classifier.early, tile=tile, segments=keep, scratch=scratch, sharing=sharing)
        late = Streamed(classifier.late, tile=tile, scratch=scratch, sharing=sharing)
        self.stride = round(NOMINAL / sizes(early.graph, (NOMINAL, NOMINAL))[0][early.graph.outputs[0].index])
        # Tiles fit images of about any size; those of one are found when it comes.
        self.early = early.with_tile(sides(early, (NOMINAL, NOMINAL), tile))
        cells = NOMINAL // self.stride
        self.late = late.with_tile(sides(late, (cells, cells), self._cells))
        self._early_used, self._late_used = self.early, self.late
        self._fitted: dict[tuple[str, tuple[int, int]], Streamed] = {}
        self.variables = classifier.trained
        self._of_head = classifier.head.trainable_variables
        self._pending: tuple[Any, Any, Any] | None = None

    def check(self, hw: tuple[int, int]) -> None:
        """Find tiles for an image, or for a map of the cut, of this many rows and columns, before anything starts.

        Raises:
            ValueError: a tile is too small, with the smallest that works; or the image is too small for the network.
        """
        if not self.features:
            fitted = self._fit("early", hw)
            output = fitted.graph.outputs[0].index
            rows, columns = fitted.layout(hw).sizes
            hw = rows[output], columns[output]
        self._fit("late", hw).layout(hw)

    def logits(self, source: Source) -> Array:
        """Logits of an image without what a backward pass needs, (1, K) float32.

        Args:
            source: 8-bit px or px in [-1, 1], (1, H, W, 3); or a map of the cut.

        Raises:
            ValueError: not one image, or too small a tile.
        """
        found: Array = self.classifier.head(self._last_map(source, backward=False)).numpy()
        return found

    def map(self, source: Source) -> Array:
        """The cut's map of an image, (1, H', W', C) in the precision of the classifier.

        Raises:
            ValueError: see `logits`.
        """
        return np.asarray(self.early_for(source).forward(Prepared(source), backward=False))

    def forward(self, source: Source) -> Any:
        """Logits of an image, logits_1K float32; `backward` then gives gradients.

        Args:
            source: see `logits`; it is read again in the backward pass if the early part is trained.

        Raises:
            ValueError: see `logits`.
        """
        last_BHWC = tf.constant(self._last_map(source, backward=True))
        with tf.GradientTape() as tape:
            tape.watch(last_BHWC)
            logits_1K = self.classifier.head(last_BHWC, training=False)
        self._pending = tape, last_BHWC, logits_1K
        return logits_1K

    def backward(self, slope_1K: Any) -> list[Any]:
        """Gradients of the last image of `forward`, a tensor for each of `variables`.

        Args:
            slope_1K: gradient of the loss at the logits, float32.

        Raises:
            ValueError: no `forward` before.
        """
        if self._pending is None:
            raise ValueError("backward needs a forward pass of the image before it")
        (tape, last_BHWC, logits_1K), self._pending = self._pending, None
        sources = [last_BHWC, *(v.value for v in self._of_head)]
        slope_BHWC, *of_head = tape.gradient(logits_1K, sources, tf.convert_to_tensor(slope_1K))
        found = dict(zip(map(id, self._of_head), of_head, strict=True))
        late = self._late_used.backward(slope_BHWC, image_gradient=self._through)
        found |= zip(map(id, self._late_used.variables), late.variables, strict=True)
        if self._through:
            early = self._early_used.backward(late.image)
            found |= zip(map(id, self._early_used.variables), early.variables, strict=True)
        self.release()
        return [found[id(variable)] for variable in self.variables]

    @property
    def early_counts(self) -> Counts:
        """Tiles of the last image in the early part."""
        return self._early_used.counts

    @property
    def late_counts(self) -> Counts:
        """Tiles of the last image in the late part."""
        return self._late_used.counts

    def release(self) -> None:
        """Forget the last image's maps, so that those of the next do not come on top of them."""
        self._pending = None
        for streamed in self._fitted.values():
            streamed.release()

    def _last_map(self, source: Source, backward: bool) -> Array:
        """The last map; `backward` keeps what the trained parts need."""
        if source.shape[0] != 1:
            raise ValueError(f"the source has {source.shape[0]} images; whole images are streamed one by one")
        self.release()
        middle: Any = source
        if not self.features:
            self._early_used = self.early_for(source)
            middle = self._early_used.forward(Prepared(source), backward and self._through)
        self._late_used = self.late_for(middle)
        return np.asarray(self._late_used.forward(middle, backward))

    def early_for(self, source: Source) -> Streamed:
        """The early part with tiles for an image."""
        return self._fit("early", source.shape[1:3])

    def late_for(self, middle: Any) -> Streamed:
        """The late part with tiles for a map of the cut, (1, H', W', C)."""
        return self._fit("late", (int(middle.shape[1]), int(middle.shape[2])))

    def _fit(self, part: str, hw: tuple[int, int]) -> Streamed:
        """The early or late part with tiles for an image, or a map, of this size."""
        if (part, hw) not in self._fitted:
            streamed, side = (self.early, self._tile) if part == "early" else (self.late, self._cells)
            self._fitted[part, hw] = streamed.with_tile(sides(streamed, hw, side))
        return self._fitted[part, hw]

    @property
    def _cells(self) -> int:
        """Side of a tile of the cut's map."""
        return self._late_tile or cells_for(self._tile, self.stride)


def cells_for(tile: int, stride: int) -> int:
    """Side of a tile of a map, cells, for a tile of the image, px."""
    return max(LEAST_CELLS, WIDER * tile // stride)


def sides(stream: Streamed, hw: tuple[int, int], tile: int) -> list[int]:
    """A tile for every segment: `tile` for the image's, cells in proportion for those behind it.

    Args:
        stream: a network.
        hw: size of its image.
        tile: px of the image.
    """
    found, known = [], sizes(stream.graph, hw)
    for segment in stream.segments_of(hw):
        if segment.targets:
            maps = [v for v in segment.inputs if v.rank == 4 and not v.small]
            finest = max((known[0][v.index] for v in maps), default=hw[0])
            stride = max(1, round(hw[0] / finest))
            found.append(tile if stride == 1 else cells_for(tile, stride))
    return found
