"""Changes of color, px by px: the same px becomes the same color, whichever window it is read in.

Everything that is not exact is looked up in tables by whole numbers, so that results do not depend on how a processor
works through a window. Shapes: H rows, W columns, C = 3 channels (RGB, uint8).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from slides.stain import HED_RGB

Pixels = NDArray[np.uint8]

# Of the table from optical density to gray levels: entries per unit, least and largest density.
DENSITY_STEP, LEAST_DENSITY, MOST_DENSITY = 1024, -2.0, 14.0
NEUTRAL = 128  # a and b of gray in OpenCV's 8-bit Lab
SHIFT_SHARE = 0.125  # of the share of HED: optical density added to a stain


class Recolor(Protocol):
    """A change of color."""

    def __call__(self, image_HWC: Pixels) -> Pixels:
        """The image in other colors; a new array."""
        ...


@dataclass(frozen=True)
class Lch:
    """Lightness and chroma times a factor, hue turned by an angle (CIE LCh, in 8-bit Lab).

    Attributes:
        lightness: factor.
        chroma: factor.
        turn: degrees; turned, not multiplied: a factor on hue would tear red apart, where hue begins and ends.
    """

    lightness: float
    chroma: float
    turn: float

    def __call__(self, image_HWC: Pixels) -> Pixels:
        """See `Recolor`."""
        levels = np.arange(256, dtype=np.float64)
        light = np.clip(np.floor(levels * self.lightness + 0.5), 0, 255).astype(np.uint8)
        a, b = np.meshgrid(levels - NEUTRAL, levels - NEUTRAL, indexing="ij")
        angle = np.deg2rad(self.turn)
        turned = np.stack([a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle)], axis=-1)
        pairs = np.clip(np.floor(turned * self.chroma + NEUTRAL + 0.5), 0, 255).astype(np.uint8).reshape(-1, 2)
        light_HW, a_HW, b_HW = cv2.split(cv2.cvtColor(image_HWC, cv2.COLOR_RGB2LAB))
        place_HW = a_HW.astype(np.uint16) * 256 + b_HW.astype(np.uint16)
        planes = cv2.LUT(light_HW, light), pairs[:, 0].take(place_HW), pairs[:, 1].take(place_HW)
        recolored: Pixels = cv2.cvtColor(cv2.merge(planes), cv2.COLOR_LAB2RGB).astype(np.uint8, copy=False)
        return recolored


@dataclass(frozen=True)
class Hed:
    """Density of hematoxylin, eosin and DAB times a factor, plus a shift.

    Attributes:
        factors: of the three stains.
        shifts: optical density added to each, also on glass.
    """

    factors: tuple[float, float, float]
    shifts: tuple[float, float, float]

    def __call__(self, image_HWC: Pixels) -> Pixels:
        """See `Recolor`."""
        # Density in stains is density in RGB times the inverse matrix; scaled there, and back.
        matrix = (np.linalg.inv(HED_RGB) @ np.diag(self.factors) @ HED_RGB).astype(np.float32)
        shift = (np.asarray(self.shifts) @ HED_RGB).astype(np.float32)
        density = -np.log((np.arange(256) + 1) / 256).astype(np.float32)
        grid = np.arange(int((MOST_DENSITY - LEAST_DENSITY) * DENSITY_STEP) + 1) / DENSITY_STEP + LEAST_DENSITY
        shown = np.clip(np.floor(256 * np.exp(-grid) - 0.5), 0, 255).astype(np.uint8)
        densities = [cv2.LUT(plane_HW, density) for plane_HW in cv2.split(image_HWC)]
        # In entries of the table.
        matrix, shift = matrix * DENSITY_STEP, (shift - LEAST_DENSITY) * DENSITY_STEP + 0.5
        planes = []
        for channel in range(3):
            # Sums of three, not a product of matrices: its order of additions would depend on the size.
            mixed_HW = densities[0] * np.float32(matrix[0, channel])
            for other in (1, 2):
                mixed_HW += densities[other] * np.float32(matrix[other, channel])
            mixed_HW += np.float32(shift[channel])
            np.clip(mixed_HW, 0, shown.size - 1, out=mixed_HW)
            planes.append(shown.take(mixed_HW.astype(np.uint16)))
        recolored: Pixels = cv2.merge(planes).astype(np.uint8, copy=False)
        return recolored


def drawn(model: str, share: float, rng: np.random.Generator) -> Recolor | None:
    """A change of color at random.

    Args:
        model: one of `COLOR_MODELS`.
        share: `lch`: factors are uniform within 1 - share and 1 + share, the turn within that share of a full turn;
            `hed`: factors likewise, shifts within an eighth of the share.
        rng: six numbers are drawn whatever the model.
    """
    numbers = rng.uniform(-1, 1, 6) * share
    if model == "lch":
        return Lch(1 + float(numbers[0]), 1 + float(numbers[1]), 360 * float(numbers[2]))
    if model == "hed":
        (h, e, d), (dh, de, dd) = (1 + numbers[:3]).tolist(), (SHIFT_SHARE * numbers[3:]).tolist()
        return Hed((h, e, d), (dh, de, dd))
    return None
