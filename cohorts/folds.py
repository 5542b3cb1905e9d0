"""Folds of a data set for cross-validation: made once, stratified by label, patients kept together.

One table serves every member of an ensemble and what joins them, so that nothing is validated on what it has seen:

    id,group,label,fold,inner_0,inner_1,inner_2
    cell_17,patient_3,blast,0,,1,0              fold 0 tests it; where fold 1 tests, it is in inner fold 1 of the rest
    cell_18,patient_9,other,holdout,,,          no fold has it

Groups are ordered by a hash of seed and name, so the order of a table, or the machine, does not matter. Balance:
`sklearn.model_selection.StratifiedGroupKFold`.
"""

from __future__ import annotations

import csv
import hashlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from system.csv_tables import counted

HOLDOUT = "holdout"
_INNER = "inner_"


@dataclass(frozen=True)
class Sample:
    """A cell, an image or a slide.

    Attributes:
        id: its name, once in a data set.
        group: its patient, or whatever must not be divided.
        label: what folds are balanced by; any text, such as `1;0;1`.
        digest: of the bytes of its image; empty: unknown.
    """

    id: str
    group: str
    label: str
    digest: str = ""


@dataclass(frozen=True)
class Folds:
    """Which fold tests a sample.

    Attributes:
        fold: id -> fold, 0 and up, or -1 for what is held out of all.
        inner: for every fold, the inner fold of each sample that it does not test; empty without nested folds.
    """

    fold: Mapping[str, int]
    inner: tuple[Mapping[str, int], ...] = ()

    @property
    def count(self) -> int:
        """Number of folds."""
        return max(self.fold.values()) + 1


def make(samples: Sequence[Sample], count: int, seed: int, inner: int = 0, holdout: float = 0.0) -> Folds:
    """Divide samples into folds.

    Args:
        samples: each id once.
        count: number of folds, at least 2.
        seed: of the order of groups.
        inner: number of inner folds of each fold, for a search that must not see what the fold tests; 0: none.
        holdout: share of samples that belong to no fold, for a last look.

    Raises:
        ValueError: there are fewer groups than folds; an image is in two groups; a number is out of range.
    """
    if count < 2 or inner == 1 or inner < 0 or not 0 <= holdout < 1:
        raise ValueError("folds: at least 2, inner folds 0 or at least 2, and a share below 1 to hold out")
    _check_ids(samples)
    _check_digests(samples, {sample.id: sample.group for sample in samples}, "groups")
    held: set[str] = set()
    if holdout:
        parts = _divided(samples, max(2, round(1 / holdout)), seed, "holdout")
        held = {sample_id for sample_id, part in parts.items() if part == 0}
    rest = [sample for sample in samples if sample.id not in held]
    fold = _divided(rest, count, seed, "folds")
    nested = tuple(
        _divided([sample for sample in rest if fold[sample.id] != outer], inner, seed, f"inner folds of fold {outer}")
        for outer in range(count if inner else 0)
    )
    return Folds({sample.id: fold.get(sample.id, -1) for sample in samples}, nested)


def _divided(samples: Sequence[Sample], count: int, seed: int, what: str) -> dict[str, int]:
    from sklearn.model_selection import StratifiedGroupKFold

    groups = sorted({sample.group for sample in samples}, key=lambda group: (_hash(f"{seed}/{what}/{group}"), group))
    if len(groups) < count:
        raise ValueError(
            f"{count} {what} need as many patients or more; the samples are of {counted(len(groups), 'patient')}: "
            "choose fewer folds"
        )
    place = {group: index for index, group in enumerate(groups)}
    ordered = sorted(samples, key=lambda sample: (place[sample.group], sample.id))
    labels = np.array([sample.label for sample in ordered])
    with warnings.catch_warnings():
        # A label with fewer samples than folds is in some of them only.
        warnings.simplefilter("ignore", UserWarning)
        if np.unique(labels, return_counts=True)[1].max() < count:
            labels[:] = ""
        parts = StratifiedGroupKFold(count).split(ordered, labels, [place[sample.group] for sample in ordered])
        return {ordered[at].id: fold for fold, (_, test) in enumerate(parts) for at in test}


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def check(folds: Folds, samples: Sequence[Sample], where: str) -> None:
    """Check folds, which may be a user's own, against a data set.

    Raises:
        ValueError: a sample has no fold; a group or an image is in two.
    """
    _check_ids(samples)
    absent = [sample.id for sample in samples if sample.id not in folds.fold]
    if absent:
        raise ValueError(
            f"{where} has no fold for {counted(len(absent), 'sample')}, the first is {absent[0]}: make the folds of "
            "the whole data set"
        )
    used = [folds.fold, *folds.inner]
    names = ["folds", *(f"inner folds of fold {outer}" for outer in range(len(folds.inner)))]
    for fold_of, what in zip(used, names, strict=True):
        inside = [sample for sample in samples if sample.id in fold_of]
        first: dict[str, Sample] = {}
        for sample in inside:
            other = first.setdefault(sample.group, sample)
            if fold_of[other.id] != fold_of[sample.id]:
                raise ValueError(
                    f"{where}: group {sample.group} is in two {what}: {other.id} in {_name(fold_of[other.id])}, "
                    f"{sample.id} in {_name(fold_of[sample.id])}; a patient must stay on one side"
                )
        _check_digests(inside, {sample.id: _name(fold_of[sample.id]) for sample in inside}, what)


def _check_ids(samples: Sequence[Sample]) -> None:
    seen: set[str] = set()
    for sample in samples:
        if sample.id in seen:
            raise ValueError(f"sample {sample.id} occurs twice; keep one")
        seen.add(sample.id)
    if not samples:
        raise ValueError("there are no samples to divide into folds")


def _check_digests(samples: Iterable[Sample], side_of: Mapping[str, str], sides: str) -> None:
    """The same image on two sides would be trained on and tested on."""
    first: dict[str, Sample] = {}
    for sample in samples:
        if not sample.digest:
            continue
        other = first.setdefault(sample.digest, sample)
        if side_of[other.id] != side_of[sample.id]:
            raise ValueError(
                f"{other.id} and {sample.id} are the same image, in two {sides}: {side_of[other.id]} and "
                f"{side_of[sample.id]}; remove one, or give both one group"
            )


def _name(fold: int) -> str:
    return HOLDOUT if fold < 0 else str(fold)


def rows(folds: Folds, samples: Sequence[Sample]) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and rows of the table of folds."""
    inner = [f"{_INNER}{outer}" for outer in range(len(folds.inner))]
    found = []
    for sample in samples:
        row = {"id": sample.id, "group": sample.group, "label": sample.label, "fold": _name(folds.fold[sample.id])}
        for name, fold_of in zip(inner, folds.inner, strict=True):
            row[name] = str(fold_of[sample.id]) if sample.id in fold_of else ""
        found.append(row)
    return ["id", "group", "label", "fold", *inner], found


def read(path: Path) -> Folds:
    """Read a table of folds.

    Raises:
        ValueError: it cannot be read, or has other columns or values.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"folds {path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not table or not {"id", "fold"} <= set(table[0]):
        raise ValueError(f"folds {path} needs the columns id and fold, and rows")
    inner = sorted((name for name in table[0] if name.startswith(_INNER)), key=lambda name: int(name[len(_INNER) :]))
    fold: dict[str, int] = {}
    nested: list[dict[str, int]] = [{} for _ in inner]
    for line, row in enumerate(table, 2):
        if row["id"] in fold:
            raise ValueError(f"folds {path}, line {line}: {row['id']} occurs twice; keep one row")
        fold[row["id"]] = -1 if row["fold"] == HOLDOUT else _number(row["fold"], path, line)
        for name, found in zip(inner, nested, strict=True):
            if row[name]:
                found[row["id"]] = _number(row[name], path, line)
    return Folds(fold, tuple(nested))


def _number(text: str | None, path: Path, line: int) -> int:
    if text is None or not text.isdecimal():
        raise ValueError(f"folds {path}, line {line}: {text!r} is not a fold; write 0, 1 ... or {HOLDOUT}")
    return int(text)
