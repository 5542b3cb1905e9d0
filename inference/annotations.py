"""Outlines as files: GeoJSON for QuPath, XML for ASAP."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import shapely

from inference.polygons import DECIMALS, Region
from slides.geometry import Pair, bounds_from_l0
from slides.truth.asap import write_outlines
from slides.truth.asap_areas import Area, asap_group, outlines_of
from system.atomic_files import written_whole

# Okabe and Ito's colors, which nearly everybody can distinguish; class 1 first.
COLORS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")


def color_of(cls: int) -> str:
    """Return #RRGGBB of a class >= 1."""
    return COLORS[(cls - 1) % len(COLORS)]


def rgb_of(color: str) -> tuple[int, int, int]:
    """Return red, green and blue, 0 to 255, of #RRGGBB."""
    red, green, blue = bytes.fromhex(color.removeprefix("#"))
    return red, green, blue


def write_geojson(
    path: Path, found: Sequence[Region], class_names: Mapping[int, str], corner_xy_l0: Pair = (0.0, 0.0)
) -> None:
    """Write a FeatureCollection that QuPath imports as annotations; coordinates are level-0 px from a corner on.

    Args:
        path: file to write, completely or not at all.
        found: the regions, one feature each.
        class_names: name of every class.
        corner_xy_l0: what becomes (0, 0): see `slides.geometry.geojson_corner`.
    """
    with written_whole(path) as part, part.open("w", encoding="ascii") as file:
        # One line per feature keeps a large file readable and never in memory as a whole.
        file.write('{"type": "FeatureCollection", "features": [')
        for number, region in enumerate(found):
            file.write(",\n" if number else "\n")
            file.write(json.dumps(_feature(region, class_names[region.cls], corner_xy_l0)))
        file.write("\n]}\n")


def _feature(region: Region, name: str, corner_xy_l0: Pair) -> dict[str, object]:
    rings = [
        np.round(bounds_from_l0(shapely.get_coordinates(ring), corner_xy_l0), DECIMALS).tolist()
        for ring in (region.polygon.exterior, *region.polygon.interiors)
    ]
    return {
        "type": "Feature",
        "geometry": {
            "type": "Polygon",
            "coordinates": rings,
        },
        "properties": {
            "objectType": "annotation",
            "classification": {"name": name, "color": list(rgb_of(color_of(region.cls)))},
            "measurements": {
                "Probability mean": round(region.probability, 6),
                "Area um^2": round(region.area_um2, 3),
            },
        },
    }


def write_asap(path: Path, found: Sequence[Region], class_names: Mapping[int, str]) -> None:
    """Write ASAP XML that `slides.truth.annotation` reads back to the same areas.

    `slides.truth.asap_areas` describes groups and holes; its `asap_label_map` reads more than two classes.

    Args:
        path: file to write, completely or not at all.
        found: the regions.
        class_names: name of every class.
    """
    with written_whole(path) as part:
        areas = (
            Area(region.polygon, f"{class_names[region.cls]} {number}", asap_group(region.cls), color_of(region.cls))
            for number, region in enumerate(found)
        )
        write_outlines(part, outlines_of(list(areas)))
