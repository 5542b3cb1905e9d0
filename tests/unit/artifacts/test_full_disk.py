"""A checkpoint for which the disk has no space."""

import errno
import gc
import io
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from artifacts.checkpoints import _write_arrays, read_arrays


class SmallDisk(io.BytesIO):
    """Space for this many bytes."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.left = size

    def write(self, data) -> int:
        self.left -= memoryview(data).nbytes
        if self.left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


ARRAYS = {"a": np.arange(1000.0), "state": np.arange(5), "c": np.arange(3000.0)}


@pytest.mark.parametrize("size", [100, 9000, 32500])
def test_a_full_disk_is_one_error(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    unheard: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", unheard.append)
    with pytest.raises(OSError, match="No space left on device"):
        _write_arrays(SmallDisk(size), ARRAYS)
    gc.collect()
    assert unheard == []


def test_with_space_all_arrays_are_there(tmp_path: Path) -> None:
    with (tmp_path / "a.npz").open("w+b") as file:
        _write_arrays(file, ARRAYS)
    read = read_arrays(tmp_path / "a.npz")
    assert {name: array.tolist() for name, array in read.items()} == {n: a.tolist() for n, a in ARRAYS.items()}
