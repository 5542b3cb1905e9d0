"""H&E-like texture at about 0.25 um/px: stroma with fibres, lymphocyte-like nuclei, crowded large tumor nuclei.

Not a model of tissue: just enough that normal and tumor differ by what a pathologist looks at (size, crowding,
darkness of nuclei) and not by overall color, and that stains vary as between laboratories.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Stain:
    """Optical density (red, green, blue) of full haematoxylin and full eosin."""

    haematoxylin_od: tuple[float, float, float]
    eosin_od: tuple[float, float, float]


STAINS = {
    "standard": Stain((0.95, 1.10, 0.52), (0.10, 0.62, 0.28)),
    "violet": Stain((0.85, 1.15, 0.40), (0.20, 0.70, 0.25)),
    "pale": Stain((0.72, 0.80, 0.38), (0.08, 0.45, 0.22)),
    "pink": Stain((0.90, 1.18, 0.60), (0.07, 0.74, 0.38)),
}


def blob(
    rng: np.random.Generator, center_xy: NDArray[np.float64], radius_xy: NDArray[np.float64], roughness: float
) -> NDArray[np.float64]:
    """Return an irregular closed outline (N, 2) around a center, px (x, y); star-shaped, so it never crosses itself.

    Args:
        rng: Random source.
        center_xy: Center.
        radius_xy: Mean radius along x and y.
        roughness: Strength of the waves on the outline, as a share of the radius.
    """
    angle = np.linspace(0, 2 * np.pi, 120, endpoint=False)
    waves = np.zeros_like(angle)
    for order in range(2, 11):
        waves += rng.normal() / order * np.cos(order * angle + rng.uniform(0, 2 * np.pi))
    radius = 1 + roughness * np.clip(waves, -2, 2)
    # The outline must stay within its mean radius plus roughness: a tissue blob must not leave the slide.
    radius = np.minimum(radius, 1 + roughness)
    outline: NDArray[np.float64] = radius[:, None] * radius_xy * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return center_xy + outline


def stained_tissue(
    rng: np.random.Generator, tissue_HW: NDArray[np.bool_], tumor_HW: NDArray[np.bool_], stain: Stain
) -> NDArray[np.uint8]:
    """Paint tissue and return image_HWC; white glass outside the tissue.

    Args:
        rng: Random source.
        tissue_HW: Where tissue is.
        tumor_HW: Where it is tumor.
        stain: Colors.
    """
    hw = tissue_HW.shape[0], tissue_HW.shape[1]
    coarse, fine = _noise(rng, hw, 160), _noise(rng, hw, 9)
    follicles = _noise(rng, hw, 420)
    eosin = 0.42 + 0.13 * coarse + 0.10 * fine + 0.16 * _fibres(rng, hw)
    eosin[tumor_HW] = 0.36 + 0.09 * fine[tumor_HW] + 0.06 * coarse[tumor_HW]
    nuclei = np.zeros(hw, np.uint8)
    lymphoid = tissue_HW & ~tumor_HW
    # Density of small nuclei follows the follicles; tumor is crowded everywhere.
    _nuclei(rng, nuclei, lymphoid, spacing=34, radius=(8, 11), darkness=(105, 165), keep=0.35 + 0.3 * follicles)
    _nuclei(rng, nuclei, tissue_HW & tumor_HW, spacing=37, radius=(14, 22), darkness=(135, 230), keep=None)
    chromatin = 0.86 + 0.22 * _noise(rng, hw, 5)
    haematoxylin = cv2.GaussianBlur(nuclei, (0, 0), 1.1).astype(np.float32) / 255 * chromatin + 0.04
    holes = (_noise(rng, hw, 70) > 1.75) & lymphoid
    solid = cv2.GaussianBlur((tissue_HW & ~holes).astype(np.float32), (0, 0), 2.0)
    image_HWC = np.empty((*hw, 3), np.uint8)
    glass = 243 + 1.5 * _noise(rng, hw, 3)
    for channel in range(3):
        density = haematoxylin * stain.haematoxylin_od[channel] + np.maximum(eosin, 0.12) * stain.eosin_od[channel]
        image_HWC[..., channel] = np.clip(glass * np.exp(-density * solid), 0, 255)
    return image_HWC


def _noise(rng: np.random.Generator, hw: tuple[int, int], period: int) -> Floats:
    """Smooth noise of about unit variance that changes over `period` px, float32 (H, W)."""
    height, width = hw
    seeds = rng.standard_normal((height // period + 3, width // period + 3), dtype=np.float32)
    grown = cv2.resize(seeds, ((seeds.shape[1]) * period, seeds.shape[0] * period), interpolation=cv2.INTER_CUBIC)
    return np.asarray(grown[period : period + height, period : period + width], np.float32)


def _fibres(rng: np.random.Generator, hw: tuple[int, int]) -> Floats:
    """Wavy collagen: stripes whose phase and direction drift, float32 (H, W) in [-1, 1]."""
    height, width = hw
    y, x = np.mgrid[:height, :width].astype(np.float32)
    angle = rng.uniform(0, np.pi)
    phase = (x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle))) / 11
    return np.asarray(np.sin(phase + 5 * _noise(rng, hw, 140) + 0.8 * _noise(rng, hw, 24)), np.float32)


def _nuclei(
    rng: np.random.Generator,
    canvas: NDArray[np.uint8],
    where_HW: NDArray[np.bool_],
    spacing: int,
    radius: tuple[int, int],
    darkness: tuple[int, int],
    keep: Floats | None,
) -> None:
    """Draw ellipses on a jittered grid where allowed; `keep` is the chance to draw (H, W), None always."""
    height, width = canvas.shape
    rows, columns = np.meshgrid(np.arange(0, height, spacing), np.arange(0, width, spacing), indexing="ij")
    places = np.stack([columns, rows], axis=-1).reshape(-1, 2) + rng.integers(0, spacing, (rows.size, 2))
    places = np.minimum(places, (width - 1, height - 1))
    axes = rng.integers(radius[0], radius[1] + 1, (len(places), 2))
    turn = rng.uniform(0, 180, len(places))
    dark = rng.integers(darkness[0], darkness[1], len(places))
    chance = rng.random(len(places))
    for (x, y), size, angle, shade, luck in zip(
        places.tolist(), axes.tolist(), turn, dark.tolist(), chance, strict=True
    ):
        if where_HW[y, x] and (keep is None or luck < keep[y, x]):
            cv2.ellipse(canvas, (x, y), size, angle, 0, 360, shade, -1, cv2.LINE_AA)
