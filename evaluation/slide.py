"""One slide's prediction against its truth, block by block: the counts that evaluate.py adds up.

H rows, W columns of the prediction's map. Cells: px of the coarse map that lesions are found on, 32 level-0 px (or
7.776 um) a side. The whole map of a large slide is never in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cohorts.pairing import Case
from evaluation.predictions import DETECTIONS, Prediction, open_maps, read_detections
from metrics.confusion import IGNORE, confusion_from_labels, histogram_from_bytes
from metrics.froc import slide_hits
from metrics.lesions import MAP_UM_PX, lesion_map, longest_diameters_um
from metrics.regions import false_regions
from metrics.summary import FalseRegion, SlideScores
from samplers.index import find_tissue
from slides.geometry import Window, lv_from_l0, pixel_centers_l0
from slides.reader import Slide
from slides.truth.interface import Truth
from slides.truth.reading import Reading

# Multiples of any tile's side, so that each tile is decoded once; 4 Mpx.
BLOCK_PX = 2048
# Scanners for which the organizers' level 5 is meant, um per level-0 px.
SCANNED_UM_PX = (0.22, 0.26)
LESION_STEP_L0 = 32
# Tissue is searched on this pyramid level, about 8 um/px.
TISSUE_LEVEL = 5


@dataclass
class _Maps:
    """Coarse maps of one slide that blocks are added to, (rows, columns) of cells.

    Attributes:
        window: the cells, from level-0 (0, 0) on.
        predicted_HW: whether the prediction's px at the cell's center is tumor.
        regions: cells of the three maps below; larger if the prediction's px are larger.
        px_HW: px predicted tumor whose center lies in the cell.
        highest_HW: highest tumor probability of those, as a byte.
        tumor_HW: whether a px of the map in the cell is truly tumor.
    """

    window: Window
    predicted_HW: NDArray[np.bool_]
    regions: Window
    px_HW: NDArray[np.int32]
    highest_HW: NDArray[np.uint8]
    tumor_HW: NDArray[np.bool_]

    @staticmethod
    def empty(window: Window, regions: Window) -> _Maps:
        """Return maps without prediction and truth."""
        hw = regions.hw_out
        counts = np.zeros(hw, np.int32), np.zeros(hw, np.uint8), np.zeros(hw, bool)
        return _Maps(window, np.zeros(window.hw_out, bool), regions, *counts)


def measure(
    prediction: Prediction,
    case: Case,
    reading: Reading,
    tissue_only: bool,
) -> SlideScores:
    """Compare one prediction with its truth.

    Args:
        prediction: the prediction.
        case: its slide and label.
        reading: how its label is read; the spacing is that of the prediction if this one is None.
        tissue_only: count px of tissue and of annotations only.

    Raises:
        ValueError: slide, label or prediction cannot be read, or do not fit together.
    """
    slide = Slide(case.slide_path, um_px=reading.um_px or prediction.um_px_xy_l0)
    if slide.size_xy_l0 != prediction.size_xy_l0:
        raise ValueError(
            f"slide {slide.path} has {slide.size_xy_l0} px, its prediction {prediction.folder} is of one of "
            f"{prediction.size_xy_l0}: predict it again, or give the --slide_path it was made from"
        )
    truth = reading.open_truth(case.label_path, slide)
    label, probability = open_maps(prediction)
    detections = read_detections(prediction.folder / DETECTIONS)
    search = find_tissue(slide, TISSUE_LEVEL)
    tissue = search.cell_l0, search.tissue_HW
    notes = [search.damage] if search.damage else []
    notes += [*truth.notes] if search.tissue_HW.any() else [f"{slide.id}: no tissue found", *truth.notes]
    cells = _cells(slide)
    steps = zip(cells.step_xy_l0, prediction.step_xy_l0, strict=True)
    maps = _Maps.empty(cells, _whole_slide(slide, *(max(pair) for pair in steps)))
    confusion_KK = np.zeros((prediction.classes,) * 2, np.int64)
    histogram_2N = np.zeros((2, 256), np.int64)
    for corner_xy, window in _blocks(prediction):
        truth_HW = truth.label(window)
        label_HW = label.read(label.levels[0], corner_xy, window.hw_out)
        probability_HW = probability.read(probability.levels[0], corner_xy, window.hw_out)
        _gather(maps, corner_xy, window, prediction.size_xy, truth_HW, label_HW, probability_HW)
        if tissue_only:
            truth_HW[(truth_HW == 0) & ~_under(*tissue, window)] = IGNORE
        try:
            confusion_KK += confusion_from_labels(truth_HW, label_HW, prediction.classes)
        except ValueError as error:
            raise ValueError(f"{prediction.folder} against {case.label_path}: {error}") from error
        histogram_2N += histogram_from_bytes(truth_HW, probability_HW)
    return _scores(prediction, slide, truth, maps, (confusion_KK, histogram_2N), detections, tuple(notes))


def _cells(slide: Slide) -> Window:
    """Return the whole slide at the organizers' level 5, or at its spacing if level 0 has another spacing."""
    scanned = all(SCANNED_UM_PX[0] <= um_px <= SCANNED_UM_PX[1] for um_px in slide.um_px_xy_l0)
    step_x, step_y = (LESION_STEP_L0 if scanned else MAP_UM_PX / um_px for um_px in slide.um_px_xy_l0)
    return _whole_slide(slide, step_x, step_y)


def _whole_slide(slide: Slide, step_x: float, step_y: float) -> Window:
    """Return a window over the whole slide in steps of level-0 px."""
    width, height = slide.size_xy_l0
    return Window((0.0, 0.0), (int(-(-height // step_y)), int(-(-width // step_x))), (float(step_x), float(step_y)))


def _under(cell_l0: int, cells_HW: NDArray[np.bool_], window: Window) -> NDArray[np.bool_]:
    """Return the value of the cell at the center of every px of a window, (H, W)."""
    rows, columns = _cells_under(window, (float(cell_l0), float(cell_l0)), cells_HW.shape)
    under_HW: NDArray[np.bool_] = cells_HW[np.ix_(rows, columns)]
    return under_HW


def _cells_under(
    window: Window, step_xy_l0: tuple[float, float], hw: tuple[int, ...]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the cell row at each row's centers, and the cell column at each column's; the last covers a remainder."""
    x_l0, y_l0 = pixel_centers_l0(window)
    rows, columns = (
        np.floor(along / step).astype(np.int64).clip(0, size - 1)
        for along, step, size in zip((y_l0, x_l0), step_xy_l0[::-1], hw, strict=True)
    )
    return rows, columns


def _blocks(prediction: Prediction) -> Iterator[tuple[tuple[int, int], Window]]:
    """Yield rectangles of the map: first column and row, and their window of the slide."""
    (width, height), (step_x, step_y) = prediction.size_xy, prediction.step_xy_l0
    for top in range(0, height, BLOCK_PX):
        for left in range(0, width, BLOCK_PX):
            hw = min(BLOCK_PX, height - top), min(BLOCK_PX, width - left)
            yield (left, top), Window((left * step_x, top * step_y), hw, prediction.step_xy_l0)


def _gather(
    maps: _Maps,
    corner_xy: tuple[int, int],
    window: Window,
    size_xy: tuple[int, int],
    truth_HW: NDArray[np.uint8],
    label_HW: NDArray[np.uint8],
    probability_HW: NDArray[np.uint8],
) -> None:
    """Add a block to the coarse maps."""
    rows, columns = _cells_under(window, maps.regions.step_xy_l0, maps.regions.hw_out)
    (rows, first_rows), (columns, first_columns) = (np.unique(along, return_index=True) for along in (rows, columns))
    cells = np.ix_(rows, columns)

    def reduced(add: np.ufunc, values_HW: NDArray[np.uint8], dtype: type) -> NDArray[Any]:
        # Cells are contiguous runs of rows and columns; ufunc.at over single px takes ten times as long.
        by_row = add.reduceat(values_HW, first_rows, axis=0, dtype=dtype)
        cells_HW: NDArray[Any] = add.reduceat(by_row, first_columns, axis=1)
        return cells_HW

    # Nothing is a false positive where truth is unknown.
    predicted_HW = ((label_HW > 0) & (truth_HW != IGNORE)).view(np.uint8)
    if predicted_HW.any():
        maps.px_HW[cells] += reduced(np.add, predicted_HW, np.int32)
        highest = reduced(np.maximum, probability_HW * predicted_HW, np.uint8)
        maps.highest_HW[cells] = np.maximum(maps.highest_HW[cells], highest)
    tumor_HW = ((truth_HW > 0) & (truth_HW != IGNORE)).view(np.uint8)
    if tumor_HW.any():
        maps.tumor_HW[cells] |= reduced(np.maximum, tumor_HW, np.uint8) > 0
    # Cells whose center lies in this block take the px at the center.
    inside = []
    for px, first, size in zip(
        _cells_under(maps.window, window.step_xy_l0, size_xy[::-1]), corner_xy[::-1], window.hw_out, strict=True
    ):
        which = np.flatnonzero((px >= first) & (px < first + size))
        inside.append((which, px[which] - first))
    (cell_rows, px_rows), (cell_columns, px_columns) = inside
    maps.predicted_HW[np.ix_(cell_rows, cell_columns)] = label_HW[np.ix_(px_rows, px_columns)] > 0


def _scores(
    prediction: Prediction,
    slide: Slide,
    truth: Truth,
    maps: _Maps,
    counts: tuple[NDArray[np.int64], NDArray[np.int64]],
    detections: tuple[NDArray[np.float64], NDArray[np.float64]],
    notes: tuple[str, ...],
) -> SlideScores:
    """Compute the scores that need the whole slide."""
    window = maps.window
    cell_um_xy = window.step_xy_l0[0] * slide.um_px_xy_l0[0], window.step_xy_l0[1] * slide.um_px_xy_l0[1]
    truth_HW = truth.label(window)
    x_l0, y_l0 = pixel_centers_l0(window)
    on_slide_HW = (y_l0 < slide.size_xy_l0[1])[:, None] & (x_l0 < slide.size_xy_l0[0])[None, :]
    unknown_HW, tumor_HW = (truth_HW == IGNORE) & on_slide_HW, (truth_HW > 0) & (truth_HW != IGNORE)
    lesions = lesion_map(tumor_HW, MAP_UM_PX)
    places_D2 = lv_from_l0(detections[1], window.step_xy_l0)[:, ::-1]
    try:
        hits = slide_hits(lesions, detections[0], places_D2, unknown_HW)
    except ValueError as error:
        raise ValueError(f"{prediction.folder / DETECTIONS}: {error}; predict this slide again") from error
    at_x_l0, at_y_l0 = pixel_centers_l0(maps.regions)
    predicted = lesion_map(maps.predicted_HW, MAP_UM_PX)
    truth_um = longest_diameters_um(tumor_HW, lesions.label_HW, cell_um_xy)
    predicted_um = longest_diameters_um(maps.predicted_HW, predicted.label_HW, cell_um_xy)
    px_um_xy = [step * um for step, um in zip(prediction.step_xy_l0, slide.um_px_xy_l0, strict=True)]
    confusion_KK, histogram_2N = counts
    return SlideScores(
        slide_id=prediction.slide_id,
        confusion_KK=confusion_KK,
        histogram_2N=histogram_2N,
        hits=hits,
        tumor_probability=prediction.tumor_probability,
        has_tumor=bool(tumor_HW.any() or maps.tumor_HW.any()),
        truth_mm=float(truth_um.max(initial=0)) / 1000,
        predicted_mm=float(predicted_um.max(initial=0)) / 1000,
        px_mm2=px_um_xy[0] * px_um_xy[1] / 1e6,
        false_regions=tuple(
            FalseRegion(
                float(at_x_l0[region.column]), float(at_y_l0[region.row]), region.probability,
                region.px * px_um_xy[0] * px_um_xy[1],
            )
            for region in false_regions(maps.px_HW, maps.highest_HW, maps.tumor_HW)
        ),
        notes=notes,
    )  # fmt: skip
