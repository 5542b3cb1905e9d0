"""ASAP XML annotations: safe reading, groups to classes, painting in the order of the label map.

Coordinates are level-0 px (x, y). The XML may come from anywhere: no entities, no document type, no network.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import shapely
from lxml import etree
from numpy.typing import NDArray

from slides.truth.raster import polygons_of
from slides.truth.winding import filled

# CAMELYON's conventions; exclusions are painted last, so they cut what stands before them.
DEFAULT_LABEL_MAP: dict[str, int] = {
    "_0": 1,
    "_1": 1,
    "tumor": 1,
    "metastases": 1,
    "_2": 0,
    "exclusion": 0,
    "normal": 0,
}
DEFAULT_IGNORE_GROUPS = ("none",)
MAX_XML_BYTES = 256 * 2**20
MAX_COORDINATE = 2.0**31

_AREAS = ("Polygon", "Spline", "Rectangle")
# How a note of an ignored group ends.
_IGNORED = re.compile(r"group '(.*)' is ignored$")
_NO_AREAS = ("Dot", "PointSet", "Measurement", "None")
_KINDS = {kind.lower(): kind for kind in (*_AREAS, *_NO_AREAS)}
_COMMA = re.compile(r"\s*[-+]?\d+,\d+\s*")


class AnnotationError(ValueError):
    """An annotation file that cannot be used; the message names it and what to do."""


@dataclass(frozen=True)
class Annotation:
    """One annotated area.

    Attributes:
        name: As in the file.
        group: Its group, lower case; "none" without one.
        polygons: Valid polygons in level-0 px; several when the ring crossed itself.
    """

    name: str
    group: str
    polygons: tuple[shapely.Polygon, ...]


def read_annotations(
    path: Path, label_map: Mapping[str, int], ignore_groups: Collection[str] = DEFAULT_IGNORE_GROUPS
) -> tuple[tuple[Annotation, ...], tuple[str, ...]]:
    """Read an ASAP XML file.

    A group without a class counts as the one it is part of; decimal commas are read as points. Rings that cross
    themselves are filled by the non-zero winding rule, as in ASAP (`winding`). Rings with fewer than three different
    points, groups in `ignore_groups` and annotations without area (Dot, PointSet, Measurement) are skipped and noted.

    Args:
        path: The file.
        label_map: Group to class; groups are compared without case.
        ignore_groups: Groups to skip.

    Returns:
        Annotations in the order of the file, and notes on what was skipped or repaired.

    Raises:
        AnnotationError: Unreadable, malformed or hostile XML, a coordinate that is not a number, an unknown group.
    """
    known = {group.lower() for group in label_map}
    ignored = {group.lower() for group in ignore_groups} - known
    annotations: list[Annotation] = []
    notes: list[str] = []
    root = _parse(path)
    parents = {
        element.get("Name", "").strip().lower(): element.get("PartOfGroup", "None").strip()
        for element in root.iterfind("./AnnotationGroups//Group")
    }
    for number, element in enumerate(root.iterfind("./Annotations/Annotation")):
        name = element.get("Name") or f"number {number}"
        where = f"{path}: annotation {name!r}"
        given = _group(element, parents, known | ignored)
        group = given.lower()
        if group in ignored:
            notes.append(f"{where}: group {group!r} is ignored")
            continue
        if group not in known:
            raise unknown_group(where, given, known)
        kind = _KINDS.get(element.get("Type", "Polygon").strip().lower(), element.get("Type"))
        if kind in _NO_AREAS:
            notes.append(f"{where}: {kind} has no area, skipped")
            continue
        if kind not in _AREAS:
            raise AnnotationError(f"{where}: unknown type {kind!r}; allowed are {', '.join(_AREAS + _NO_AREAS)}")
        ring = _ring(element, where)
        polygons, repaired = rings_filled(ring)
        if not polygons:
            notes.append(f"{where}: {len(ring)} points without area, skipped")
            continue
        if repaired:
            notes.append(f"{where}: the outline crosses or touches itself, repaired into {len(polygons)} polygons")
        annotations.append(Annotation(name, group, polygons))
    return tuple(annotations), tuple(notes)


def unknown_group(where: str, group: str, known: Collection[str]) -> AnnotationError:
    """Return the error of a group that has no class.

    Args:
        where: File and annotation.
        group: As in the file.
        known: Groups with a class.
    """
    pair, word = shlex.quote(f"{group.lower()}:CLASS"), shlex.quote(group.lower())
    return AnnotationError(
        f"{where}: unknown group {group!r}; known are {', '.join(sorted(known))}. "
        f"Give it a class with --label_map {pair} or skip it with --ignore_groups {word}"
    )


def check_some_left(path: Path, annotations: Collection[Annotation], notes: Collection[str]) -> None:
    """Refuse a file of which `read_annotations` skipped every annotation: its slide would be all normal, unnoticed.

    Raises:
        AnnotationError: Notes, but no annotations.
    """
    if annotations or not notes:
        return
    found = f"{path}: " + ("its only annotation is" if len(notes) == 1 else f"all {len(notes)} annotations are")
    ignored = sorted({match[1] for note in notes if (match := _IGNORED.search(note))})
    if not ignored:
        first = next(iter(notes)).removeprefix(f"{path}: ")
        raise AnnotationError(
            f"{found} skipped, first: {first}; draw areas, or remove the file if the slide has no tumor"
        )
    groups = ", ".join("None (no group assigned)" if group == "none" else repr(group) for group in ignored)
    raise AnnotationError(
        f"{found} ignored, as of group {groups}; assign groups in ASAP or classes in QuPath, give such a group a class "
        f"with --label_map {shlex.quote(f'{ignored[0]}:CLASS')}, or remove the file if the slide has no tumor"
    )


def paint(annotations: Collection[Annotation], label_map: Mapping[str, int]) -> dict[int, tuple[shapely.Polygon, ...]]:
    """Paint annotations over each other in the order of the label map.

    A group's polygons join their class and are cut from every other class, so a later group wins.

    Returns:
        Class to its disjoint valid polygons with holes, level-0 px; classes without area are absent.
    """
    painted: dict[int, shapely.Geometry] = {}
    for group, cls in label_map.items():
        own = [polygon for item in annotations if item.group == group.lower() for polygon in item.polygons]
        if not own:
            continue
        area = shapely.union_all(own)
        painted |= {other: old.difference(area) for other, old in painted.items() if other != cls}
        painted[cls] = painted[cls].union(area) if cls in painted else area
    regions = {cls: tuple(polygons_of(area)) for cls, area in painted.items()}
    return {cls: polygons for cls, polygons in regions.items() if polygons}


def describe(label_map: Mapping[str, int], names: Mapping[int, str] | None = None) -> str:
    """Describe which group becomes which class, in the order they are painted.

    Args:
        label_map: Group to class.
        names: Class to name; default 0 normal, 1 tumor.
    """
    names = {0: "normal", 1: "tumor"} if names is None else names
    runs: list[tuple[int, list[str]]] = []
    for group, cls in label_map.items():
        if runs and runs[-1][0] == cls:
            runs[-1][1].append(group)
        else:
            runs.append((cls, [group]))
    parts = []
    for number, (cls, groups) in enumerate(runs):
        name = f"{names[cls]} (class {cls})" if cls in names else f"class {cls}"
        order = "" if number == 0 else ", painted over the former: cuts holes into other classes"
        parts.append(f"{', '.join(groups)} -> {name}{order}")
    return "; ".join(parts)


def read_file(path: Path, most: int, advice: str = "") -> bytes:
    """Read a file of annotations.

    Args:
        path: The file.
        most: Bytes it may have.
        advice: What to do about a larger one.

    Raises:
        AnnotationError: It cannot be read, or is larger.
    """
    try:
        size = path.stat().st_size
        if size > most:
            raise AnnotationError(f"{path}: {size} bytes; annotations of at most {most} bytes are read{advice}")
        return path.read_bytes()
    except OSError as error:
        raise AnnotationError(f"{path}: cannot be read: {error.strerror or error}") from error


def _parse(path: Path) -> etree._Element:
    data = read_file(path, MAX_XML_BYTES)
    # Zero bytes are dropped so that UTF-16 hides nothing. Refused before parsing: entities could grow without bound.
    if b"<!DOCTYPE" in data.replace(b"\0", b"").upper():
        raise AnnotationError(f"{path}: has a DOCTYPE; annotations need none, and entities are refused. Remove it")
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)
    try:
        root = etree.fromstring(data, parser)
    except (etree.XMLSyntaxError, ValueError) as error:
        raise AnnotationError(f"{path}: no well-formed XML: {error}") from error
    if root.getroottree().docinfo.internalDTD is not None:
        raise AnnotationError(f"{path}: has a DOCTYPE; annotations need none, and entities are refused. Remove it")
    if root.tag != "ASAP_Annotations":
        raise AnnotationError(f"{path}: the outermost element is {root.tag!r}, not 'ASAP_Annotations' as ASAP writes")
    return root


def _group(element: etree._Element, parents: Mapping[str, str], named: Collection[str]) -> str:
    """Group of an annotation as the file spells it, or the first of the groups around it that is `named`."""
    given = (element.get("PartOfGroup") or "None").strip()
    group, passed = given, set[str]()
    while group.lower() not in named and group.lower() not in passed:
        passed.add(group.lower())
        group = parents.get(group.lower(), "None")
    # The outermost group is part of None, which says nothing.
    return group if group.lower() in named and group.lower() != "none" else given


def _number(text: str | int) -> float:
    """A number with a decimal point, or with the comma that some programs write by the language of the computer."""
    try:
        return float(text)
    except ValueError:
        if _COMMA.fullmatch(str(text)) is None:
            raise
        return float(str(text).replace(",", "."))


def _ring(element: etree._Element, where: str) -> NDArray[np.float64]:
    """Points (N, 2) of an annotation in the order of their Order attribute (document order where there is none)."""
    rows = []
    for number, coordinate in enumerate(element.iterfind("./Coordinates/Coordinate")):
        given = coordinate.get
        try:
            rows.append((float(given("Order", number)), _number(given("X", "")), _number(given("Y", ""))))
        except ValueError as error:
            raise _not_numbers(where, number, coordinate) from error
    points = np.array(rows, np.float64).reshape(-1, 3)
    # Judged all at once; the first that is wrong is named, found again by its number. NaN is not near enough either.
    fine = np.isfinite(points[:, 0]) & (np.abs(points[:, 1:]) <= MAX_COORDINATE).all(axis=1)
    if not fine.all():
        number = int(np.argmin(fine))
        order, x, y = rows[number]
        if not math.isfinite(order):
            raise _not_numbers(where, number, element.findall("./Coordinates/Coordinate")[number])
        raise AnnotationError(f"{where}: coordinate {number} ({x}, {y}) is not a place on a slide")
    return points[np.argsort(np.trunc(points[:, 0]), kind="stable"), 1:]


def _not_numbers(where: str, number: int, coordinate: etree._Element) -> AnnotationError:
    return AnnotationError(
        f"{where}: coordinate {number} {dict(coordinate.attrib)} is not a number; expected Order, X, Y in level-0 "
        "pixels with a decimal point"
    )


def rings_filled(ring: NDArray[np.float64]) -> tuple[tuple[shapely.Polygon, ...], bool]:
    """Return valid polygons of a ring (N, 2) by the non-zero rule, and whether it had to be repaired for that.

    None for fewer than three different points.
    """
    if len(ring) < 3:
        return (), False
    polygon = shapely.Polygon(ring)
    # The rule: valid already, as nearly all are. Repairing would leave it as it is.
    if shapely.is_valid(polygon):
        return tuple(polygons_of(polygon)), False
    if len(np.unique(ring, axis=0)) < 3:
        return (), False
    return tuple(filled(ring)), True
