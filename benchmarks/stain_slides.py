"""Slides of two stains for studies of stain: lymph node patches laid out as mosaics, one stain a slide.

python -m benchmarks.stain_slides --data PATCHES --out DIR

PATCHES has `patches.csv` (image, split, class) and pictures of 96 px at 0.972 um/px whose label speaks of their center
of 32 px (PatchCamelyon). The stain of a patch is known by the ratio of its optical densities in blue and green, which
has two well separated modes; patches between them, or with little tissue, are left out. Written are
DIR/STAIN/{train,valid}/{images,masks}/tumor_NAME.tif, for --label_format tif --mask_values 0:255 1:0 2:1: only the
centers count. STAIN is `pale` (little blue) or `deep`.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from slides.tiff.jpeg_files import STRIP_ROWS
from slides.tiff.pyramid import write_jpeg_pyramid, write_mask_pyramid

SIDE, CENTER = 96, slice(32, 64)  # px of a patch, and what its label speaks of
UM_PX = 0.972
COLUMNS, ROWS = 16, 12  # patches of a slide
LEAST_OD, LEAST_PX = 0.45, 2000  # sum of optical densities of a stained px, and how many a patch has
PALE, DEEP = 0.45, 0.53  # blue over green: at most, at least


def stain_of(rgb_HWC: NDArray[np.uint8]) -> str | None:
    """Return `pale`, `deep`, or None where it cannot be told."""
    density_N3 = -np.log((rgb_HWC.reshape(-1, 3) + 1.0) / 256)
    stained = density_N3[density_N3.sum(1) > LEAST_OD]
    if len(stained) < LEAST_PX:
        return None
    ratio = stained[:, 2].mean() / stained[:, 1].mean()
    return "pale" if ratio <= PALE else "deep" if ratio >= DEEP else None


def by_stain(data: Path) -> dict[tuple[str, str], list[tuple[NDArray[np.uint8], int]]]:
    """Read the patches: (stain, split) to (rgb_HWC, tumor)."""
    found: dict[tuple[str, str], list[tuple[NDArray[np.uint8], int]]] = {}
    with (data / "patches.csv").open() as file:
        for row in csv.DictReader(file):
            rgb_HWC = np.asarray(Image.open(data / row["image"]).convert("RGB"))
            stain = stain_of(rgb_HWC)
            if stain is not None:
                found.setdefault((stain, row["split"]), []).append((rgb_HWC, int(row["tumour"])))  # old spelling
    return found


def write_slide(folder: Path, name: str, patches: list[tuple[NDArray[np.uint8], int]]) -> None:
    """Write one mosaic, white where patches are missing, and its mask."""
    height, width = ROWS * SIDE, COLUMNS * SIDE
    rgb_HWC = np.full((height, width, 3), 255, np.uint8)
    mask_HW = np.zeros((height, width), np.uint8)
    for number, (patch_HWC, tumor) in enumerate(patches):
        top, left = number // COLUMNS * SIDE, number % COLUMNS * SIDE
        rgb_HWC[top : top + SIDE, left : left + SIDE] = patch_HWC
        mask_HW[top : top + SIDE, left : left + SIDE][CENTER, CENTER] = 1 + tumor

    def strips() -> Iterator[NDArray[np.uint8]]:
        for top in range(0, height, STRIP_ROWS):
            yield rgb_HWC[top : top + STRIP_ROWS]

    def tile_of(row: int, column: int) -> Any:
        return mask_HW[row * 512 : (row + 1) * 512, column * 512 : (column + 1) * 512]

    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    write_jpeg_pyramid(folder / "images" / f"{name}.tif", (width, height), (UM_PX, UM_PX), strips(), 95)
    write_mask_pyramid(folder / "masks" / f"{name}_mask.tif", (width, height), (UM_PX, UM_PX), tile_of)


def main() -> None:
    """Write all slides; print how many patches each stain and split has."""
    parser = argparse.ArgumentParser(description="slides of two stains, laid out from labeled patches")
    parser.add_argument("--data", type=Path, required=True, help="folder with patches.csv")
    parser.add_argument("--out", type=Path, required=True)
    opts = parser.parse_args()
    rng = np.random.default_rng(0)
    for (stain, split), patches in sorted(by_stain(opts.data).items()):
        order = rng.permutation(len(patches))
        each = COLUMNS * ROWS
        slides = max(1, round(len(patches) / each))
        for number in range(slides):
            chosen = [patches[i] for i in order[number::slides][:each]]
            write_slide(opts.out / stain / split, f"tumor_{stain}_{split}_{number}", chosen)
        tumor = sum(tumor for _, tumor in patches)
        print(f"{stain} {split}: {len(patches)} patches, {tumor} with tumor, {slides} slides")


if __name__ == "__main__":
    main()
