"""Weights in PyTorch's formats are read as numbers, and nothing in a file is run."""

import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from models import torch_files
from tests.support.torch_files import torch_file

ARRAYS = {
    "layer1.0.conv1.weight": np.arange(24, dtype=np.float32).reshape(4, 3, 2, 1),
    "fc.bias": np.array([0.5, -1.5], np.float16),
    "bn1.num_batches_tracked": np.array(7, np.int64),
}


@pytest.mark.parametrize("around", [None, "state_dict", "model"])
@pytest.mark.parametrize("legacy", [False, True])
def test_tensors_are_read_by_name(tmp_path: Path, legacy: bool, around: str | None) -> None:
    torch_file(tmp_path / "weights.pth", ARRAYS, legacy, around)
    read = torch_files.read(tmp_path / "weights.pth")
    assert list(read) == list(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(read[name], array)
        assert read[name].dtype == array.dtype


def test_safetensors_hold_the_same(tmp_path: Path) -> None:
    save_file(ARRAYS, tmp_path / "weights.safetensors")
    read = torch_files.read(tmp_path / "weights.safetensors")
    assert sorted(read) == sorted(ARRAYS)
    np.testing.assert_array_equal(read["layer1.0.conv1.weight"], ARRAYS["layer1.0.conv1.weight"])


def test_transposed_tensors_keep_their_values(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3).T
    torch_file(tmp_path / "weights.pth", {"fc.weight": array})
    np.testing.assert_array_equal(torch_files.read(tmp_path / "weights.pth")["fc.weight"], array)


def test_bfloat16_is_widened(tmp_path: Path) -> None:
    torch_file(tmp_path / "weights.pth", {"fc.bias": np.array([0x3F80, 0xC040], np.uint16)})
    np.testing.assert_array_equal(torch_files.read(tmp_path / "weights.pth")["fc.bias"], np.float32([1, -3]))


def test_prefixes_of_wrappers_are_taken_off(tmp_path: Path) -> None:
    torch_file(tmp_path / "weights.pth", {f"module.{name}": array for name, array in ARRAYS.items()})
    assert list(torch_files.read(tmp_path / "weights.pth")) == list(ARRAYS)


class _Malicious:
    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.made),)


@pytest.mark.parametrize("zipped", [False, True])
def test_code_in_a_file_is_refused_and_not_run(tmp_path: Path, zipped: bool) -> None:
    path, made = tmp_path / "weights.pth", tmp_path / "made"
    raw = pickle.dumps({"fc.bias": _Malicious(made)})
    if zipped:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", raw)
    else:
        path.write_bytes(raw)
    with pytest.raises(ValueError, match=r"weights\.pth cannot be read.*it holds posix\.mkdir"):
        torch_files.read(path)
    assert not made.exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_truncated_files_are_refused_by_name(tmp_path: Path, legacy: bool) -> None:
    path = tmp_path / "weights.pth"
    torch_file(path, ARRAYS, legacy)
    whole = path.read_bytes()
    for size in range(0, len(whole) - 1, 97):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"weights\.pth"):
            torch_files.read(path)


def test_a_tensor_beyond_its_data_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch_file(path, {"fc.bias": np.zeros(8, np.float32)})
    with zipfile.ZipFile(path) as archive:
        pickled = archive.read("archive/data.pkl")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/data/0", b"\0" * 16)
    with pytest.raises(ValueError, match=r"a tensor of \(8,\) reaches beyond its data"):
        torch_files.read(path)


def test_a_tensor_whose_data_are_not_in_the_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch_file(path, {"fc.bias": np.zeros(8, np.float32)}, legacy=True)
    before_storages = path.read_bytes().rpartition(pickle.dumps(["0"], 2))[0]
    path.write_bytes(before_storages + pickle.dumps([], 2))
    with pytest.raises(ValueError, match=r"weights\.pth are damaged: the data of a tensor of \(8,\) are missing"):
        torch_files.read(path)


def test_numbers_cut_in_the_middle_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch_file(path, {"fc.bias": np.zeros(8, np.float32)})
    with zipfile.ZipFile(path) as archive:
        pickled = archive.read("archive/data.pkl")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/data/0", b"\0" * 31)
    with pytest.raises(ValueError, match=r"weights\.pth cannot be read; truncated or no PyTorch file"):
        torch_files.read(path)


def test_a_file_without_tensors_says_what_to_save(tmp_path: Path) -> None:
    torch_file(tmp_path / "weights.pth", {})
    with pytest.raises(ValueError, match=r"hold no tensors by name; save a model's state_dict\(\)"):
        torch_files.read(tmp_path / "weights.pth")


def test_layers_take_keras_order_and_shapes() -> None:
    arrays = {
        "layer1.0.bn1.running_var": np.full(2, 4.0),
        "layer1.0.bn1.weight": np.full(2, 1.0),
        "layer1.0.bn1.running_mean": np.full(2, 3.0),
        "layer1.0.bn1.bias": np.full(2, 2.0),
        "layer1.0.bn1.num_batches_tracked": np.array(9),
        "conv1.weight": np.zeros((5, 3, 7, 6)),
        "fc.weight": np.zeros((2, 8)),
        "fc.bias": np.zeros(2),
    }
    found = torch_files.layers_of(arrays)
    assert [float(array[0]) for array in found["layer1_0_bn1"]] == [1, 2, 3, 4]
    assert [array.shape for array in found["conv1"]] == [(7, 6, 3, 5)]
    assert [array.shape for array in found["fc"]] == [(8, 2), (2,)]
