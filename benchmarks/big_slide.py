"""One large slide with truth for benchmarks: 512 px JPEG tiles, XML outlines of 100,000 and more vertices, a mask.

python -m benchmarks.big_slide --out DIR [--side 16384] [--texture SLIDE.tif] [--slide_only]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pyvips
import shapely

from slides.geometry import Window
from slides.synthetic.demo import write_asap
from slides.synthetic.texture import STAINS, blob, stained_tissue
from slides.truth.raster import edges_of, rasterize

TILE, UM_PX, PATTERN = 512, 0.25, 2048
BLOBS_A_SIDE, VERTICES = 8, 1800  # 64 outlines, 115,200 vertices: more than tumor_054 of CAMELYON16


def make(out: Path, side: int = 16384, texture: Path | None = None) -> tuple[Path, Path, Path]:
    """Write `big.tif`, `big.xml` and `big_Mask.tif` unless they are there; about half a minute.

    Args:
        out: folder.
        side: width and height, level-0 px.
        texture: slide whose level 0 is laid side by side; synthetic tissue without one.

    Returns:
        Slide, annotation and mask.
    """
    slide, xml, mask = make_slide(out, side, texture), out / "big.xml", out / "big_Mask.tif"
    if xml.exists() and mask.exists():
        return slide, xml, mask
    rings = _rings(np.random.default_rng(1), side)
    write_asap(xml, [("_0", ring) for ring in rings])
    edges = edges_of([shapely.Polygon(np.round(ring, 4)) for ring in rings])
    inside_HW = rasterize(edges, Window((0.0, 0.0), (side, side), (1.0, 1.0)))
    _save(pyvips.Image.new_from_array(inside_HW.astype(np.uint8)), mask, compression="deflate")
    return slide, xml, mask


def make_slide(out: Path, side: int = 16384, texture: Path | None = None) -> Path:
    """Write `big.tif` alone, unless it is there; see `make`."""
    slide = out / "big.tif"
    if slide.exists():
        return slide
    out.mkdir(parents=True, exist_ok=True)
    if texture is None:
        everywhere = np.ones((PATTERN, PATTERN), np.bool_)
        tissue_HWC = stained_tissue(np.random.default_rng(0), everywhere, ~everywhere, STAINS["standard"])
        pattern = pyvips.Image.new_from_array(tissue_HWC)
    else:
        pattern = pyvips.Image.new_from_file(str(texture))
    count_x, count_y = -(-side // pattern.width), -(-side // pattern.height)
    _save(pattern.replicate(count_x, count_y).crop(0, 0, side, side), slide, compression="jpeg", Q=80)
    return slide


def _rings(rng: np.random.Generator, side: int) -> list[np.ndarray]:
    """Disjoint wavy outlines on a grid, (VERTICES, 2) level-0 px each."""
    pitch = side / BLOBS_A_SIDE
    turn = np.arange(VERTICES) * (2 * np.pi / VERTICES)
    rings = []
    for row in range(BLOBS_A_SIDE):
        for column in range(BLOBS_A_SIDE):
            center_xy = (np.array([column, row]) + 0.5) * pitch
            ring = blob(rng, center_xy, np.full(2, 0.38 * pitch), roughness=0.1)
            # As many vertices as asked for, with ripples of a few px, as careful annotators draw.
            angle = np.linspace(0, 2 * np.pi, len(ring), endpoint=False)
            radius = np.interp(turn, angle, np.linalg.norm(ring - center_xy, axis=1), period=2 * np.pi)
            radius = radius + 6 * np.sin(97 * turn)
            rings.append(center_xy + radius[:, None] * np.stack([np.cos(turn), np.sin(turn)], axis=1))
    return rings


def _save(image: pyvips.Image, path: Path, **compression: str | int) -> None:
    options = {"tile": True, "tile_width": TILE, "tile_height": TILE, "pyramid": True, "bigtiff": True}
    scaled = image.copy(xres=1000 / UM_PX, yres=1000 / UM_PX)
    scaled.tiffsave(str(path), resunit="cm", **options, **compression)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="write one large slide with truth for benchmarks")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--side", type=int, default=16384, help="level-0 px (default: %(default)s)")
    parser.add_argument("--texture", type=Path, help="slide to lay side by side; default synthetic tissue")
    parser.add_argument("--slide_only", action="store_true", help="no truth: a mask takes side^2 bytes of memory")
    arguments = parser.parse_args()
    place = (arguments.out, arguments.side, arguments.texture)
    for written in [make_slide(*place)] if arguments.slide_only else make(*place):
        print(written)
