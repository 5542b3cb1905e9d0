"""Px that are made once: the same as the source's, each block once, nothing left in scratch."""

import numpy as np
import pytest

from classification import kept
from classification.kept import Kept


class Counting:
    """A source that counts its reads."""

    shape = (1, 130, 170, 3)

    def __init__(self):
        self.px = np.random.default_rng(0).integers(0, 256, self.shape, np.uint8)
        self.read_px = 0

    def read(self, rows, columns):
        self.read_px += (rows[1] - rows[0]) * (columns[1] - columns[0])
        return self.px[:, slice(*rows), slice(*columns)]


@pytest.mark.parametrize("most", [0, 2**20])
def test_px_are_made_once(tmp_path, most, monkeypatch):
    monkeypatch.setattr(kept, "IN_MEMORY_BYTES", most)
    monkeypatch.setattr(kept, "BLOCK_PX", 50)
    source = Counting()
    found = Kept(source, tmp_path)
    assert found.shape == source.shape
    np.testing.assert_array_equal(found.read((60, 70), (60, 170)), source.px[:, 60:70, 60:170])
    assert source.read_px == 50 * 120  # rows 50 to 100, columns 50 to 170
    for _ in range(2):
        np.testing.assert_array_equal(found.read((0, 130), (0, 170)), source.px)
        np.testing.assert_array_equal(found.read((99, 101), (100, 150)), source.px[:, 99:101, 100:150])
    assert source.read_px == 130 * 170
    assert isinstance(found._px_HWC, np.memmap) == (most == 0)
    assert not list(tmp_path.iterdir())
    window = found.read((0, 5), (0, 5))
    window[:] = 0  # is a copy
    np.testing.assert_array_equal(found.read((0, 5), (0, 5)), source.px[:, :5, :5])


def test_an_error_is_not_kept(tmp_path):
    source = Counting()
    source.read = lambda *_: (_ for _ in ()).throw(OSError("gone"))
    found = Kept(source, tmp_path)
    with pytest.raises(OSError, match="gone"):
        found.read((0, 5), (0, 5))
    del source.read
    np.testing.assert_array_equal(found.read((0, 5), (0, 5)), source.px[:, :5, :5])
