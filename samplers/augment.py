"""Augmentation: parameters drawn per patch (NumPy, pure in seed and index), and their application (TensorFlow graph).

Shapes: B patches, H, W pixels (H = W), C = 3 channels per view (6 with a context view, each view treated alike),
P numbers per patch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from options.choices import Augmentation
from samplers.draw import AUGMENT, generator
from slides.stain import HED_RGB
from slides.truth.label import IGNORE

GRID = 5  # nodes a side of the elastic grid; those on the border do not move along it
TAPS = 3  # reach of the blur, px


@dataclass(frozen=True)
class Strength:
    """Strength of an augmentation; every quantity is uniform within plus and minus its number.

    Attributes:
        brightness: shift, share of full scale.
        contrast: relative change of the distance from mid-gray.
        stain: relative change of each stain's optical density.
        stain_shift: optical density added to each stain, also on glass.
        channel: logarithm of the factor on the optical density of each of red, green and blue: another stain's hue.
        zoom: relative change of size (spacing).
        elastic: displacement of a grid node, share of the patch.
        blur: largest sigma of a Gaussian, px; half of the patches are not blurred.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    stain: float = 0.0
    stain_shift: float = 0.0
    channel: float = 0.0
    zoom: float = 0.0
    elastic: float = 0.0
    blur: float = 0.0


# `stain` reaches from one laboratory to another. Two stains of CAMELYON16 differ in the ratios of their mean densities,
# blue to green, by a factor of 1.7 (docs/results/2026-11-30-stain.md); the factor on a ratio here is up to 2.2.
STRENGTHS: dict[Augmentation, Strength] = {
    "flips": Strength(),
    "stain": Strength(brightness=0.05, contrast=0.1, stain=0.2, stain_shift=0.03, channel=0.4),
    "standard": Strength(brightness=0.08, contrast=0.12, stain=0.15, stain_shift=0.02, zoom=0.08, blur=0.8),
    "strong": Strength(
        brightness=0.15, contrast=0.25, stain=0.35, stain_shift=0.05, zoom=0.15, elastic=0.02, blur=1.2
    ),
}  # fmt: skip

# Numbers of a patch: three flips, color matrix 3 x 3 and shift 3 in optical density, brightness, contrast, zoom, blur,
# displacement of the grid nodes along x and y.
_FLIPS, _COLOR, _TONE, _ZOOM, _BLUR = slice(0, 3), slice(3, 15), slice(15, 17), slice(17, 18), slice(18, 19)
_NODES = slice(19, 19 + 2 * GRID * GRID)
P = _NODES.stop


def parameters(level: Augmentation, seed: int, index: int) -> NDArray[np.float32]:
    """Draw the parameters for the patch of a stream index, shape (P,); a pure function.

    Args:
        level: one of `AUGMENTATIONS` except `none`.
        seed: seed of the stream.
        index: which patch of the stream.
    """
    much = STRENGTHS[level]
    rng = generator(seed, index, purpose=AUGMENT)
    drawn = np.zeros(P)
    drawn[_FLIPS] = rng.integers(0, 2, 3)
    alpha = 1 + much.stain * rng.uniform(-1, 1, 3)
    beta = much.stain_shift * rng.uniform(-1, 1, 3)
    # Density in stains = density in RGB times the inverse matrix; scaled there, and back.
    matrix = np.linalg.inv(HED_RGB) @ np.diag(alpha) @ HED_RGB
    drawn[_TONE] = much.brightness * rng.uniform(-1, 1), 1 + much.contrast * rng.uniform(-1, 1)
    drawn[_ZOOM] = 1 + much.zoom * rng.uniform(-1, 1)
    drawn[_BLUR] = max(0.0, much.blur * rng.uniform(-1, 1))
    nodes = much.elastic * rng.uniform(-1, 1, (GRID, GRID, 2))
    nodes[:, (0, -1), 0] = 0  # the border moves along itself only, so that nothing is pulled in from outside
    nodes[(0, -1), :, 1] = 0
    drawn[_NODES] = nodes.ravel()
    # Drawn last: the other quantities of a seed and index are the same at every level.
    matrix = matrix @ np.diag(np.exp(much.channel * rng.uniform(-1, 1, 3)))
    drawn[_COLOR] = np.concatenate([matrix.ravel(), beta @ HED_RGB])
    return drawn.astype(np.float32)


class Augment:
    """Augments batches.

    Args:
        level: one of `AUGMENTATIONS` except `none`.
        seed: seed of the stream.
    """

    def __init__(self, level: Augmentation, seed: int) -> None:
        self._level = level
        self._seed = seed
        much = STRENGTHS[level]
        self._colors = much != Strength()
        self._warps = much.zoom > 0 or much.elastic > 0

    def __call__(self, image_BHWC: Any, label_BHW: Any, index_B: NDArray[Any]) -> tuple[Any, Any]:
        """Augment a batch.

        Args:
            image_BHWC: uint8 RGB.
            label_BHW: uint8.
            index_B: stream index of each patch.

        Returns:
            Image and label, the same shapes and types; label 255 (ignore) where a zoom shows what was not read.
        """
        drawn_BP = np.stack([parameters(self._level, self._seed, int(index)) for index in index_B])
        image_BHWC, label_BHW = self._apply(image_BHWC, label_BHW, tf.constant(drawn_BP))
        return image_BHWC, label_BHW

    @tf.function  # type: ignore[untyped-decorator, unused-ignore]  # TensorFlow has few types
    def _apply(self, image_BHWC: Any, label_BHW: Any, drawn_BP: Any) -> tuple[Any, Any]:
        joint = flipped(tf.concat([image_BHWC, label_BHW[..., None]], -1), drawn_BP[:, _FLIPS])
        image_BHWC, label_BHW = joint[..., :-1], joint[..., -1]
        if self._warps:
            x_BHW, y_BHW = source_of(label_BHW, drawn_BP)
            image_BHWC, label_BHW = warped(image_BHWC, label_BHW, x_BHW, y_BHW)
        if self._colors:
            levels_BHWC = tf.cast(image_BHWC, tf.float32)
            levels_BHWC = blurred(recolored(levels_BHWC, drawn_BP), drawn_BP[:, _BLUR])
            image_BHWC = tf.cast(tf.clip_by_value(levels_BHWC, 0.0, 255.0) + 0.5, tf.uint8)
        return image_BHWC, label_BHW


def flipped(joint_BHWC: Any, flips_B3: Any) -> Any:
    """One of the square's eight symmetries per patch: rows reversed, columns reversed, rows and columns swapped."""
    for position, turned in ((0, [1]), (1, [2])):
        chosen = flips_B3[:, position] > 0.5
        joint_BHWC = tf.where(chosen[:, None, None, None], tf.reverse(joint_BHWC, turned), joint_BHWC)
    swapped = tf.transpose(joint_BHWC, (0, 2, 1, 3))
    return tf.where((flips_B3[:, 2] > 0.5)[:, None, None, None], swapped, joint_BHWC)


def source_of(label_BHW: Any, drawn_BP: Any) -> tuple[Any, Any]:
    """Column and row (px, pixel centers at whole numbers) that each output pixel takes, (B, H, W) each."""
    side = tf.shape(label_BHW)[1]
    size = tf.cast(side, tf.float32)
    nodes_BGG2 = tf.reshape(drawn_BP[:, _NODES], (-1, GRID, GRID, 2)) * size
    shift_BHW2 = tf.image.resize(nodes_BGG2, (side, side), "bicubic")
    along = tf.range(size) - (size - 1) / 2
    zoom_B11 = drawn_BP[:, _ZOOM][:, :, None]
    middle = (size - 1) / 2
    x_BHW = along[None, None, :] / zoom_B11 + middle + shift_BHW2[..., 0]
    y_BHW = along[None, :, None] / zoom_B11 + middle + shift_BHW2[..., 1]
    return x_BHW, y_BHW


def warped(image_BHWC: Any, label_BHW: Any, x_BHW: Any, y_BHW: Any) -> tuple[Any, Any]:
    """Image bilinear, label nearest, both at the same places; outside the patch the nearest pixel and label 255."""
    last = tf.cast(tf.shape(label_BHW)[1] - 1, tf.float32)
    side = tf.shape(label_BHW)[1]
    x0, y0 = tf.floor(tf.clip_by_value(x_BHW, 0.0, last)), tf.floor(tf.clip_by_value(y_BHW, 0.0, last))
    right, down = (tf.clip_by_value(v - v0, 0.0, 1.0)[..., None] for v, v0 in ((x_BHW, x0), (y_BHW, y0)))
    flat_BNC = tf.reshape(image_BHWC, (tf.shape(image_BHWC)[0], -1, image_BHWC.shape[-1]))

    def at(column: Any, row: Any) -> Any:
        where = tf.cast(row * tf.cast(side, tf.float32) + column, tf.int32)
        return tf.cast(tf.gather(flat_BNC, where, batch_dims=1), tf.float32)

    x1, y1 = tf.minimum(x0 + 1, last), tf.minimum(y0 + 1, last)
    upper = at(x0, y0) * (1 - right) + at(x1, y0) * right
    lower = at(x0, y1) * (1 - right) + at(x1, y1) * right
    image = tf.cast(upper * (1 - down) + lower * down + 0.5, tf.uint8)
    column, row = tf.floor(x_BHW + 0.5), tf.floor(y_BHW + 0.5)
    inside = (column >= 0) & (column <= last) & (row >= 0) & (row <= last)
    where = tf.cast(
        tf.clip_by_value(row, 0.0, last) * tf.cast(side, tf.float32) + tf.clip_by_value(column, 0.0, last), tf.int32
    )
    label = tf.gather(tf.reshape(label_BHW, (tf.shape(label_BHW)[0], -1)), where, batch_dims=1)
    return image, tf.where(inside, label, tf.cast(IGNORE, tf.uint8))


def recolored(levels_BHWC: Any, drawn_BP: Any) -> Any:
    """Stain, then contrast and brightness; gray levels 0..255 in and out, not clipped."""
    matrix_B33 = tf.reshape(drawn_BP[:, _COLOR][:, :9], (-1, 3, 3))
    shift_B13 = drawn_BP[:, _COLOR][:, None, 9:]
    shape = tf.shape(levels_BHWC)
    density_BN3 = -tf.math.log(tf.reshape((levels_BHWC + 1) / 256, (shape[0], -1, 3)))
    shown_BN3 = 256 * tf.exp(-(tf.matmul(density_BN3, matrix_B33) + shift_B13)) - 1
    brightness, contrast = drawn_BP[:, _TONE][:, 0, None, None], drawn_BP[:, _TONE][:, 1, None, None]
    return tf.reshape((shown_BN3 - 127.5) * contrast + (127.5 + 255 * brightness), shape)


def blurred(levels_BHWC: Any, sigma_B1: Any) -> Any:
    """Gaussian blur with a sigma (px) of its own for each patch; 0 leaves a patch unchanged."""
    reach = tf.range(-TAPS, TAPS + 1, dtype=tf.float32)
    weight_BT = tf.exp(-0.5 * tf.square(reach / tf.maximum(sigma_B1, 1e-2)))
    weight_BT /= tf.reduce_sum(weight_BT, -1, keepdims=True)
    side = tf.shape(levels_BHWC)[1]
    for axis in (1, 2):
        padding = [[0, 0]] * 4
        padding[axis] = [TAPS, TAPS]
        padded = tf.pad(levels_BHWC, padding, "SYMMETRIC")
        parts = []
        for tap in range(2 * TAPS + 1):
            part = padded[:, tap : tap + side] if axis == 1 else padded[:, :, tap : tap + side]
            parts.append(part * weight_BT[:, tap, None, None, None])
        levels_BHWC = tf.add_n(parts)
    return levels_BHWC
