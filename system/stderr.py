"""Silence for libraries that talk while they are loaded."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Drop what C++ code writes to stderr inside the block; Python's exceptions pass.

    TensorFlow's GPU build reports on every CPU machine, before any log level is read, that its CUDA parts are there
    twice: five lines per rank that frighten and say nothing.
    """
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
