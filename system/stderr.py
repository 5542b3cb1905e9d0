"""Silence for libraries that print while they load."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Discard what C++ code writes to stderr inside the block; Python's exceptions still propagate.

    On CPU hosts TensorFlow's GPU build prints five meaningless warnings per rank (CUDA factories registered twice)
    before it reads any log level.
    """
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
