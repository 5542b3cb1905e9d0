"""How the slides and labels of a run are read: one object that every program passes down to where files are opened."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from slides.filled import FilledSlide
from slides.reader import Slide
from slides.truth.annotation import DEFAULT_LABEL_MAP
from slides.truth.interface import Truth, open_truth


@dataclass(frozen=True)
class Reading:
    """How slides and labels are read. Hashable, and its fields are JSON types: preprocessing stores a hash of them.

    Attributes:
        label_map: pairs of annotation group (lower case) and class, in painting order.
        ignore_groups: annotation groups to skip, lower case.
        mask_values: pairs of mask value and class; None: every value but 0 is class 1.
        um_px: spacing of level 0, um per px, instead of what the slides say; None to use theirs.
    """

    label_map: tuple[tuple[str, int], ...] = tuple(DEFAULT_LABEL_MAP.items())
    ignore_groups: tuple[str, ...] = ("none",)
    mask_values: tuple[tuple[int, int], ...] | None = None
    um_px: float | None = None

    @property
    def class_of_group(self) -> dict[str, int]:
        """`label_map` as a dictionary, in painting order."""
        return dict(self.label_map)

    @property
    def class_of_value(self) -> dict[int, int] | None:
        """`mask_values` as a dictionary."""
        return None if self.mask_values is None else dict(self.mask_values)

    def open_slide(self, path: Path) -> Slide:
        """Open a slide; see `Slide` for errors."""
        return Slide(path, um_px=self.um_px)

    def open_filled(self, path: Path) -> FilledSlide:
        """Open a slide of which px that cannot be decoded are white; see `Slide` for errors."""
        return FilledSlide(path, um_px=self.um_px)

    def open_truth(self, label_path: Path | None, slide: Slide) -> Truth:
        """Open the truth of a slide; see `interface.open_truth` for errors."""
        return open_truth(label_path, slide, self.class_of_group, self.ignore_groups, self.class_of_value)
