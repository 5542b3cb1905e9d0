"""What is to be learned of each slide: tables of labels, their checks, and the split.

A table is a CSV with the columns `slide_id` and `label` (in any order, others are ignored) and, where slides of one
patient are to stay together, `patient` or `group`. Labels are classes by any name, several yes/no answers (`1;0;1`), or
numbers.

Shapes: K outputs of the network.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from classification.label_table import Row, read_rows
from cohorts.pairing import ALL_SLIDE_SUFFIXES, Case, case_of, named
from cohorts.splits import stratified
from options.choices import TargetKind
from slides.names import composed
from system.csv_tables import counted

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", *ALL_SLIDE_SUFFIXES)
_ANSWERS = re.compile(r"\[?\s*[01](\s*[;, ]\s*[01])+\s*\]?")
_WHOLE = re.compile(r"[+-]?\d+(\.0*)?")
FEW = 3  # names in a message that only shows what names look like
QUARTILES = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Targets:
    """What the outputs of a network stand for.

    Attributes:
        kind: one of `TARGET_KINDS`.
        names: of the K outputs: classes (whole numbers sorted as numbers, else by the alphabet); `0`, `1` ... of
            yes/no answers; `value` of a number.
    """

    kind: TargetKind
    names: tuple[str, ...]

    @property
    def outputs(self) -> int:
        """K."""
        return len(self.names)

    @property
    def ordered(self) -> bool:
        """Whether the classes are whole numbers, so that some lie nearer to each other than others."""
        return self.kind == "classes" and all(_WHOLE.fullmatch(name) for name in self.names)


@dataclass(frozen=True, eq=False)
class Labeled:
    """A slide and what is to be learned of it.

    Attributes:
        slide_id: name of its image without the suffix.
        target_K: float32: 1 for its class and 0 for the others; 0 or 1 for each answer; or the number.
        group: its patient; itself where none is known.
        text: the label as the table has it.
    """

    slide_id: str
    target_K: NDArray[np.float32]
    group: str
    text: str


def read_tables(
    train_csv: Path, val_csv: Path | None = None, kind: TargetKind | None = None, num_classes: int | None = None
) -> tuple[Targets, list[Labeled], list[Labeled]]:
    """Read the labels of training and validation.

    Args:
        train_csv: the table to train on.
        val_csv: the table to validate on; without it, see `hold_out`.
        kind: None: `multilabel` where all labels look like `1;0;1`, else `classes`.
        num_classes: number of outputs; None: as many as the training labels show. With more classes than occur, the
            classes are 0 to `num_classes` - 1.

    Returns:
        What the outputs are, the slides to train on, and those to validate on, in the order of the tables.

    Raises:
        ValueError: a table or a label cannot be used; a slide is in both; validation has a class that training lacks.
    """
    train = read_rows(train_csv)
    val = read_rows(val_csv) if val_csv is not None else []
    both = sorted({row.slide_id for row in train} & {row.slide_id for row in val})
    if both:
        raise ValueError(
            f"{train_csv} and {val_csv} share {counted(len(both), 'slide')}: {named(both)}; a slide is trained on or "
            "validated on: remove it from one of them"
        )
    chosen = kind or _kind(train)
    if chosen == "classes":
        targets = Targets("classes", _classes(train, val, train_csv, val_csv, num_classes))
    elif chosen == "multilabel":
        targets = Targets("multilabel", tuple(map(str, range(_answers(train[0]).size))))
    else:
        targets = Targets("regression", ("value",))
    if num_classes is not None and num_classes != targets.outputs:
        raise ValueError(
            f"--num_classes {num_classes}, but the labels of {train_csv} have {counted(targets.outputs, 'output')} "
            f"({chosen}); give --num_classes {targets.outputs}, or leave it out"
        )
    return targets, _labeled(targets, train), _labeled(targets, val)


def matched(labeled: Sequence[Labeled], ids: Sequence[str], table: Path, where: str) -> tuple[list[Labeled], list[str]]:
    """Keep the slides that have an image.

    Args:
        labeled: slides of a table; an id may be the file name or path of its image.
        ids: of the images.
        table: the table, for messages.
        where: the images, for messages.

    Returns:
        The slides whose image is there, under the image's id, and lines on what was left out.

    Raises:
        ValueError: none is there, or two rows mean the same image.
    """
    there = set(ids)
    pairs = [(item, item.slide_id if item.slide_id in there else file_id(item.slide_id)) for item in labeled]
    kept = [replace(item, slide_id=name, group=_renamed(item, name)) for item, name in pairs if name in there]
    absent = [item.slide_id for item, name in pairs if name not in there]
    if not kept:
        raise ValueError(
            f"no slide of {table} has an image in {where}: the table has {_some(absent)}, the images are {_some(ids)}; "
            "a slide_id is the name of an image without its suffix"
        )
    twice = sorted(name for name, count in Counter(item.slide_id for item in kept).items() if count > 1)
    if twice:
        raise ValueError(f"{table} names {named(twice)} twice, as id and as file; keep one row")
    notes = []
    if absent:
        notes.append(
            f"{counted(len(absent), 'slide')} of {table} left out, no image in {where}: {named(sorted(absent))}"
        )
    return kept, notes


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:FEW]) + (", ..." if len(names) > FEW else "")


def unused(ids: Sequence[str], *sets: Sequence[Labeled]) -> list[str]:
    """A line on the images that no table has a label for; nothing if there are none.

    Args:
        ids: of the images.
        sets: the slides in use.
    """
    labeled = {item.slide_id for items in sets for item in items}
    others = [name for name in ids if name not in labeled]
    return [f"{counted(len(others), 'image')} without a label not used: {named(others)}"] if others else []


def hold_out(
    targets: Targets, labeled: Sequence[Labeled], val_share: float, seed: int
) -> tuple[list[Labeled], list[Labeled]]:
    """Divide slides into training and validation: the same share of every class, no patient in both.

    Numbers are divided by their quartiles, yes/no answers by their combinations; see `cohorts.splits.stratified`.

    Args:
        targets: what the labels are.
        labeled: slides.
        val_share: share to validate on, above 0 and below 1.
        seed: of the split; the same slides give the same sets in any order.

    Raises:
        ValueError: the share is out of range, there are fewer than two patients, or a class would only be validated.
    """
    if not 0 < val_share < 1:
        raise ValueError(f"--val_split {val_share:g} must be above 0 and below 1: the share of slides to validate on")
    cases = [_case(item) for item in labeled]
    held = stratified(cases, _strata(targets, labeled), val_share, seed)
    if not held:
        raise ValueError(
            f"{counted(len(labeled), 'slide')} of {counted(len({item.group for item in labeled}), 'patient')} cannot "
            "be divided into training and validation; give --val_csv, or more slides"
        )
    train = [item for item in labeled if item.slide_id not in held]
    val = [item for item in labeled if item.slide_id in held]
    if targets.kind == "classes":
        lacking = sorted({item.text for item in val} - {item.text for item in train})
        if lacking:
            raise ValueError(
                f"too few patients to train and to validate on class {named(lacking)}; give --val_csv, or more slides"
            )
    return train, val


def remarks(targets: Targets, train: Sequence[Labeled], val: Sequence[Labeled]) -> list[str]:
    """Lines on what users should know about their labels: how many of each, one class only, patients in both sets."""
    lines = []
    for what, items in (("train", train), ("val", val)):
        if not items:
            continue
        lines.append(f"{what} {counted(len(items), 'slide')}: {_spread(targets, items)}")
        if targets.kind == "classes" and len({item.text for item in items}) == 1:
            effect = "nothing can be learned" if what == "train" else "AUC is undefined"
            lines.append(f"{what} has one class only, {items[0].text}: {effect}")
    both = sorted({item.group for item in train} & {item.group for item in val})
    if both:
        lines.append(f"{counted(len(both), 'patient')} in training and validation, scores are too good: {named(both)}")
    return lines


def file_id(name: str) -> str:
    """The id of an image of which a table has the file name or path: without folders and without suffix."""
    stem = name.replace("\\", "/").rpartition("/")[2]
    return next((stem[: -len(suffix)] for suffix in IMAGE_SUFFIXES if stem.lower().endswith(suffix)), stem)


# -------------------------------------------------------------------------------------------------------------- labels


def _kind(rows: Sequence[Row]) -> TargetKind:
    if all(_ANSWERS.fullmatch(row.label) for row in rows):
        return "multilabel"
    values = [_number(row) for row in rows]
    if all(value is not None for value in values) and not all(_WHOLE.fullmatch(row.label) for row in rows):
        first = next(row for row in rows if not _WHOLE.fullmatch(row.label))
        raise ValueError(
            f"{first.where}: label {first.label!r}: all labels are numbers and not all are whole; give --target_kind "
            "regression to learn the numbers, or classes if every number is a class"
        )
    return "classes"


def _classes(
    train: Sequence[Row], val: Sequence[Row], train_csv: Path, val_csv: Path | None, num_classes: int | None
) -> tuple[str, ...]:
    """Names of the classes, in order."""
    whole = all(_WHOLE.fullmatch(row.label) for row in (*train, *val))
    found = {_class(row.label, whole) for row in train}
    names = sorted(found, key=lambda name: (int(name), "") if whole else (0, name))
    if whole and num_classes is not None and found <= {str(number) for number in range(num_classes)}:
        names = [str(number) for number in range(num_classes)]
    elif names in (["0"], ["1"]):
        names = ["0", "1"]
    strange = [row for row in val if _class(row.label, whole) not in names]
    if strange:
        others = sorted({row.label for row in strange})
        raise ValueError(
            f"{strange[0].where}: class {others[0]} does not occur in {train_csv}, which has {named(names)}; "
            f"{counted(len(strange), 'slide')} of {val_csv} cannot be scored (classes {named(others)}): correct the "
            "labels, or train on every class"
        )
    return tuple(names)


def _class(label: str, whole: bool) -> str:
    """The name of a class; 1, 01 and 1.0 are the same number."""
    return str(int(label.partition(".")[0])) if whole else label


def _labeled(targets: Targets, rows: Sequence[Row]) -> list[Labeled]:
    whole = targets.ordered
    place = {name: index for index, name in enumerate(targets.names)}
    found = []
    for row in rows:
        if targets.kind == "classes":
            text = _class(row.label, whole)
            target_K = np.eye(targets.outputs, dtype=np.float32)[place[text]]
        elif targets.kind == "multilabel":
            target_K = _answers(row)
            text = ";".join(str(int(answer)) for answer in target_K)
            if target_K.size != targets.outputs:
                raise ValueError(
                    f"{row.where}: label {row.label!r} has {counted(target_K.size, 'answer')}, the first label has "
                    f"{targets.outputs}; all must have the same number"
                )
        else:
            value = _number(row)
            if value is None:
                raise ValueError(f"{row.where}: label {row.label!r} is not a number, which regression needs")
            text, target_K = row.label, np.array([value], np.float32)
        found.append(Labeled(row.slide_id, target_K, _group(row), text))
    return found


def _answers(row: Row) -> NDArray[np.float32]:
    words = re.split(r"[;, ]+", row.label.strip("[] "))
    if not all(word in ("0", "1") for word in words):
        raise ValueError(f"{row.where}: label {row.label!r}: several labels are 0 or 1 each, as in 1;0;1")
    return np.array([float(word) for word in words], np.float32)


def _number(row: Row) -> float | None:
    text = row.label
    # Tables with semicolons come from places that write 0,5.
    if row.decimal_comma and text.count(",") == 1 and "." not in text:
        text = text.replace(",", ".")
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and "_" not in text else None


# -------------------------------------------------------------------------------------------------------------- groups


def _group(row: Row) -> str:
    return row.group or case_of(row.slide_id, Path(row.slide_id), None).patient or row.slide_id


def _renamed(item: Labeled, name: str) -> str:
    return name if item.group == item.slide_id else item.group


def _case(item: Labeled) -> Case:
    found = case_of(composed(item.slide_id), Path(item.slide_id), None)
    return replace(found, patient=item.group)


def _strata(targets: Targets, labeled: Sequence[Labeled]) -> dict[str, str]:
    """Class of each slide for the split."""
    if targets.kind != "regression":
        return {item.slide_id: item.text for item in labeled}
    values = np.array([item.target_K[0] for item in labeled])
    quarter = np.searchsorted(np.quantile(values, QUARTILES), values, side="right")
    return {item.slide_id: str(number) for item, number in zip(labeled, quarter.tolist(), strict=True)}


def _spread(targets: Targets, items: Sequence[Labeled]) -> str:
    """How often each label occurs, or where the numbers lie."""
    if targets.kind == "regression":
        values = np.array([item.target_K[0] for item in items])
        return f"values {values.min():.4g} to {values.max():.4g}, mean {values.mean():.4g}"
    if targets.kind == "multilabel":
        sums = np.sum([item.target_K for item in items], axis=0)
        return ", ".join(f"{int(count)} with {name}" for name, count in zip(targets.names, sums, strict=True))
    counts = Counter(item.text for item in items)
    return ", ".join(f"{counts[name]} of {name}" for name in targets.names)
