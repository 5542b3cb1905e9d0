"""Everything derived from the maps of one slide: outlines, detections, a picture, and the summary."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from inference.annotations import write_asap, write_geojson
from inference.detections import DetectionOptions, detections, write_csv
from inference.maps import Maps
from inference.overlay import overlay, write_overlay
from inference.polygons import regions
from inference.summary import Predicted, summary, write_summary
from options.choices import GeojsonFrame, OverlayStyle
from slides.geometry import geojson_corner
from slides.reader import Slide
from slides.truth.interface import Truth
from system.csv_tables import counted


@dataclass(frozen=True)
class OutputOptions:
    """Parameters of the outputs.

    Attributes:
        simplify_um: largest distance of an outline from the exact one; None: two px of the label map.
        min_area_um2: smaller regions have no outline.
        detections: see `DetectionOptions`.
        geojson_frame: where the coordinates of GeoJSON begin; see `slides.geometry.geojson_corner`.
        overlay: how the prediction is drawn, see `inference.overlay.overlay`.
    """

    simplify_um: float | None = None
    min_area_um2: float = 0.0
    detections: DetectionOptions = field(default_factory=DetectionOptions)
    geojson_frame: GeojsonFrame = "qupath"
    overlay: OverlayStyle = "auto"


def write_outputs(
    folder: Path,
    slide: Slide,
    maps: Maps,
    run: Predicted,
    started: float,
    truth: Truth | None = None,
    options: OutputOptions | None = None,
) -> list[str]:
    """Write polygons, detections, the overlay and, last, the summary beside the maps of a slide.

    `probability*.tif` and `label.tif` must be complete. Every file is written completely or not at all.

    Args:
        folder: existing folder to write to.
        slide: the slide.
        maps: its maps.
        run: what the summary states about the prediction.
        started: `time.monotonic()` at the start of work on the slide.
        truth: drawn on the overlay if given.
        options: see `OutputOptions`.

    Returns:
        Notes for the user on what was left out.

    Raises:
        ValueError: a map cannot be read.
        OSError: a file cannot be written, e.g. on a full disk; no part of that file and no summary remains.
    """
    options = OutputOptions() if options is None else options
    found, small = regions(maps, options.simplify_um, options.min_area_um2)
    corner_xy_l0 = geojson_corner(slide.bounds_xy_l0, options.geojson_frame)
    write_geojson(folder / "polygons.geojson", found, maps.class_names, corner_xy_l0)
    write_asap(folder / "polygons.xml", found, maps.class_names)
    best = detections(maps.probability, slide.size_xy_l0, options.detections)
    write_csv(folder / "detections.csv", best)
    true_regions = None if truth is None else {cls: truth.regions(cls) for cls in sorted(truth.classes - {0})}
    coarsest = maps.label.levels[-1]  # by maximum: it has what any level has
    finding = bool(best) or bool(maps.label.whole(coarsest).any())
    picture_HWC = overlay(slide, maps, found, true_regions, style=options.overlay, finding=finding)
    write_overlay(folder / "overlay.png", picture_HWC)
    write_summary(
        folder / "summary.json", summary(slide, maps, best, run, time.monotonic() - started, options.geojson_frame)
    )
    notes = [] if finding else ["no finding (no tumor predicted, no detection)"]
    if slide.bounds_xy_l0 != (0, 0):
        x, y = (f"{value:g}" for value in corner_xy_l0)
        notes.append(
            f"polygons.geojson counts px from ({x}, {y}), the corner of "
            + ("what QuPath shows" if options.geojson_frame == "qupath" else "the whole slide, which QuPath crops")
            + " (--geojson_frame); the other files from that of the whole slide"
        )
    if small:
        notes.append(f"no outline of {counted(small, 'region')} below {options.min_area_um2:g} um2")
    return notes
