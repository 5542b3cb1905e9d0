"""Writes the findings of `preprocessing.check` as a CSV table and as an HTML page."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from preprocessing import store
from system.csv_tables import counted, csv_text
from system.findings import FAIL, PASS, WARN, Finding, worst

PICTURE_PX = 512  # longer side of the thumbnails
_COLORS = {PASS: "#1a7f37", WARN: "#9a6700", FAIL: "#c1121f"}
_HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Check of slides</title>
<style>
body { font: 15px/1.45 system-ui, sans-serif; margin: 1.5rem; color: #1f2328; }
table { border-collapse: collapse; }
td, th { border-top: 1px solid #d0d7de; padding: .5rem .8rem; text-align: left; vertical-align: top; }
img { max-width: 256px; max-height: 256px; }
ul { margin: 0; padding-left: 1.1rem; }
.fix { color: #57606a; }
</style>
</head>
<body>
"""


def write_report(folder: Path, faults: Sequence[Finding], findings: Mapping[str, Sequence[Finding]]) -> dict[str, int]:
    """Write index.html and check.csv.

    Args:
        folder: folder of the thumbnails.
        faults: findings about the data set as a whole.
        findings: slide id -> findings.

    Returns:
        Level -> number of slides whose worst finding has that level.
    """
    rows = [{"slide": "", **vars(finding)} for finding in faults]
    rows += [{"slide": slide_id, **vars(finding)} for slide_id, found in findings.items() for finding in found]
    store.write_text(folder / "check.csv", csv_text(("slide", "level", "what", "found", "fix"), rows))
    level_of = {slide_id: worst(list(found)) for slide_id, found in findings.items()}
    counts = {level: list(level_of.values()).count(level) for level in (PASS, WARN, FAIL)}
    # Worst first.
    order = sorted(findings, key=lambda slide_id: ((FAIL, WARN, PASS).index(level_of[slide_id]), slide_id))
    body = [
        _HEAD,
        f"<h1>{counted(len(findings), 'slide')}: "
        + ", ".join(f"{counts[level]} {_word(level)}" for level in counts)
        + "</h1>\n",
        "<p>Tissue is outlined in green, tumor in red.</p>\n",
        _list(faults),
        "<table>\n<tr><th>Slide</th><th>Findings</th><th>Thumbnail</th></tr>\n",
        *(_row(folder, slide_id, level_of[slide_id], findings[slide_id]) for slide_id in order),
        "</table>\n</body>\n</html>\n",
    ]
    store.write_text(folder / "index.html", "".join(body))
    return counts


def _row(folder: Path, slide_id: str, level: str, found: Sequence[Finding]) -> str:
    name = f"{slide_id}.png"
    picture = ""
    if (folder / name).is_file():
        source = quote(name, safe="")
        picture = f'<a href="{source}"><img src="{source}" alt="" loading="lazy"></a>'
    return f"<tr><td>{_word(level)} {html.escape(slide_id)}</td><td>{_list(found)}</td><td>{picture}</td></tr>\n"


def _list(found: Sequence[Finding]) -> str:
    items = [
        f"<li>{_word(finding.level)} {html.escape(finding.what)}: {html.escape(finding.found)}"
        + (f' <span class="fix">Fix: {html.escape(finding.fix)}</span>' if finding.fix else "")
        + "</li>"
        for finding in sorted(found, key=lambda finding: -(PASS, WARN, FAIL).index(finding.level))
    ]
    return f"<ul>{''.join(items)}</ul>\n" if items else ""


def _word(level: str) -> str:
    return f'<b style="color:{_COLORS[level]}">{level}</b>'
