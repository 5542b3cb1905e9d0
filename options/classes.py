"""Which class a label's areas and mask values are of, for every program that reads labels."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from options.fields import Group, option
from options.parser import pair, whole

if TYPE_CHECKING:
    from slides.truth.reading import Reading


@dataclass(frozen=True, kw_only=True)
class AnnotationClasses(Group):
    """Classes of annotations."""

    # Lower-case group -> class, in painting order; None for the default.
    label_map: Mapping[str, int] | None = option(
        parse=pair, nargs="+", metavar="GROUP:CLASS", stream=True,
        help="annotation group to class, painted in this order; default: CAMELYON's",
    )  # fmt: skip
    ignore_groups: tuple[str, ...] = option(
        metavar="GROUP", stream=True, help="annotation groups to skip; default: those called None"
    )

    @classmethod
    def settle(cls, given: argparse.Namespace) -> None:
        """Turn pairs into a map, and groups into lower case."""
        super().settle(given)
        given.label_map = label_map(given.label_map, given.ignore_groups)
        given.ignore_groups = tuple(group.lower() for group in given.ignore_groups or ("None",))


@dataclass(frozen=True, kw_only=True)
class MaskClasses(Group):
    """Classes of masks."""

    # None for the default.
    mask_values: Mapping[int, int] | None = option(
        parse=pair, nargs="+", metavar="VALUE:CLASS", stream=True,
        help="mask value to class (255: ignore); default: by the values of all masks",
    )  # fmt: skip

    @classmethod
    def settle(cls, given: argparse.Namespace) -> None:
        """Turn pairs into a map."""
        super().settle(given)
        given.mask_values = mask_values(given.mask_values)


# The second base gives its fields first.
@dataclass(frozen=True, kw_only=True)
class LabelMap(MaskClasses, AnnotationClasses):
    """Classes of labels."""

    def reading(self, um_px_l0: float | None) -> Reading:
        """How slides and labels are read.

        Args:
            um_px_l0: spacing of level 0, um per px, instead of the slides' own; None to use theirs.
        """
        from slides.truth.annotation import DEFAULT_LABEL_MAP
        from slides.truth.reading import Reading

        values = None if self.mask_values is None else tuple(self.mask_values.items())
        return Reading(tuple((self.label_map or DEFAULT_LABEL_MAP).items()), self.ignore_groups, values, um_px_l0)


@dataclass(frozen=True, kw_only=True)
class Classes(LabelMap):
    """Classes of labels."""

    classes: int | None = option(
        parse=whole(2, 255), help="number of classes; default: as many as --label_map and --mask_values have"
    )

    def count(self, mapped: int) -> int:
        """Number of classes K.

        Args:
            mapped: number that --label_map and --mask_values, or their defaults, have.

        Raises:
            ValueError: --classes is smaller.
        """
        if self.classes is not None and self.classes < mapped:
            raise ValueError(
                f"--classes {self.classes}: --label_map and --mask_values have class {mapped - 1}; give {mapped}"
            )
        return self.classes or mapped


def label_map(pairs: Sequence[tuple[str, int]] | None, ignored: Sequence[str] | None) -> dict[str, int] | None:
    """Groups to classes as given; None for the default.

    Args:
        pairs: of --label_map.
        ignored: of --ignore_groups; these groups leave the default map, too.

    Raises:
        ValueError: a group is named twice or also to be skipped, or no group has a class.
    """
    skipped = {group.lower() for group in ignored or ()}
    if pairs is None:
        from slides.truth.annotation import DEFAULT_LABEL_MAP  # loads geometry libraries; --help must not wait for them

        kept = {group: cls for group, cls in DEFAULT_LABEL_MAP.items() if group not in skipped}
        return kept if skipped else None
    groups = [group for group, _ in pairs]
    for wrong, why in ((skipped, "is in --ignore_groups, too"), ({g for g in groups if groups.count(g) > 1}, "twice")):
        both = [group for group in groups if group in wrong]
        if both:
            raise ValueError(f"--label_map: group {both[0]!r} {why}; name each group once")
    if not any(0 < cls < 255 for _, cls in pairs):
        raise ValueError("--label_map: no group has a class from 1 to 254, so there would be nothing to find")
    return dict(pairs)


def mask_values(pairs: Sequence[tuple[str, int]] | None) -> dict[int, int] | None:
    """Mask values to classes as given; None for the default.

    Args:
        pairs: of --mask_values.

    Raises:
        ValueError: a value is not a whole number from 0 to 255, or is named twice.
    """
    if pairs is None:
        return None
    wrong = [name for name, _ in pairs if not (name.isdecimal() and int(name) <= 255)]
    if wrong:
        raise ValueError(f"--mask_values {wrong[0]}: mask values are whole numbers from 0 to 255")
    classes = {int(name): cls for name, cls in pairs}
    if len(classes) < len(pairs):
        raise ValueError(f"--mask_values {' '.join(f'{name}:{cls}' for name, cls in pairs)}: name each value once")
    return classes
