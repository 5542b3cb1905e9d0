"""One side of a tile for a whole network: for every segment in proportion to what it reads."""

from __future__ import annotations

import tensorflow as tf

from streaming.stream import Streamed
from streaming.tiles import sizes, smallest_tile


def sides(stream: Streamed, hw: tuple[int, int], tile: int) -> list[int]:
    """Tiles of all segments that look at about as much of the image.

    A segment that reads a kept map of stride s gets `tile` / s cells of it, or the fewest that work.

    Args:
        stream: the network; its own tiles do not count.
        hw: rows and columns of the image, px.
        tile: side of a tile of the image, px.

    Returns:
        What `Streamed.with_tile` takes. The tile of the image is never enlarged: the layout refuses one that is too
        small.
    """
    found = []
    cells = sizes(stream.graph, hw)
    for segment in stream.segments_of(hw):
        if not segment.targets:
            continue
        finest, least = smallest_tile(segment, cells)
        if finest.index == 0:
            found.append(tile)
            continue
        share = max(size[finest.index] / px for size, px in zip(cells, hw, strict=True))
        found.append(max(round(tile * share), least))
    return found


def kept_bytes(stream: Streamed, hw: tuple[int, int]) -> int:
    """Most bytes of maps between segments that a forward pass holds at a time, for one image.

    What the last segment makes is not counted.

    Args:
        stream: the network.
        hw: rows and columns of the image, px.
    """
    cells = sizes(stream.graph, hw)
    segments = stream.segments_of(hw)
    most = 0
    held: dict[int, int] = {}
    for number, segment in enumerate(segments[:-1]):
        for value in segment.maps:
            places = cells[0][value.index] * cells[1][value.index]
            held[value.index] = places * value.channels * tf.as_dtype(value.dtype).size
        most = max(most, sum(held.values()))
        later = {v.index for after in segments[number + 1 :] for v in after.inputs}
        later |= {v.index for after in segments[number + 1 :] for node in after.first for v in node.inputs}
        held = {index: size for index, size in held.items() if index in later}
    return most
