"""A mask to ASAP XML: the exact edges of its px, whatever its size; the other way round of `xml_to_mask`.

python -m preprocessing.mask_to_xml --mask tumor_001_Mask.tif --out tumor_001.xml

Class 1 becomes group `_0`, class C group `class_C`, holes group `_2` (see `slides.asap_areas`), so `xml_to_mask` makes
the same mask again.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import shapely

from slides.asap import YELLOW, write_outlines
from slides.asap_areas import Area, asap_group, asap_label_map, outlines_of
from slides.files import written_whole
from slides.geometry import Window
from slides.label import IGNORE
from slides.mask_truth import MaskTruth
from slides.outline import outlines
from slides.raster import polygons_of
from slides.reader import Slide

# Side of the blocks that are outlined one at a time, px; larger ones leave the core's cache.
BLOCK = 2048


def mask_to_xml(mask: Path, out: Path, mask_values: Mapping[int, int] | None = None, block: int = BLOCK) -> int:
    """Write the outlines of every class >= 1 of a mask.

    Corners of px are kept: an outline has as many points as its px have corners, and is on level 0 exactly.

    Args:
        mask: One-channel TIFF.
        out: XML to write, whole or not at all.
        mask_values: Stored value to class; default: 0 is class 0, all else class 1. Class 255 (ignore) has no outline.
        block: Side of what is held at once, px.

    Returns:
        Number of areas.

    Raises:
        ValueError: The mask cannot be used.
        OSError: The XML cannot be written.
    """
    # Outlines are in px; the spacing matters to nothing here, and masks often have none.
    slide = Slide(mask, um_px=1.0)
    truth = MaskTruth(mask, slide, mask_values)
    areas = [
        Area(polygon, f"class {cls} {number}", asap_group(cls), YELLOW)
        for cls, polygons in sorted(_polygons(truth, slide.size_xy_l0, block).items())
        for number, polygon in enumerate(polygons)
    ]
    with written_whole(out) as part:
        write_outlines(part, outlines_of(areas))
    return len(areas)


def _polygons(truth: MaskTruth, size_xy: tuple[int, int], block: int) -> dict[int, list[shapely.Polygon]]:
    """Disjoint polygons of each class, level-0 px."""
    width, height = size_xy
    whole: dict[int, list[shapely.Polygon]] = {}
    cut: dict[int, list[shapely.Polygon]] = {}
    for top in range(0, height, block):
        for left in range(0, width, block):
            hw = min(block, height - top), min(block, width - left)
            label_HW = truth.label(Window((float(left), float(top)), hw, (1.0, 1.0)))
            box = shapely.box(left, top, left + hw[1], top + hw[0])
            low, high = int(label_HW.min()), int(label_HW.max())
            if low == high:
                if 0 < low < IGNORE:
                    cut.setdefault(low, []).append(box)
                continue
            present = np.flatnonzero(np.bincount(label_HW.ravel(), minlength=256)[1:IGNORE]) + 1
            for cls in present.tolist():
                for outline in outlines(label_HW == cls, 1.0):
                    polygon = shapely.transform(outline, lambda xy, at=(left, top): xy + at)
                    # What reaches the edge of its block goes on in the next.
                    inside = shapely.contains_properly(box, polygon)
                    (whole if inside else cut).setdefault(cls, []).append(polygon)
    for cls, parts in cut.items():
        # Corners where blocks met lie on straight sides now.
        joined = shapely.simplify(shapely.union_all(parts), 0.0, preserve_topology=True)
        whole.setdefault(cls, []).extend(polygons_of(joined))
    return whole


def value_class(text: str) -> tuple[int, int]:
    """Parse VALUE:CLASS of `--mask_values`."""
    value, colon, cls = text.partition(":")
    if not colon or not value.isdecimal() or not cls.isdecimal() or max(int(value), int(cls)) > 255:
        raise argparse.ArgumentTypeError(f"{text!r} is not VALUE:CLASS, both from 0 to 255, e.g. 2:1")
    return int(value), int(cls)


def main() -> None:
    """Convert one file, and say what became of it."""
    parser = argparse.ArgumentParser(
        prog="python -m preprocessing.mask_to_xml", description="write the outlines of a mask as an ASAP annotation"
    )
    parser.add_argument("--mask", type=Path, required=True, help="one-channel TIFF")
    parser.add_argument("--out", type=Path, required=True, help="annotation to write (.xml)")
    parser.add_argument(
        "--mask_values", type=value_class, nargs="+", metavar="VALUE:CLASS",
        help="class of each stored value; default: 0 is class 0, all else class 1",
    )  # fmt: skip
    opts = parser.parse_args()
    values = dict(opts.mask_values) if opts.mask_values else None
    if values is not None and len(values) < len(opts.mask_values):
        parser.error("--mask_values: name each value once")
    start = time.perf_counter()
    try:
        count = mask_to_xml(opts.mask, opts.out, values)
    except (ValueError, OSError) as error:
        sys.exit(f"mask_to_xml: {error}")
    print(f"{opts.out}: {count} areas in {time.perf_counter() - start:.1f} s")
    classes = max([1, *(cls for cls in (values or {}).values() if cls != IGNORE)]) + 1
    if classes > 2:
        words = " ".join(f"{group}:{cls}" for group, cls in asap_label_map(classes).items())
        print(f"read it with --label_map {words}")


if __name__ == "__main__":
    main()
