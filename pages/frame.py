"""The frame of a report: one HTML file that loads nothing and runs nothing, whatever names it shows.

Every text is escaped by the function that takes it, unless its argument is called `html`; the page's content security
policy forbids loading or running anything.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = Path(__file__).with_name("page.css")


def page(title: str, parts: Iterable[str]) -> str:
    """Return a whole page.

    Args:
        title: title of the window.
        parts: the body, HTML.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE.read_text(encoding='utf-8')}</style></head>"
        f"<body>{''.join(parts)}</body></html>\n"
    )


def number(value: float | None, digits: int = 3) -> str:
    """Format a number; None is shown as not defined."""
    return "not defined" if value is None else f"{value:.{digits}f}"


def counted(count: int, noun: str) -> str:
    """Format a count with its noun."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def card(name: str, value: str, html: str, defined: bool = True) -> str:
    """Return a box with one number.

    Args:
        name: what it is.
        value: the number.
        html: further lines below it, HTML.
        defined: whether the value is a number.
    """
    kind = "" if defined else ' class="no"'
    return f'<div class="number"><span>{escape(name)}</span><b{kind}>{escape(value)}</b><small>{html}</small></div>'


def named(rows: Iterable[tuple[str, str]]) -> str:
    """Return names and values below each other; empty values are omitted."""
    found = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in rows if value)
    return f'<dl class="named">{found}</dl>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table whose first column is a heading; it scrolls sideways where it is wide."""
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in cells)}</tr>'
        for first, *cells in rows
    )
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def options(summary: str, values: Mapping[str, Any]) -> str:
    """Return options as JSON, folded away."""
    text = escape(json.dumps(dict(values), indent=1, ensure_ascii=False))
    return f"<details><summary>{escape(summary)}</summary><pre>{text}</pre></details>"


def image(uri: str, alt: str) -> str:
    """Return a picture that is part of the page.

    Raises:
        ValueError: the picture is not a data URI of an image.
    """
    if not uri.startswith("data:image/"):
        raise ValueError(f"picture of {alt} is not a data URI of an image")
    return f'<img alt="{escape(alt)}" src="{escape(uri)}">'
