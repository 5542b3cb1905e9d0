"""Files of outlines: GeoJSON for QuPath, XML for ASAP."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import shapely

from inference.polygons import DECIMALS, Region, filled_holes
from slides.asap import Outline, write_outlines
from slides.files import written_whole
from slides.geometry import Points

# Okabe and Ito's colours, told apart by nearly everybody; class 1 first.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")
# CAMELYON's names; our default label map reads them.
TUMOUR_GROUP, EXCLUSION_GROUP = "_0", "_2"


def colour_of(cls: int) -> str:
    """Return #RRGGBB of a class >= 1."""
    return COLOURS[(cls - 1) % len(COLOURS)]


def rgb_of(colour: str) -> tuple[int, int, int]:
    """Return red, green and blue, 0 to 255, of #RRGGBB."""
    red, green, blue = bytes.fromhex(colour.removeprefix("#"))
    return red, green, blue


def asap_label_map(classes: int) -> dict[str, int]:
    """Return the label map that reads `write_asap` back; with two classes the default one does as well.

    Args:
        classes: Number of classes K.
    """
    groups = {TUMOUR_GROUP: 1} | {f"class_{cls}": cls for cls in range(2, classes)}
    return groups | {EXCLUSION_GROUP: 0}


def write_geojson(path: Path, found: Sequence[Region], class_names: Mapping[int, str]) -> None:
    """Write a FeatureCollection that QuPath imports as annotations; coordinates are level-0 px.

    Args:
        path: File to write, whole or not at all.
        found: The regions, one feature each.
        class_names: Name of every class.
    """
    with written_whole(path) as part, part.open("w", encoding="ascii") as file:
        # One line per feature: a large file stays readable, and is never held as one text.
        file.write('{"type": "FeatureCollection", "features": [')
        for number, region in enumerate(found):
            file.write(",\n" if number else "\n")
            file.write(json.dumps(_feature(region, class_names[region.cls])))
        file.write("\n]}\n")


def _feature(region: Region, name: str) -> dict[str, object]:
    rings = [region.polygon.exterior, *region.polygon.interiors]
    return {
        "type": "Feature",
        "geometry": {
            "type": "Polygon",
            "coordinates": [np.round(shapely.get_coordinates(ring), DECIMALS).tolist() for ring in rings],
        },
        "properties": {
            "objectType": "annotation",
            "classification": {"name": name, "color": list(rgb_of(colour_of(region.cls)))},
            "measurements": {
                "Probability mean": round(region.probability, 6),
                "Area um^2": round(region.area_um2, 3),
            },
        },
    }


def write_asap(path: Path, found: Sequence[Region], class_names: Mapping[int, str]) -> None:
    """Write ASAP XML that `slides.annotation` reads back to the same areas.

    Class 1 is group `_0`, class C group `class_C`. A hole is an annotation of its own in the exclusion group `_2`, as
    in CAMELYON. Exclusions cut everything; so a hole with another region in it is no exclusion: there the outline runs
    in to the hole along a line of no width, around it, and back along the same line, which leaves the hole out by the
    even-odd rule and needs no second annotation.

    Args:
        path: File to write, whole or not at all.
        found: The regions.
        class_names: Name of every class.
    """
    with written_whole(path) as part:
        write_outlines(part, _annotations(found, class_names))


def _annotations(found: Sequence[Region], class_names: Mapping[int, str]) -> Iterator[Outline]:
    holes: list[Points] = []
    for number, (region, filled) in enumerate(zip(found, filled_holes(found), strict=True)):
        rings = [shapely.get_coordinates(ring)[:-1] for ring in region.polygon.interiors]
        holes += [ring for ring, is_filled in zip(rings, filled, strict=True) if not is_filled]
        entered = [ring for ring, is_filled in zip(rings, filled, strict=True) if is_filled]
        ring = _around(shapely.get_coordinates(region.polygon.exterior)[:-1], entered)
        group = TUMOUR_GROUP if region.cls == 1 else f"class_{region.cls}"
        yield Outline(f"{class_names[region.cls]} {number}", group, ring.tolist(), colour_of(region.cls))
    for number, ring in enumerate(holes):
        yield Outline(f"hole {number}", EXCLUSION_GROUP, ring.tolist(), "#000000")


def _around(shell: Points, holes: Sequence[Points]) -> Points:
    """One ring around a shell and into each hole, from corner to corner by the shortest way."""
    ring = shell
    for hole in sorted(holes, key=lambda hole: tuple(hole.min(axis=0))):
        tree = shapely.STRtree(shapely.points(ring))
        nearest, distance = tree.query_nearest(shapely.points(hole), return_distance=True, all_matches=False)
        best = int(np.argmin(distance))
        inner, outer = int(nearest[0, best]), int(nearest[1, best])
        # ring[outer] -> hole, all the way round -> back to ring[outer], and on.
        detour = np.concatenate([hole[inner:], hole[: inner + 1], ring[outer : outer + 1]])
        ring = np.concatenate([ring[: outer + 1], detour, ring[outer + 1 :]])
    return ring
