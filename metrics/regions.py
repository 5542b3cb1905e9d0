"""Regions predicted tumor where there is none: places for training to look at again.

H rows, W columns of a grid of cells, each of which stands for some px of a prediction.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage


@dataclass(frozen=True)
class CellRegion:
    """A region of cells that touch by side or corner.

    Attributes:
        row, column: the cell of the region that is nearest to its center of mass.
        probability: the highest in it, 0 to 1.
        px: px of the prediction in it.
    """

    row: int
    column: int
    probability: float
    px: int


def false_regions(
    px_HW: NDArray[np.integer[Any]], highest_HW: NDArray[np.uint8], tumor_HW: NDArray[np.bool_]
) -> list[CellRegion]:
    """Find regions predicted tumor of which no cell contains true tumor, largest first.

    Args:
        px_HW: px predicted tumor in each cell.
        highest_HW: highest tumor probability of those, as a byte.
        tumor_HW: whether true tumor occurs in the cell.
    """
    label_HW = np.empty(px_HW.shape, np.int32)
    count = int(ndimage.label(px_HW > 0, structure=np.ones((3, 3), np.bool_), output=label_HW))
    touches = np.zeros(count + 1, np.bool_)
    touches[label_HW[tumor_HW]] = True
    regions = []
    for index, box in enumerate(ndimage.find_objects(label_HW), start=1):
        if box is None or touches[index]:
            continue
        member_HW = label_HW[box] == index
        px = np.where(member_HW, px_HW[box], 0)
        rows, columns = np.nonzero(member_HW)
        weight = px[rows, columns].astype(np.float64)
        far = (rows - np.average(rows, weights=weight)) ** 2 + (columns - np.average(columns, weights=weight)) ** 2
        nearest = int(far.argmin())
        regions.append(
            CellRegion(
                int(box[0].start + rows[nearest]),
                int(box[1].start + columns[nearest]),
                float(highest_HW[box][member_HW].max()) / 255,
                int(px.sum()),
            )
        )
    return sorted(regions, key=lambda region: (-region.px, -region.probability, region.row, region.column))
