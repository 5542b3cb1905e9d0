"""Sampling maps: per slide a thumbnail with tissue and tumor cells outlined and every trained window drawn on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from samplers.dataset import SlideSet
from samplers.index import SlideIndex
from slides.geometry import Pair, Window
from slides.reader import Slide

SIDE = 1024  # px of the longer side of a map
TISSUE_BGR, TUMOR_BGR = (40, 140, 40), (40, 40, 220)


def write_maps(
    folder: Path, slide_set: SlideSet, rows: Sequence[Mapping[str, str]], img_size: int, um_px: float
) -> list[Path]:
    """Write `folder/SLIDE.png` for every slide that was sampled.

    Windows are colored by loss, from blue (lowest of the run) to red (95th percentile and above).

    Args:
        folder: created if missing.
        slide_set: the training slides.
        rows: sample log, with `slide`, `x_l0`, `y_l0` (window center, level-0 px) and `loss`.
        img_size: side of the windows, px.
        um_px: their spacing, um per px.

    Returns:
        The files written.
    """
    by_slide: dict[str, list[Mapping[str, str]]] = {}
    for row in rows:
        by_slide.setdefault(row["slide"], []).append(row)
    losses = np.array([float(row["loss"]) for row in rows])
    low, high = np.percentile(losses, (0, 95)) if len(losses) else (0.0, 1.0)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for slide, index in zip(slide_set.slides, slide_set.indexes, strict=True):
        if slide.id in by_slide:
            map_HWC = _background(slide, index)
            side_x, side_y = (img_size * step for step in slide.step_xy_l0(um_px))
            _draw_windows(map_HWC, slide, by_slide[slide.id], (side_x, side_y), (float(low), float(high)))
            path = folder / f"{slide.id}.png"
            if not cv2.imwrite(str(path), map_HWC):
                raise OSError(f"cannot write {path}")
            written.append(path)
    return written


def _scale(slide: Slide) -> float:
    """Map px per level-0 px."""
    return min(1.0, SIDE / max(slide.size_xy_l0))


def _background(slide: Slide, index: SlideIndex) -> NDArray[np.uint8]:
    """Thumbnail (BGR) with the outlines of tissue and of each tumor class."""
    scale = _scale(slide)
    rows, columns = (max(1, int(size * scale)) for size in reversed(slide.size_xy_l0))
    try:
        thumb_HWC = slide.read(Window((0.0, 0.0), (rows, columns), (1 / scale, 1 / scale)))
    except (
        ValueError
    ):  # the slide became unreadable during the run: windows and outlines on white still show the places
        thumb_HWC = np.full((rows, columns, 3), 255, np.uint8)
    map_HWC = np.ascontiguousarray(thumb_HWC[..., ::-1])
    sets = [(index.tissue, TISSUE_BGR), *((p, TUMOR_BGR) for cls, p in sorted(index.places.items()) if cls > 0)]
    for places, color in sets:
        cells_HW = places.mask().astype(np.uint8)
        covered = (int(cells_HW.shape[1] * index.cell_l0 * scale), int(cells_HW.shape[0] * index.cell_l0 * scale))
        scaled_HW = cv2.resize(cells_HW, covered, interpolation=cv2.INTER_NEAREST)[:rows, :columns]
        contours, _ = cv2.findContours(scaled_HW, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(map_HWC, contours, -1, color, 2)
    return map_HWC


def _draw_windows(
    map_HWC: NDArray[np.uint8],
    slide: Slide,
    rows: Sequence[Mapping[str, str]],
    side_xy_l0: Pair,
    range_loss: tuple[float, float],
) -> None:
    scale, (low, high) = _scale(slide), range_loss
    levels = np.clip([(float(r["loss"]) - low) / max(high - low, 1e-9) for r in rows], 0, 1)
    colors = cv2.applyColorMap((levels * 255).astype(np.uint8)[:, None], cv2.COLORMAP_JET)[:, 0]
    half_x, half_y = (side / 2 * scale for side in side_xy_l0)
    for position in np.argsort(levels):  # the hardest on top
        row = rows[int(position)]
        x, y = float(row["x_l0"]) * scale, float(row["y_l0"]) * scale
        color = tuple(int(v) for v in colors[position])
        corner, opposite = (round(x - half_x), round(y - half_y)), (round(x + half_x), round(y + half_y))
        cv2.rectangle(map_HWC, corner, opposite, color, 1)
        cv2.circle(map_HWC, (round(x), round(y)), 2, color, -1)
