"""Writing ASAP XML; reading it is in `annotation`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import quoteattr

YELLOW = "#F4FA58"


@dataclass(frozen=True)
class Outline:
    """One annotation to write.

    Attributes:
        name: shown by ASAP.
        group: group it belongs to.
        ring_xy_l0: its points, level-0 px, not closed.
        color: #RRGGBB.
    """

    name: str
    group: str
    ring_xy_l0: Sequence[Sequence[float]]
    color: str = YELLOW


def write_outlines(path: Path, outlines: Iterable[Outline]) -> None:
    """Write ASAP XML: polygons, and their groups in the color of the first of each."""
    groups: dict[str, str] = {}
    lines = ['<?xml version="1.0"?>', "<ASAP_Annotations>", "\t<Annotations>"]
    for outline in outlines:
        groups.setdefault(outline.group, outline.color)
        lines.append(
            f'\t\t<Annotation Name={quoteattr(outline.name)} Type="Polygon" PartOfGroup={quoteattr(outline.group)} '
            f'Color="{outline.color}">'
        )
        lines.append("\t\t\t<Coordinates>")
        lines += [
            f'\t\t\t\t<Coordinate Order="{i}" X="{x:.4f}" Y="{y:.4f}" />' for i, (x, y) in enumerate(outline.ring_xy_l0)
        ]
        lines += ["\t\t\t</Coordinates>", "\t\t</Annotation>"]
    lines += ["\t</Annotations>", "\t<AnnotationGroups>"]
    lines += [
        f'\t\t<Group Name={quoteattr(group)} PartOfGroup="None" Color="{color}"><Attributes /></Group>'
        for group, color in groups.items()
    ]
    lines += ["\t</AnnotationGroups>", "</ASAP_Annotations>", ""]
    path.write_text("\n".join(lines), encoding="utf-8")
