"""SURF's sampler: tissue and tumor found on a thumbnail, patches centered on points drawn from it.

Source of the idea: the multi-scale sampler of SURF's public trainer; its defects (docs/data_flow.md) are fixed.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from samplers.draw import count_before, generator, point_in_places, round_member, share
from samplers.index import SlideIndex
from samplers.patch import PatchRequest


class Sampler:
    """Draws class by an exact ratio, slide uniformly among those that have it, then a point by area.

    A point is uniform over the cells of the class on the search grid (a contour drawn by its area and a uniform point
    inside it are the same distribution), jittered within its cell.

    Args:
        indexes: search index of each slide.
        seed: seed of the stream.
        classes: number of classes K.
        tumor_ratio: share of draws aimed at classes >= 1; the rest aims at class 0.

    Raises:
        ValueError: the ratio asks for a class that no slide has.
    """

    max_redraws = 10  # of places without usable tissue; masks of thumbnails have false positives

    def __init__(self, indexes: Sequence[SlideIndex], seed: int, classes: int, tumor_ratio: Fraction | None) -> None:
        assert tumor_ratio is not None, "surf draws by a ratio; its default stands in options.choices"
        self._indexes = indexes
        self._seed = seed
        self._ratio = tumor_ratio
        self._having = {c: [i for i, s in enumerate(indexes) if c in s.places] for c in range(classes)}
        self._tumor = [c for c in range(1, classes) if self._having[c]]
        if self._ratio > 0 and not self._tumor:
            raise ValueError(
                f"none of the {len(indexes)} training slides has tumor, but --batch_tumor_ratio is "
                f"{float(self._ratio):g}. Check the labels and --label_map, or set --batch_tumor_ratio 0"
            )
        if self._ratio < 1 and not self._having[0]:
            raise ValueError(
                f"none of the {len(indexes)} training slides has tissue outside its tumor, but --batch_tumor_ratio is "
                f"{float(self._ratio):g}. Add normal slides or set --batch_tumor_ratio 1"
            )

    def request(self, index: int, attempt: int = 0) -> PatchRequest:
        """Return the place to look at for (index, attempt); a redraw keeps the class, so that the ratio stays exact."""
        cls = 0
        if share(index, self._ratio):
            cls = self._tumor[round_member(self._seed, count_before(index, self._ratio), len(self._tumor))]
        rng = generator(self._seed, index, attempt)
        slide = self._having[cls][int(rng.integers(len(self._having[cls])))]
        found = self._indexes[slide]
        return PatchRequest(index, attempt, slide, cls, point_in_places(found.places[cls], found.cell_l0, rng))
