"""Truth from outlines (ASAP XML, QuPath GeoJSON): which class lies under the center of each px of a window.

Tensor legend: H rows, W columns. Labels are uint8: classes 0-254, and IGNORE (255), which no loss or metric counts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import shapely
from numpy.typing import NDArray

from slides.geometry import Extent, Window
from slides.truth import qupath
from slides.truth.annotation import (
    DEFAULT_IGNORE_GROUPS,
    DEFAULT_LABEL_MAP,
    Annotation,
    AnnotationError,
    check_some_left,
    paint,
    read_annotations,
)
from slides.truth.label import IGNORE, check_classes, ignore_outside
from slides.truth.raster import edges_of, polygons_of, rasterize, touched_cells


class Bounded(Extent, Protocol):
    """What outlines need to know of their slide; `reader.Slide` has it."""

    @property
    def bounds_xy_l0(self) -> tuple[int, int]:
        """Corner of what QuPath shows, level-0 px."""


def read_outlines(
    path: Path,
    slide: Bounded,
    label_map: Mapping[str, int] = DEFAULT_LABEL_MAP,
    ignore_groups: Collection[str] = DEFAULT_IGNORE_GROUPS,
) -> tuple[tuple[Annotation, ...], tuple[str, ...]]:
    """Read ASAP XML or QuPath GeoJSON, by the suffix.

    Returns:
        Annotations, level-0 px, and notes; see `annotation.read_annotations` and `qupath.read_geojson`, which also
        name the errors.
    """
    if path.suffix.lower() == qupath.SUFFIX:
        return qupath.read_geojson(path, label_map, ignore_groups, slide.bounds_xy_l0)
    return read_annotations(path, label_map, ignore_groups)


class XmlTruth:
    """Truth from ASAP XML or QuPath GeoJSON (see `annotation.paint` for how groups paint over each other).

    Args:
        path: The file; GeoJSON by its suffix.
        slide: Its slide; what reaches outside it is clipped and noted.
        label_map: Group to class, in the order of painting. Class 255 marks areas to ignore.
        ignore_groups: Groups to skip.

    Raises:
        AnnotationError: See `read_outlines`; also when all annotations are skipped or outside.
    """

    def __init__(
        self,
        path: str | Path,
        slide: Bounded,
        label_map: Mapping[str, int] = DEFAULT_LABEL_MAP,
        ignore_groups: Collection[str] = DEFAULT_IGNORE_GROUPS,
    ) -> None:
        check_classes(label_map.values(), "--label_map")
        annotations, notes = read_outlines(Path(path), slide, label_map, ignore_groups)
        check_some_left(Path(path), annotations, notes)
        self.slide_id = slide.id
        self._size_xy_l0 = slide.size_xy_l0
        self._box = shapely.box(0, 0, *slide.size_xy_l0)
        painted = paint(annotations, label_map)
        self._regions = {cls: clipped for cls, area in painted.items() if (clipped := self._clipped(area))}
        if painted and not self._regions:
            raise AnnotationError(
                f"{path}: every annotation lies outside slide {slide.path} of {slide.size_xy_l0} px; "
                "is it the annotation of another slide, or at another resolution?"
            )
        outside = sum(part.area for area in painted.values() for part in area)
        outside -= sum(part.area for area in self._regions.values() for part in area)
        if outside > 0.5:
            notes += (f"{path}: {outside:.0f} level-0 px2 lie outside the slide, clipped",)
        self.notes = notes
        self._edges = {cls: edges_of(area) for cls, area in self._regions.items()}

    @property
    def classes(self) -> frozenset[int]:
        """See `interface.Truth`."""
        return frozenset(self._regions) - {IGNORE}

    def label(self, window: Window) -> NDArray[np.uint8]:
        """See `interface.Truth.label`."""
        return ignore_outside(self._classes_at(window), window, self._size_xy_l0)

    def _classes_at(self, window: Window) -> NDArray[np.uint8]:
        """Class under the center of each px, class 0 outside the slide."""
        label_HW: NDArray[np.uint8] | None = None
        for cls, edges in self._edges.items():
            if cls == 0:
                continue
            inside_HW = rasterize(edges, window)
            if label_HW is None:
                # Ten times faster than writing through a mask; False and True are the bytes 0 and 1.
                label_HW = np.multiply(inside_HW.view(np.uint8), np.uint8(cls))
            else:
                label_HW[inside_HW] = cls
        return np.zeros(window.hw_out, np.uint8) if label_HW is None else label_HW

    def label_max(self, cell_l0: int, cls: int) -> NDArray[np.bool_]:
        """See `interface.Truth.label_max`.

        A cell is True exactly when class `cls` covers a positive area of it: an edge passes through it, or none does
        and its center is inside.
        """
        width, height = self._size_xy_l0
        hw = -(-height // cell_l0), -(-width // cell_l0)
        edges = self._edges.get(cls) if cls != 0 else edges_of(self._background())
        if edges is None:
            return np.zeros(hw, np.bool_)
        cells = Window((0.0, 0.0), hw, (cell_l0, cell_l0))
        occurs_HW: NDArray[np.bool_] = touched_cells(edges, cell_l0, hw) | rasterize(edges, cells)
        return occurs_HW

    def one_class(self, cell_l0: int) -> NDArray[np.int64]:
        """Tell which cells are one class throughout, without looking at their px.

        Args:
            cell_l0: Side of a cell, level-0 px, as for `interface.Truth.label_max`.

        Returns:
            class_HW: The class of each cell that no edge passes through; -1 for the others. Cells at the right and
            lower border stand for their part on the slide.
        """
        width, height = self._size_xy_l0
        hw = -(-height // cell_l0), -(-width // cell_l0)
        # Every px of such a cell is what any of them is: the first, which is on the slide in border cells too.
        class_HW = np.full(hw, -1, np.int64)
        touched_HW = np.zeros(hw, np.bool_)
        for edges in self._edges.values():
            touched_HW |= touched_cells(edges, cell_l0, hw)
        first = Window((0.5 - cell_l0 / 2, 0.5 - cell_l0 / 2), hw, (cell_l0, cell_l0))
        inside_HW = self._classes_at(first)
        class_HW[~touched_HW] = inside_HW[~touched_HW]
        return class_HW

    def regions(self, cls: int) -> list[shapely.Polygon]:
        """See `interface.Truth.regions`."""
        return list(self._regions.get(cls, ()))

    def _background(self) -> list[shapely.Polygon]:
        covered = [part for cls, area in self._regions.items() if cls != 0 for part in area]
        return polygons_of(self._box.difference(shapely.union_all(covered)))

    def _clipped(self, area: tuple[shapely.Polygon, ...]) -> tuple[shapely.Polygon, ...]:
        whole = shapely.within(area, self._box).tolist()
        inside: list[shapely.Polygon] = []
        for part, is_whole in zip(area, whole, strict=True):
            inside += [part] if is_whole else polygons_of(part.intersection(self._box))
        return tuple(inside)
