"""The allocator of tensors on CPUs: quick, or giving back at once what is free."""

from __future__ import annotations

import ctypes
import os

# mallopt's names of parameters, from glibc's malloc.h, and what they are set to, bytes or count.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_LARGE = 2**20


def give_back_memory() -> None:
    """Let every large tensor have pages of its own, which go back to the system with it.

    Call before TensorFlow is imported. TensorFlow with oneDNN otherwise keeps all it ever had in a
    pool that fragments: twice what is in use at 4096 px with recomputation, for quicker steps (docs/performance.md).
    Other C libraries than glibc only get the first of the two settings.
    """
    os.environ.setdefault("TF_ONEDNN_USE_SYSTEM_ALLOCATOR", "1")
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        for parameter, value in ((_MMAP_THRESHOLD, _LARGE), (_TRIM_THRESHOLD, _LARGE), (_ARENA_MAX, 1)):
            library.mallopt(parameter, value)
