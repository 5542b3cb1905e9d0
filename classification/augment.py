"""What a network sees of a whole image: a crop of it, turned, flipped, scaled, distorted and recolored.

All of it is one map from places of the view to places of the image, so that any window is read by itself, with the same
px to the byte, and the sampling mask and a saliency map go through the same map. Pure in seed and index.

Shapes: H rows, W columns, C = 3 channels (RGB, uint8). Frames: px of the view; px of the image; level-0 px.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from classification import color, crops
from classification.draws import ELASTIC, PLACES, generator
from classification.elastic import Displacement, displacement
from classification.image_files import Interval, Pixels
from classification.images import WholeImage
from options.choices import ColorModel, WholeAugmentation
from slides.geometry import Pair, Points
from slides.reader import WHITE

PART_BITS = 5
PARTS = 1 << PART_BITS  # of a px, in OpenCV's maps in whole numbers
BLOCK_PX = 1024  # side of the parts in which a window is made: bounds memory, not results


@dataclass(frozen=True)
class Strength:
    """How much views differ.

    Attributes:
        crop: at random (see `crops.center`), not where the mask has most.
        flips: along both axes, each for half of the views.
        rotation: by whole degrees, 0 to 359.
        zoom: relative change of size, uniform within plus and minus this.
        color: how colors change.
        color_share: how much, see `color.drawn`.
        elastic_px: factor of the distortion, see `elastic.displacement`; 0 for none.
        elastic_sigma_px: its smoothness.
    """

    crop: bool = True
    flips: bool = True
    rotation: bool = True
    zoom: float = 0.0
    color: ColorModel = "none"
    color_share: float = 0.0
    elastic_px: float = 0.0
    elastic_sigma_px: float = 150.0


STRENGTHS: dict[WholeAugmentation, Strength] = {
    "none": Strength(crop=False, flips=False, rotation=False),
    "flips": Strength(rotation=False),
    "standard": Strength(color="lch", color_share=0.05, elastic_px=1000.0),
    "strong": Strength(zoom=0.15, color="hed", color_share=0.2, elastic_px=1500.0),
}
# Of a color model chosen where the strength has another.
SHARES: dict[ColorModel, float] = {"none": 0.0, "lch": 0.05, "hed": 0.15}


def strength(level: WholeAugmentation, model: ColorModel | None = None) -> Strength:
    """The strength of a name, with another color model if one is given."""
    found = STRENGTHS[level]
    return found if model in (None, found.color) else replace(found, color=model, color_share=SHARES[model])


@dataclass(frozen=True)
class Frame:
    """Where px of a view lie: xy_image = center + matrix times (xy_view - middle of the view).

    Attributes:
        center_xy: px of the image.
        matrix: 2 x 2, rows first.
    """

    center_xy: Pair
    matrix: tuple[Pair, Pair]

    @property
    def turned(self) -> bool:
        """Whether rows of the view are no rows of the image, or px of another size."""
        (a, b), (c, d) = self.matrix
        return not (b == c == 0 and abs(a) == abs(d) == 1)


@dataclass(frozen=True, eq=False)
class View:
    """A view of an image; a source for streaming (`streaming.images.Source`) of uint8 RGB.

    Attributes:
        image: the image.
        hw: rows and columns.
        frame: where its px lie in the image.
        elastic: displacement of its px before that; None for none.
        recolor: change of color; None for none. What lies outside the image stays white.
    """

    image: WholeImage
    hw: tuple[int, int]
    frame: Frame
    elastic: Displacement | None = None
    recolor: color.Recolor | None = None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """1, H, W and C."""
        return 1, *self.hw, 3

    @property
    def name(self) -> str:
        """Id of the slide."""
        return self.image.name

    def read(self, rows: Interval, columns: Interval) -> Pixels:
        """The view (1, rows, columns, C) in two intervals of px inside it.

        Raises:
            SlideError: the image cannot be decoded; the message names the file.
        """
        window_HWC = np.empty((rows[1] - rows[0], columns[1] - columns[0], 3), np.uint8)
        make = self._copied if self._copies else self._mapped
        for down in _steps(rows):
            for across in _steps(columns):
                part = (
                    slice(down[0] - rows[0], down[1] - rows[0]),
                    slice(across[0] - columns[0], across[1] - columns[0]),
                )
                window_HWC[part] = make(down, across)
        return window_HWC[None]

    def image_from_view(self, xy: ArrayLike) -> Points:
        """Px of the image of points given in px of the view; both (..., 2), last axis (x, y)."""
        points = np.asarray(xy, np.float64)
        moved = points if self.elastic is None else points + self.elastic.of_points(points)
        x, y = self._image_xy(moved[..., 0], moved[..., 1])
        return np.stack([x, y], axis=-1)

    def l0_from_view(self, xy: ArrayLike) -> Points:
        """Level-0 px of points given in px of the view, through the image's trim; both (..., 2), last axis (x, y)."""
        return self.image.l0_from_image(self.image_from_view(xy))

    def mask(self, step: int) -> NDArray[np.float32]:
        """The sampling mask as the view shows it, float32, a cell per `step` px; 0 outside, 1 inside without a mask."""
        height, width = (-(-size // step) for size in self.hw)
        x, y = np.meshgrid((np.arange(width) + 0.5) * step, (np.arange(height) + 0.5) * step)
        xy = self.image_from_view(np.stack([x, y], axis=-1))
        inside = np.all((xy >= 0) & (xy < np.array(self.image.hw[::-1])), axis=-1)
        if self.image.mask_RS is None:
            inside_RS: NDArray[np.float32] = inside.astype(np.float32)
            return inside_RS
        cells = (xy / self.image.mask_step).astype(np.int64)
        rows, columns = (np.clip(cells[..., 1 - axis], 0, self.image.mask_RS.shape[axis] - 1) for axis in (0, 1))
        shown_RS: NDArray[np.float32] = np.where(inside, self.image.mask_RS[rows, columns], np.float32(0))
        return shown_RS

    @cached_property
    def _copies(self) -> bool:
        """Whether px of the view are px of the image."""
        corner = self._image_xy(np.zeros(1), np.zeros(1))
        return self.elastic is None and not self.frame.turned and all(float(v[0]).is_integer() for v in corner)

    def _image_xy(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[Points, Points]:
        """Px of the image of places in px of the view, without the distortion."""
        (a, b), (c, d) = self.frame.matrix
        right, down = x - self.hw[1] / 2, y - self.hw[0] / 2
        # Each place by products and sums of its own: the same in every window.
        return self.frame.center_xy[0] + (a * right + b * down), self.frame.center_xy[1] + (c * right + d * down)

    def _inside(self, rows: Interval, columns: Interval) -> Pixels:
        """Px of the image, recolored."""
        image_HWC = self.image.read(rows, columns)[0]
        return image_HWC if self.recolor is None else self.recolor(image_HWC)

    def _copied(self, rows: Interval, columns: Interval) -> Pixels:
        """A window whose px are px of the image."""
        ends_x, ends_y = self._image_xy(np.array(columns, np.float64), np.array(rows, np.float64))
        (left, right), (top, bottom) = (sorted(map(round, ends.tolist())) for ends in (ends_x, ends_y))
        part_HWC = np.full((bottom - top, right - left, 3), WHITE, np.uint8)
        height, width = self.image.hw
        inside = (max(top, 0), min(bottom, height)), (max(left, 0), min(right, width))
        if all(first < end for first, end in inside):
            at = slice(inside[0][0] - top, inside[0][1] - top), slice(inside[1][0] - left, inside[1][1] - left)
            part_HWC[at] = self._inside(*inside)
        return part_HWC[:: int(self.frame.matrix[1][1]), :: int(self.frame.matrix[0][0])]

    def _mapped(self, rows: Interval, columns: Interval) -> Pixels:
        """A window whose px lie anywhere in the image: linear between the four around, outside is white."""
        x_HW, y_HW = self._places(rows, columns)
        x_px, y_px = x_HW >> PART_BITS, y_HW >> PART_BITS
        height, width = self.image.hw
        left, right = max(int(x_px.min()), 0), min(int(x_px.max()) + 2, width)
        top, bottom = max(int(y_px.min()), 0), min(int(y_px.max()) + 2, height)
        if left >= right or top >= bottom:
            return np.full((*x_HW.shape, 3), WHITE, np.uint8)
        inside_HWC = self._inside((top, bottom), (left, right))
        px_HW2 = np.empty((*x_HW.shape, 2), np.int16)
        for axis, (px_HW, first, end) in enumerate(((x_px, left, right), (y_px, top, bottom))):
            np.subtract(px_HW, first, out=px_HW)
            # Two px outside are as white as a thousand, and fit into 16 bits.
            np.clip(px_HW, -2, end - first, out=px_HW2[..., axis], casting="unsafe")
        y_HW &= PARTS - 1
        y_HW <<= PART_BITS
        x_HW &= PARTS - 1
        y_HW |= x_HW
        window_HWC: Pixels = cv2.remap(
            np.ascontiguousarray(inside_HWC),
            px_HW2,
            y_HW.astype(np.uint16),
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=(WHITE, WHITE, WHITE),
        ).astype(np.uint8, copy=False)
        return window_HWC

    def _places(self, rows: Interval, columns: Interval) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Columns and rows of the image that each px takes, in 1 / `PARTS` px; 0 is the first px's center.

        In 32 bits: places are off by 1/1000 px at most, and half of the time is saved. Each is made of products and
        sums of its own, so that it is the same in every window.
        """
        down, across = np.arange(*rows), np.arange(*columns)
        (a, b), (c, d) = self.frame.matrix
        x_W, y_H = (across + 0.5) - self.hw[1] / 2, (down + 0.5) - self.hw[0] / 2
        x_HW, y_HW = (
            (center + slope_x * x_W - 0.5).astype(np.float32)[None, :] + (slope_y * y_H).astype(np.float32)[:, None]
            for center, slope_x, slope_y in zip(self.frame.center_xy, (a, c), (b, d), strict=True)
        )
        if self.elastic is not None:
            right_HW, below_HW = self.elastic.of_px(down, across)
            x_HW += np.float32(a) * right_HW
            x_HW += np.float32(b) * below_HW
            right_HW *= np.float32(c)
            below_HW *= np.float32(d)
            y_HW += right_HW
            y_HW += below_HW
        for place_HW in (x_HW, y_HW):
            np.multiply(place_HW, np.float32(PARTS), out=place_HW)
            np.add(place_HW, np.float32(0.5), out=place_HW)
            np.floor(place_HW, out=place_HW)
        return x_HW.astype(np.int32), y_HW.astype(np.int32)


def view(
    image: WholeImage, size_hw: tuple[int, int] | None, much: Strength | None = None, seed: int = 0, index: int = 0
) -> View:
    """The view of an image at an index of a stream.

    Args:
        image: the image.
        size_hw: rows and columns of the view; where the image is smaller, it is centered in white. None: the image's
            own, or of the box around it when it is turned or scaled.
        much: how views differ; None: not at all, as for validation: the crop is where the mask has most.
        seed: of the stream.
        index: which view of the stream.
    """
    much = much or STRENGTHS["none"]
    rng = generator(PLACES, seed, index)
    flip_x, flip_y = (1 - 2 * int(flip) if much.flips else 1 for flip in rng.integers(0, 2, 2))
    degrees = int(rng.integers(360)) if much.rotation else 0
    zoom = 1 + much.zoom * float(rng.uniform(-1, 1)) if much.zoom else 1.0
    recolor = color.drawn(much.color, much.color_share, rng)
    cos, sin = _cos_sin(degrees)
    if size_hw is None:
        height, width = image.hw
        # Rounded first: 90 degrees of 5 px are 5 px.
        size_hw = (
            math.ceil(round((abs(cos) * height + abs(sin) * width) * zoom, 6)),
            math.ceil(round((abs(sin) * height + abs(cos) * width) * zoom, 6)),
        )
        x, y = width / 2, height / 2
    else:
        x, y = crops.center(image, (size_hw[0] / zoom, size_hw[1] / zoom), rng if much.crop else None)
    matrix = ((flip_x * cos / zoom, -flip_y * sin / zoom), (flip_x * sin / zoom, flip_y * cos / zoom))
    # The corner lies on a corner of a px, so that without turn and scale px are copied.
    center_xy = tuple(
        math.floor(at - side / 2 + 0.5) + side / 2 for at, side in zip((x, y), size_hw[::-1], strict=True)
    )
    distorted = None
    if much.elastic_px:
        distorted = displacement(size_hw, much.elastic_px, much.elastic_sigma_px, generator(ELASTIC, seed, index))
    return View(image, size_hw, Frame((center_xy[0], center_xy[1]), matrix), distorted, recolor)


def _cos_sin(degrees: int) -> Pair:
    """Exact where the angle is a multiple of a right one."""
    exact = {0: (1.0, 0.0), 90: (0.0, 1.0), 180: (-1.0, 0.0), 270: (0.0, -1.0)}
    return exact.get(degrees) or (math.cos(math.radians(degrees)), math.sin(math.radians(degrees)))


def _steps(interval: Interval) -> Iterator[Interval]:
    """Parts of an interval, cut at multiples of `BLOCK_PX`."""
    first = interval[0]
    while first < interval[1]:
        end = min(interval[1], (first // BLOCK_PX + 1) * BLOCK_PX)
        yield first, end
        first = end
