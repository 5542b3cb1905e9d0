"""Tables of labels as users have them: commas, semicolons or tabs, with or without a byte order mark."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from slides.names import composed

SLIDE, LABEL = "slide_id", "label"
GROUPS = ("patient", "group")
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}
_WANTED = f"{SLIDE},{LABEL}"
_MORE = "\0"  # key of the values behind the last column


@dataclass(frozen=True)
class Row:
    """A slide and its label.

    Attributes:
        slide_id: as written, composed (see `slides.names`).
        label: as written.
        group: its patient; empty if the table has none.
        where: file and line, for messages.
        decimal_comma: whether the table's values may have one: its columns are divided by something else.
    """

    slide_id: str
    label: str
    group: str
    where: str
    decimal_comma: bool


def read_rows(path: Path) -> list[Row]:
    """Read a table of labels; rows without any value are passed over.

    Args:
        path: CSV in UTF-8 with the columns slide_id and label and, if slides belong together, patient or group.

    Raises:
        ValueError: the file cannot be read; a column or a value is missing; a row has too many; a slide occurs twice.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            header = file.readline()
            delimiter = _delimiter(header, path)
            file.seek(0)
            reader = csv.DictReader(file, delimiter=delimiter, strict=True, restkey=_MORE)
            reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or ()]
            _check_header(reader.fieldnames, path)
            rows = list(_rows(reader, path, delimiter))
    except OSError as error:
        raise ValueError(f"labels {path} cannot be read: {error.strerror}; give a CSV with {_WANTED}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"labels {path} is not a CSV table in UTF-8: {error}") from error
    if not rows:
        raise ValueError(f"labels {path} has no rows below its header; it needs one per slide")
    lines: dict[str, str] = {}
    for row in rows:
        if row.slide_id in lines:
            raise ValueError(f"{row.where}: slide {row.slide_id} is also in {lines[row.slide_id]}; keep one row")
        lines[row.slide_id] = row.where.rpartition(", ")[2]
    return rows


def _delimiter(header: str, path: Path) -> str:
    """What divides the columns: that with which both needed ones are found, else the comma."""
    if not header.strip():
        raise ValueError(f"labels {path} begins with an empty line; its first line must name the columns: {_WANTED}")
    for delimiter in _DELIMITERS:
        names = {name.strip().strip('"').lower() for name in header.split(delimiter)}
        if {SLIDE, LABEL} <= names:
            return delimiter
    return ","


def _check_header(names: list[str], path: Path) -> None:
    absent = [name for name in (SLIDE, LABEL) if name not in names]
    if absent:
        raise ValueError(
            f"labels {path} has no column {' or '.join(absent)}; its first line has {', '.join(names)}: it must name "
            f"the columns, {_WANTED}"
        )
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise ValueError(f"labels {path} has the column {twice[0]} twice; keep one")


def _rows(reader: csv.DictReader[str], path: Path, delimiter: str) -> Iterator[Row]:
    for values in reader:
        where = f"{path}, line {reader.line_num}"
        more = values.pop(_MORE, None)
        # A spreadsheet may end lines with empty cells.
        if more and any(map(str.strip, more)):
            raise ValueError(
                f"{where}: more values than columns, {delimiter.join(more)!r} is left over; put a label that has "
                f'{_DELIMITERS[delimiter]} in it in quotes: "1{delimiter}0"'
            )
        found = _stripped(values)
        if not any(found.values()):
            continue
        slide_id, label = found[SLIDE], found[LABEL]
        if not (slide_id and label):
            lacking = SLIDE if not slide_id else LABEL
            given = f"label {label!r}" if not slide_id else f"slide {slide_id}"
            raise ValueError(f"{where}: {given} has no {lacking}; fill it in, or remove the row")
        group = next((found[name] for name in GROUPS if found.get(name)), "")
        yield Row(slide_id, label, group, where, delimiter != ",")


def _stripped(values: Mapping[str, str | None]) -> dict[str, str]:
    return {name: composed((value or "").strip()) for name, value in values.items()}
