"""Slides with one label each that is only to be seen at fine spacing, somewhere on a large canvas.

    python -m slides.synthetic.fine --out DIR [--seed S] [--train N] [--val N]

Tissue with round islands some 110 px across. Most are plain; the others have a pattern of some 5 px, turned at
random: nuclei (dark dots) or vacuoles (light dots). The mean is the same, so in a thumbnail an eighth of the size all
islands are alike: even spots. Two data sets:

- `one_place`: label 1 where one or two of the islands have nuclei; all others are plain
- `two_places`: every slide has two islands, more than half the canvas apart, with a pattern. Label 1 where one has
  nuclei and the other vacuoles; label 0 where both have nuclei or both have vacuoles. No window with one of them tells
  the label.

Each has `slides/*.tif` (JPEG pyramids), `train.csv` and `val.csv` (`slide_id,label`; both labels equally often), and
`islands.csv`: where the islands that decide lie, level-0 px.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from slides.synthetic.demo import write_pyramid
from slides.synthetic.texture import blob
from system.output import endure

SETS = ("one_place", "two_places")
SIDE = 2048  # level-0 px
UM_PX = 0.5
ISLANDS = 12
RADIUS = (48, 62)  # level-0 px
PERIOD = (4.2, 5.4)  # of a pattern, level-0 px
GLASS, TISSUE, ISLAND = (243.0, 242.0, 244.0), (222.0, 176.0, 205.0), (142.0, 112.0, 152.0)  # mean RGB
CONTRAST = 44.0  # of a pattern, standard deviation times the square root of 2
DOTS = 0.9  # sharpness of dots
APART = 0.55  # of the canvas between two places that decide


@dataclass(frozen=True)
class Island:
    """One island.

    Attributes:
        x: of its center, level-0 px.
        y: of its center, level-0 px.
        radius: level-0 px.
        pattern: "plain", "nuclei" or "vacuoles".
    """

    x: int
    y: int
    radius: int
    pattern: str


def pattern(kind: str, radius: int, period: float, angle: float) -> NDArray[np.float32]:
    """A pattern of mean 0 and mean square 1/2, or none, (2 radius + 1) px a side.

    Args:
        kind: "plain", "nuclei" or "vacuoles".
        radius: of the island, px.
        period: px.
        angle: by which it is turned, radians.
    """
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1].astype(np.float64)
    u = (np.cos(angle) * x + np.sin(angle) * y) * 2 * np.pi / period
    v = (np.cos(angle) * y - np.sin(angle) * x) * 2 * np.pi / period
    # The angle also shifts the pattern, so that no place of an island has one phase.
    shift = 7 * angle
    if kind == "plain":
        return np.zeros(x.shape, np.float32)
    dots = np.exp(DOTS * (np.cos(u + shift) + np.cos(v - shift)))
    waves = (dots - dots.mean()) / dots.std() * np.sqrt(0.5)
    return np.asarray(waves if kind == "vacuoles" else -waves, np.float32)


def patterns(rng: np.random.Generator, name: str, label: int) -> list[str]:
    """Patterns of a slide's islands; those that decide come first."""
    if name == SETS[0]:
        first = ["nuclei"] * int(rng.integers(1, 3)) * label
    elif label:
        first = ["nuclei", "vacuoles"]
    else:
        first = [str(rng.choice(["nuclei", "vacuoles"]))] * 2
    return first + ["plain"] * (ISLANDS - len(first))


def places(
    rng: np.random.Generator, tissue_HW: NDArray[np.bool_], kinds: Sequence[str], apart_px: float
) -> list[Island]:
    """Islands inside the tissue that do not touch.

    Args:
        rng: random source.
        tissue_HW: where tissue is.
        kinds: a pattern for every island.
        apart_px: between the first two, at least.

    Raises:
        ValueError: there is no room.
    """
    inside_HW = cv2.distanceTransform(tissue_HW.astype(np.uint8), cv2.DIST_L2, 3)[::4, ::4] > RADIUS[1] + 8
    rows, columns = (4 * at for at in np.nonzero(inside_HW))
    found: list[Island] = []
    failed = 0
    for _ in range(100_000):
        if len(found) == len(kinds):
            return found
        if failed == 1000:  # such as the first one in the middle, with no place far enough for the second
            found, failed = [], 0
        at = int(rng.integers(len(rows)))
        island = Island(int(columns[at]), int(rows[at]), int(rng.integers(RADIUS[0], RADIUS[1] + 1)), kinds[len(found)])
        gaps = [np.hypot(island.x - other.x, island.y - other.y) for other in found]
        if min(gaps, default=np.inf) > 2.5 * RADIUS[1] and (len(found) != 1 or gaps[0] > apart_px):
            found.append(island)
            failed = 0
        else:
            failed += 1
    raise ValueError(f"no room for {len(kinds)} islands on {tissue_HW.shape[1]} x {tissue_HW.shape[0]} px")


def fine_image(
    rng: np.random.Generator, name: str, label: int, side: int = SIDE
) -> tuple[NDArray[np.uint8], list[Island]]:
    """A slide (side, side, 3) and its islands; those that decide come first.

    Args:
        rng: random source.
        name: one of `SETS`.
        label: 0 or 1.
        side: level-0 px.

    Raises:
        ValueError: there is no room for the islands.
    """
    half = np.full(2, side / 2)
    outline = blob(rng, half, half * rng.uniform(0.9, 0.94), roughness=0.05)
    tissue_HW = np.zeros((side, side), np.uint8)
    cv2.fillPoly(tissue_HW, [np.rint(outline).astype(np.int32)], 1)
    kinds = patterns(rng, name, label)
    islands = places(rng, tissue_HW.astype(np.bool_), kinds, APART * side if name == SETS[1] else 0.0)
    coarse, clumps = (_noise(rng, side, px) for px in (128, 8))
    grain = cv2.GaussianBlur(rng.standard_normal((side, side), np.float32), (0, 0), 1.0)
    # Clumps are as coarse as what a thumbnail keeps of a pattern, and stronger.
    noise_HW = (6 * coarse + 12 * clumps + 10 * grain) * tissue_HW
    means = (np.where(tissue_HW, *np.array(pair, np.float32)) for pair in zip(TISSUE, GLASS, strict=True))
    image_HWC = cv2.merge([noise_HW + mean_HW for mean_HW in means])
    for island in islands:
        r = island.radius
        disc = np.zeros((2 * r + 1, 2 * r + 1), np.float32)
        cv2.circle(disc, (r, r), r - 3, 1.0, -1)
        soft = cv2.GaussianBlur(disc, (0, 0), 1.5)[..., None]
        waves = pattern(island.pattern, r, float(rng.uniform(*PERIOD)), float(rng.uniform(0, np.pi)))[..., None]
        box = image_HWC[island.y - r : island.y + r + 1, island.x - r : island.x + r + 1]
        box += soft * (np.array(ISLAND, np.float32) - np.array(TISSUE, np.float32) + CONTRAST * waves)
    # Rounds and saturates, in a tenth of NumPy's time.
    return np.asarray(cv2.convertScaleAbs(np.maximum(image_HWC, 0)), np.uint8), islands


def _noise(rng: np.random.Generator, side: int, px: int) -> NDArray[np.float32]:
    """Noise that changes over some px, (side, side)."""
    seeds = rng.standard_normal((-(-side // px), -(-side // px)), np.float32)
    return np.asarray(cv2.resize(seeds, (side, side), interpolation=cv2.INTER_CUBIC), np.float32)


def make_fine(out: Path, seed: int = 0, train: int = 32, val: int = 20, sets: Sequence[str] = SETS) -> list[Path]:
    """Write the data sets; a second for some four slides on one core.

    Args:
        out: folder; made when missing.
        seed: the same seed gives the same slides.
        train: slides for training of each set.
        val: slides for validation of each set.
        sets: of `SETS`.

    Returns:
        Paths of the slides.
    """
    paths = []
    for name in sets:
        folder = Path(out) / name
        (folder / "slides").mkdir(parents=True, exist_ok=True)
        truth: list[tuple[str, int, Island]] = []
        for split, count in (("train", train), ("val", val)):
            labels = []
            for number in range(count):
                slide_id, label = f"{split}_{number:03d}", number % 2
                rng = np.random.default_rng([seed, SETS.index(name), ("train", "val").index(split), number])
                image_HWC, islands = fine_image(rng, name, label)
                paths.append(folder / "slides" / f"{slide_id}.tif")
                write_pyramid(paths[-1], image_HWC, UM_PX)
                labels.append((slide_id, label))
                truth += [(slide_id, label, island) for island in islands if island.pattern != "plain"]
            _write(folder / f"{split}.csv", ("slide_id", "label"), labels)
        rows = [(slide_id, i.pattern, i.x, i.y, i.radius) for slide_id, _, i in truth]
        _write(folder / "islands.csv", ("slide_id", "pattern", "x", "y", "radius"), rows)
    return paths


def _write(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


def main() -> None:
    """Write the data sets and print the paths of the slides."""
    parser = argparse.ArgumentParser(description="write slides whose label is only to be seen at fine spacing")
    parser.add_argument("--out", type=Path, required=True, help="folder for one_place/ and two_places/")
    parser.add_argument(
        "--seed", type=int, default=0, help="the same seed gives the same slides (default: %(default)s)"
    )
    parser.add_argument("--train", type=int, default=32, help="training slides of each set (default: %(default)s)")
    parser.add_argument("--val", type=int, default=20, help="validation slides of each set (default: %(default)s)")
    arguments = parser.parse_args()
    endure()
    for path in make_fine(arguments.out, arguments.seed, arguments.train, arguments.val):
        print(path)


if __name__ == "__main__":
    main()
