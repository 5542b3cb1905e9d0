"""Where an image is cut, if it is larger than what is trained on: where its sampling mask has most.

Shapes: R, S rows and columns of cells of a mask.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from classification.images import WholeImage
from slides.geometry import Pair

POWER = 2  # of the share of tissue in a crop: the weight with which it is drawn


def center(image: WholeImage, hw: Pair, rng: np.random.Generator | None) -> Pair:
    """Center (x, y) of a crop, px of the image.

    The crop lies inside the image; along an axis where the image is not larger, the crop is centered on it. Drawn, its
    place has a weight of the sum of the mask in it, squared, or the same weight everywhere without a mask. Not drawn,
    it is where that sum is largest, of equal places the one nearest to the center of the mask; or the image's center.

    Args:
        image: the image.
        hw: rows and columns of the crop, px of the image.
        rng: None: not at random. Otherwise four numbers are drawn.
    """
    bounds = [
        (min(side / 2, size / 2), max(size - side / 2, size / 2)) for side, size in zip(hw, image.hw, strict=True)
    ]
    draws = None if rng is None else rng.random(4)
    if image.mask_RS is None:
        if draws is None:
            return image.hw[1] / 2, image.hw[0] / 2
        y, x = (low + float(draw) * (high - low) for (low, high), draw in zip(bounds, draws, strict=False))
        return x, y
    row, column = _cell(sums(image.mask_RS, hw, image.mask_step), image, bounds, draws)
    inside = (0.5, 0.5) if draws is None else (float(draws[2]), float(draws[3]))
    y, x = (
        min(max((cell + part) * image.mask_step, low), high)
        for cell, part, (low, high) in zip((row, column), inside, bounds, strict=True)
    )
    return x, y


def sums(mask_RS: NDArray[np.float32], hw: Pair, step: int) -> NDArray[np.float64]:
    """Sum of a mask in a crop around every cell (R, S); cells outside count as 0.

    Args:
        mask_RS: weights.
        hw: rows and columns of the crop, px.
        step: px per cell.
    """
    # An odd number of cells, so that the crop is centered on one.
    rows, columns = (2 * min(int(side / step / 2), cells) + 1 for side, cells in zip(hw, mask_RS.shape, strict=True))
    sums_RS = cv2.boxFilter(
        mask_RS.astype(np.float64), cv2.CV_64F, (columns, rows), normalize=False, borderType=cv2.BORDER_CONSTANT
    )
    return np.maximum(sums_RS, 0).astype(np.float64, copy=False)


def _cell(
    sums_RS: NDArray[np.float64], image: WholeImage, bounds: list[Pair], draws: NDArray[np.float64] | None
) -> tuple[int, int]:
    """Row and column of the cell that a crop is centered on."""
    ranges = [
        (min(int(low / image.mask_step), cells - 1), min(int(high / image.mask_step), cells - 1) + 1)
        for (low, high), cells in zip(bounds, sums_RS.shape, strict=True)
    ]
    (top, bottom), (left, right) = ranges
    allowed = sums_RS[top:bottom, left:right]
    if draws is None or not allowed.any():
        # Sums of floats may differ in their last digits.
        best = np.argwhere(allowed >= allowed.max() * (1 - 1e-9)) + np.array((top, left))
        mask_RS = image.mask_RS
        assert mask_RS is not None
        weights = mask_RS.sum(axis=1), mask_RS.sum(axis=0)
        middle = [float((np.arange(one.size) * one).sum() / one.sum()) for one in weights]
        row, column = best[int(np.argmin(((best - middle) ** 2).sum(axis=1)))]
        return int(row), int(column)
    ends = np.cumsum((allowed / allowed.max()).ravel() ** POWER)
    at = min(int(np.searchsorted(ends, draws[0] * ends[-1], side="right")), ends.size - 1)
    return top + at // allowed.shape[1], left + at % allowed.shape[1]
