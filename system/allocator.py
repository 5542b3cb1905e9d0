"""The allocator of tensors on CPUs: fast, or returning free memory at once."""

from __future__ import annotations

import ctypes
import os

# Parameters of mallopt (glibc's malloc.h); values are bytes or counts.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_LARGE = 2**20
SYSTEM_ALLOCATOR = "TF_ONEDNN_USE_SYSTEM_ALLOCATOR"


def give_back_memory() -> None:
    """Give every large tensor its own pages, which return to the system when it is freed.

    Call before TensorFlow is imported. By default TensorFlow with oneDNN keeps freed memory in a pool that fragments:
    steps are faster, but at 4096 px with recomputation the pool is twice the memory in use (docs/performance.md).
    C libraries other than glibc only get the first of the two settings.
    """
    os.environ.setdefault(SYSTEM_ALLOCATOR, "1")
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        for parameter, value in ((_MMAP_THRESHOLD, _LARGE), (_TRIM_THRESHOLD, _LARGE), (_ARENA_MAX, 1)):
            library.mallopt(parameter, value)
