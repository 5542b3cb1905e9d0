"""Tensors in files of PyTorch, by name, without PyTorch and without running anything from them.

Three formats: safetensors; the zip archive that `torch.save` writes since 1.6; and the older sequence of pickles, in
which torchvision's weights were published. A pickle can call any function. Here it may only build dictionaries, lists,
numbers, strings and tensors: every other name in it is refused before anything happens.
"""

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]

SUFFIXES = (".safetensors", ".pth", ".pt")

# Storage classes of torch and what their elements are; bfloat16 is widened to float32.
STORAGES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "<i1",
    "ByteStorage": "<u1",
    "BoolStorage": "?",
}
MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001

# Keys under which training scripts keep the weights, and what wrappers put before their names.
WRAPPERS = ("state_dict", "model_state_dict", "model")
PREFIXES = ("module.", "model.")

MAX_BYTES = 4 * 2**30


class TorchFileError(ValueError):
    """A file that is not read; the message names it."""


def read(path: Path) -> dict[str, Array]:
    """Tensors of a file by name, as NumPy arrays; dictionaries and prefixes around them are taken off.

    Args:
        path: ends in one of `SUFFIXES`.

    Raises:
        TorchFileError: damaged, of another kind, without tensors, or with anything but plain data.
    """
    try:
        if path.suffix == ".safetensors":
            found: Any = _safetensors(path)
        elif zipfile.is_zipfile(path):
            found = _zip(path)
        else:
            found = _pickles(path)
    except TorchFileError:
        raise
    except Exception as error:  # a damaged pickle can fail in any way
        raise TorchFileError(f"weights {path} cannot be read; truncated or no PyTorch file: {error}") from error
    return _named(found, path)


def _safetensors(path: Path) -> dict[str, Array]:
    """Tensors of a safetensors file."""
    from safetensors import SafetensorError, deserialize

    try:
        stored = deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise TorchFileError(f"weights {path} cannot be read; truncated or no safetensors file: {error}") from error
    types = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "bfloat16", "I64": "<i8", "I32": "<i4"}
    types |= {"I16": "<i2", "I8": "<i1", "U8": "<u1", "BOOL": "?"}
    unknown = sorted({entry["dtype"] for _, entry in stored} - set(types))
    if unknown:
        raise TorchFileError(f"weights {path} hold numbers of type {', '.join(unknown)}; known are {', '.join(types)}")
    return {name: _numbers(entry["data"], types[entry["dtype"]]).reshape(entry["shape"]) for name, entry in stored}


def _numbers(raw: bytes, kind: str) -> Array:
    """Bytes as a flat array."""
    if kind == "bfloat16":
        return (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4")
    return np.frombuffer(raw, kind)


class _Storage:
    """Elements that tensors share; filled in after the pickle, in the older format."""

    def __init__(self, kind: str, size: int, numbers: Array | None = None) -> None:
        self.kind, self.size, self.numbers = kind, size, numbers


class _Tensor:
    """A view of a storage, as a pickle describes it."""

    def __init__(self, storage: _Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> None:
        self.storage, self.offset, self.size, self.stride = storage, offset, size, stride

    def array(self, path: Path) -> Array:
        """Its values, a copy.

        Raises:
            TorchFileError: its storage is not in the file, or it reaches beyond it.
        """
        numbers = self.storage.numbers
        if numbers is None:
            raise TorchFileError(f"weights {path} are damaged: the data of a tensor of {self.size} are missing")
        plain = len(self.size) == len(self.stride) and all(n >= 0 for n in (self.offset, *self.size, *self.stride))
        empty = 0 in self.size
        last = self.offset + sum((n - 1) * s for n, s in zip(self.size, self.stride, strict=False))
        if not plain or (not empty and last >= numbers.size):
            raise TorchFileError(f"weights {path} are damaged: a tensor of {self.size} reaches beyond its data")
        if empty:
            return np.zeros(self.size, numbers.dtype)
        strides = [step * numbers.itemsize for step in self.stride]
        return np.lib.stride_tricks.as_strided(numbers[self.offset :], self.size, strides).copy()


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_unused: Any) -> _Tensor:
    """torch._utils._rebuild_tensor_v2."""
    if not isinstance(storage, _Storage):
        raise pickle.UnpicklingError("a tensor without data")
    return _Tensor(storage, int(offset), tuple(int(n) for n in size), tuple(int(n) for n in stride))


def _parameter(data: Any, *_unused: Any) -> Any:
    """torch._utils._rebuild_parameter."""
    return data


class _StorageType:
    """A storage class of torch, by name."""

    def __init__(self, kind: str) -> None:
        self.kind = kind


ALLOWED: Mapping[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch", "Size"): tuple,
    **{("torch", name): _StorageType(kind) for name, kind in STORAGES.items()},
}


class _Reader(pickle.Unpickler):
    """Builds plain data and tensors only."""

    def __init__(self, file: Any, storage: Callable[[tuple[Any, ...]], _Storage]) -> None:
        super().__init__(file, encoding="utf-8")
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        """What a name in the pickle stands for."""
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(
                f"it holds {module}.{name}, which is not a tensor or plain data; save its state_dict() alone"
            )
        return ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        """The storage that a tensor refers to."""
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or not isinstance(pid[1], _StorageType):
            raise pickle.UnpicklingError(f"it refers to {pid!r}, which is no tensor")
        return self._storage(pid)


def _zip(path: Path) -> Any:
    """The object in a zip archive of `torch.save`."""
    with zipfile.ZipFile(path) as archive:
        if sum(info.file_size for info in archive.infolist()) > MAX_BYTES:
            raise TorchFileError(f"weights {path} would take more than {MAX_BYTES} bytes in memory")
        pickles = [name for name in archive.namelist() if name.rsplit("/", 1)[-1] == "data.pkl"]
        if len(pickles) != 1:
            raise TorchFileError(f"weights {path} are a zip archive, but not one of torch.save: no data.pkl in it")
        root = pickles[0][: -len("data.pkl")]
        if root + "byteorder" in archive.namelist() and archive.read(root + "byteorder") != b"little":
            raise TorchFileError(f"weights {path} were written on a big-endian machine; save them again on another")
        storages: dict[str, _Storage] = {}

        def storage(pid: tuple[Any, ...]) -> _Storage:
            kind, key = pid[1].kind, str(pid[2])
            if key not in storages:
                numbers = _numbers(archive.read(f"{root}data/{key}"), kind)
                storages[key] = _Storage(kind, numbers.size, numbers)
            return storages[key]

        return _Reader(io.BytesIO(archive.read(pickles[0])), storage).load()


def _pickles(path: Path) -> Any:
    """The object in a file of the format before torch 1.6: pickles, then the storages one after the other."""
    storages: dict[str, _Storage] = {}

    def storage(pid: tuple[Any, ...]) -> _Storage:
        key = str(pid[2])
        if len(pid) > 5 and pid[5] is not None:
            raise pickle.UnpicklingError("it holds views of storages, which torch wrote before 0.4")
        return storages.setdefault(key, _Storage(pid[1].kind, int(pid[4])))

    with path.open("rb") as file:
        magic = _Reader(file, storage).load()
        if magic != MAGIC_NUMBER or _Reader(file, storage).load() != PROTOCOL:
            raise TorchFileError(f"weights {path} were not written by torch.save")
        if _Reader(file, storage).load().get("little_endian") is not True:
            raise TorchFileError(f"weights {path} were written on a big-endian machine; save them again on another")
        found = _Reader(file, storage).load()
        for key in _Reader(file, storage).load():
            (size,) = struct.unpack("<q", file.read(8))
            held = storages[str(key)]
            width = 2 if held.kind == "bfloat16" else np.dtype(held.kind).itemsize
            if size != held.size or not 0 <= size * width <= MAX_BYTES:
                raise TorchFileError(f"weights {path} are damaged: {size} numbers where {held.size} belong")
            raw = file.read(size * width)
            if len(raw) < size * width:
                raise TorchFileError(f"weights {path} are truncated")
            held.numbers = _numbers(raw, held.kind)
    return found


def _named(found: Any, path: Path) -> dict[str, Array]:
    """Arrays by name, without what training scripts and wrappers put around them."""
    for wrapper in WRAPPERS:
        if isinstance(found, dict) and isinstance(found.get(wrapper), dict):
            found = found[wrapper]
    tensors = found.items() if isinstance(found, dict) else ()
    arrays: dict[str, Array] = {}
    for name, value in tensors:
        if isinstance(name, str) and isinstance(value, (_Tensor, np.ndarray)):
            arrays[name] = value.array(path) if isinstance(value, _Tensor) else value
    if not arrays:
        raise TorchFileError(f"weights {path} hold no tensors by name; save a model's state_dict()")
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in arrays):
            arrays = {name[len(prefix) :]: array for name, array in arrays.items()}
    return arrays


def layers_of(arrays: Mapping[str, Array]) -> dict[str, list[Array]]:
    """Weights per layer as Keras orders and shapes them.

    Convolutions (O, I, H, W) -> (H, W, I, O), linear layers (O, I) -> (I, O); batch normalization as gamma, beta, mean,
    variance. Names of layers have "_" for ".".
    """
    parts: dict[str, dict[str, Array]] = {}
    for name, array in arrays.items():
        layer, _, part = name.rpartition(".")
        parts.setdefault(layer.replace(".", "_"), {})[part] = array
    order = ("weight", "bias", "running_mean", "running_var")
    return {
        layer: [_transposed(found[part]) for part in order if part in found]
        for layer, found in parts.items()
        if any(part in found for part in order)
    }


def _transposed(array: Array) -> Array:
    if array.ndim == 4:
        return array.transpose(2, 3, 1, 0)
    return array.T if array.ndim == 2 else array
