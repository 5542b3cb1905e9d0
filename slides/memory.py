"""Memory for px: aligned, and reused within a thread, since new pages of memory cost as much as copying."""

from __future__ import annotations

import math
import threading

import numpy as np
from numpy.typing import NDArray

ALIGNMENT = 64  # bytes; TensorFlow takes over arrays that start at a multiple, and copies others
KEPT_BYTES = 16 * 2**20  # most that a thread keeps: a window of 2048 px at 1.03 px per px


class _Kept(threading.local):
    """Memory that a thread keeps."""

    def __init__(self) -> None:
        self.memory = np.empty(0, np.uint8)


_kept = _Kept()


def aligned(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """An array of any values whose first byte lies at a multiple of `ALIGNMENT`."""
    size = math.prod(shape)
    memory = np.empty(size + ALIGNMENT, np.uint8)
    first = -memory.ctypes.data % ALIGNMENT
    return memory[first : first + size].reshape(shape)


def scratch(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """An array of any values; this thread's next call may give the same memory again."""
    size = math.prod(shape)
    if size > KEPT_BYTES:
        return np.empty(shape, np.uint8)
    if _kept.memory.size < size:
        _kept.memory = np.empty(size, np.uint8)
    return _kept.memory[:size].reshape(shape)
