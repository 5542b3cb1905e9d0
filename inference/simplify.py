"""Simplification of all outlines of a map at once: a border between two regions remains one line.

Borders are cut into arcs where px of three or more classes meet, and where regions touch at a corner; each arc is
simplified once for all its regions, so neighbors get neither gaps nor overlaps.

Own code: shapely.coverage_simplify takes half the time, but bounds areas and not distances. At the same number of
corners it moved an outline by 6 px where this keeps to 2, and it wants regions that do not touch at corners.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from slides.geometry import Pair, Points

Ints = NDArray[np.int64]
Place = Callable[[Points], Points]

# An arc whose region would change its area by more, cross itself or another region is simplified by a smaller distance.
MAX_AREA_CHANGE = 0.1
SHARES = (1.0, 0.5, 0.25)


@dataclass(frozen=True)
class _Part:
    """One arc of a ring: its number, and whether the ring runs along it backwards."""

    arc: int
    backwards: bool


class _Arcs:
    """All arcs, each once, with what is left of them at each share of the tolerance."""

    def __init__(self) -> None:
        self.corners: list[Ints] = []
        self._number: dict[bytes, int] = {}
        self.left: list[list[Ints]] = []

    def add(self, line: Ints) -> _Part:
        """Add an arc, corners (N, 2), or find it again."""
        backwards = line[::-1].tolist() < line.tolist()
        line = np.ascontiguousarray(line[::-1] if backwards else line)
        key = line.tobytes()
        if key not in self._number:
            self._number[key] = len(self.corners)
            self.corners.append(line)
        return _Part(self._number[key], backwards)

    def simplify(self, place_um: Place, tolerance_um: float) -> None:
        """Find which corners stay: by Douglas and Peucker (1973), whose ends stay.

        Each dropped corner is within the tolerance of the line between its kept neighbors; that line and the piece it
        stands for are then within it of each other. (Topology-preserving functions guarantee less.)
        """
        count = np.array([len(line) for line in self.corners])
        xy_um = place_um(np.concatenate(self.corners).astype(np.float64))
        # The third coordinate is kept and identifies the remaining corners.
        number = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        lines = shapely.linestrings(np.column_stack([xy_um, number]), indices=np.repeat(np.arange(count.size), count))
        by_share = []
        for share in SHARES:
            simple = shapely.simplify(lines, tolerance_um * share, preserve_topology=False)
            left, arc = shapely.get_coordinates(simple, include_z=True, return_index=True)
            by_share.append(np.split(left[:, 2].astype(np.int64), np.cumsum(np.bincount(arc))[:-1]))
        self.left = [[left[arc] for left in by_share] for arc in range(count.size)]

    def line(self, part: _Part, state: int) -> Ints:
        """Corners of a part without its last one, in the direction of the ring; all of them in the last state."""
        corners = self.corners[part.arc]
        if state < len(SHARES):
            corners = corners[self.left[part.arc][state]]
        return (corners[::-1] if part.backwards else corners)[:-1]


def simplified(
    exact_lv: Sequence[shapely.Polygon], label_HW: NDArray[np.uint8], place: Place, um_px_xy: Pair, tolerance_um: float
) -> list[shapely.Polygon]:
    """Simplify the outlines of all regions of a map.

    Args:
        exact_lv: exact outlines of all 4-connected regions that are wanted, px of the map.
        label_HW: the map.
        place: turns px of the map into level-0 px of the slide.
        um_px_xy: micrometers per level-0 px.
        tolerance_um: farthest that an outline and its simple form may lie from each other.

    Returns:
        Valid polygons in level-0 px, as many as given, disjoint.
    """
    if not len(exact_lv):
        return []
    nodes = _Nodes(label_HW)
    arcs = _Arcs()
    rings_of = [
        [_parts(nodes, arcs, np.asarray(ring.coords).astype(np.int64)) for ring in (one.exterior, *one.interiors)]
        for one in exact_lv
    ]
    arcs.simplify(lambda xy_lv: place(xy_lv) * np.asarray(um_px_xy), tolerance_um)
    state = np.zeros(len(arcs.corners), np.int64)
    areas = np.array([shapely.transform(one, place).area for one in exact_lv])
    polygons = np.empty(len(exact_lv), object)
    changed = np.arange(len(exact_lv))
    while changed.size:
        for number in changed:
            polygons[number] = _assembled(rings_of[number], arcs, state, place)
        wrong = _wrong(polygons, areas)
        touched = {part.arc for number in wrong for ring in rings_of[number] for part in ring}
        # Exact arcs give exact outlines, which are valid and disjoint: this ends.
        finer = np.array([arc for arc in sorted(touched) if state[arc] < len(SHARES)], np.int64)
        assert finer.size or not wrong.size, "exact outlines are valid and disjoint"
        state[finer] += 1
        moved = set(finer.tolist())
        changed = (
            np.array(
                [n for n, rings in enumerate(rings_of) if any(part.arc in moved for ring in rings for part in ring)],
                np.int64,
            )
            if moved
            else np.empty(0, np.int64)
        )
    return list(polygons)


class _Nodes:
    """Corners of a map where more than two borders meet."""

    def __init__(self, label_HW: NDArray[np.uint8]) -> None:
        padded = np.pad(label_HW, 1)
        across = (padded[:, 1:] != padded[:, :-1]).astype(np.uint8)
        down = (padded[1:] != padded[:-1]).astype(np.uint8)
        degree = across[1:] + across[:-1] + down[:, 1:] + down[:, :-1]
        y, x = (axis.astype(np.int64) for axis in np.nonzero(degree > 2))
        self._stride = 2**32
        self._by_row = y * self._stride + x  # in reading order already
        self._by_column = np.sort(x * self._stride + y)

    def holds(self, ring: Ints) -> NDArray[np.bool_]:
        """Which corners (N, 2) are nodes."""
        key = ring[:, 1] * self._stride + ring[:, 0]
        at = np.minimum(np.searchsorted(self._by_row, key), max(self._by_row.size - 1, 0))
        return self._by_row[at] == key if self._by_row.size else np.zeros(len(ring), np.bool_)

    def inserted(self, ring: Ints) -> Ints:
        """A closed ring with the nodes that lie on its sides as corners of their own."""
        start, stop = ring[:-1], ring[1:]
        level = start[:, 1] == stop[:, 1]
        parts: list[Ints] = []
        for axis, keys, sides in ((0, self._by_row, level), (1, self._by_column, ~level)):
            number = np.flatnonzero(sides)
            fixed = start[number, 1 - axis] * self._stride
            a, b = fixed + start[number, axis], fixed + stop[number, axis]
            low, high = (
                np.searchsorted(keys, np.minimum(a, b), "right"),
                np.searchsorted(keys, np.maximum(a, b), "left"),
            )
            count = np.maximum(high - low, 0)
            side = np.repeat(number, count)
            index = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + np.repeat(low, count)
            along = keys[index] % self._stride
            parts.append(np.column_stack([side, np.abs(along - start[side, axis]), along, start[side, 1 - axis]]))
        if not sum(len(part) for part in parts):
            return ring
        parts[1][:, 2:] = parts[1][:, :1:-1]
        own = np.column_stack([np.arange(len(start)), np.zeros(len(start), np.int64), start])
        every = np.concatenate([own, *parts])
        every = every[np.lexsort((every[:, 1], every[:, 0]))][:, 2:]
        return np.concatenate([every, every[:1]])


def _parts(nodes: _Nodes, arcs: _Arcs, ring: Ints) -> list[_Part]:
    """Cut a closed ring at the nodes; without any, at two far corners that do not depend on its start and direction."""
    open_ring = nodes.inserted(ring)[:-1]
    cuts = np.flatnonzero(nodes.holds(open_ring))
    if not cuts.size:
        cuts = np.lexsort((open_ring[:, 1], open_ring[:, 0]))[:1]
    turned = np.roll(open_ring, -int(cuts[0]), axis=0)
    closed = np.concatenate([turned, turned[:1]])
    ends = [*(cuts - cuts[0]).tolist(), len(turned)]
    parts = []
    for first, last in itertools.pairwise(ends):
        line = closed[first : last + 1]
        if (line[0] != line[-1]).any():
            parts.append(arcs.add(line))
        else:
            # Of equally far corners the first by x and y.
            far = ((line - line[0]) ** 2).sum(axis=1)
            middle = int(np.lexsort((line[:, 1], line[:, 0], -far))[0])
            parts += [arcs.add(line[: middle + 1]), arcs.add(line[middle:])]
    return parts


def _assembled(rings: list[list[_Part]], arcs: _Arcs, state: Ints, place: Place) -> shapely.Polygon | None:
    """Polygon of the chosen forms of its arcs; None where a ring has less than three corners."""
    lines = [np.concatenate([arcs.line(part, int(state[part.arc])) for part in ring]) for ring in rings]
    if min(map(len, lines)) < 3:
        return None
    shell, *holes = (place(line.astype(np.float64)) for line in lines)
    return shapely.Polygon(shell, holes)


def _wrong(polygons: NDArray[np.object_], areas: NDArray[np.float64]) -> Ints:
    """Numbers of polygons that are not valid, have changed too much, or meet another one."""
    bad = shapely.is_missing(polygons) | ~shapely.is_valid(polygons)
    bad |= np.nan_to_num(np.abs(shapely.area(polygons) - areas), nan=np.inf) > MAX_AREA_CHANGE * areas
    good = np.flatnonzero(~bad)
    tree = shapely.STRtree(polygons[good])
    one, other = tree.query(polygons[good], predicate="intersects")
    one, other = good[one[one < other]], good[other[one < other]]
    meet = ~shapely.touches(polygons[one], polygons[other])
    return np.asarray(np.unique(np.concatenate([np.flatnonzero(bad), one[meet], other[meet]])), np.int64)
