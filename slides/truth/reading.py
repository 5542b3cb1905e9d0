"""How the slides and labels of a run are read: one object that every program passes down to where files are opened."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from slides.filled import FilledSlide
from slides.geometry import Pair
from slides.reader import Slide
from slides.truth.annotation import DEFAULT_LABEL_MAP, describe
from slides.truth.interface import Truth, open_truth
from slides.truth.label import has_outlines
from slides.truth.mask_values import Counts, count_all, decide, described

CountMasks = Callable[[list[Path]], Mapping[Path, Counts]]


@dataclass(frozen=True)
class Reading:
    """How slides and labels are read. Hashable, and its fields are JSON types: preprocessing stores a hash of them.

    Attributes:
        label_map: pairs of annotation group (lower case) and class, in painting order.
        ignore_groups: annotation groups to skip, lower case.
        mask_values: pairs of mask value and class; None: every value but 0 is class 1, or `settled` decides.
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

    def settled(
        self, labels: Iterable[Path | None], count: CountMasks = count_all, names: Mapping[int, str] | None = None
    ) -> tuple[Reading, list[str]]:
        """Decide what the values of masks mean, from all masks of a set, unless `mask_values` says it.

        Args:
            labels: the labels of the whole set.
            count: counts the values of masks; it is called once, or not at all where no mask needs it.
            names: class to name, for groups of annotations; default 0 normal, 1 tumor.

        Returns:
            The reading to open these labels with, and lines that describe the classes: one for annotations and
            one for masks, where there are any.

        Raises:
            ValueError: a mask cannot be read, or its values say nothing; see `mask_values.decide`.
        """
        kinds = {path: has_outlines(path) for path in labels if path is not None}
        masks = [path for path, outlines in kinds.items() if not outlines]
        lines = [describe(self.class_of_group, names)] if len(masks) < len(kinds) else []
        if not masks:
            return self, lines
        if self.mask_values is not None:
            return self, [*lines, f"masks: {described(dict(self.mask_values))}"]
        decision = decide(count(masks))
        values = None if decision.classes is None else tuple(decision.classes.items())
        return replace(self, mask_values=values), [*lines, f"masks: {decision.text}"]

    def open_slide(self, path: Path, um_px: Pair | None = None) -> Slide:
        """Open a slide; `um_px` is a spacing of its own, if it has one. See `Slide` for errors."""
        return Slide(path, um_px=um_px or self.um_px)

    def open_filled(self, path: Path, um_px: Pair | None = None) -> FilledSlide:
        """Open a slide, as `open_slide`, of which px that cannot be decoded are white."""
        return FilledSlide(path, um_px=um_px or self.um_px)

    def open_truth(self, label_path: Path | None, slide: Slide) -> Truth:
        """Open the truth of a slide; see `interface.open_truth` for errors."""
        return open_truth(label_path, slide, self.class_of_group, self.ignore_groups, self.class_of_value)
