"""Divides a data set into folds for cross-validation, once, for all that is trained and compared on it.

The table has a row per sample: a cell (with its box: x0, y0, x1, y1), an image or a slide. Folds are balanced by label;
samples of one group, such as a patient, are never divided. Without a column of groups, slides belong to the patient in
their names (patient_004_node_4), and cells of one image stay together. With --files, the same box of pictures of equal
bytes may not be in two groups.

    OUT/folds.csv    id, group, label, fold (or holdout), and with --inner the inner folds of every fold

python -m preprocessing.folds --table labels.csv --folds 5 --inner 3 --final_holdout 0.2 --out folds.csv
python -m preprocessing.folds --table labels.csv --check my_folds.csv
"""

from __future__ import annotations

import csv
import hashlib
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from cohorts import folds
from cohorts.folds import HOLDOUT, Folds, Sample
from cohorts.pairing import case_of
from options.fields import Group, option, read
from options.parser import Parser, share_below_1, whole
from slides.names import composed
from system.atomic_files import write_bytes
from system.csv_tables import counted, csv_text

IDS = ("id", "slide_id", "path", "image")
GROUPS = ("group", "patient")
BOX = ("x0", "y0", "x1", "y1")
BLOCK = 2**20


@dataclass(frozen=True, kw_only=True)
class FoldTable(Group):
    """Samples."""

    table: Path = option(required=True, metavar="CSV", help="table with a row per sample")
    id_column: str | None = option(metavar="NAME", help=f"names of samples; default: the first of {', '.join(IDS)}")
    group_column: str | None = option(metavar="NAME", help=f"what is not divided; default: {' or '.join(GROUPS)}")
    label_columns: tuple[str, ...] = option(("label",), metavar="NAME", help="what folds are balanced by")
    files: Path | None = option(
        metavar="DIR", help="folder of the pictures that the column path or image names; equal ones are found then"
    )


@dataclass(frozen=True, kw_only=True)
class FoldRules(Group):
    """Folds."""

    folds: int = option(5, parse=whole(2), metavar="N", help="number of folds")
    inner: int = option(0, parse=whole(0), metavar="N", help="inner folds of every fold, for a search inside it")
    final_holdout: float = option(
        0.0, parse=share_below_1, metavar="SHARE", help="share of the samples that is in no fold, for a last look"
    )
    seed: int = option(0, parse=whole(0, 2**32 - 1), help="of the order of groups")
    out: Path | None = option(metavar="CSV", help="table of folds to write; one that exists is left alone")
    check: Path | None = option(metavar="CSV", help="check this table of folds instead of writing one")

    def __post_init__(self) -> None:
        if (self.out is None) == (self.check is None):
            raise ValueError("give --out FILE to write a table of folds, or --check FILE to check one")
        if self.inner == 1:
            raise ValueError("--inner 1: at least 2 inner folds, or 0 for none")


@dataclass(frozen=True, kw_only=True)
class FoldOptions(Group):
    """All options of the program."""

    samples: FoldTable
    rules: FoldRules


def samples_of(given: FoldTable) -> list[Sample]:
    """Read the samples.

    Raises:
        ValueError: the table cannot be read, or lacks a column or a value; a picture is missing.
    """
    try:
        with given.table.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"--table {given.table} cannot be read: {reason}") from error
    if not rows:
        raise ValueError(f"--table {given.table} has no rows")
    names = list(rows[0])
    id_column = given.id_column or next((name for name in IDS if name in names), None)
    if id_column is None:
        raise ValueError(f"--table {given.table} has none of the columns {', '.join(IDS)}: give --id_column")
    group_column = given.group_column or next((name for name in GROUPS if name in names), None)
    wanted = [id_column, *([group_column] if group_column else []), *given.label_columns]
    lacking = [name for name in wanted if name not in names]
    if lacking:
        raise ValueError(f"--table {given.table} has no column {lacking[0]}; it has {', '.join(filter(None, names))}")
    boxed = set(BOX) <= set(names)
    found = []
    for line, row in enumerate(rows, 2):
        empty = [name for name in wanted if not (row[name] or "").strip()]
        if empty:
            raise ValueError(f"--table {given.table}, line {line}: no {empty[0]}; fill it in, or remove the row")
        name = composed(row[id_column].strip())
        box = " ".join(row[side] for side in BOX) if boxed else ""
        sample_id = f"{name} {box}".strip()
        label = ";".join(row[column].strip() for column in given.label_columns)
        group = row[group_column].strip() if group_column else case_of(name, Path(name), None).patient or name
        found.append(Sample(sample_id, group, label, _digest(given.files, row, box)))
    return found


def _digest(folder: Path | None, row: Mapping[str, str], box: str) -> str:
    """Of a sample's picture, and where in it the sample is."""
    name = row.get("path") or row.get("image")
    if folder is None or not name:
        return ""
    return f"{_digest_of(folder / name)} {box}"


@cache
def _digest_of(path: Path) -> str:
    found = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                found.update(block)
    except OSError as error:
        raise ValueError(f"picture {path} cannot be read: {error.strerror}; correct --files or the table") from error
    return found.hexdigest()


def summary(made: Folds, samples: Sequence[Sample]) -> list[str]:
    """A line per fold: samples, groups and labels."""
    lines = []
    for fold in sorted(set(made.fold.values())):
        inside = [sample for sample in samples if made.fold[sample.id] == fold]
        labels = Counter(sample.label for sample in inside)
        parts = ", ".join(f"{label} {labels[label]}" for label in sorted(labels)[:12])
        groups = len({sample.group for sample in inside})
        name = HOLDOUT if fold < 0 else f"fold {fold}"
        lines.append(f"{name:<10} {counted(len(inside), 'sample')} of {counted(groups, 'group')}: {parts}")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Write or check a table of folds; returns the exit code."""
    parser = Parser("python -m preprocessing.folds", __doc__, prose=True)
    options = read(FoldOptions, parser, argv)
    rules = options.rules
    try:
        samples = samples_of(options.samples)
        if rules.check is not None:
            made = folds.read(rules.check)
            folds.check(made, samples, str(rules.check))
        else:
            assert rules.out is not None
            if rules.out.exists():
                raise ValueError(f"--out {rules.out} exists: folds are made once; --check compares it with the table")
            made = folds.make(samples, rules.folds, rules.seed, rules.inner, rules.final_holdout)
            write_bytes(rules.out, csv_text(*folds.rows(made, samples)).encode())
    except (ValueError, OSError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    print("\n".join(summary(made, samples)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
