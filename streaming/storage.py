"""Maps that are kept whole between segments, in memory or in scratch files."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray


class Storage:
    """Makes arrays of zeros; those in files go with the object.

    Args:
        scratch: folder for files; memory if None. A file takes no memory but what the system's cache grants it.

    Raises:
        ValueError: the folder does not exist.
    """

    def __init__(self, scratch: Path | None) -> None:
        if scratch is not None and not scratch.is_dir():
            raise ValueError(f"scratch {scratch}: no such folder; make it, or leave maps in memory")
        self.scratch = scratch

    def zeros(self, shape: Sequence[int], dtype: str) -> NDArray[Any]:
        """A new array."""
        kind = tf.as_dtype(dtype).as_numpy_dtype
        if self.scratch is None:
            return np.zeros(shape, kind)
        with tempfile.TemporaryFile(dir=self.scratch, prefix="streaming_") as file:
            # The mapping outlives the closed file, which has no name: nothing is left behind, however the job ends.
            return np.memmap(file, kind, "w+", shape=tuple(shape))


def wide(dtype: str) -> str:
    """The type in which gradients of maps are added up."""
    return "float64" if dtype == "float64" else "float32"


def widened(array: NDArray[Any]) -> NDArray[Any]:
    """A gradient in the type in which gradients are added up: half precision loses what is small beside the sum."""
    return np.asarray(array, np.result_type(array.dtype, np.float32))
