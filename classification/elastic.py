"""An elastic distortion: one smooth field of displacements for a whole image, evaluated anywhere.

Shapes: H rows, W columns; G rows, J columns of nodes, a node each `GRID_PX` px; last axis of points (x, y).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from slides.geometry import Points

GRID_PX = 16
SIGMAS = 8  # least side of an image, in sigma
LEAST_SIGMA = 0.5  # nodes


@dataclass(frozen=True, eq=False)
class Displacement:
    """How far each place of an image is moved, px along x and y, linear between nodes.

    Attributes:
        nodes_GJ2: displacement at the nodes; node [0, 0] is the outer corner of the first px.
    """

    nodes_GJ2: NDArray[np.float32]

    def of_px(
        self, rows: NDArray[np.int64], columns: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Displacement along x and along y (H, W) of the centers of px in whole rows and columns, each ascending."""
        row, down = self._cells((rows + 0.5) / GRID_PX, 0)
        column, right = self._cells((columns + 0.5) / GRID_PX, 1)
        first = int(column[0])
        nodes = self.nodes_GJ2[:, first : int(column[-1]) + 2]
        share, share_W, left = down.astype(np.float32)[:, None, None], right.astype(np.float32), column - first
        lines = nodes[row] * (1 - share) + nodes[row + 1] * share
        moved = []
        for axis in (0, 1):
            line = np.ascontiguousarray(lines[..., axis])
            near, far = line.take(left, axis=1), line.take(left + 1, axis=1)
            far -= near
            far *= share_W
            far += near
            moved.append(far)
        return moved[0], moved[1]

    def of_points(self, xy: Points) -> Points:
        """Displacement (..., 2) of any points (..., 2) in px."""
        row, down = self._cells(xy[..., 1] / GRID_PX, 0)
        column, right = self._cells(xy[..., 0] / GRID_PX, 1)
        nodes, down, right = self.nodes_GJ2.astype(np.float64), down[..., None], right[..., None]
        before = nodes[row, column] * (1 - down) + nodes[row + 1, column] * down
        behind = nodes[row, column + 1] * (1 - down) + nodes[row + 1, column + 1] * down
        moved: Points = before * (1 - right) + behind * right
        return moved

    def _cells(self, place: Points, axis: int) -> tuple[NDArray[np.int64], Points]:
        """Node before each place, and how far behind it the place lies; outside, as at the border."""
        last = self.nodes_GJ2.shape[axis] - 1
        inside = np.clip(place, 0, last)
        node = np.minimum(inside.astype(np.int64), last - 1)
        return node, inside - node


def displacement(hw: tuple[int, int], alpha: float, sigma_px: float, rng: np.random.Generator) -> Displacement:
    """A field at random: uniform noise within -1 and 1 on the nodes, blurred, times `alpha`.

    With alpha 1000 and sigma 150 px, places move by 17 px (standard deviation), neighbors alike. On images with a side
    below 8 sigma both are smaller, with the same stretch: a field as smooth would only shift them.

    Args:
        hw: rows and columns of the image.
        alpha: factor, px.
        sigma_px: of the Gaussian that blurs the noise.
        rng: random numbers.
    """
    rows, columns = (-(-size // GRID_PX) + 1 for size in hw)
    noise_GJ2 = rng.uniform(-1, 1, (rows, columns, 2))
    share = min(1.0, min(hw) / (SIGMAS * sigma_px))
    sigma, alpha = max(share * sigma_px / GRID_PX, LEAST_SIGMA), alpha * share**2
    blurred_GJ2 = cv2.GaussianBlur(noise_GJ2, (0, 0), sigma, borderType=cv2.BORDER_REFLECT)
    return Displacement((alpha * blurred_GJ2).astype(np.float32))
