"""Truth of a slide, one interface over ASAP XML, QuPath GeoJSON, mask pyramids, and slides without any tumor.

Tensor legend: H rows, W columns. Labels are uint8: classes 0-254, and IGNORE (255), which no loss or metric counts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import shapely
from numpy.typing import NDArray

from slides.geometry import Window
from slides.reader import Slide
from slides.truth.annotation import DEFAULT_IGNORE_GROUPS, DEFAULT_LABEL_MAP
from slides.truth.label import MASK_SUFFIXES, OUTLINE_SUFFIXES, ignore_outside
from slides.truth.mask_truth import MaskTruth
from slides.truth.xml_truth import XmlTruth


class Truth(Protocol):
    """What is where on one slide.

    Attributes:
        slide_id: Id of the slide.
        classes: Classes with at least one region; class 0 only where it is annotated itself.
        notes: What was skipped, repaired or clipped, for a log.
    """

    slide_id: str
    notes: tuple[str, ...]

    @property
    def classes(self) -> frozenset[int]:
        """See the class."""

    def label(self, window: Window) -> NDArray[np.uint8]:
        """Return label_HW of shape `window.hw_out`: the class under each pixel's center, IGNORE outside the slide."""

    def label_max(self, cell_l0: int, cls: int) -> NDArray[np.bool_]:
        """Return occurs_HW: whether class `cls` occurs anywhere in each cell, however small the spot.

        Args:
            cell_l0: Side of a cell, level-0 px. Cell [r, c] starts at (c * cell_l0, r * cell_l0); there are
                ceil(height / cell_l0) x ceil(width / cell_l0).
            cls: The class; 0 asks for places that no other class covers.
        """

    def regions(self, cls: int) -> list[shapely.Polygon]:
        """Return disjoint valid polygons with holes (level-0 px) where the truth is `cls`.

        For class 0 only what was annotated as such; the rest of the slide has no polygon.
        """


class EmptyTruth:
    """Truth of a slide without tumor: class 0 everywhere.

    Args:
        slide: The slide.
    """

    notes: tuple[str, ...] = ()

    def __init__(self, slide: Slide) -> None:
        self.slide_id = slide.id
        self._size_xy_l0 = slide.size_xy_l0

    @property
    def classes(self) -> frozenset[int]:
        """See `Truth`."""
        return frozenset()

    def label(self, window: Window) -> NDArray[np.uint8]:
        """See `Truth.label`."""
        return ignore_outside(np.zeros(window.hw_out, np.uint8), window, self._size_xy_l0)

    def label_max(self, cell_l0: int, cls: int) -> NDArray[np.bool_]:
        """See `Truth.label_max`."""
        width, height = self._size_xy_l0
        return np.full((-(-height // cell_l0), -(-width // cell_l0)), cls == 0)

    def regions(self, cls: int) -> list[shapely.Polygon]:  # noqa: ARG002 - the interface's argument
        """See `Truth.regions`."""
        return []


def open_truth(
    path: str | Path | None,
    slide: Slide,
    label_map: Mapping[str, int] = DEFAULT_LABEL_MAP,
    ignore_groups: Collection[str] = DEFAULT_IGNORE_GROUPS,
    mask_values: Mapping[int, int] | None = None,
) -> Truth:
    """Open the truth of a slide by the suffix of its file.

    Args:
        path: ASAP XML, QuPath GeoJSON, a TIFF or PNG mask, or None for a slide without tumor.
        slide: The slide.
        label_map: Group to class, for outlines.
        ignore_groups: Groups to skip, for outlines.
        mask_values: Stored value to class, for masks; default: 0 is class 0, all else class 1.

    Raises:
        ValueError: Another suffix, or a file that cannot be used.
    """
    if path is None:
        return EmptyTruth(slide)
    suffix = Path(path).suffix.lower()
    if suffix in OUTLINE_SUFFIXES:
        return XmlTruth(path, slide, label_map, ignore_groups)
    if suffix in MASK_SUFFIXES:
        return MaskTruth(path, slide, mask_values)
    raise ValueError(
        f"label {path}: suffix {suffix!r}; labels are .xml (ASAP), .geojson (QuPath) or masks: .tif, .tiff, .png"
    )
