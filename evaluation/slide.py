"""One slide's prediction against its truth, block by block: the counts that evaluate.py adds up.

H rows, W columns of the prediction's map. Cells: px of the coarse map that lesions are found on, 32 level-0 px (or
7.776 um) a side. The whole map of a large slide is never in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cohorts.pairing import Case
from evaluation.cells import cells_under, under
from evaluation.pictures import Scene, beside, window_of
from evaluation.predictions import DETECTIONS, Prediction, open_maps, read_detections
from inference.maps import GRID_PX, MapLevel, MapPyramid
from inference.plan import tissue_cells
from metrics.confusion import IGNORE, confusion_from_labels, histogram_from_bytes
from metrics.froc import slide_hits, values_at
from metrics.lesions import MAP_UM_PX, Lesions, lesion_map, longest_diameters_um
from metrics.regions import false_regions
from metrics.summary import FalseRegion, SlideScores
from pages.pictures import data_uri
from samplers.index import find_tissue
from slides.geometry import Window, lv_from_l0, pixel_centers_l0
from slides.reader import Slide
from slides.tissue import NOT_BRIGHTFIELD
from slides.truth.interface import Truth
from slides.truth.reading import Reading

# Multiples of any tile's side, so that each tile is decoded once; 4 Mpx.
BLOCK_PX = 2048
# Scanners for which the organizers' level 5 is meant, um per level-0 px.
SCANNED_UM_PX = (0.22, 0.26)
LESION_STEP_L0 = 32
# Bytes of a picture in the report.
PICTURE_BYTES = 60_000
# Tissue is searched on this pyramid level, about 8 um/px.
TISSUE_LEVEL = 5

# Confusion and histogram of counted px; probabilities and places (level-0 px) of detections.
_Counts = tuple[NDArray[np.int64], NDArray[np.int64]]
_Detections = tuple[NDArray[np.float64], NDArray[np.float64]]


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


@dataclass(frozen=True)
class Measured:
    """What is known of one slide.

    Attributes:
        scores: what it adds to the scores of the set.
        truth, predicted: small pictures as data URIs.
    """

    scores: SlideScores
    truth: str
    predicted: str


@dataclass(frozen=True)
class _Read:
    """One slide, opened.

    Attributes:
        prediction: its prediction.
        slide: the slide.
        truth: its truth.
        label, probability: the maps of the prediction.
        cut: side of the cells (level-0 px) and which of them the maps are cut to; None: no cut is needed.
    """

    prediction: Prediction
    slide: Slide
    truth: Truth
    label: MapPyramid
    probability: MapPyramid
    cut: tuple[int, NDArray[np.bool_]] | None

    def off(self, window: Window) -> NDArray[np.bool_] | None:
        """Return the px of a window that were not to be predicted, (H, W)."""
        return None if self.cut is None else ~_under(*self.cut, window)


def measure(prediction: Prediction, case: Case, reading: Reading, tissue_only: bool) -> Measured:
    """Compare one prediction with its truth.

    Args:
        prediction: the prediction.
        case: its slide and label.
        reading: how its label is read; the spacing is that of the case, else this one,
            else that of the prediction.
        tissue_only: `SlideScores.confusion_KK` counts px of tissue and of annotations only.

    Raises:
        ValueError: slide, label or prediction cannot be read, or do not fit together.
    """
    slide = Slide(case.slide_path, um_px=case.um_px or reading.um_px or prediction.um_px_xy_l0)
    if slide.size_xy_l0 != prediction.size_xy_l0:
        raise ValueError(
            f"slide {slide.path} has {slide.size_xy_l0} px, its prediction {prediction.folder} is of one of "
            f"{prediction.size_xy_l0}: predict it again, or give the --slide_path it was made from"
        )
    truth = reading.open_truth(case.label_path, slide)
    detections = read_detections(prediction.folder / DETECTIONS)
    search = find_tissue(slide, TISSUE_LEVEL)
    tissue = search.cell_l0, search.tissue_HW
    notes = [search.damage] if search.damage else []
    if not search.brightfield:
        notes.append(f"{slide.id}: {NOT_BRIGHTFIELD}")
    notes += [*truth.notes] if search.tissue_HW.any() else [f"{slide.id}: no tissue found", *truth.notes]
    cut = _cut(prediction, slide)
    if cut is not None:
        prediction, detections, off = _without_glass(prediction, cut, detections)
        notes.append(
            f"{slide.id}: predicted by an earlier version, which did not cut its maps to the tissue; evaluated as if "
            f"it had ({off} detections on glass)"
        )
    one = _Read(prediction, slide, truth, *open_maps(prediction), cut)
    cells = _cells(slide)
    steps = zip(cells.step_xy_l0, prediction.step_xy_l0, strict=True)
    maps = _Maps.empty(cells, _whole_slide(slide, *(max(pair) for pair in steps)))
    try:
        counts, everywhere = _counted(one, maps, tissue)
    except ValueError as error:
        raise ValueError(f"{prediction.folder} against {case.label_path}: {error}") from error
    return _scores(one, maps, (counts if tissue_only else everywhere, everywhere), detections, tuple(notes))


def _counted(one: _Read, maps: _Maps, tissue: tuple[int, NDArray[np.bool_]]) -> tuple[_Counts, _Counts]:
    """Add up all blocks of a slide: the coarse maps, px of tissue and annotations, and all px."""
    prediction = one.prediction
    on_tissue, off_tissue = _empty_counts(prediction.classes), _empty_counts(prediction.classes)
    for corner_xy, window in _blocks(prediction):
        truth_HW = one.truth.label(window)
        label_HW = one.label.read(one.label.levels[0], corner_xy, window.hw_out)
        probability_HW = one.probability.read(one.probability.levels[0], corner_xy, window.hw_out)
        off_HW = one.off(window)
        if off_HW is not None:
            label_HW, probability_HW = (np.where(off_HW, 0, map_HW) for map_HW in (label_HW, probability_HW))
        _gather(maps, corner_xy, window, prediction.size_xy, truth_HW, label_HW, probability_HW)
        glass_HW = (truth_HW == 0) & ~_under(*tissue, window)
        for counts, without_HW in ((on_tissue, glass_HW), (off_tissue, ~glass_HW)):
            part_HW = np.where(without_HW, np.uint8(IGNORE), truth_HW)
            counts[0][:] += confusion_from_labels(part_HW, label_HW, prediction.classes)
            counts[1][:] += histogram_from_bytes(part_HW, probability_HW)
    return on_tissue, (on_tissue[0] + off_tissue[0], on_tissue[1] + off_tissue[1])


def _empty_counts(classes: int) -> _Counts:
    return np.zeros((classes, classes), np.int64), np.zeros((2, 256), np.int64)


def _cut(prediction: Prediction, slide: Slide) -> tuple[int, NDArray[np.bool_]] | None:
    """Return the tissue that a prediction of an earlier version looked for; None for others, which need no cut."""
    if not prediction.uncut:
        return None
    search = tissue_cells(slide, int(prediction.options["bb_downsample"]))
    return search.cell_l0, search.tissue_HW


def _without_glass(
    prediction: Prediction, cut: tuple[int, NDArray[np.bool_]], detections: _Detections
) -> tuple[Prediction, _Detections, int]:
    """Drop detections off the tissue: the prediction with the tumor probability that remains, the rest, how many."""
    cell_l0, cells_HW = cut
    on_D = values_at(cells_HW, (detections[1] / cell_l0)[:, ::-1]) > 0
    off = int((~on_D).sum())
    kept = detections[0][on_D], detections[1][on_D]
    if off:
        prediction = replace(prediction, tumor_probability=float(kept[0].max(initial=0.0)))
    return prediction, kept, off


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
    return under(cells_HW, (float(cell_l0), float(cell_l0)), window)


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
    rows, columns = cells_under(window, maps.regions.step_xy_l0, maps.regions.hw_out)
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
        cells_under(maps.window, window.step_xy_l0, size_xy[::-1]), corner_xy[::-1], window.hw_out, strict=True
    ):
        which = np.flatnonzero((px >= first) & (px < first + size))
        inside.append((which, px[which] - first))
    (cell_rows, px_rows), (cell_columns, px_columns) = inside
    maps.predicted_HW[np.ix_(cell_rows, cell_columns)] = label_HW[np.ix_(px_rows, px_columns)] > 0


def _scores(
    one: _Read, maps: _Maps, counts: tuple[_Counts, _Counts], detections: _Detections, notes: tuple[str, ...]
) -> Measured:
    """Compute the scores that need the whole slide."""
    prediction, slide, window = one.prediction, one.slide, maps.window
    cell_um_xy = window.step_xy_l0[0] * slide.um_px_xy_l0[0], window.step_xy_l0[1] * slide.um_px_xy_l0[1]
    truth_HW = one.truth.label(window)
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
    (confusion_KK, histogram_2N), (all_KK, all_2N) = counts
    scores = SlideScores(
        slide_id=prediction.slide_id,
        confusion_KK=confusion_KK,
        histogram_2N=histogram_2N,
        all_confusion_KK=all_KK,
        all_histogram_2N=all_2N,
        hits=hits,
        tumor_probability=prediction.tumor_probability,
        has_tumor=bool(tumor_HW.any() or maps.tumor_HW.any()),
        truth_mm=float(truth_um.max(initial=0)) / 1000,
        predicted_mm=float(predicted_um.max(initial=0)) / 1000,
        px_mm2=px_um_xy[0] * px_um_xy[1] / 1e6,
        slide_mm2=float(np.prod(slide.size_xy_l0) * np.prod(slide.um_px_xy_l0)) / 1e6,
        detections=len(detections[0]),
        tumor_predicted=bool(maps.px_HW.any() or all_KK[:, 1:].any()),
        false_regions=tuple(
            FalseRegion(
                float(at_x_l0[region.column]), float(at_y_l0[region.row]), region.probability,
                region.px * px_um_xy[0] * px_um_xy[1],
            )
            for region in false_regions(maps.px_HW, maps.highest_HW, maps.tumor_HW)
        ),
        notes=notes,
    )  # fmt: skip
    lesion_D, unknown_D = (values_at(map_HW, places_D2) for map_HW in (lesions.label_HW, unknown_HW))
    false_D = (lesion_D == 0) & (unknown_D == 0)
    missed = (np.flatnonzero(~lesions.is_itc_L) + 1)[hits.lesion_L == 0]
    picture = window_of(slide)
    scene = _scene(one, maps, picture, lesions, missed, detections[1][lesion_D > 0], detections[1][false_D])
    return Measured(scores, *(data_uri(image_HWC, PICTURE_BYTES) for image_HWC in beside(slide, picture, scene)))


def _scene(
    one: _Read,
    maps: _Maps,
    picture: Window,
    lesions: Lesions,
    missed: NDArray[np.int64],
    hits_xy_l0: NDArray[np.float64],
    false_xy_l0: NDArray[np.float64],
) -> Scene:
    """Return what is drawn: on the picture's px, or on cells where those are finer."""
    grid = maps.regions
    level = _level_for(one.label, picture)
    if max(picture.step_xy_l0) < max(grid.step_xy_l0) and level is not None:
        grid = picture
        truth_HW = one.truth.label(grid)
        true_HW = (truth_HW > 0) & (truth_HW != IGNORE)
        whole_HW = one.label.whole(level)
        predicted_HW = under(whole_HW, level.step_xy_l0, grid) > 0
        off_HW = one.off(grid)
        if off_HW is not None:
            predicted_HW &= ~off_HW
    else:
        # Whatever any px in a cell has, so that no speck is lost.
        truth_HW = one.truth.label(grid)
        true_HW, predicted_HW = maps.tumor_HW, maps.px_HW > 0
    x_l0, y_l0 = pixel_centers_l0(grid)
    on_slide_HW = (y_l0 < one.slide.size_xy_l0[1])[:, None] & (x_l0 < one.slide.size_xy_l0[0])[None, :]
    return Scene(
        grid=grid,
        true_HW=true_HW,
        ignored_HW=(truth_HW == IGNORE) & on_slide_HW,
        predicted_HW=predicted_HW,
        lesion_HW=under(lesions.label_HW, maps.window.step_xy_l0, grid),
        missed=missed,
        itc=np.flatnonzero(lesions.is_itc_L) + 1,
        hits_xy_l0=hits_xy_l0,
        false_xy_l0=false_xy_l0,
    )


def _level_for(label: MapPyramid, picture: Window) -> MapLevel | None:
    """Return the coarsest level of a map that is no coarser than the picture; None if it is too large to be read."""
    fine = [level for level in label.levels if max(level.step_xy_l0) <= max(picture.step_xy_l0)]
    level = (fine or label.levels[:1])[-1]
    return level if level.size_xy[0] * level.size_xy[1] <= GRID_PX else None
