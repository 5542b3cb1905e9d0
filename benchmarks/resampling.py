"""What resampling costs and how near it is to an exact bicubic: `Slide.read` at another spacing than the slide's.

python -m benchmarks.resampling --data DIR --texture SLIDE.tif [--windows 60] [--json FILE]

Times: one thread, no cache of tiles; each window is read in every way in turn, so that other programs on the machine
slow all ways alike. CPU time of the thread, median over windows; `by copy` is the ratio to the copy of the same place,
per window: median and quartiles.

    copy     at the slide's own spacing, 0.243 um/px
    on px    at 0.25 um/px, from a whole px on: what training and validation read
    beside   the same from a fraction of a px on: what predictions, grids of patches and second views read
    half     at 0.5 um/px from level 0, as if the slide had no levels; by the copy of as many px of level 0

Quality: px of `--texture` against the same in doubles (Keys' kernel, a = -0.5, widened by a reduction): PSNR in dB.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks import report
from benchmarks.big_slide import make_slide
from slides.geometry import Pair, Window
from slides.reader import Slide
from slides.resample import resampled
from slides.tiff import tiled_tiff

OWN, ASKED, SIZE = 0.243, 0.25, 1024
SCALES = (0.5, 0.8, 1.0288, 1.1, 1.2, 1.3, 1.5, 2.0, 2.06, 3.0, 4.0, 5.3, 8.0)
Ways = Callable[[Slide, Pair], dict[str, Window]]
FIELD_PX, BORDER_PX, SHIFT = 1400, 70, (0.37, 0.71)


def times(slide: Slide, windows: int) -> dict[str, dict[str, float]]:
    """Milliseconds and ratios to the copy, by way of reading."""
    without = copy.copy(slide)
    without.levels = slide.levels[:1]
    return _in_turn(slide, windows, _near) | _in_turn(without, windows, _halved)


def _in_turn(slide: Slide, windows: int, ways: Ways) -> dict[str, dict[str, float]]:
    """Read every window in every way; the first way is what the others are compared with."""
    rng = np.random.default_rng(0)
    taken: dict[str, list[float]] = {}
    for number in range(windows + 5):
        center = tuple(rng.uniform(2 * SIZE, min(slide.size_xy_l0) - 2 * SIZE, 2).tolist())
        for name, window in ways(slide, center).items():
            start = time.thread_time()
            slide.read(window)
            if number >= 5:
                taken.setdefault(name, []).append((time.thread_time() - start) * 1e3)
    copied = np.array(next(iter(taken.values())))
    found = {}
    for name, values in taken.items():
        low, middle, high = np.percentile(np.array(values) / copied, (25, 50, 75)).tolist()
        found[name] = {"ms": float(np.median(values)), "by_copy": middle, "low": low, "high": high}
    return found


def _near(slide: Slide, center: Pair) -> dict[str, Window]:
    hw = SIZE, SIZE
    on_px = slide.window(center, hw, ASKED)
    x, y = on_px.corner_xy_l0
    beside = replace(on_px, corner_xy_l0=(x + SHIFT[0], y + SHIFT[1]))
    return {"copy": slide.window(center, hw, OWN), "on px": on_px, "beside": beside}


def _halved(slide: Slide, center: Pair) -> dict[str, Window]:
    whole = slide.window(center, (2 * SIZE, 2 * SIZE), OWN)
    return {"half, copied": whole, "half": slide.window(center, (SIZE, SIZE), 2 * ASKED)}


def quality(texture: Path) -> dict[str, dict[str, float]]:
    """PSNR (dB) of ours on whole px and beside, and of Pillow's bicubic, by scale."""
    slide = Slide(texture)
    corner = slide.size_xy_l0[0] // 3, slide.size_xy_l0[1] // 3
    field_HWC = slide.read_level(0, corner, (FIELD_PX, FIELD_PX))

    def fetch(corner_xy: tuple[int, int], hw: tuple[int, int]) -> tuple[NDArray[np.uint8], float, float]:
        (x, y), (height, width) = corner_xy, hw
        return field_HWC[y : y + height, x : x + width], 0.0, 0.0

    def pillow(corner_xy: Pair, side: int, scale: float) -> NDArray[np.uint8]:
        (x, y), extent = corner_xy, side * scale
        box = (x, y, x + extent, y + extent)
        return np.asarray(Image.fromarray(field_HWC).resize((side, side), Image.Resampling.BICUBIC, box=box))

    def ours(corner_xy: Pair, side: int, scale: float) -> NDArray[np.uint8]:
        return resampled(fetch, corner_xy, (side, side), (scale, scale))

    ways: dict[str, tuple[Callable[[Pair, int, float], NDArray[np.uint8]], float]] = {
        "on px": (ours, 0.0), "beside": (ours, SHIFT[0]), "pillow": (pillow, SHIFT[0]),
    }  # fmt: skip
    found: dict[str, dict[str, float]] = {}
    for scale in SCALES:
        side = min(SIZE, int((FIELD_PX - 2 * BORDER_PX) / scale))
        for name, (way, shift) in ways.items():
            at = BORDER_PX + shift, BORDER_PX + shift
            error = way(at, side, scale) - exact(field_HWC, at, side, scale)
            db = 20 * np.log10(255 / np.sqrt((error**2).mean()))
            found.setdefault(f"{scale:g}", {})[name] = float(db)
    return found


def exact(image_HWC: NDArray[np.uint8], corner_xy: Pair, side: int, scale: float) -> NDArray[np.float64]:
    """Bicubic in doubles, (side, side, 3)."""
    found = image_HWC.astype(np.float64)
    for axis, corner in enumerate(reversed(corner_xy)):
        centers = corner + (np.arange(side) + 0.5) * scale - 0.5
        away = np.abs(np.arange(found.shape[axis]) - centers[:, None]) / max(scale, 1.0)
        near, far = 1.5 * away**3 - 2.5 * away**2 + 1, -0.5 * away**3 + 2.5 * away**2 - 4 * away + 2
        weights = np.where(away < 1, near, np.where(away < 2, far, 0.0))
        weights /= weights.sum(axis=1, keepdims=True)
        found = np.moveaxis(np.tensordot(weights, found, (1, axis)), 0, axis)
    clipped: NDArray[np.float64] = found.clip(0, 255)
    return clipped


def main() -> None:
    """Print both tables and write them as JSON."""
    parser = argparse.ArgumentParser(description="cost and quality of resampling")
    parser.add_argument("--data", type=Path, required=True, help="folder of the big slide; made where missing")
    parser.add_argument("--texture", type=Path, required=True, help="slide to make it of, and to compare px of")
    parser.add_argument("--windows", type=int, default=60)
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    tiled_tiff.tile_cache.resize(0)
    taken = times(Slide(make_slide(arguments.data, texture=arguments.texture), um_px=OWN), arguments.windows)
    print("               ms  by copy  quartiles")
    for name, row in taken.items():
        print(f"{name:<12} {row['ms']:>5.2f} {row['by_copy']:>7.2f}   {row['low']:.2f}-{row['high']:.2f}")
    near = quality(arguments.texture)
    print("\nscale   on px  beside  Pillow, dB")
    for scale, by_way in near.items():
        print(f"{scale:<7} {by_way['on px']:>5.1f} {by_way['beside']:>7.1f} {by_way['pillow']:>7.1f}")
    if arguments.json:
        report.write(arguments.json, {"px": SIZE, "times": taken, "db": near})


if __name__ == "__main__":
    main()
