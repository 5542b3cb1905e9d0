"""Prediction of slides as one image each: the network is streamed over the region with tissue (docs/prediction.md).

Shapes: B images (1), H rows, W columns, C channels, K classes.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

import models
from artifacts.loading import LoadedModel, sized
from artifacts.metadata import UINT8_RANGE
from inference.plan import PlannedSlide
from inference.whole import EIGHTFOLD, Interval, RegionImage, Turn, TurnedImage, WholeMaps, region_of
from slides.reader import Slide, SlideError
from streaming import Streamed
from streaming.sides import kept_bytes, sides
from streaming.tiles import sizes

# Maps between segments up to this size stay in memory; larger ones are files in the scratch folder.
IN_MEMORY = 2**30
# Px; a network that can be streamed over an image of this size, in such tiles, can be over any.
CHECKED_HW = (4096, 4096)
MPX = 1e6

Change = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]


@dataclass(frozen=True)
class StreamOptions:
    """Parameters of a streamed prediction.

    Attributes:
        tile: side of a tile, px.
        workers: threads that read.
        strict: whether px that cannot be read are an error.
        eightfold: mean over the eight orientations of the image.
    """

    tile: int
    workers: int = 1
    strict: bool = False
    eightfold: bool = False


class StreamedNetwork:
    """A trained network that sees the whole tissue of a slide at once.

    Args:
        loaded: the model.
        options: parameters.

    Raises:
        ValueError: it cannot be streamed, with the reason and what to do instead; the tile is too small.
    """

    def __init__(self, loaded: LoadedModel, options: StreamOptions) -> None:
        self._loaded, self._options = loaded, options
        self._orientations = EIGHTFOLD if options.eightfold else EIGHTFOLD[:1]
        # By rows and columns of images; of a network for any size one by None.
        self._streams: dict[tuple[int, int] | None, tuple[keras.Model, Streamed]] = {}
        if loaded.info.context_um_px is not None:
            raise ValueError(
                "--stream: the model takes a second, coarser view around every window, which a whole slide does not "
                "have; omit --stream"
            )
        try:
            stream = self._laid_out(CHECKED_HW, None)
        except ValueError as error:
            raise ValueError(f"--stream {options.tile}: {error}") from error
        (made,) = stream.graph.outputs
        given = tuple(cells[made.index] for cells in sizes(stream.graph, CHECKED_HW))
        if given != CHECKED_HW:
            raise ValueError(f"--stream: {loaded.path} does not answer for every px; omit --stream")

    def mpx(self, planned: PlannedSlide) -> int:
        """Size of what is predicted of a slide, Mpx, rounded up."""
        region = region_of(planned, self._margin)
        return 0 if region is None else int(np.ceil(region.hw[0] * region.hw[1] / MPX))

    @property
    def _margin(self) -> int:
        """Px around the tissue: its border sees as much as the middle of a window did in training."""
        return self._loaded.info.img_size // 2

    def predict(
        self,
        slide: Slide,
        planned: PlannedSlide,
        folder: Path,
        change: Change | None,
        progress: Callable[[int], object],
    ) -> None:
        """Predict a slide and write its maps to its scratch folder (`inference.whole.WholeCells` reads them).

        Args:
            slide: the slide.
            planned: its tissue and map.
            folder: scratch folder of the slide.
            change: what is done to its px; None: nothing.
            progress: called after every tile with the number of Mpx that are done since the last call.

        Raises:
            SlideError: the folder has no room for the maps between segments; with `strict`, px cannot be read.
            OSError: the folder cannot be written.
        """
        info = self._loaded.info
        region = region_of(planned, self._margin)
        maps = WholeMaps(folder, planned, region, info.classes, len(self._orientations))
        if region is None:
            maps.finish(None)
            return
        image = RegionImage(
            slide, planned.grid, region, _preparation(info.input_range, change), self._options.workers,
            self._options.strict,
        )  # fmt: skip
        turns = [Turn(turns, flipped, region.hw) for turns, flipped in self._orientations]
        seen = {turn.hw_seen for turn in turns}
        self._streams = {hw: one for hw, one in self._streams.items() if hw is None or hw in seen}
        for number, turn in enumerate(turns):
            stream = self._laid_out(turn.hw_seen, folder)
            parts = stream.layout(turn.hw_seen).parts
            tiles = sum(len(part.rows) * len(part.columns) for part in parts)
            meter = _Meter(self.mpx(planned), number, len(turns), tiles, progress)
            source = image if turn == Turn(0, False, region.hw) else TurnedImage(image, turn)
            stream.deliver(source, _Probabilities(maps, turn, info.output), meter.tile)
            meter.end()
        maps.finish(image)

    def _laid_out(self, hw: tuple[int, int], folder: Path | None) -> Streamed:
        """The network for images of `hw` px, with its tiles and a place for maps between its segments."""
        key = None if None in self._streams else hw
        if key not in self._streams:
            network = sized(self._loaded, hw)
            keep = models.kept_when_streamed(network)
            stream = Streamed(network, tile=self._options.tile, segments=keep, dropout="inactive")
            key = None if tuple(network.inputs[0].shape[1:3]) == (None, None) else hw
            self._streams[key] = network, stream
        network, stream = self._streams[key]
        if network is not self._loaded.source:  # --adapt_bn changes it for every slide
            network.set_weights(self._loaded.source.get_weights())
        tile = sides(stream, hw, self._options.tile)
        scratch = None if folder is None else _scratch(kept_bytes(stream, hw), folder)
        laid_out = stream.with_tile(tile, scratch)
        laid_out.layout(hw)
        return laid_out


def _scratch(needed: int, folder: Path) -> Path | None:
    """Where maps between segments are kept; None: in memory.

    Raises:
        SlideError: the folder has no room for them.
    """
    if needed <= IN_MEMORY:
        return None
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise SlideError(
            f"{folder}: {_size(needed)} are needed for maps between the segments of the network, {_size(free)} are "
            "free; take a coarser --resolution, another --out, or omit --stream"
        )
    return folder


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _preparation(input_range: tuple[float, float], change: Change | None) -> Callable[[NDArray[np.uint8]], Any]:
    """What is done to px before the network takes them, as `LoadedModel.graph` does it."""
    low, high = input_range

    def prepare(image_BHWC: NDArray[np.uint8]) -> Any:
        if change is not None:
            image_BHWC = np.stack([change(image_HWC) for image_HWC in image_BHWC])
        if input_range == UINT8_RANGE:
            return image_BHWC
        return image_BHWC.astype(np.float32) * np.float32((high - low) / 255.0) + np.float32(low)

    return prepare


@dataclass(frozen=True)
class _Probabilities:
    """Takes the output of a network in one orientation, box by box (`streaming.passes.Sink`).

    Attributes:
        maps: where probabilities go.
        turn: the orientation.
        output: what the network gives, `logits` or `probabilities`.
    """

    maps: WholeMaps
    turn: Turn
    output: str

    def wants(self, rows: Interval, columns: Interval) -> bool:
        """See `WholeMaps.wants`."""
        return self.maps.wants(*self.turn.region_from_seen(rows, columns))

    def take(self, rows: Interval, columns: Interval, box_BHWC: NDArray[Any]) -> None:
        """Turn a box back and write its probabilities."""
        out_HWK = tf.cast(box_BHWC[0], tf.float32)
        p_HWK = (out_HWK if self.output == "probabilities" else tf.nn.softmax(out_HWK)).numpy()
        self.maps.take(*self.turn.region_from_seen(rows, columns), self.turn.back(p_HWK))


class _Meter:
    """Turns tiles done into Mpx done.

    Args:
        mpx: of all orientations together.
        number: of this orientation.
        orientations: how many there are.
        tiles: of this orientation.
        progress: called with what was done since the last call.
    """

    def __init__(self, mpx: int, number: int, orientations: int, tiles: int, progress: Callable[[int], object]) -> None:
        self._first, self._last = mpx * number // orientations, mpx * (number + 1) // orientations
        self._tiles, self._progress = tiles, progress
        self._done, self._told = 0, self._first

    def tile(self) -> None:
        """One tile more is done."""
        self._done = min(self._done + 1, self._tiles)
        self._tell(self._first + (self._last - self._first) * self._done // self._tiles)

    def end(self) -> None:
        """All tiles are done or were not wanted."""
        self._tell(self._last)

    def _tell(self, mpx: int) -> None:
        self._progress(mpx - self._told)
        self._told = mpx
