"""A saliency map of one slide as files: a pyramid in the frame of level 0, a picture, and numbers.

    saliency.tif    one channel; px [r, c] covers level-0 x in [c * step_x, (c + 1) * step_x), y likewise, as the maps
                    of a prediction; 0 where the network did not look
    overlay.png     what the network saw, with the map over it
    saliency.json   what the map shows, and its scale

Frames: xy_view, px of what the network saw; xy_l0 and xy_trim as in `slides/geometry.py`. Legend: R, S rows and columns
of cells, H, W rows and columns of px.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from classification.augment import View
from classification.images import WholeImage
from classification.pictures import reduction, small
from inference.overlay import above, blend, legend, write_overlay
from slides.geometry import Pair, Points, trimmed_from_l0
from slides.tiff.pyramid import write_mask_pyramid
from system.atomic_files import write_bytes
from system.version import __version__

PYRAMID, OVERLAY, NUMBERS = "saliency.tif", "overlay.png", "saliency.json"
TILE = 512
# Px of the pyramid along a cell: a cell of a trimmed image lies anywhere on the pyramid's grid.
PX_PER_CELL = 4


@dataclass(frozen=True, eq=False)
class Saliency:
    """How much every part of an image matters for one output of the network.

    Attributes:
        method: "gradient" or "activation".
        output: name of the output.
        map_RS: float32, at least 0.
        corner_xy_view: outer corner of cell [0, 0], px of the view; may lie outside.
        step_xy_view: px of the view per cell.
    """

    method: str
    output: str
    map_RS: NDArray[np.float32]
    corner_xy_view: Pair
    step_xy_view: Pair


@dataclass(frozen=True, eq=False)
class _Axis:
    """Where columns (or rows) of a view lie on level 0.

    Attributes:
        center_l0: of every column that shows the slide, ascending, level-0 px.
        center_view: of the same columns, px of the view.
        step_l0: level-0 px per px of the view.
    """

    center_l0: Points
    center_view: Points
    step_l0: float

    def view_from_l0(self, at_l0: Points) -> Points:
        """Px of the view of coordinates in level-0 px; NaN where the view does not show them."""
        right = np.clip(np.searchsorted(self.center_l0, at_l0), 1, max(1, len(self.center_l0) - 1))
        near = np.minimum(right, len(self.center_l0) - 1)
        left = right - 1
        near = np.where(at_l0 - self.center_l0[left] <= self.center_l0[near] - at_l0, left, near)
        off_view = (at_l0 - self.center_l0[near]) / self.step_l0
        # Half a px to either side, its edges included in spite of rounding.
        return np.where(np.abs(off_view) <= 0.5 + 1e-6, self.center_view[near] + off_view, np.nan)


def axes(view: View) -> tuple[_Axis, _Axis]:
    """Where columns and rows of a view lie on level 0.

    Raises:
        ValueError: the view is turned or bent, as in training, or shows nothing of the slide.
    """
    _, height, width, _ = view.shape
    found = []
    for axis, (size, other) in enumerate(((width, height), (height, width))):
        center_view = np.arange(size) + 0.5
        first, last = (np.full((size, 2), at) for at in (0.5, other - 0.5))
        for points in (first, last):
            points[:, axis] = center_view
        xy_l0, again_l0 = (np.asarray(view.l0_from_view(points), np.float64) for points in (first, last))
        at_l0 = xy_l0[:, axis]
        rising = np.diff(at_l0)
        if np.abs(at_l0 - again_l0[:, axis]).max() > 1e-6 or (size > 1 and rising.min() <= 0):
            raise ValueError(
                f"slide {view.name}: the view is turned, flipped or bent, so that a saliency map of it has no "
                "place on the slide; take a view without augmentation"
            )
        step_l0 = float(rising.min()) if size > 1 else 1.0
        shown = _shown(view.image, axis, at_l0)
        if not shown.any():
            raise ValueError(f"slide {view.name}: the view shows nothing of the slide")
        found.append(_Axis(at_l0[shown], center_view[shown], step_l0))
    return found[0], found[1]


def _shown(image: WholeImage, axis: int, at_l0: Points) -> NDArray[np.bool_]:
    """Which coordinates lie on the image, and not in what was cut out or the white around it."""
    inside: NDArray[np.bool_] = (at_l0 >= 0) & (at_l0 < image.size_xy_l0[axis])
    if image.trim is not None:
        inside &= ~np.isnan(trimmed_from_l0(image.trim, np.stack([at_l0, at_l0], axis=-1))[:, axis])
    return inside


def scaled(saliency: Saliency) -> tuple[NDArray[np.uint8], float]:
    """A map as 8 bit, and the value of 255: its maximum, or 1 for a map of zeros.

    Raises:
        ValueError: the map is not finite.
    """
    most = float(saliency.map_RS.max())
    if not math.isfinite(most) or not np.isfinite(saliency.map_RS).all():
        raise ValueError("the saliency map has NaN or infinity: the network or its gradient overflows")
    most = most if most > 0 else 1.0
    return np.rint(saliency.map_RS / most * 255).astype(np.uint8), most


def write(folder: Path, saliency: Saliency, view: View) -> None:
    """Write all files of a saliency map, each completely or not at all.

    Args:
        folder: made if it is missing.
        saliency: the map.
        view: what the network saw.

    Raises:
        ValueError: the view cannot be mapped back, or the map is not finite.
        OSError: a file cannot be written.
    """
    value_RS, most = scaled(saliency)
    across, down = axes(view)
    image = view.image
    folder.mkdir(parents=True, exist_ok=True)
    step_xy_l0 = _pyramid(folder / PYRAMID, value_RS, saliency, (across, down), image)
    write_overlay(folder / OVERLAY, overlay(value_RS, saliency, view))
    numbers: dict[str, Any] = {
        "widefov_version": __version__,
        "slide": image.name,
        "method": saliency.method,
        "output": saliency.output,
        "value_of_255": most,
        "size_xy_l0": image.size_xy_l0,
        "um_px_xy_l0": image.um_px_xy_l0,
        "step_xy_l0": step_xy_l0,
        "cell_xy_l0": [step * axis.step_l0 for step, axis in zip(saliency.step_xy_view, (across, down), strict=True)],
    }
    write_bytes(folder / NUMBERS, (json.dumps(numbers, indent=1, ensure_ascii=False) + "\n").encode("utf-8", "replace"))


def _pyramid(
    path: Path, value_RS: NDArray[np.uint8], saliency: Saliency, along: tuple[_Axis, _Axis], image: WholeImage
) -> Pair:
    """Write the map in the frame of level 0; returns level-0 px per px of the pyramid."""
    steps, cells, sizes = [], [], []
    for axis, places in enumerate(along):
        step_view = saliency.step_xy_view[axis] / PX_PER_CELL
        step_l0 = max(1.0, step_view * places.step_l0)
        size = max(1, math.ceil(image.size_xy_l0[axis] / step_l0 - 1e-6))
        at_view = places.view_from_l0((np.arange(size) + 0.5) * step_l0)
        cell = np.floor((at_view - saliency.corner_xy_view[axis]) / saliency.step_xy_view[axis])
        inside = (cell >= 0) & (cell < value_RS.shape[1 - axis])
        steps.append(step_l0)
        sizes.append(size)
        cells.append(np.where(inside, cell, -1).astype(np.int64))
    # One more row and column of zeros, which -1 takes.
    padded_RS = np.pad(value_RS, ((0, 1), (0, 1)))

    def tile_of(row: int, column: int) -> NDArray[np.uint8] | int:
        rows, columns = cells[1][row * TILE : (row + 1) * TILE], cells[0][column * TILE : (column + 1) * TILE]
        if rows.max() < 0 or columns.max() < 0:
            return 0
        piece: NDArray[np.uint8] = padded_RS[np.ix_(rows, columns)]
        return piece

    # A TIFF states some spacing; saliency.json has null where none is known.
    um_x, um_y = image.um_px_xy_l0 or (1.0, 1.0)
    um_px_xy = steps[0] * um_x, steps[1] * um_y
    write_mask_pyramid(path, (sizes[0], sizes[1]), um_px_xy, tile_of, shrink="mean", tile=TILE)
    return steps[0], steps[1]


def overlay(value_RS: NDArray[np.uint8], saliency: Saliency, view: View) -> NDArray[np.uint8]:
    """Draw what the network saw with the map over it, above a legend: image_HWC."""
    image_HWC = small(view)
    factor = reduction(view.shape[1:3])
    height, width = image_HWC.shape[:2]
    at = []
    for axis, size in enumerate((width, height)):
        center_view = (np.arange(size) + 0.5) * factor
        # OpenCV counts from the center of the first cell.
        at.append((center_view - saliency.corner_xy_view[axis]) / saliency.step_xy_view[axis] - 0.5)
    x_HW, y_HW = np.meshgrid(at[0].astype(np.float32), at[1].astype(np.float32))
    value_HW = cv2.remap(value_RS, x_HW, y_HW, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    blend(image_HWC, np.asarray(value_HW, np.uint8))
    um_px = view.image.um_px
    mm_px = None if um_px is None else factor * um_px / 1000
    return above(image_HWC, legend(width, [], [], mm_px, view.name, f"{saliency.method}, {saliency.output}"))
