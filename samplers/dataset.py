"""A set of slides opened for sampling: slides, truths and search indexes, in the same order."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from samplers.index import SlideIndex, index_slide
from samplers.patch import PatchReader
from slides.reader import Slide
from slides.truth.interface import Truth, open_truth


class SlideAndLabel(Protocol):
    """Files of one slide; `label_path` is None for a normal slide."""

    @property
    def slide_path(self) -> Path: ...  # noqa: D102

    @property
    def label_path(self) -> Path | None: ...  # noqa: D102


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

    def reader(self, img_size: int, um_px: float, context_um_px: float | None = None) -> PatchReader:
        """Return a reader of patches of `img_size` px at `um_px`, with a second view at `context_um_px` if given."""
        return PatchReader(self.slides, self.truths, img_size, um_px, context_um_px)


@dataclass(frozen=True)
class Reading:
    """How slides and labels are to be read.

    Attributes:
        label_map: annotation group -> class, in painting order.
        ignore_groups: annotation groups to skip.
        mask_values: mask value -> class; None: non-zero is 1.
        um_px_l0: spacing of level 0, um per px, in place of what all slides say; None to believe them.
        bb_downsample: pyramid level of the search grid.
        classes: number of classes K.
    """

    label_map: Mapping[str, int]
    ignore_groups: Sequence[str]
    mask_values: Mapping[int, int] | None
    um_px_l0: float | None
    bb_downsample: int
    classes: int

    def as_json(self) -> dict[str, Any]:
        """JSON types, for `from_json`."""
        return asdict(self) | {"label_map": dict(self.label_map), "mask_values": dict(self.mask_values or {})}

    @staticmethod
    def from_json(stored: Mapping[str, Any]) -> Reading:
        """Inverse of `as_json`."""
        values = {int(value): int(cls) for value, cls in stored["mask_values"].items()}
        return Reading(**{**stored, "mask_values": values or None})


Exchange = Callable[[Callable[[], list[SlideIndex]]], list[list[SlideIndex]]]


def open_set(cases: Sequence[SlideAndLabel], how: Reading, rank: int, size: int, exchange: Exchange) -> SlideSet:
    """Open every slide and its truth, and build the search indexes, divided among ranks.

    Args:
        cases: files of each slide.
        how: label map, spacing, search level.
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
            slides.append(Slide(case.slide_path, um_px=how.um_px_l0))
            truths.append(open_truth(case.label_path, slides[-1], how.label_map, how.ignore_groups, how.mask_values))
        # Ranks: reading thumbnails is the slow part, so each rank does every size-th slide
        return [
            index_slide(slides[i], truths[i], how.bb_downsample, how.classes) for i in range(rank, len(cases), size)
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
