"""A checkpoint for which the disk has no space."""

import errno
import gc
import io
import os
import sys
from contextlib import suppress
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


@pytest.fixture
def unheard(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Errors that Python prints because nobody could catch them."""
    found: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", found.append)
    return found


@pytest.mark.parametrize("size", [100, 9000, 32500])
def test_a_full_disk_is_one_error(size: int, unheard: list[object]) -> None:
    with pytest.raises(OSError, match="No space left on device"):
        _write_arrays(SmallDisk(size), ARRAYS)
    gc.collect()
    assert unheard == []


@pytest.mark.parametrize("count", [3, 3000])
def test_so_it_is_where_a_buffer_is_found_full_only_at_its_end(count: int, unheard: list[object]) -> None:
    """As `write_atomically` opens it; /dev/full has no space at all."""
    full = open("/dev/full", "w+b")  # noqa: SIM115  # closing it fails, too
    with pytest.raises(OSError, match="No space left on device"):
        _write_arrays(full, {"a": np.arange(float(count)), "state": np.arange(5)})
    with suppress(OSError):
        full.close()
    gc.collect()
    assert unheard == []


def test_with_space_all_arrays_are_there(tmp_path: Path) -> None:
    with (tmp_path / "a.npz").open("w+b") as file:
        _write_arrays(file, ARRAYS)
    read = read_arrays(tmp_path / "a.npz")
    assert {name: array.tolist() for name, array in read.items()} == {n: a.tolist() for n, a in ARRAYS.items()}
