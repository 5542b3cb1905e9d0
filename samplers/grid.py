"""Every place once: the fixed patches of validation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from samplers.index import SlideIndex
from samplers.patch import GRID, PatchRequest
from slides.geometry import Pair

MIN_TISSUE = 0.05  # share of a window's cells; less is almost all glass


def slide_grid(index: SlideIndex, img_size: int, step_xy_l0: Pair) -> list[tuple[float, float]]:
    """Centers (xy, level-0 px) of the windows that tile one slide from its top-left corner and show tissue.

    Windows touch and do not overlap; the last of a row or column may reach beyond the slide, where truth is ignored.

    Args:
        index: search index of the slide.
        img_size: window side, output px.
        step_xy_l0: level-0 px per output px.
    """
    side_x, side_y = (img_size * step for step in step_xy_l0)
    tissue_HW = np.pad(index.tissue.mask().astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    rows, columns = index.tissue.shape_HW
    centers: list[tuple[float, float]] = []
    for top in np.arange(0, index.size_xy_l0[1], side_y):
        r0, r1 = int(top // index.cell_l0), min(rows, int(np.ceil((top + side_y) / index.cell_l0)))
        for left in np.arange(0, index.size_xy_l0[0], side_x):
            c0, c1 = int(left // index.cell_l0), min(columns, int(np.ceil((left + side_x) / index.cell_l0)))
            count = tissue_HW[r1, c1] - tissue_HW[r0, c1] - tissue_HW[r1, c0] + tissue_HW[r0, c0]
            window_cells = side_x * side_y / index.cell_l0**2
            if count >= max(1.0, MIN_TISSUE * window_cells):
                centers.append((float(left + side_x / 2), float(top + side_y / 2)))
    return centers


def requests(indexes: Sequence[SlideIndex], img_size: int, steps_xy_l0: Sequence[Pair], cap: int) -> list[PatchRequest]:
    """Grid requests over the tissue of all slides, in slide order, row-major; at most `cap` of them.

    Where the grid has more, every slide keeps an equal share (as far as it has that many), evenly spaced over its
    windows, so that neither large slides nor the top of a slide dominate. Always the same for the same slides.

    Args:
        indexes: search index of each slide.
        img_size: window side, output px.
        steps_xy_l0: level-0 px per output px on each slide (`Slide.step_xy_l0`).
        cap: largest number of requests; 0 for all.

    Raises:
        ValueError: no window of any slide shows tissue.
    """
    grids = [slide_grid(index, img_size, step) for index, step in zip(indexes, steps_xy_l0, strict=True)]
    if not any(grids):
        raise ValueError(
            f"no tissue found on any of the {len(grids)} validation slides, so there is nothing to validate on: "
            f"{', '.join(index.slide_id for index in indexes[:5])}"
        )
    shares = fair_shares([len(g) for g in grids], cap or sum(map(len, grids)))
    chosen = [
        (i, grid[(2 * k + 1) * len(grid) // (2 * keep)])
        for i, (grid, keep) in enumerate(zip(grids, shares, strict=True))
        for k in range(keep)
    ]
    return [PatchRequest(n, 0, i, -1, center, GRID) for n, (i, center) in enumerate(chosen)]


def fair_shares(available: Sequence[int], total: int) -> list[int]:
    """Split `total` over bins as evenly as their contents allow; what small bins cannot use goes to the others.

    Example: available (1, 10, 10), total 9 gives (1, 4, 4).
    """
    shares = [0] * len(available)
    left = min(total, sum(available))
    order = sorted(range(len(available)), key=lambda i: (available[i], i))
    for position, i in enumerate(order):
        shares[i] = min(available[i], left // (len(order) - position))
        left -= shares[i]
    return shares
