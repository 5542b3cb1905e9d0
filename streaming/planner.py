"""What a stream will need, before anything starts: memory and multiplications, and the tiles that fit into a memory.

Peak memory of a training step = the process before it + kept maps and their gradients + gradients of variables + the
tiles at the worst moment (`streaming.costs`). What remains of a given memory takes intermediate results of tiles.

    python -m streaming.planner --model resnet34 --size 8192 --memory 6
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import keras
import numpy as np

from streaming.costs import Costs, kept_tiles, peak_bytes, wanted, whole_multiplications, width
from streaming.segments import Segment
from streaming.storage import wide
from streaming.stream import Streamed
from streaming.tiles import bands, sizes

# Sides of tiles to choose from, in cells of kept maps.
CELLS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)


@dataclass(frozen=True)
class Estimate:
    """What one training step of an image needs.

    Attributes:
        tile: of `Streamed`.
        segments: of `Streamed`.
        spare: of `Streamed`.
        tiles: numbers along rows and columns, for each segment.
        kept: tiles of each segment that are not computed again in the backward pass.
        bytes: memory on top of the process before the step.
        maps: of them those of maps between segments and their gradients, which grow with the image.
        multiplications: of all tiles, forward and backward.
        whole: of the whole image's own step.
    """

    tile: tuple[int, ...]
    segments: tuple[str, ...]
    spare: int
    tiles: tuple[tuple[int, int], ...]
    kept: tuple[int, ...]
    bytes: int
    maps: int
    multiplications: int
    whole: int

    @property
    def factor(self) -> float:
        """Multiplications over those of the whole image's own step."""
        return self.multiplications / self.whole

    def seconds(self, rate: float) -> float:
        """Time of a step at a rate of multiplications per second, see `rate`."""
        return self.multiplications / rate

    def __str__(self) -> str:
        cut = f", kept: {', '.join(self.segments)}" if self.segments else ""
        tiles = " + ".join(f"{rows} x {columns}" for rows, columns in self.tiles)
        return (
            f"tile {','.join(map(str, self.tile))}{cut}: {tiles} tiles, {self.bytes / 2**30:.2f} GiB, "
            f"{self.factor:.2f} times the multiplications of the whole image"
        )


def estimate(stream: Streamed, hw: tuple[int, int], images: int = 1, finish: bool = False) -> Estimate:
    """What a training step of a stream needs.

    Args:
        stream: the streamed network, with its tiles and segments.
        hw: rows and columns of the image, px.
        images: B.
        finish: the backward pass takes a `streaming.trace.Finish`: no late map, the last segment once.

    Raises:
        ValueError: a tile is too small, see `Streamed.layout`.
    """
    layout = stream.layout(hw)
    parts = [part for part in layout.parts if part.segment.targets]
    found = [part.costs for part in parts]
    kept = kept_tiles(found, stream.spare / images)
    done = sum(cost.multiplications(count) for cost, count in zip(found, kept, strict=True))
    if finish:
        done -= found[-1].multiplications(0) - found[-1].multiplications(len(found[-1].forward))
        kept[-1] = 0
    maps = images * _map_bytes(stream, hw, finish)
    return Estimate(
        tile=(stream.tile,) if isinstance(stream.tile, int) else tuple(stream.tile),
        segments=tuple(stream.segments),
        spare=stream.spare,
        tiles=tuple((len(part.rows), len(part.columns)) for part in parts),
        kept=tuple(kept),
        bytes=int(_variable_bytes(stream) + maps + images * peak_bytes(found, kept)),
        maps=maps,
        multiplications=images * done,
        whole=images * _whole(stream, hw),
    )


def plan(
    model: keras.Model,
    hw: tuple[int, int],
    memory: int,
    cut: str | Sequence[str] | None = None,
    segments: Sequence[Sequence[str]] = ((),),
    tiles: Sequence[int] = (256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192),
    **options: Any,
) -> Estimate:
    """The stream with the fewest multiplications that fits into a memory.

    Larger tiles overlap less; intermediate results that are kept save the second forward pass. Both need memory: all
    combinations are compared.

    Args:
        model: see `Streamed`.
        hw: rows and columns of the image, px.
        memory: bytes for a step, on top of those of the process before it.
        cut: see `Streamed`.
        segments: choices of maps that may be kept, such as `[(), ("layer2_3",)]`.
        tiles: sides to choose from, for every segment by itself.
        options: of `Streamed`.

    Raises:
        ValueError: nothing fits; says the least that would.
    """
    fitting: list[Estimate] = []
    least: list[Estimate] = []
    for keep in segments:
        stream = Streamed(model, cut, max(tiles), keep, **options)
        ways = [_ways(stream, segment, hw, sorted(tiles)) for segment in stream.segments_of(hw) if segment.targets]
        if not all(ways):
            continue
        least.append(estimate(stream.with_tile([min(w, key=lambda t: t[1].peak)[0] for w in ways]), hw))
        best = _best(ways, memory - _fixed_bytes(stream, hw, 1))
        if best is not None:
            fitting.append(estimate(stream.with_tile(best[0], spare=best[1]), hw))
    if not least:
        raise ValueError(f"no tile of {min(tiles)} to {max(tiles)} px is large enough; give larger ones")
    if not fitting:
        smallest = min(least, key=lambda e: e.bytes)
        raise ValueError(
            f"nothing fits into {memory / 2**30:.2f} GiB; the least is {smallest}. Give more memory, keep other maps, "
            "or take a coarser image"
        )
    return min(fitting, key=lambda e: (e.multiplications, e.bytes))


def alike(stream: Streamed, hw: tuple[int, int], tile: int, cells: Sequence[int] = CELLS) -> list[int]:
    """Tiles of all segments that go with one of the image: fewest multiplications for no more memory than that one.

    Args:
        stream: the streamed network, with any tiles.
        hw: rows and columns of the image, px.
        tile: of the segment that reads the image, px.
        cells: sides to choose from for the other segments.

    Raises:
        ValueError: `tile` is too small; names the smallest that works.
    """
    first, *others = [segment for segment in stream.segments_of(hw) if segment.targets]
    most = stream.part(first, *bands(first, sizes(stream.graph, hw), tile)).costs.peak
    found = [tile]
    for segment in others:
        ways = _ways(stream, segment, hw, cells)
        if not ways:
            end = segment.targets[-1].name
            raise ValueError(f"no tile of {min(cells)} to {max(cells)} cells is large enough for {end}")
        fitting = [way for way in ways if way[1].peak <= most]
        least = min(ways, key=lambda way: way[1].peak)
        found.append(min(fitting or [least], key=lambda way: (way[1].multiplications(0), way[1].peak))[0])
    return found


Way = tuple[int, Costs]  # a tile's side and what its tiles cost


def _ways(stream: Streamed, segment: Segment, hw: tuple[int, int], tiles: Sequence[int]) -> list[Way]:
    """Tiles of a segment that work."""
    found = []
    cells = sizes(stream.graph, hw)
    for side in tiles:
        try:
            found.append((side, stream.part(segment, *bands(segment, cells, side)).costs))
        except ValueError:  # noqa: PERF203 - a handful of sides
            continue
    return found


def _best(ways: Sequence[Sequence[Way]], room: float) -> tuple[list[int], int] | None:
    """Tiles with the fewest multiplications within `room` bytes, and the spare bytes that remain; None if none fit."""
    best: tuple[tuple[float, float], list[int], int] | None = None
    for chosen in product(*([way for way in w if way[1].peak <= room] for w in ways)):
        found = [cost for _, cost in chosen]
        spare = int(room - max(cost.peak for cost in found))
        kept = kept_tiles(found, spare)
        done = sum(cost.multiplications(count) for cost, count in zip(found, kept, strict=True))
        rank = (done, peak_bytes(found, kept))
        if best is None or rank < best[0]:
            best = rank, [side for side, _ in chosen], spare
    return None if best is None else best[1:]


def _fixed_bytes(stream: Streamed, hw: tuple[int, int], images: int) -> int:
    """Kept maps and their gradients, gradients of variables."""
    return _variable_bytes(stream) + images * _map_bytes(stream, hw)


def _variable_bytes(stream: Streamed) -> int:
    """Gradients of variables."""
    return 2 * sum(width(v.dtype) * int(np.prod(v.shape)) for v in stream.variables)


def _map_bytes(stream: Streamed, hw: tuple[int, int], finish: bool = False) -> int:
    """Kept maps of an image and their gradients."""
    cells = sizes(stream.graph, hw)
    needed = wanted(stream.graph, {id(v) for v in stream.variables}, False)
    total = 0
    segments = stream.segments_of(hw)
    for value in (value for segment in segments[: len(segments) - finish] for value in segment.maps):
        numbers = width(value.dtype) + (width(wide(value.dtype)) if value.index in needed else 0)
        total += cells[0][value.index] * cells[1][value.index] * value.channels * numbers
    return total


def _whole(stream: Streamed, hw: tuple[int, int]) -> int:
    """Multiplications of the whole image's own step."""
    cells = sizes(stream.graph, hw)
    trained = {id(v) for v in stream.variables}
    needed = wanted(stream.graph, trained, False)
    places = ((node, cells[0][node.output.index] * cells[1][node.output.index]) for node in stream.graph.nodes)
    return sum(whole_multiplications(node, count, needed, trained) for node, count in places)


@dataclass(frozen=True)
class Forecast:
    """What a training step will need, by this machine.

    Attributes:
        estimate: memory and multiplications.
        before: bytes of this process before the step.
        rate: multiplications per second, measured.
        measured: rows and columns of the image it was measured with, px.
    """

    estimate: Estimate
    before: int
    rate: float
    measured: tuple[int, int]

    @property
    def seconds(self) -> float:
        """Of a step."""
        return self.estimate.seconds(self.rate)

    def __str__(self) -> str:
        rows, columns = self.measured
        return (
            f"{self.estimate}; {(self.before + self.estimate.bytes) / 2**30:.2f} GiB with the process; "
            f"{self.seconds:.1f} s forward and backward, at {self.rate / 1e9:.0f} G multiplications per second, "
            f"measured at {rows} x {columns} px"
        )


def forecast(stream: Streamed, hw: tuple[int, int], images: int = 1, px: int = 512) -> Forecast:
    """Memory and time of a training step, time from two short steps of a small image: the first also traces.

    What is traced serves the stream afterwards. A machine that does other things meanwhile gives another rate.

    Args:
        stream: the streamed network, with its tiles and segments.
        hw: rows and columns of the image, px.
        images: B.
        px: largest side of the small image; a network of one size is measured with that.

    Raises:
        ValueError: a tile is too small, see `Streamed.layout`.
    """
    found = estimate(stream, hw, images)
    before = resident_bytes()
    small = stream.small_size(hw, px)
    trial = stream.alone()
    channels = stream.graph.values[0].channels
    image = np.random.default_rng(0).uniform(-1, 1, (1, *small, channels)).astype(np.float32)
    seconds = 0.0
    for _ in range(2):
        start = time.perf_counter()
        late = trial.forward(image)
        trial.backward(late)
        seconds = time.perf_counter() - start
    trial.release()
    return Forecast(found, before, estimate(trial, small).multiplications / seconds, small)


def resident_bytes() -> int:
    """Memory of this process."""
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
