"""Spacing of each slide from a table, for slides that state none or a wrong one.

A row names its slide in the column `slide` (or `slide_id`), by id or file name, and gives um per level-0 px as `mpp`,
or as `mpp_x` and `mpp_y`. Rows without these values, and other columns, are ignored.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from cohorts.pairing import ALL_SLIDE_SUFFIXES, Case, named
from slides.geometry import Pair
from slides.names import composed, id_of
from slides.reader import UM_PX_RANGE

ONE, BOTH = "mpp", ("mpp_x", "mpp_y")
_SLIDE = ("slide", "slide_id")


def spacing_of(where: str, row: Mapping[str, str | None]) -> Pair | None:
    """Spacing along x and y, um per level-0 px, that a row gives; None if it gives none.

    Args:
        where: file and line, for messages.
        row: cells by column.

    Raises:
        ValueError: a value is not a number or is impossible, or only one of `mpp_x` and `mpp_y` is given.
    """
    cells = [(row.get(name) or "").strip() for name in (ONE, *BOTH)]
    texts = cells[1:] if any(cells[1:]) else [cells[0], cells[0]]
    if not any(texts):
        return None
    low, high = UM_PX_RANGE
    try:
        x, y = (float(text) for text in texts)
    except ValueError:
        x = y = 0.0
    if not (low <= x <= high and low <= y <= high):
        raise ValueError(
            f"{where}: spacing {' x '.join(map(repr, texts))}; give um per level-0 px, {low:g} to {high:g}, in the "
            f"column {ONE}, or in both {BOTH[0]} and {BOTH[1]}"
        )
    return x, y


def read_spacings(path: Path) -> dict[str, Pair]:
    """Spacing by slide id; see the head of this file.

    Raises:
        ValueError: the table cannot be read, lacks a column, or names a slide twice.
    """
    found: dict[str, Pair] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or ()
            column = next((name for name in _SLIDE if name in columns), None)
            if column is None or not (ONE in columns or all(name in columns for name in BOTH)):
                raise ValueError(
                    f"--mpp_table {path} has the columns {', '.join(columns) or 'none'}; needed are {_SLIDE[0]} and "
                    f"{ONE} (um per level-0 px), or {BOTH[0]} and {BOTH[1]}"
                )
            for row in reader:
                where = f"--mpp_table {path}, line {reader.line_num}"
                spacing = spacing_of(where, row)
                name = composed((row[column] or "").strip())
                slide_id = id_of(Path(name)) if name.lower().endswith(ALL_SLIDE_SUFFIXES) else name
                if spacing is None:
                    continue
                if found.setdefault(slide_id, spacing) != spacing:
                    raise ValueError(f"{where}: slide {slide_id} occurs twice with different spacings; keep one row")
    except OSError as error:
        raise ValueError(f"--mpp_table {path} cannot be read: {error.strerror}; give a CSV file") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"--mpp_table {path} is not a CSV table in UTF-8: {error}") from error
    return found


def with_spacings(table: Path | None, *parts: Sequence[Case]) -> list[list[Case]]:
    """The cases with the spacings of a table; all as they are without one.

    Args:
        table: the table.
        parts: cases, such as those of training and of validation.

    Raises:
        ValueError: see `read_spacings`; or the table has none of the slides.
    """
    if table is None:
        return [list(part) for part in parts]
    spacings = read_spacings(table)
    check_used(table, spacings, [case.slide_id for part in parts for case in part])
    return [[replace(case, um_px=spacings.get(case.slide_id, case.um_px)) for case in part] for part in parts]


def check_used(table: Path, spacings: Mapping[str, Pair], slide_ids: Sequence[str]) -> None:
    """Refuse a table that has no spacing of any of the slides.

    Raises:
        ValueError: it has none.
    """
    if not set(spacings) & set(slide_ids):
        raise ValueError(
            f"--mpp_table {table} has a spacing of none of the slides: it names {named(sorted(spacings)) or 'none'}; "
            f"the slides are {named(slide_ids)}"
        )
