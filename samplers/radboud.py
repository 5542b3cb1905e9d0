"""Radboud's sampler: classes in balanced rounds, then slide, then annotation by area, then a point inside it.

Source of the idea: the patch samplers of Radboud UMC's whole-slide tools (class-balanced, annotation-weighted).
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from samplers.draw import count_before, generator, point_in_places, point_in_polygon, round_member, share
from samplers.index import SlideIndex
from samplers.patch import PatchRequest


class Sampler:
    """Draws class in balanced rounds, slide among those that have it, annotation by area, point uniform inside it.

    Class 0 of a slide without class-0 annotations is drawn from tissue outside the other classes; if any slide has
    class-0 annotations, both kinds of slides take part.

    Args:
        indexes: search index of each slide.
        seed: seed of the stream.
        classes: number of classes K.
        tumor_ratio: None for balanced rounds over all classes; otherwise the exact share of draws aimed at
            classes >= 1, which keep balanced rounds among themselves.

    Raises:
        ValueError: a class that must be drawn is on no slide.
    """

    max_redraws = 10  # of places in tissue; places inside an annotation are kept, blank or not

    def __init__(self, indexes: Sequence[SlideIndex], seed: int, classes: int, tumor_ratio: Fraction | None) -> None:
        self._indexes = indexes
        self._seed = seed
        self._ratio = tumor_ratio
        self._areas = [{c: _cumulative_areas(s, c) for c in s.regions if s.regions[c]} for s in indexes]
        self._having = {
            c: [i for i, s in enumerate(indexes) if c in self._areas[i] or (c == 0 and c in s.places)]
            for c in range(classes)
        }
        wanted = set(range(classes))
        if tumor_ratio is not None:
            wanted -= {0} if tumor_ratio == 1 else set()
            wanted -= set(range(1, classes)) if tumor_ratio == 0 else set()
        missing = sorted(c for c in wanted if not self._having[c])
        if missing:
            raise ValueError(
                f"none of the {len(indexes)} training slides has class {', '.join(map(str, missing))}, which the "
                "radboud sampler must draw in every round. Check the labels and --label_map, or set --batch_tumor_ratio"
            )
        self._classes = classes

    def request(self, index: int, attempt: int = 0) -> PatchRequest:
        """Return the place to look at for (index, attempt)."""
        cls = self._class_of(index)
        rng = generator(self._seed, index, attempt)
        slide = self._having[cls][int(rng.integers(len(self._having[cls])))]
        found = self._indexes[slide]
        ends = self._areas[slide].get(cls)
        if ends is None:
            center_xy_l0 = point_in_places(found.places[cls], found.cell_l0, rng)
        else:
            annotation = min(int(np.searchsorted(ends, rng.random() * ends[-1], side="right")), len(ends) - 1)
            center_xy_l0 = point_in_polygon(found.regions[cls][annotation], rng)
        return PatchRequest(index, attempt, slide, cls, center_xy_l0, as_found=ends is not None)

    def _class_of(self, index: int) -> int:
        if self._ratio is None:
            return round_member(self._seed, index, self._classes)
        if not share(index, self._ratio):
            return 0
        return 1 + round_member(self._seed, count_before(index, self._ratio), self._classes - 1)


def _cumulative_areas(index: SlideIndex, cls: int) -> NDArray[np.float64]:
    areas: NDArray[np.float64] = np.cumsum([polygon.area for polygon in index.regions[cls]])
    return areas
