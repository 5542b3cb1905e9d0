"""`summary.json`: what was predicted on one slide, by which model, and how much of it is tumor."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inference.detections import Detection
from inference.lesions import areas_mm2, lesion_sizes
from inference.maps import Maps
from options.choices import GeojsonFrame
from slides.geometry import geojson_corner
from slides.reader import Slide
from system.atomic_files import write_bytes
from system.version import __version__

# Among the options of a summary: the maps are 0 off the tissue that was looked for. Earlier predictions lack it.
CUT = "cut_to_tissue"


@dataclass(frozen=True)
class Predicted:
    """Information about the prediction besides its maps.

    Attributes:
        model: path of the model or checkpoint.
        windows: windows predicted.
        windows_unreadable: windows that could not be read completely.
        tissue_mm2: area of the tissue that was predicted.
        um_px: spacing of the prediction, um per map px.
        options: options of the command, JSON types.
        brightfield: whether the slide is brightfield; others have no tissue.
        stain: the slide's stain and what was done about it, JSON types.
    """

    model: str
    windows: int
    windows_unreadable: int
    tissue_mm2: float
    um_px: float
    options: Mapping[str, Any]
    brightfield: bool = True
    stain: Mapping[str, Any] | None = None


def summary(
    slide: Slide,
    maps: Maps,
    found: Sequence[Detection],
    run: Predicted,
    seconds: float,
    geojson_frame: GeojsonFrame = "qupath",
) -> dict[str, Any]:
    """Return the record of one slide.

    Args:
        slide: the slide.
        maps: its maps.
        found: its detections, best first.
        run: see `Predicted`.
        seconds: wall time of the slide so far.
        geojson_frame: where `polygons.geojson` counts from; see `slides.geometry.geojson_corner`.
    """
    sizes = lesion_sizes(maps)
    return {
        "widefov_version": __version__,
        "slide_id": slide.id,
        "slide_path": str(slide.path.absolute()),
        "size_xy_l0": list(slide.size_xy_l0),
        "um_px_xy_l0": list(slide.um_px_xy_l0),
        "bounds_xy_l0": list(slide.bounds_xy_l0),
        "geojson_frame": geojson_frame,
        # Added to points of polygons.geojson it gives level-0 px of the whole slide, as in all other files.
        "geojson_offset_xy_l0": list(geojson_corner(slide.bounds_xy_l0, geojson_frame)),
        "um_px": run.um_px,
        "step_xy_l0": list(maps.step_xy_l0),
        "size_xy": list(maps.label.levels[0].size_xy),
        "classes": maps.classes,
        "class_names": {str(cls): name for cls, name in sorted(maps.class_names.items())},
        "model": run.model,
        "windows": run.windows,
        "windows_unreadable": run.windows_unreadable,
        "brightfield": run.brightfield,
        "tissue_mm2": round(run.tissue_mm2, 6),
        "area_mm2": {str(cls): round(area, 6) for cls, area in areas_mm2(maps).items()},
        "tumor_probability": round(found[0].probability, 6) if found else 0.0,
        "longest_diameter_mm": round(sizes.longest_diameter_mm, 6),
        "lesions": sizes.count,
        "seconds": round(seconds, 3),
        "stain": None if run.stain is None else dict(run.stain),
        "options": dict(run.options),
    }


def write_summary(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record as JSON, completely or not at all.

    Args:
        path: file to write.
        record: JSON types; bytes of file names that are not valid text are escaped.
    """
    text = json.dumps(record, indent=1, allow_nan=False)
    write_bytes(path, f"{text}\n".encode("ascii"))
