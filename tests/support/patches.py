"""Patches whose pixels are their index, and a pool of hard ones."""

import time
from fractions import Fraction

import numpy as np

from samplers.hard_pool import HardPool
from samplers.patch import Patch, PatchRequest
from slides.geometry import Window
from tests.support.search_index import cells, index_of


def load(index):
    """A patch whose pixels are its index; odd ones take longer."""
    time.sleep(0.004 * (index % 2))
    request = PatchRequest(index, 0, 0, index % 2, (0.0, 0.0))
    window = Window((index * 2.0, 5.0), (4, 4), (1.0, 1.0))
    return Patch(request, window, np.full((4, 4, 3), index, np.uint8), np.full((4, 4), index % 2, np.uint8))


class Plain:
    """A sampler that alternates classes and always looks at (1, 1) of slide 0."""

    max_redraws = 0

    def request(self, index, attempt=0):
        return PatchRequest(index, attempt, 0, index % 2, (1.0, 1.0))


def pool(capacity=2, interval=4):
    return HardPool(Plain(), [index_of(cells((1, 1)))], 3, Fraction(1, 2), capacity, interval, patch_um=16.0)
