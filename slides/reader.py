"""Slide: levels, spacing, and pixels of any window at any spacing.

Tensor legend: H rows, W columns, C = 3 channels (RGB, uint8).
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import openslide
from numpy.typing import NDArray

from slides.geometry import Pair, Window, level_downsample_xy, lv_from_l0, window_centered
from slides.memory import aligned, scratch
from slides.names import id_of
from slides.resample import resampled
from slides.tiff.backends import (
    READ_ERRORS,
    Backend,
    NewArray,
    OpenSlideFile,
    drop_handle,
    file_key,
    handle,
    tiff_levels,
    vendor_of,
)
from slides.tiff.ome import ome_slide
from slides.tiff.spacing import suggestion
from slides.tiff.tags import Page, description
from slides.tiff.tiled_tiff import open_planes

S = TypeVar("S", bound="Slide")

SNAP = 1e-4
# Largest distance, in px of a level, between the px asked for and those the backend gives, that is left as it is.
MAX_SHIFT = 0.02
# Without a spacing: what a message gives as an example, and how much of a description is searched for an objective.
COMMON_UM_PX, HINT_BYTES = "0.25", 2**16
UM_PX_RANGE = (0.05, 100.0)
THUMBNAIL_PX = 64 * 2**20
WHITE = 255


class SlideError(ValueError):
    """A slide that cannot be used; the message names it, the window if any, and what to do."""


@dataclass(frozen=True)
class Level:
    """One resolution of a slide.

    Attributes:
        index: 0 is the finest.
        size_xy: Width and height, px of this level.
        downsample_xy: Level-0 px per px of this level, along x and y.
    """

    index: int
    size_xy: tuple[int, int]
    downsample_xy: Pair


class Slide:
    """A slide file: a light description that pickles, forks and is shared by threads; no file stays open in it.

    Pixels come through handles that belong to the calling thread and process (see `backends.handle`).

    Args:
        path: TIFF, or anything OpenSlide opens.
        um_px: Micrometers per level-0 px, one number or (x, y). Replaces what the file says.

    Attributes:
        path: The file.
        id: File name without its suffix, in Unicode's composed form.
        size_xy_l0: Width and height, level-0 px.
        um_px_xy_l0: Micrometers per level-0 px along x and y.
        bounds_xy_l0: Corner of the scanned part that QuPath crops to, level-0 px; (0, 0) unless the file names one
            (`openslide.bounds-x`, `-y`: MRXS, SCN, BIF). Everything here counts from the corner of the whole slide.
        levels: Finest first, strictly shrinking.

    Raises:
        SlideError: Missing, unreadable or truncated file, or unknown or impossible spacing.
    """

    def __init__(self, path: str | Path, um_px: float | Pair | None = None) -> None:
        self.path = Path(path)
        self.id = id_of(self.path)
        self._planes: tuple[tuple[Page, ...], ...] | None = None
        self._tolerance = SNAP
        self.bounds_xy_l0: tuple[int, int] = (0, 0)
        if not self.path.is_file():
            raise SlideError(f"slide {self.path}: no such file")
        try:
            self._key = file_key(self.path)
            vendor = vendor_of(self.path)
            if vendor == "tiff":
                self._planes, found = _tiff_planes(self.path)
                sizes = [page.size_xy for page in self._planes[0]]
            else:
                sizes, found, self.bounds_xy_l0 = _openslide_levels(self.path, vendor)
        except READ_ERRORS as error:
            raise SlideError(f"slide {self.path} cannot be opened: {_reason(error)}") from error
        self.size_xy_l0: tuple[int, int] = sizes[0]
        self.levels = tuple(
            Level(index, size_xy, level_downsample_xy(sizes[0], size_xy)) for index, size_xy in enumerate(sizes)
        )
        self.um_px_xy_l0: Pair = _spacing(self.path, vendor, found, um_px)
        try:
            # Color model and bit depth show only when the first pixel is decoded.
            self._fetch(self.levels[-1], (0, 0), (1, 1))
        except READ_ERRORS as error:
            raise SlideError(f"slide {self.path} cannot be read: {_reason(error)}") from error

    def __repr__(self) -> str:
        size = " x ".join(map(str, self.size_xy_l0))
        return f"Slide({self.id}, {size} px, {len(self.levels)} levels, {self.um_px_xy_l0[0]:.4g} um/px)"

    def taking_levels(self: S, tolerance: float) -> S:
        """Return the slide with a level taken as it is where its spacing is within `tolerance` (a share) of that asked.

        Windows, steps and all frames that follow from them then have the level's spacing, along both axes.
        """
        same = copy.copy(self)
        same._tolerance = max(tolerance, SNAP)
        return same

    def window(self, center_xy_l0: Pair, hw_out: tuple[int, int], um_px: float) -> Window:
        """Return the window of `hw_out` (rows, columns) centered at `center_xy_l0`, `um_px` micrometers per output px.

        The window begins on a whole px of the level it is read from, which makes reading faster; the center moves by at
        most half a px of that level. When the spacing is that of the level to within 1e-4, reading copies px.
        """
        step_xy_l0 = self.step_xy_l0(um_px)
        window = window_centered(center_xy_l0, hw_out, step_xy_l0)
        down_xy = self.level_for(step_xy_l0).downsample_xy
        # floor(v + 0.5), not round: halves must not alternate with round's "to even".
        x, y = (
            math.floor(corner / down + 0.5) * down for corner, down in zip(window.corner_xy_l0, down_xy, strict=True)
        )
        return replace(window, corner_xy_l0=(x, y))

    def step_xy_l0(self, um_px: float) -> Pair:
        """Return level-0 px per output px along x and y at `um_px`; exactly those of a level that has it to 1e-4.

        Or to within the tolerance of `taking_levels`.
        """
        step_xy = um_px / self.um_px_xy_l0[0], um_px / self.um_px_xy_l0[1]

        def apart(level: Level) -> float:
            return max(abs(down / step - 1) for down, step in zip(level.downsample_xy, step_xy, strict=True))

        nearest = min(self.levels, key=apart)
        return nearest.downsample_xy if apart(nearest) <= self._tolerance else step_xy

    def spacing(self, um_px: float) -> float:
        """Return the spacing, um per px along x, of windows asked for at `um_px`; another where a level is taken."""
        return self.step_xy_l0(um_px)[0] * self.um_px_xy_l0[0]

    def level_for(self, step_xy_l0: Pair) -> Level:
        """Return the nearest level at least as fine as `step_xy_l0` (level-0 px per output px); level 0 if none is."""
        fine = [
            level
            for level in self.levels
            if all(down <= step * (1 + SNAP) for down, step in zip(level.downsample_xy, step_xy_l0, strict=True))
        ]
        return fine[-1] if fine else self.levels[0]

    def read(self, window: Window) -> NDArray[np.uint8]:
        """Read a window.

        The nearest finer level is taken. Where the window lies on its px they are copied; otherwise they are resampled
        (`slides/resample.py`): linearly, reductions by more than 1.2 behind a low pass. The result does not depend on
        where a window was cut. Memory is bounded at any spacing: coarse windows are read in parts.

        Args:
            window: Any window, also partly or wholly outside the slide.

        Returns:
            image_HWC of shape (*window.hw_out, 3); white outside the slide.

        Raises:
            SlideError: The file cannot be decoded there.
        """
        level = self.level_for(window.step_xy_l0)
        x, y = (float(v) for v in lv_from_l0(window.corner_xy_l0, level.downsample_xy))
        scale_x, scale_y = (step / down for step, down in zip(window.step_xy_l0, level.downsample_xy, strict=True))
        try:
            if abs(scale_x - 1) < 1e-9 and abs(scale_y - 1) < 1e-9 and _whole(x) and _whole(y):
                image_HWC, shift_x, shift_y = self._padded(level, (round(x), round(y)), window.hw_out)
                if max(abs(shift_x), abs(shift_y)) < MAX_SHIFT:
                    return image_HWC
            return resampled(
                # The memory is free again for the next window: what is returned is another.
                lambda corner_xy_lv, hw: self._padded(level, corner_xy_lv, hw, scratch),
                (x, y),
                window.hw_out,
                (scale_x, scale_y),
            )
        except READ_ERRORS as error:
            raise SlideError(f"slide {self.path} cannot be read in {window}: {_reason(error)}") from error

    def read_level(self, level: int, corner_xy_lv: tuple[int, int], hw: tuple[int, int]) -> NDArray[np.uint8]:
        """Read raw px of one level.

        Args:
            level: Index.
            corner_xy_lv: First column and row, px of that level; may lie outside.
            hw: Rows and columns.

        Returns:
            image_HWC of shape (*hw, 3); white outside the level. Formats read by OpenSlide, on levels whose size was
            rounded: up to half a level-0 px off, since OpenSlide is asked in whole level-0 px; `read` corrects this.
        """
        try:
            return self._padded(self.levels[level], corner_xy_lv, hw)[0]
        except READ_ERRORS as error:
            where = f"level {level}, corner {corner_xy_lv}, rows and columns {hw}"
            raise SlideError(f"slide {self.path} cannot be read in {where}: {_reason(error)}") from error

    def thumbnail(self, level: int) -> NDArray[np.uint8]:
        """Read a whole level as image_HWC.

        Raises:
            ValueError: The level is larger than 64 Mpx.
            SlideError: The file cannot be decoded.
        """
        width, height = self.levels[level].size_xy
        if width * height > THUMBNAIL_PX:
            fitting = [lv.index for lv in self.levels if lv.size_xy[0] * lv.size_xy[1] <= THUMBNAIL_PX]
            raise ValueError(
                f"slide {self.path}: level {level} has {width} x {height} px, more than the 64 Mpx of a thumbnail; "
                f"levels that fit: {fitting or 'none'}"
            )
        return self.read_level(level, (0, 0), (height, width))

    def _open(self) -> Backend:
        if self._planes is None:
            return OpenSlideFile(self.path)
        return open_planes(self.path, self._key, self._planes)

    def _fetch(
        self, level: Level, corner_xy_lv: tuple[int, int], hw: tuple[int, int], new: NewArray = aligned
    ) -> tuple[NDArray[np.uint8], float, float]:
        """Decode px inside a level as RGB; see `Backend.fetch`."""
        try:
            pixels, shift_x, shift_y = handle(self._key, self._open).fetch(level.index, corner_xy_lv, hw, new)
        except READ_ERRORS:
            # OpenSlide refuses everything after its first error, although other tiles may be whole.
            drop_handle(self._key)
            raise
        bands = pixels.shape[2]
        if bands == 1:
            return np.repeat(pixels, 3, axis=2), shift_x, shift_y
        if bands == 4:
            alpha = pixels[..., 3:].astype(np.uint16)
            mixed = (pixels[..., :3] * alpha + WHITE * (255 - alpha) + 127) // 255
            return mixed.astype(np.uint8), shift_x, shift_y
        if bands != 3:
            raise ValueError(f"{bands} channels; slides are RGB, RGBA or gray")
        return pixels, shift_x, shift_y

    def _padded(
        self, level: Level, corner_xy_lv: tuple[int, int], hw: tuple[int, int], new: NewArray = aligned
    ) -> tuple[NDArray[np.uint8], float, float]:
        """Like `_fetch`, for any rectangle: white outside the level."""
        (x, y), (height, width) = corner_xy_lv, hw
        x0, x1 = max(x, 0), min(x + width, level.size_xy[0])
        y0, y1 = max(y, 0), min(y + height, level.size_xy[1])
        if x0 >= x1 or y0 >= y1:
            return np.full((height, width, 3), WHITE, np.uint8), 0.0, 0.0
        inside, shift_x, shift_y = self._fetch(level, (x0, y0), (y1 - y0, x1 - x0), new)
        if inside.shape[:2] == hw:
            return inside, shift_x, shift_y
        image_HWC = np.full((height, width, 3), WHITE, np.uint8)
        image_HWC[y0 - y : y1 - y, x0 - x : x1 - x] = inside
        return image_HWC, shift_x, shift_y


def _whole(value: float) -> bool:
    return abs(value - round(value)) < 1e-6


def _reason(error: Exception) -> str:
    """First two lines of an error: libvips repeats one line per damaged tile."""
    if isinstance(error, openslide.OpenSlideError) and not str(error):
        return type(error).__name__
    lines = list(dict.fromkeys(line.strip() for line in str(error).splitlines() if line.strip()))
    return "; ".join(lines[:2]) or type(error).__name__


def _tiff_planes(path: Path) -> tuple[tuple[tuple[Page, ...], ...], Pair | None]:
    """Levels of a TIFF, once for each channel that has pages of its own, and micrometers per level-0 px."""
    found = ome_slide(path)
    if found is not None:
        return found.planes, found.um_px_xy
    pages = tiff_levels(path)
    return (pages,), pages[0].um_px_xy


def _openslide_levels(path: Path, vendor: str | None) -> tuple[list[tuple[int, int]], Pair | None, tuple[int, int]]:
    """Sizes of the levels, micrometers per level-0 px and corner of the bounds as OpenSlide has them."""
    if vendor is None:
        raise ValueError("neither a TIFF nor a format of OpenSlide (SVS, NDPI, MRXS, SCN, BIF, ...)")
    if vendor == "aperio":
        tiff_levels(path)  # Raises for a truncated file, which OpenSlide opens.
    with openslide.OpenSlide(str(path)) as slide:
        mpp_x, mpp_y = (slide.properties.get(f"openslide.mpp-{axis}") for axis in "xy")
        sizes = [(int(width), int(height)) for width, height in slide.level_dimensions]
        # As QuPath, which crops only where all four are there.
        bounds = [slide.properties.get(f"openslide.bounds-{name}", "") for name in ("x", "y", "width", "height")]
    corner_xy_l0 = (int(bounds[0]), int(bounds[1])) if all(value.isdecimal() for value in bounds) else (0, 0)
    return sizes, (float(mpp_x), float(mpp_y)) if mpp_x and mpp_y else None, corner_xy_l0


def _spacing(path: Path, vendor: str | None, found: Pair | None, given: float | Pair | None) -> Pair:
    """Choose and check the spacing, micrometers per level-0 px."""
    low, high = UM_PX_RANGE
    if given is not None:
        pair = (given, given) if isinstance(given, (int, float)) else (given[0], given[1])
        source = "given"
    elif found is not None:
        pair, source = found, "in the file"
    else:
        raise SlideError(
            f"slide {path}: its spacing is unknown (no um/px in the file, or only a print resolution such as 72 dpi); "
            f"give micrometers per level-0 pixel with --mpp, or --mpp_table for single slides, e.g. "
            f"--mpp {_suggested(path, vendor)}"
        )
    if not all(math.isfinite(value) and low <= value <= high for value in pair):
        raise SlideError(
            f"slide {path}: the spacing {source}, {pair[0]:g} x {pair[1]:g} um/px, is impossible; allowed are {low:g} "
            f"to {high:g}. Give micrometers per level-0 pixel with --mpp"
        )
    return float(pair[0]), float(pair[1])


def _suggested(path: Path, vendor: str | None) -> str:
    """A value for `--mpp` that the file hints at, with the reason; else that of most slides."""
    if vendor == "tiff":
        return suggestion(description(path)[:HINT_BYTES].decode("latin-1")) or COMMON_UM_PX
    with openslide.OpenSlide(str(path)) as slide:
        power = slide.properties.get("openslide.objective-power", "")
        text = slide.properties.get("openslide.comment", "")
    return suggestion(text, power) or COMMON_UM_PX
