"""ASAP XML to a mask: a tiled pyramid that lies on its slide px by px, whatever the size of the slide.

python -m preprocessing.xml_to_mask --xml tumor_001.xml --slide tumor_001.tif --out tumor_001_Mask.tif
python -m preprocessing.xml_to_mask --xml tumor_001.xml --size 97792 221184 --um_px 0.243 --out tumor_001_Mask.tif

Every px has the class under its centre, as in training from XML (`slides.truth.XmlTruth`). Tiles that no edge passes
through are known without looking at their px, so time goes with the length of the outlines and not with the area.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from slides.annotation import DEFAULT_IGNORE_GROUPS, DEFAULT_LABEL_MAP, describe
from slides.geometry import Pair, Window
from slides.pyramid import write_mask_pyramid
from slides.reader import Slide
from slides.truth import XmlTruth

TILE = 512


@dataclass(frozen=True)
class Field:
    """A slide of which only the size is known.

    Attributes:
        id: Its id.
        path: What messages call it.
        size_xy_l0: Width and height, level-0 px.
        um_px_xy_l0: Micrometres per level-0 px.
    """

    id: str
    path: Path
    size_xy_l0: tuple[int, int]
    um_px_xy_l0: Pair


def xml_to_mask(
    xml: Path,
    slide: Slide | Field,
    out: Path,
    label_map: Mapping[str, int] = DEFAULT_LABEL_MAP,
    ignore_groups: Collection[str] = DEFAULT_IGNORE_GROUPS,
    tile: int = TILE,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[str, ...]:
    """Write the mask of one annotation.

    The mask has the size and spacing of the slide, and its levels where it has more than one (else halves). Values are
    classes; lower levels are made by maximum, where 255 ("ignore") beats no class, so small lesions stay.

    Args:
        xml: The annotation.
        slide: Its slide, or size and spacing of it.
        out: Mask to write, whole or not at all.
        label_map: Group to class, in the order of painting.
        ignore_groups: Groups to skip.
        tile: Side of the tiles, px, a multiple of 16.
        progress: See `slides.pyramid.write_mask_pyramid`.

    Returns:
        What was skipped, repaired or clipped.

    Raises:
        ValueError: The annotation cannot be used.
        OSError: The mask cannot be written.
    """
    truth = XmlTruth(xml, slide, label_map, ignore_groups)
    sizes = [level.size_xy for level in slide.levels] if isinstance(slide, Slide) else []
    class_HW = truth.one_class(tile)
    width, height = slide.size_xy_l0

    def tile_of(row: int, column: int) -> NDArray[np.uint8] | int:
        if class_HW[row, column] >= 0:
            return int(class_HW[row, column])
        top, left = row * tile, column * tile
        hw = min(tile, height - top), min(tile, width - left)
        return truth.label(Window((float(left), float(top)), hw, (1.0, 1.0)))

    write_mask_pyramid(
        out, slide.size_xy_l0, slide.um_px_xy_l0, tile_of, sizes if len(sizes) > 1 else None, "max", tile, progress
    )
    return truth.notes


def group_class(text: str) -> tuple[str, int]:
    """Parse GROUP:CLASS of `--label_map`."""
    group, colon, cls = text.rpartition(":")
    if not colon or not group or not cls.isdecimal() or int(cls) > 255:
        raise argparse.ArgumentTypeError(f"{text!r} is not GROUP:CLASS with a class from 0 to 255, e.g. _0:1")
    return group.lower(), int(cls)


def _field(parser: argparse.ArgumentParser, opts: argparse.Namespace) -> Slide | Field:
    """The slide, or what was said of it."""
    if opts.slide is not None:
        if opts.size is not None:
            parser.error("--slide has a size of its own: give --slide, or --size with --um_px")
        return Slide(opts.slide, tuple(opts.um_px * 2)[:2] if opts.um_px else None)
    if opts.size is None or opts.um_px is None:
        parser.error("give --slide, or --size with --um_px")
    return Field(opts.xml.stem, opts.xml, tuple(opts.size), tuple(opts.um_px * 2)[:2])


def main() -> None:
    """Convert one file, and say what became of it."""
    parser = argparse.ArgumentParser(
        prog="python -m preprocessing.xml_to_mask", description="write an ASAP annotation as a pyramidal mask"
    )
    parser.add_argument("--xml", type=Path, required=True, help="ASAP annotation")
    parser.add_argument("--out", type=Path, required=True, help="mask to write (.tif)")
    parser.add_argument("--slide", type=Path, help="slide of the annotation: gives size, levels and spacing")
    parser.add_argument("--size", type=int, nargs=2, metavar=("W", "H"), help="level-0 px, in place of --slide")
    parser.add_argument(
        "--um_px", type=float, nargs="+", metavar="UM", help="um per level-0 px (x and y, or one for both)"
    )
    parser.add_argument(
        "--label_map", type=group_class, nargs="+", metavar="GROUP:CLASS",
        help="class of each group, in the order of painting; default: CAMELYON's groups",
    )  # fmt: skip
    parser.add_argument("--ignore_groups", nargs="+", metavar="GROUP", default=list(DEFAULT_IGNORE_GROUPS))
    parser.add_argument("--tile", type=int, default=TILE, help="side of the tiles, px (default: %(default)s)")
    opts = parser.parse_args()
    if opts.um_px is not None and len(opts.um_px) > 2:
        parser.error("--um_px: give one number, or one for x and one for y")
    skipped = {group.lower() for group in opts.ignore_groups}
    label_map = {group: cls for group, cls in DEFAULT_LABEL_MAP.items() if group not in skipped}
    if opts.label_map:
        label_map = dict(opts.label_map)
        if len(label_map) < len(opts.label_map) or skipped & set(label_map):
            parser.error("--label_map: name each group once, and none of --ignore_groups")
    start = time.perf_counter()
    try:
        field = _field(parser, opts)
        print(describe(label_map))
        for note in xml_to_mask(opts.xml, field, opts.out, label_map, opts.ignore_groups, opts.tile):
            print(note)
    except (ValueError, OSError) as error:
        sys.exit(f"xml_to_mask: {error}")
    width, height = field.size_xy_l0
    print(f"{opts.out}: {width} x {height} px in {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()
