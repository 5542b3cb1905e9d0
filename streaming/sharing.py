"""One image shared by several ranks: who does which tile, and how what they made comes together.

Every rank has the same image and the same network, and does some of the tiles. A kept map is zero on a rank where the
tile is another's, so the sum over ranks is the map, to the bit: bits travel as integers, and nothing is rounded. So is
the part of a mean that every tile gives; the parts are then added up in the order of tiles, as one rank does.
Gradients are sums over tiles, and their order is another one: these are rounded differently.

Tiles of one value with one result, such as white margins, go to one rank and are computed once. The others are shared
out by their multiplications, the most expensive first, each to the rank that has the least to do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from streaming.nodes import Node

Array = NDArray[Any]
PIECE = 2**24  # numbers of one message: 64 MiB in float32, so that maps in files stay in files


class Sharing(Protocol):
    """The ranks that share an image; `parallel.comm.Comm` is one.

    All ranks make the same calls in the same order.

    Attributes:
        rank: counts from 0.
        size: number of ranks.
    """

    rank: int
    size: int

    def sum(self, tensors: Sequence[Any]) -> list[Any]:
        """Sum of each array over ranks, the same numbers on every rank; all of one type."""
        ...


class Alone:
    """One rank, which does all."""

    rank, size = 0, 1

    def sum(self, tensors: Sequence[Any]) -> list[Any]:
        """See `Sharing.sum`."""
        return list(tensors)


def completed(sharing: Sharing, array: Array) -> Array:
    """Fill an array, in its place, of which every number is zero on all ranks but one, or on all.

    Args:
        sharing: the ranks.
        array: of any type; of one shape on every rank.

    Returns:
        `array`.
    """
    if sharing.size == 1 or not array.size:
        return array
    if not array.flags.c_contiguous:
        array[...] = completed(sharing, np.ascontiguousarray(array))
        return array
    # Integers: 0 + x has all bits of x, a NaN's and the sign of -0 as well.
    bytes_N = array.reshape(-1).view(np.uint8)
    for start in range(0, bytes_N.size, 4 * PIECE):
        piece = bytes_N[start : start + 4 * PIECE]
        words = np.zeros(-(-piece.size // 4), np.int32)
        words.view(np.uint8)[: piece.size] = piece
        piece[:] = np.asarray(sharing.sum([words])[0]).view(np.uint8)[: piece.size]
    return array


def added(sharing: Sharing, array: Array) -> Array:
    """Add up an array over ranks, in its place; the array."""
    if sharing.size == 1:
        return array
    if not array.flags.c_contiguous:
        array[...] = added(sharing, np.ascontiguousarray(array))
        return array
    flat = array.reshape(-1)
    for start in range(0, flat.size, PIECE):
        piece = flat[start : start + PIECE]
        piece[:] = np.asarray(sharing.sum([np.array(piece)])[0])
    return array


def summed(sharing: Sharing, tensors: Sequence[Any]) -> list[Any]:
    """Sums of tensors over ranks; a message for each type, since one takes no two."""
    found = list(tensors)
    for kind in dict.fromkeys(x.dtype for x in tensors):
        places = [place for place, x in enumerate(tensors) if x.dtype == kind]
        for place, total in zip(places, sharing.sum([tensors[place] for place in places]), strict=True):
            found[place] = total
    return found


def only_first(sharing: Sharing, array: Array) -> Array:
    """Before `added`: what the ranks have in common already stays on rank 0 alone; the array."""
    if sharing.rank:
        array[...] = 0
    return array


def check_alike(sharing: Sharing, shape: Sequence[int]) -> None:
    """All ranks must stream an image of one shape.

    Raises:
        ValueError: on every rank, where they do not.
    """
    if sharing.size == 1:
        return
    shapes = np.zeros((sharing.size, len(shape)), np.int64)
    shapes[sharing.rank] = shape
    other = next((found for found in completed(sharing, shapes) if not np.array_equal(found, shapes[0])), None)
    if other is not None:
        raise ValueError(
            f"ranks share one image, but rank 0's has shape {tuple(shapes[0].tolist())} and another's "
            f"{tuple(other.tolist())}; give all ranks the same image"
        )


def labels(sharing: Sharing, likeness: Callable[[int], Any], count: int) -> list[bytes | None]:
    """Equal for tiles with one result; None for those that are like no other.

    Args:
        sharing: the ranks; each looks at some of the tiles.
        likeness: of a tile by its number: equal for those with one result, or None.
        count: number of tiles.
    """
    found = np.zeros((count, 2), np.int64)
    for number in range(sharing.rank, count, sharing.size):
        same = likeness(number)
        if same is not None:
            found[number] = np.frombuffer(blake2b(repr(same).encode(), digest_size=16).digest(), np.int64)
    return [row.tobytes() if row.any() else None for row in completed(sharing, found)]


def owners(costs: Sequence[float], same: Sequence[Any], size: int) -> list[int]:
    """The rank that does each tile.

    Args:
        costs: of every tile; 0 for one without work.
        same: equal for tiles that are computed together, for the cost of one, by the rank that does the first of them;
            None for others.
        size: number of ranks.
    """
    first: dict[Any, int] = {}
    leader = [number if s is None else first.setdefault(s, number) for number, s in enumerate(same)]
    load = [0.0] * size
    found = [0] * len(costs)
    for number in sorted(set(leader), key=lambda n: (-costs[n], n)):
        found[number] = load.index(min(load))
        load[found[number]] += costs[number]
    return [found[number] for number in leader]


class Totals:
    """Sums over the image, from what every tile adds, in the order of tiles however many ranks there are.

    Args:
        sharing: the ranks.
        sums: the operations.
        images: B.
        tiles: number of tiles.
    """

    def __init__(self, sharing: Sharing, sums: Sequence[Node], images: int, tiles: int) -> None:
        self._sharing = sharing
        kept = tiles if sharing.size > 1 else 1
        shapes = [(kept, images, *([2] if node.moments else []), node.inputs[0].channels) for node in sums]
        self._parts = [np.zeros(shape, np.float64) for shape in shapes]

    def add(self, tile: int, parts: Sequence[Array]) -> None:
        """What a tile adds to every sum."""
        for total, part in zip(self._parts, parts, strict=True):
            total[tile if len(total) > 1 else 0] += part

    def all(self) -> list[Array]:
        """The sums."""
        return [sum(completed(self._sharing, parts), np.zeros(parts.shape[1:])) for parts in self._parts]
