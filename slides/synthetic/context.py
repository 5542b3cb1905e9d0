"""Slides whose truth needs context: the same texture is tumor only inside a far boundary.

python -m slides.context --out DIR [--seed S]

Tissue with nests of large nuclei covers the whole slide, alike everywhere. Thin brown capsules close around large wavy
areas: inside is tumor. Decoys are pieces of such capsules that close around nothing, inside and outside. A capsule
waves with more curvature than its radius has, so a short piece does not tell its inner side; from far inside
no capsule is in sight at all. What decides is whether the line closes, which takes a view of its size.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import shapely
from numpy.typing import NDArray

from slides.synthetic.demo import Ring, write_case
from slides.synthetic.texture import STAINS, blob, stained_tissue

UM_PX = 0.25
LINE_PX = 9  # thickness of a capsule
LINE_OD = (0.35, 0.75, 1.05)  # brown, as of an immunostain: optical density (red, green, blue)
GAP = 24.0  # level-0 px between two lines at least, so that they never seem to join
NEST_SPACING, NEST_RADIUS = 125, (18.0, 46.0)  # level-0 px
TRIES = 4000  # places tried per line before a slide counts as full


@dataclass(frozen=True)
class ContextSlide:
    """Plan of one slide.

    Attributes:
        name: File name without suffix.
        split: "train" or "val".
        stain: Name in `STAINS`.
        side: Width and height, level-0 px. A multiple of every field of view to compare, so that their grids cover the
            same pixels: tissue reaches all borders.
        rings: Closed capsules wanted; fewer where no more fit.
        decoys: Open pieces wanted; fewer where no more fit.
        radius: Smallest and largest mean radius of a capsule, level-0 px.
    """

    name: str
    split: str
    stain: str
    side: int = 4096
    rings: int = 18
    decoys: int = 26
    radius: tuple[float, float] = (190.0, 400.0)


SLIDES = tuple(
    ContextSlide(f"tumor_{first + number:03d}", split, list(STAINS)[number % len(STAINS)])
    for split, first, count in (("train", 1, 8), ("val", 101, 3))
    for number in range(count)
)


def make_context(out: Path, seed: int = 0) -> list[Path]:
    """Write the data set: slides, ASAP XML and masks, in the folders of `slides.synthetic.make_demo`.

    Eight slides for training and three for validation, 4096 px a side at 0.25 um/px. Takes about a minute on one core.

    Args:
        out: Folder; made when missing.
        seed: The same seed gives the same slides.

    Returns:
        Paths of the slides.
    """
    paths = []
    for number, plan in enumerate(SLIDES):
        image_HWC, rings, _ = context_image(np.random.default_rng([seed, number]), plan)
        paths.append(write_case(Path(out) / plan.split, plan.name, image_HWC, [("_0", r) for r in rings], UM_PX))
    return paths


def context_image(
    rng: np.random.Generator, plan: ContextSlide
) -> tuple[NDArray[np.uint8], list[Ring], list[NDArray[np.float64]]]:
    """Draw one slide.

    Args:
        rng: Random source.
        plan: What to draw.

    Returns:
        image_HWC, the capsules (closed outlines, (N, 2) level-0 px (x, y)), the decoys (open lines, the same form).
    """
    hw = plan.side, plan.side
    rings, decoys = lines(rng, plan)
    # Before any capsule is looked at: nests, nuclei and fibres cannot know where they are.
    image_HWC = stained_tissue(rng, np.ones(hw, np.bool_), _nests(rng, hw), STAINS[plan.stain])
    line_HW = np.zeros(hw, np.uint8)
    # 4 bits of fraction: whole px would make the outline a staircase.
    for points, closed in [(ring, True) for ring in rings] + [(line, False) for line in decoys]:
        fixed = np.round((points - 0.5) * 16).astype(np.int32)
        cv2.polylines(line_HW, [fixed], closed, 255, LINE_PX, cv2.LINE_AA, 4)
    density_HW = cv2.GaussianBlur(line_HW, (0, 0), 1.2).astype(np.float32) / 255
    for channel, density in enumerate(LINE_OD):
        image_HWC[..., channel] = image_HWC[..., channel] * np.exp(-density * density_HW)
    return image_HWC, rings, decoys


def lines(rng: np.random.Generator, plan: ContextSlide) -> tuple[list[Ring], list[NDArray[np.float64]]]:
    """Place capsules, then decoys, so that no line comes nearer than `GAP` to another or to the border.

    A decoy is a quarter to a half of an outline drawn like a capsule's: the same in every short piece.

    Args:
        rng: Random source.
        plan: How many, and how large.

    Returns:
        Closed outlines, and open lines; (N, 2) level-0 px (x, y) each.
    """
    inner = shapely.box(GAP, GAP, plan.side - GAP, plan.side - GAP)
    taken: list[shapely.Geometry] = []
    rings: list[Ring] = []
    # The largest first: small ones still fit between.
    for radius in np.sort(rng.uniform(*plan.radius, plan.rings))[::-1]:
        for _ in range(TRIES // 10):
            ring = rng.uniform(0, plan.side, 2) + outline(rng, radius)
            area = shapely.Polygon(ring)
            if inner.contains(area) and all(area.distance(other) > GAP for other in taken):
                rings.append(ring)
                taken.append(area)
                break
    # Decoys may lie inside a capsule; only the line itself is taken.
    taken = [area.exterior for area in taken]
    decoys: list[NDArray[np.float64]] = []
    for _ in range(TRIES):
        if len(decoys) == plan.decoys:
            break
        whole = outline(rng, rng.uniform(*plan.radius))
        length = int(rng.uniform(0.25, 0.5) * len(whole))
        line = rng.uniform(0, plan.side, 2) + np.roll(whole, int(rng.integers(len(whole))), axis=0)[:length]
        drawn = shapely.LineString(line)
        if inner.contains(drawn) and all(drawn.distance(other) > GAP for other in taken):
            decoys.append(line)
            taken.append(drawn)
    return rings, decoys


def outline(rng: np.random.Generator, radius: float) -> Ring:
    """Return a closed wavy outline around (0, 0), (N, 2) level-0 px (x, y), a point every 4 px or so.

    Waves of 150 to 280 px bend it about as sharply as a circle of 210 px, to either side, whatever the radius; two long
    waves make it no circle.

    Args:
        rng: Random source.
        radius: Mean radius, level-0 px.
    """
    angle = np.linspace(0, 2 * np.pi, int(2 * np.pi * radius / 4), endpoint=False)
    distance = np.full_like(angle, radius)
    for order in (2, 3):
        distance += 0.06 * radius * rng.uniform(0.5, 1) * np.cos(order * angle + rng.uniform(0, 2 * np.pi))
    for _ in range(3):
        order = round(2 * np.pi * radius / rng.uniform(150, 280))
        distance += rng.uniform(3, 6) * np.cos(order * angle + rng.uniform(0, 2 * np.pi))
    points: Ring = distance[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return points


def _nests(rng: np.random.Generator, hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Return nests_HW: round groups of tumor-like cells, 36 to 92 px across, on a jittered grid."""
    nests_HW = np.zeros(hw, np.uint8)
    for y in range(0, hw[0], NEST_SPACING):
        for x in range(0, hw[1], NEST_SPACING):
            radius = np.full(2, rng.uniform(*NEST_RADIUS))
            nest = blob(rng, np.array([x, y]) + rng.uniform(0, NEST_SPACING, 2), radius, roughness=0.2)
            cv2.fillPoly(nests_HW, [np.round(nest).astype(np.int32)], 1)
    return nests_HW.view(np.bool_)
