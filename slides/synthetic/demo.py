"""Small slides with known truth: position-coded ones for tests, H&E-like ones for the demo and benchmarks.

python -m slides.synthetic --out DIR [--seed S]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyvips
import shapely
import tifffile
from numpy.typing import NDArray

from slides.geometry import Window
from slides.synthetic.texture import STAINS, blob, stained_tissue
from slides.truth.asap import Outline, write_outlines
from slides.truth.raster import edges_of, rasterize
from system.output import endure

Ring = NDArray[np.float64]


def exact_code(x_l0: NDArray[np.float64], y_l0: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Return RGB (H, W, 3) that names the level-0 px under the points of a grid; for slides of up to 4096 px a side.

    Red is the upper 8 bits of x, blue the lower 8 bits of y, green the rest. `decode` inverts it.
    """
    x, y = np.meshgrid(np.floor(x_l0).astype(np.int64), np.floor(y_l0).astype(np.int64))
    code_HWC: NDArray[np.uint8] = np.stack([x >> 4, (x & 15) << 4 | y >> 8, y & 255], axis=2).astype(np.uint8)
    return code_HWC


def decode(code_HWC: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return x and y of the level-0 px that `exact_code` named, (H, W) each."""
    red, green, blue = np.moveaxis(code_HWC.astype(np.int64), 2, 0)
    return red << 4 | green >> 4, (green & 15) << 8 | blue


def ramp_code(x_l0: NDArray[np.float64], y_l0: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Return RGB (H, W, 3) that changes linearly: red x / 16, green y / 16, blue (x + y) / 32 (rounded)."""
    x, y = np.meshgrid(x_l0, y_l0)
    ramps = np.rint(np.stack([x / 16, y / 16, (x + y) / 32], axis=2))
    code_HWC: NDArray[np.uint8] = np.clip(ramps, 0, 255).astype(np.uint8)
    return code_HWC


def position_coded(
    path: Path,
    size_xy: tuple[int, int],
    downsamples: Sequence[float] = (1.0,),
    tile: int = 128,
    um_px: float | None = 0.25,
    smooth: bool = False,
) -> None:
    """Write a lossless pyramid whose pixels tell where they came from.

    Each level is the code sampled at the centers of its pixels, so it is true to its place at any downsample.

    Args:
        path: TIFF to write.
        size_xy: Width and height, level-0 px, at most 4096.
        downsamples: Level-0 px per px, starting with 1; sizes are rounded down.
        tile: Side of the tiles, a multiple of 16.
        um_px: Micrometers per level-0 px for the resolution tags; None writes no spacing.
        smooth: `ramp_code` instead of `exact_code`.
    """
    if max(size_xy) > 4096 or downsamples[0] != 1:
        raise ValueError(f"size {size_xy} and downsamples {downsamples}: at most 4096 px, the first downsample 1")
    code = ramp_code if smooth else exact_code
    levels = []
    for down in downsamples:
        width, height = (int(side / down) for side in size_xy)
        levels.append(code((np.arange(width) + 0.5) * down, (np.arange(height) + 0.5) * down))
    write_levels(path, levels, tile, um_px)


def write_levels(
    path: Path, levels: Iterable[NDArray[np.uint8]], tile: int = 128, um_px: float | None = 0.25, unit: str = "cm"
) -> None:
    """Write given levels as one lossless tiled TIFF, finest first.

    Args:
        path: TIFF to write.
        levels: (H, W, 3) RGB or (H, W) one-channel each.
        tile: Side of the tiles, a multiple of 16.
        um_px: Micrometers per px of the first level; None writes no spacing.
        unit: "cm" or "inch".
    """
    um_per_unit = {"cm": 10000.0, "inch": 25400.0}[unit]
    resolution = (1.0, 1.0) if um_px is None else (um_per_unit / um_px, um_per_unit / um_px)
    with tifffile.TiffWriter(path) as tiff:
        for index, level in enumerate(levels):
            tiff.write(
                level,
                photometric="rgb" if level.ndim == 3 else "minisblack",
                tile=(tile, tile),
                compression="zlib",
                subfiletype=1 if index else 0,
                resolution=resolution,
                resolutionunit="none" if um_px is None else {"cm": "centimeter", "inch": "inch"}[unit],
                metadata=None,
            )


def write_pyramid(path: Path, image: NDArray[np.uint8], um_px: float, lossless: bool = False) -> None:
    """Write a pyramid as scanners' exporters do: JPEG 256 px tiles, halved levels, spacing in centimeter tags.

    Args:
        path: TIFF to write.
        image: (H, W, 3) RGB, or (H, W) for a mask.
        um_px: Micrometers per px.
        lossless: Deflate, and levels by maximum instead of mean: for masks.
    """
    bands = image.shape[2] if image.ndim == 3 else 1
    memory = pyvips.Image.new_from_memory(
        np.ascontiguousarray(image).data, image.shape[1], image.shape[0], bands, "uchar"
    )
    memory = memory.copy(interpretation="srgb" if bands == 3 else "b-w", xres=1000 / um_px, yres=1000 / um_px)
    options = {"compression": "deflate", "region_shrink": "max"} if lossless else {"compression": "jpeg", "Q": 88}
    memory.tiffsave(
        str(path), tile=True, tile_width=256, tile_height=256, pyramid=True, depth="onetile", resunit="cm", **options
    )


def write_asap(path: Path, areas: Iterable[tuple[str, Ring]]) -> None:
    """Write ASAP XML.

    Args:
        path: File to write.
        areas: Group and outline (N, 2), level-0 px (x, y), not closed.
    """
    write_outlines(path, (Outline(f"Annotation {n}", group, ring.tolist()) for n, (group, ring) in enumerate(areas)))


@dataclass(frozen=True)
class DemoSlide:
    """Plan of one demo slide: where it goes, size (level-0 px), spacing (um/px), stain, tumors (with hole or not)."""

    name: str
    split: str
    size_xy: tuple[int, int]
    um_px: float
    stain: str
    tumors: tuple[tuple[float, float, float, bool], ...] = ()


# Tumors: center as a share of width and height, radius as a share of the shorter side, whether a hole is cut.
DEMO = (
    DemoSlide(
        "tumor_001", "train", (3517, 2893), 0.25, "standard", ((0.36, 0.42, 0.24, True), (0.72, 0.62, 0.11, False))
    ),
    DemoSlide("tumor_002", "train", (3089, 3331), 0.243, "violet", ((0.56, 0.38, 0.25, True),)),
    DemoSlide("tumor_003", "train", (3643, 2771), 0.25, "pale", ((0.64, 0.52, 0.27, True), (0.28, 0.36, 0.08, False))),
    DemoSlide("normal_001", "train", (3271, 2659), 0.25, "pink"),
    DemoSlide("tumor_101", "val", (3389, 3001), 0.25, "pink", ((0.42, 0.55, 0.26, True), (0.72, 0.34, 0.1, False))),
    DemoSlide("tumor_102", "val", (3163, 2837), 0.25, "standard", ((0.55, 0.47, 0.22, True),)),
)


def make_demo(out: Path, seed: int = 0) -> list[Path]:
    """Write the demo data set: H&E-like slides, ASAP XML and masks of those with tumor.

    Folders `train` and `val`, each with `images`, `annotations` and `masks`, as in CAMELYON16: 3 + 2 slides with tumor
    (an exclusion cut from the largest), one without; four stains. Takes about 20 s on one core.

    Args:
        out: Folder; made when missing.
        seed: The same seed gives the same slides.

    Returns:
        Paths of the slides.
    """
    return [
        _write_demo_slide(Path(out), plan, np.random.default_rng([seed, number])) for number, plan in enumerate(DEMO)
    ]


def _write_demo_slide(out: Path, plan: DemoSlide, rng: np.random.Generator) -> Path:
    width, height = plan.size_xy
    half = np.array([width, height]) / 2
    tissue = blob(rng, half, half * rng.uniform(0.86, 0.9, 2), roughness=0.05)
    areas: list[tuple[str, Ring]] = []
    for share_x, share_y, share_r, has_hole in plan.tumors:
        center_xy, radius = np.array([share_x * width, share_y * height]), share_r * min(width, height)
        areas.append(("_0", blob(rng, center_xy, np.full(2, radius), roughness=0.16)))
        if has_hole:
            where = center_xy + rng.uniform(-0.2, 0.2, 2) * radius
            areas.append(("_2", blob(rng, where, np.full(2, 0.33 * radius), roughness=0.12)))
    tissue_HW = rasterize(edges_of([shapely.Polygon(tissue)]), _whole(plan.size_xy))
    image_HWC = stained_tissue(rng, tissue_HW, rasterized(areas, plan.size_xy), STAINS[plan.stain])
    return write_case(out / plan.split, plan.name, image_HWC, areas, plan.um_px)


def _whole(size_xy: tuple[int, int]) -> Window:
    return Window((0.0, 0.0), (size_xy[1], size_xy[0]), (1.0, 1.0))


def rasterized(areas: Iterable[tuple[str, Ring]], size_xy: tuple[int, int]) -> NDArray[np.bool_]:
    """Return tumor_HW of a slide as its label map paints it: `_0`, then exclusions over it.

    Args:
        areas: Group and outline (N, 2), level-0 px (x, y), not closed; as for `write_asap`.
        size_xy: Width and height, level-0 px.
    """
    tumor_HW = np.zeros(size_xy[::-1], np.bool_)
    for group, ring in sorted(areas, key=lambda area: area[0]):
        # Four digits, as the XML has.
        tumor_HW[rasterize(edges_of([shapely.Polygon(np.round(ring, 4))]), _whole(size_xy))] = group == "_0"
    return tumor_HW


def write_case(
    out: Path, name: str, image_HWC: NDArray[np.uint8], areas: Sequence[tuple[str, Ring]], um_px: float
) -> Path:
    """Write a slide, and where it has areas its XML and mask, into `images`, `annotations` and `masks`.

    Args:
        out: Folder of the split; made when missing.
        name: File name without suffix.
        image_HWC: RGB of level 0.
        areas: Group and outline (N, 2), level-0 px (x, y), not closed.
        um_px: Micrometers per px.

    Returns:
        Path of the slide.
    """
    folders = {folder: out / folder for folder in ("images", "annotations", "masks")}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    slide_path = folders["images"] / f"{name}.tif"
    write_pyramid(slide_path, image_HWC, um_px)
    if areas:
        tumor_HW = rasterized(areas, (image_HWC.shape[1], image_HWC.shape[0]))
        write_asap(folders["annotations"] / f"{name}.xml", areas)
        write_pyramid(folders["masks"] / f"{name}_Mask.tif", tumor_HW.astype(np.uint8), um_px, lossless=True)
    return slide_path


def command_line(make: Callable[[Path, int], list[Path]], what: str) -> None:
    """Write a data set from the command line: --out and --seed.

    Args:
        make: Writes it into a folder with a seed and returns the slides.
        what: Said by --help.
    """
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--out", type=Path, required=True, help="folder for train/ and val/")
    parser.add_argument(
        "--seed", type=int, default=0, help="the same seed gives the same slides (default: %(default)s)"
    )
    arguments = parser.parse_args()
    # run_train.sh makes these slides before it trains.
    endure()
    for path in make(arguments.out, arguments.seed):
        print(path)
