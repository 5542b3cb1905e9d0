"""From a tumor mask to lesions: CAMELYON16's rules for what is one lesion and what is too small to count.

H rows, W columns of a map; L lesions. Coordinates are (row, column) px of the map; lengths um. label_HW: int32, 0 is
background, 1 .. L the lesions in the order of their first px, row by row.

Sources: Ehteshami Bejnordi et al. 2017, JAMA 318(22), supplement (foci closer than 75 um, five tumor cells, are one
lesion); the challenge's published evaluation program (Evaluation_FROC.py), whose mask at level 5 has 0.243 * 32 um/px.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import ConvexHull

GROW_UM = 75.0
"""Foci closer than this are one lesion."""

ITC_UM = 275.0
"""Lesions whose major axis is shorter are isolated tumor cells: the 200 um of their definition and twice the growth
of 75 / 2 um."""

MAP_UM_PX = 0.243 * 32
"""Spacing of the organizers' maps: level 5 of a slide scanned at 0.243 um/px."""

_BAND_ROWS = 512
_EIGHT = np.ones((3, 3), np.bool_)

Mask = NDArray[np.bool_]
Labels = NDArray[np.int32]
Lengths = NDArray[np.float64]


@dataclass(frozen=True)
class Lesions:
    """Lesions of one slide.

    Attributes:
        label_HW: 0 background, 1 .. L lesions.
        major_axis_um_L: length of each lesion's major axis with the margin it was grown by, um.
        is_itc_L: whether it is isolated tumor cells, which count neither as lesion nor as false positive.
    """

    label_HW: Labels
    major_axis_um_L: Lengths
    is_itc_L: Mask

    @property
    def count(self) -> int:
        """Number of lesions that a detector should find: without isolated tumor cells."""
        return int((~self.is_itc_L).sum())


def lesion_map(tumor_HW: Mask, um_px: float, grow_um: float = GROW_UM, itc_um: float = ITC_UM) -> Lesions:
    """Group tumor px into lesions as the organizers of CAMELYON16 do.

    Px whose center is nearer than grow_um / 2 to that of a tumor px join it, so that foci closer than `grow_um`
    become one; holes are filled; what touches by side or corner is one lesion. A lesion whose major axis is shorter
    than `itc_um` is isolated tumor cells.

    A map of CAMELYON16's size, 3125 x 6250 px, takes some seconds and 0.4 GB: the distances are taken in bands.

    Args:
        tumor_HW: True on tumor.
        um_px: micrometers per px of the map.
        grow_um: largest gap, um; 0 joins nothing.
        itc_um: shortest major axis of a lesion that counts, um, of the grown lesion; 0 counts all.

    Raises:
        ValueError: the mask is not a map, or a length is negative or not finite (um_px: not above 0).
    """
    if tumor_HW.ndim != 2:
        raise ValueError(f"a mask of shape {tumor_HW.shape}; must be a map of (rows, columns)")
    if not 0 < um_px < math.inf:
        raise ValueError(f"um_px {um_px}: must be a number above 0")
    for name, value in (("grow_um", grow_um), ("itc_um", itc_um)):
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} {value}: must be a number of at least 0")
    grown_HW = _grown(tumor_HW.astype(np.bool_, copy=False), grow_um / (um_px * 2))
    label_HW, _ = _components(_filled(grown_HW))
    # In px first, as the organizers compare.
    major_axis_L = major_axes_px(label_HW)
    return Lesions(label_HW, major_axis_L * um_px, major_axis_L < itc_um / um_px)


def major_axes_px(label_HW: Labels) -> Lengths:
    """Length of the major axis of each lesion: that of the ellipse with the same second moments, px.

    4 * sqrt(largest eigenvalue of the covariance of the centers of its px). That is `axis_major_length` of
    scikit-image's regionprops (before 0.19 `major_axis_length`), which the organizers' program calls. MATLAB's
    function of the same name takes a px as a square and adds 1/12 to both variances; at the limit of 275 um that is
    0.15 um more.

    Args:
        label_HW: 0 background, 1 .. L lesions.

    Returns:
        L lengths, 0 for a single px.
    """
    axes = []
    for index, box in enumerate(ndimage.find_objects(label_HW), start=1):
        if box is None:  # a number that no px has
            axes.append(0.0)
            continue
        variance_r, variance_c, covariance = _moments(label_HW[box] == index)
        half = (variance_r + variance_c) / 2
        apart = math.hypot((variance_r - variance_c) / 2, covariance)
        axes.append(4 * math.sqrt(half + apart))
    return np.array(axes, np.float64)


def longest_diameters_um(tumor_HW: Mask, label_HW: Labels, um_px_xy: tuple[float, float]) -> Lengths:
    """Longest diameter of each lesion: the largest distance between two points of its tumor px (Feret diameter), um.

    Px are squares, so the distance is one between corners. It is measured on the tumor itself and not on the grown
    map, which would add the gap of 75 um to every lesion: 0.2 and 2 mm are lengths of tumor.

    Args:
        tumor_HW: True on tumor.
        label_HW: lesions that the tumor px belong to, from `lesion_map` of the same mask.
        um_px_xy: micrometers per px along columns (x) and rows (y).

    Returns:
        L diameters, 0 for a lesion without a tumor px.
    """
    diameters = []
    for index, box in enumerate(ndimage.find_objects(label_HW), start=1):
        member_HW = None if box is None else (label_HW[box] == index) & tumor_HW[box]
        diameters.append(0.0 if member_HW is None or not member_HW.any() else _feret_um(member_HW, um_px_xy))
    return np.array(diameters, np.float64)


def _grown(tumor_HW: Mask, radius_px: float) -> Mask:
    """Tumor and all px nearer than `radius_px` to it; exact Euclidean distances between centers of px."""
    grown_HW = tumor_HW.copy()
    reach = math.ceil(radius_px)
    if radius_px <= 1:  # the nearest neighbor is at distance 1
        return grown_HW
    for top in range(0, tumor_HW.shape[0], _BAND_ROWS):
        first = max(0, top - reach)
        block_HW = tumor_HW[first : top + _BAND_ROWS + reach]
        columns = np.flatnonzero(block_HW.any(axis=0))
        if columns.size:
            across = slice(max(0, int(columns[0]) - reach), int(columns[-1]) + reach + 1)
            near_HW = ndimage.distance_transform_edt(~block_HW[:, across]) < radius_px
            grown_HW[top : top + _BAND_ROWS, across] = near_HW[top - first : top - first + _BAND_ROWS]
    return grown_HW


def _filled(mask_HW: Mask) -> Mask:
    """Holes filled: background that no path along sides of px joins with the border."""
    background_HW, count = _labeled(~mask_HW, None)
    is_outside = np.zeros(count + 1, np.bool_)
    for edge in (background_HW[0], background_HW[-1], background_HW[:, 0], background_HW[:, -1]):
        is_outside[edge] = True
    is_outside[0] = False
    filled_HW: Mask = ~is_outside[background_HW]
    return filled_HW


def _components(mask_HW: Mask) -> tuple[Labels, int]:
    return _labeled(mask_HW, _EIGHT)


def _labeled(mask_HW: Mask, structure: Any) -> tuple[Labels, int]:
    label_HW = np.empty(mask_HW.shape, np.int32)
    return label_HW, int(ndimage.label(mask_HW, structure=structure, output=label_HW))


def _moments(member_HW: Mask) -> tuple[float, float, float]:
    """Variance along rows, along columns, and covariance of the centers of px."""
    count_r = member_HW.sum(axis=1, dtype=np.int64)
    count_c = member_HW.sum(axis=0, dtype=np.int64)
    total = float(count_r.sum())
    rows, columns = np.arange(count_r.size, dtype=np.float64), np.arange(count_c.size, dtype=np.float64)
    rows -= float(rows @ count_r) / total
    columns -= float(columns @ count_c) / total
    mixed = 0.0
    for top in range(0, rows.size, _BAND_ROWS):
        mixed += float(rows[top : top + _BAND_ROWS] @ (member_HW[top : top + _BAND_ROWS] @ columns))
    return float(rows**2 @ count_r) / total, float(columns**2 @ count_c) / total, mixed / total


def _feret_um(member_HW: Mask, um_px_xy: tuple[float, float]) -> float:
    """Largest distance between corners of the px, um."""
    rows = np.flatnonzero(member_HW.any(axis=1))
    left = member_HW[rows].argmax(axis=1)
    right = member_HW.shape[1] - member_HW[rows, ::-1].argmax(axis=1)
    # The farthest corners of a row are those of its first and last px.
    corners = [np.stack([x, y], axis=1) for x in (left, right) for y in (rows, rows + 1)]
    points = np.concatenate(corners) * np.asarray(um_px_xy, np.float64)
    # Every px is a square, so the points never lie on one line.
    hull = points[ConvexHull(points).vertices]
    between = hull[:, None, :] - hull[None, :, :]
    return float(np.sqrt((between**2).sum(axis=2).max()))
