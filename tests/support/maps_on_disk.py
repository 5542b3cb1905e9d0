"""Maps of a slide written as prediction writes them, for tests of what is made of them."""

import numpy as np

from inference.maps import Maps
from slides.tiff.pyramid import write_mask_pyramid

NAMES = ("normal", "tumor", "benign", "necrosis")


def write_map(path, value_HW, um_px_xy=(1.0, 1.0), shrink="mean", tile=16):
    size_xy = value_HW.shape[::-1]
    pixels_HW = np.asarray(value_HW, np.uint8)

    def tile_of(row, column):
        return pixels_HW[row * tile : (row + 1) * tile, column * tile : (column + 1) * tile]

    write_mask_pyramid(path, size_xy, um_px_xy, tile_of, shrink=shrink, tile=tile)


def write_maps(
    folder, label_HW, probability_HW=None, step_xy=(4.0, 4.0), um_px_xy_l0=(0.25, 0.25), size_xy_l0=None, classes=2
):
    """Write `label.tif` and the probabilities (255 where a class is, unless given) and open them.

    The slide is as large as the map unless its size is given.
    """
    folder.mkdir(parents=True, exist_ok=True)
    label_HW = np.asarray(label_HW, np.uint8)
    um = tuple(step * um for step, um in zip(step_xy, um_px_xy_l0, strict=True))
    if size_xy_l0 is None:
        size_xy_l0 = tuple(int(side * step) for side, step in zip(label_HW.shape[::-1], step_xy, strict=True))
    if probability_HW is None:
        probability_HW = np.where(label_HW > 0, 255, 0)
    write_map(folder / "label.tif", label_HW, um, "max")
    write_map(folder / "probability.tif", probability_HW, um)
    if classes > 2:
        for cls in range(1, classes):
            write_map(folder / f"probability_{cls}.tif", np.where(label_HW == cls, 200 + cls, 0), um)
    return Maps(folder, size_xy_l0, um_px_xy_l0, step_xy, dict(enumerate(NAMES[:classes])))
