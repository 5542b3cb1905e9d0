"""Search indexes of a slide that are written down cell by cell."""

import numpy as np

from samplers.index import Places, SlideIndex

CELL = 10  # level-0 px per search cell in these tests


def index_of(tumor_HW=None, tissue_HW=None, regions=None, slide_id="a"):
    """Search index of a 120 x 80 px slide at 0.5 um/px; 12 x 8 cells."""
    tissue_HW = np.ones((8, 12), bool) if tissue_HW is None else tissue_HW
    places = {}
    if tumor_HW is not None:
        places[1] = Places(tumor_HW)
        tissue_HW = tissue_HW & ~tumor_HW
    if tissue_HW.any():
        places[0] = Places(tissue_HW)
    return SlideIndex(slide_id, (120, 80), (0.5, 0.5), CELL, Places(tissue_HW), places, regions or {}, ())


def cells(*at):
    mask_HW = np.zeros((8, 12), bool)
    for row, column in at:
        mask_HW[row, column] = True
    return mask_HW
