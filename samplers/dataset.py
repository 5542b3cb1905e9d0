"""A set of slides opened for sampling: slides, truths and search indexes, in the same order."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from samplers.index import SlideIndex, index_slide
from samplers.patch import PatchReader
from slides.geometry import Pair
from slides.reader import SNAP, Slide
from slides.stain import Normalization
from slides.truth.interface import Truth
from slides.truth.reading import Reading


class SlideAndLabel(Protocol):
    """Files of one slide; `label_path` is None for a normal slide, `um_px` if no spacing is given for it alone."""

    @property
    def slide_path(self) -> Path: ...  # noqa: D102

    @property
    def label_path(self) -> Path | None: ...  # noqa: D102

    @property
    def um_px(self) -> Pair | None: ...  # noqa: D102


@dataclass(frozen=True)
class SlideSet:
    """Slides of training or validation; positions agree in all three.

    Attributes:
        slides: opened descriptions.
        truths: their truth.
        indexes: their search indexes.
    """

    slides: list[Slide]
    truths: list[Truth]
    indexes: list[SlideIndex]

    def reader(
        self,
        img_size: int,
        um_px: float,
        context_um_px: float | None = None,
        stains: Sequence[Normalization | None] | None = None,
    ) -> PatchReader:
        """Return a reader of patches; the arguments are those of `PatchReader`."""
        return PatchReader(self.slides, self.truths, img_size, um_px, context_um_px, stains)


@dataclass(frozen=True)
class SetOptions:
    """How a set of slides is read and indexed.

    Attributes:
        reading: how slides and labels are read.
        bb_downsample: pyramid level of the search grid.
        classes: number of classes K.
        tolerance: share of the spacing asked for within which a slide's level is taken as it is.
    """

    reading: Reading
    bb_downsample: int
    classes: int
    tolerance: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """Return JSON types, for `from_json`."""
        return {
            "label_map": self.reading.class_of_group,
            "ignore_groups": list(self.reading.ignore_groups),
            "mask_values": self.reading.class_of_value or {},
            "um_px_l0": self.reading.um_px,
            "bb_downsample": self.bb_downsample,
            "classes": self.classes,
            "tolerance": self.tolerance,
        }

    @staticmethod
    def from_json(stored: Mapping[str, Any]) -> SetOptions:
        """Return the inverse of `as_json`."""
        values = tuple((int(value), int(cls)) for value, cls in stored["mask_values"].items())
        reading = Reading(
            label_map=tuple(stored["label_map"].items()),
            ignore_groups=tuple(stored["ignore_groups"]),
            mask_values=values or None,
            um_px=stored["um_px_l0"],
        )
        # Runs of before had no tolerance.
        tolerance = float(stored.get("tolerance", 0.0))
        return SetOptions(reading, int(stored["bb_downsample"]), int(stored["classes"]), tolerance)


Exchange = Callable[[Callable[[], list[SlideIndex]]], list[list[SlideIndex]]]


def open_set(cases: Sequence[SlideAndLabel], options: SetOptions, rank: int, size: int, exchange: Exchange) -> SlideSet:
    """Open every slide and its truth, and build the search indexes, divided among ranks.

    Args:
        cases: files of each slide.
        options: how slides are read and indexed.
        rank: this rank.
        size: number of ranks.
        exchange: runs its argument on every rank and returns the results of all in rank order.

    Raises:
        ValueError: a slide or label is unreadable; the message names it.
    """
    slides: list[Slide] = []
    truths: list[Truth] = []

    def mine() -> list[SlideIndex]:
        for case in cases:
            slides.append(options.reading.open_slide(case.slide_path, case.um_px).taking_levels(options.tolerance))
            truths.append(options.reading.open_truth(case.label_path, slides[-1]))
        # Ranks: reading thumbnails is the slow part, so each rank does every size-th slide
        return [
            index_slide(slides[i], truths[i], options.bb_downsample, options.classes)
            for i in range(rank, len(cases), size)
        ]

    parts = exchange(mine)
    return SlideSet(slides, truths, [parts[i % size][i // size] for i in range(len(cases))])


def check_field_of_view(slide_set: SlideSet, img_size: int, um_px: float) -> None:
    """Refuse a field of view that no slide can fill.

    Raises:
        ValueError: the patch is wider and higher than every slide.
    """
    side_um = img_size * um_px
    largest_um = max(
        max(size * um for size, um in zip(s.size_xy_l0, s.um_px_xy_l0, strict=True)) for s in slide_set.slides
    )
    if side_um > largest_um:
        fitting = int(largest_um / um_px) // 128 * 128
        coarsest = math.floor(largest_um / img_size * 100) / 100  # rounded down, so that following it helps
        raise ValueError(
            f"--img_size {img_size} at --resolution {um_px:g} um/px sees {side_um:.0f} um, more than any of the "
            f"{len(slide_set.slides)} slides has ({largest_um:.0f} um): choose "
            + (f"at most {fitting} px, or a finer --resolution" if fitting else f"--resolution {coarsest:g} or finer")
        )


def taken_levels(slides: Sequence[Slide], um_px: float) -> list[str]:
    """Lines for a log: how many slides are read at a level's own spacing instead of at `um_px`; none where none is."""
    found = [um for um in (slide.spacing(um_px) for slide in slides) if not math.isclose(um, um_px, rel_tol=SNAP)]
    if not found:
        return []
    span = f"{min(found):.4g}" + (f" to {max(found):.4g}" if f"{min(found):.4g}" != f"{max(found):.4g}" else "")
    return [
        f"{len(found)} of {len(slides)} slides are read at a level's own spacing, {span} um/px, not at {um_px:g}: "
        "within --resolution_tolerance"
    ]
