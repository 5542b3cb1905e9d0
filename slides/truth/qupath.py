"""Annotations of QuPath: GeoJSON as it exports it, read like those of ASAP.

Coordinates are px of the full resolution, counted from the corner of what QuPath shows: of the slide's bounds where the
file names them (`slides.reader.Slide.bounds_xy_l0`), else of the slide. Source: QuPath, GsonTools.java (0.2 to 0.6).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from slides.geometry import Pair, l0_from_bounds
from slides.truth.annotation import (
    DEFAULT_IGNORE_GROUPS,
    MAX_COORDINATE,
    Annotation,
    AnnotationError,
    read_file,
    rings_filled,
    unknown_group,
)
from slides.truth.raster import polygons_of

SUFFIX = ".geojson"
MAX_BYTES = 512 * 2**20
UNCLASSIFIED = "none"

_EXPECTED = "expected is what QuPath writes with File > Export objects as GeoJSON"
_NO_AREAS = ("Point", "MultiPoint", "LineString", "MultiLineString")
# Objects that QuPath computes; older versions give them as the feature's id.
_ANNOTATIONS = ("annotation", "root", "PathAnnotationObject", "PathRootObject")


def read_geojson(
    path: Path,
    label_map: Mapping[str, int],
    ignore_groups: Collection[str] = DEFAULT_IGNORE_GROUPS,
    bounds_xy_l0: Pair = (0.0, 0.0),
) -> tuple[tuple[Annotation, ...], tuple[str, ...]]:
    """Read a GeoJSON file of QuPath: a FeatureCollection, a list of features, or one feature.

    The classification's name is the group; "none" without one. Holes are left out of their own annotation only, and
    MultiPolygons are one annotation. Detections, cells and tiles, points, lines and groups in `ignore_groups` are
    skipped and reported. Rings that cross themselves are filled by the non-zero winding rule.

    Args:
        path: The file.
        label_map: Group to class; groups are compared without case.
        ignore_groups: Groups to skip.
        bounds_xy_l0: Level-0 px of the corner from which the coordinates count.

    Returns:
        Annotations in the order of the file, level-0 px, and notes on what was skipped or repaired.

    Raises:
        AnnotationError: Unreadable or malformed JSON, no GeoJSON, a coordinate that is not a number, an unknown group.
    """
    known = {group.lower() for group in label_map}
    ignored = {group.lower() for group in ignore_groups} - known
    annotations: list[Annotation] = []
    notes: list[str] = []
    others: Counter[str] = Counter()
    for number, feature in enumerate(_features(path)):
        properties = feature.get("properties") or {}
        if not isinstance(properties, dict):
            raise AnnotationError(f"{path}: feature {number} has no properties as an object; {_EXPECTED}")
        where = f"{path}: annotation {str(properties.get('name') or f'number {number}')!r}"
        kind = _kind(feature, properties)
        if kind not in _ANNOTATIONS:
            others[kind] += 1
            continue
        parts, flat = _parts(feature.get("geometry"), where)
        if not parts:
            notes.append(f"{where}: {' and '.join(flat) or 'a geometry without parts'} has no area, skipped")
            continue
        given = _classification(properties, where)
        group = given.lower()
        if group in ignored:
            notes.append(f"{where}: group {group!r} is ignored")
            continue
        if group not in known:
            raise unknown_group(where, given, known)
        polygons, repaired = _polygons(parts, bounds_xy_l0, where)
        if not polygons:
            notes.append(f"{where}: rings without area, skipped")
            continue
        if repaired:
            notes.append(f"{where}: the outline crosses or touches itself, repaired into {len(polygons)} polygons")
        annotations.append(Annotation(str(properties.get("name") or f"number {number}"), group, polygons))
    notes += [f"{path}: {count} x {kind} has no area to learn from, skipped" for kind, count in others.items()]
    return tuple(annotations), tuple(notes)


def _features(path: Path) -> Iterator[dict[str, Any]]:
    """Features of a file, those of a collection one by one."""
    data = read_file(path, MAX_BYTES, "; omit cells")
    try:
        root = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise AnnotationError(f"{path}: no well-formed JSON: {error}; export it again from QuPath") from error
    if isinstance(root, dict) and root.get("type") == "FeatureCollection":
        root = root.get("features")
    features = [root] if isinstance(root, dict) else root
    if not isinstance(features, list):
        raise AnnotationError(f"{path}: holds no list of features; {_EXPECTED}")
    for number, feature in enumerate(features):
        if not isinstance(feature, dict) or feature.get("type") != "Feature":
            raise AnnotationError(f"{path}: entry {number} is no Feature; {_EXPECTED}")
        yield feature


def _kind(feature: Mapping[str, Any], properties: Mapping[str, Any]) -> str:
    """Kind of object: `annotation` where nothing is said, as other programs write."""
    given = properties.get("objectType") or properties.get("object_type")
    if given is None and str(feature.get("id", "")).startswith("Path"):
        given = feature["id"]
    return "annotation" if given is None else str(given)


def _classification(properties: Mapping[str, Any], where: str) -> str:
    """Name of the class, parts of derived ones joined as QuPath shows them: `Tumor: Positive`."""
    given = properties.get("classification")
    if given is None:
        return UNCLASSIFIED
    if isinstance(given, str):
        return given.strip() or UNCLASSIFIED
    if isinstance(given, dict):
        names = given.get("names")
        if isinstance(names, list) and names:
            return ": ".join(map(str, names)).strip()
        return str(given.get("name") or UNCLASSIFIED).strip()
    raise AnnotationError(f"{where}: classification {given!r} has no name; {_EXPECTED}")


def _parts(geometry: object, where: str) -> tuple[list[Any], list[str]]:
    """Coordinates of the polygons of a geometry, and the kinds of its parts without area."""
    if geometry is None:
        return [], []
    if not isinstance(geometry, dict):
        raise AnnotationError(f"{where}: geometry {str(geometry)[:40]!r} is no object; {_EXPECTED}")
    kind = geometry.get("type")
    if kind in _NO_AREAS:
        return [], [str(kind)]
    inner = geometry.get("geometries" if kind == "GeometryCollection" else "coordinates")
    if kind not in ("Polygon", "MultiPolygon", "GeometryCollection") or not isinstance(inner, list):
        raise AnnotationError(f"{where}: unknown geometry {kind!r}, or one without coordinates; {_EXPECTED}")
    if kind == "Polygon":
        return [inner], []
    if kind == "MultiPolygon":
        return list(inner), []
    found = [_parts(part, where) for part in inner]
    return [part for parts, _ in found for part in parts], [name for _, names in found for name in names]


def _polygons(parts: list[Any], bounds_xy_l0: Pair, where: str) -> tuple[tuple[shapely.Polygon, ...], bool]:
    """Valid disjoint polygons, level-0 px, and whether rings had to be repaired for that."""
    areas: list[shapely.Geometry] = []
    repaired = False
    for part in parts:
        if not isinstance(part, list) or not part:
            raise AnnotationError(f"{where}: a polygon without rings; {_EXPECTED}")
        rings = [l0_from_bounds(_ring(ring, where), bounds_xy_l0) for ring in part]
        whole = shapely.Polygon(rings[0], [ring for ring in rings[1:] if len(ring) > 2]) if len(rings[0]) > 2 else None
        if whole is not None and shapely.is_valid(whole):
            areas.append(whole)
            continue
        shell, *holes = (shapely.union_all(rings_filled(ring)[0]) for ring in rings)
        repaired = repaired or not shell.is_empty
        areas.append(shell.difference(shapely.union_all(holes)))
    area = areas[0] if len(areas) == 1 else shapely.union_all(areas)
    return tuple(polygons_of(area)), repaired


def _ring(ring: object, where: str) -> NDArray[np.float64]:
    """Points (N, 2) of a ring, without a third coordinate."""
    try:
        points = np.array([[float(point[0]), float(point[1])] for point in ring], np.float64)  # type: ignore[attr-defined] # checked by trying
    except (TypeError, ValueError, IndexError, KeyError, OverflowError) as error:
        raise AnnotationError(f"{where}: coordinates that are not pairs of numbers; {_EXPECTED}") from error
    points = points.reshape(-1, 2)
    if not (np.abs(points) <= MAX_COORDINATE).all():
        raise AnnotationError(f"{where}: a coordinate that is not a place on a slide; {_EXPECTED}")
    return points
