"""Files as `torch.save` writes them, without torch."""

import io
import pickle
import struct
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

TYPES = {"float32": "FloatStorage", "float16": "HalfStorage", "int64": "LongStorage", "uint16": "BFloat16Storage"}


@contextmanager
def _torch() -> Iterator[None]:
    """Names that pickles of torch refer to; uint16 stands for the bits of bfloat16."""
    torch, utils = ModuleType("torch"), ModuleType("torch._utils")

    def _rebuild_tensor_v2(*_arguments: Any) -> None: ...

    _rebuild_tensor_v2.__module__ = "torch._utils"
    _rebuild_tensor_v2.__qualname__ = "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2
    for name in TYPES.values():
        setattr(torch, name, type(name, (), {"__module__": "torch", "__qualname__": name}))
    before = {name: sys.modules.get(name) for name in ("torch", "torch._utils")}
    sys.modules.update({"torch": torch, "torch._utils": utils})
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


class _Tensor:
    def __init__(self, array: np.ndarray, key: str) -> None:
        self.array, self.key = array, key

    def __reduce__(self) -> tuple[Any, ...]:
        shape = self.array.shape
        strides = tuple(step // self.array.itemsize for step in self.array.strides)
        return sys.modules["torch._utils"]._rebuild_tensor_v2, (_Storage(self), 0, shape, strides, False, OrderedDict())


class _Storage:
    def __init__(self, tensor: _Tensor) -> None:
        self.tensor = tensor


class _Pickler(pickle.Pickler):
    def __init__(self, file: Any, legacy: bool) -> None:
        super().__init__(file, 2)
        self.legacy = legacy

    def persistent_id(self, value: Any) -> Any:
        if not isinstance(value, _Storage):
            return None
        array = value.tensor.array
        kind = getattr(sys.modules["torch"], TYPES[array.dtype.name])
        return ("storage", kind, value.tensor.key, "cpu", array.size, *((None,) if self.legacy else ()))


def torch_file(path: Path, arrays: Mapping[str, np.ndarray], legacy: bool = False, around: str | None = None) -> None:
    """Writes a state dictionary; arrays may be transposed views.

    Args:
        path: of the file.
        arrays: by name.
        legacy: the sequence of pickles before torch 1.6, else the zip archive.
        around: key of a dictionary around it.
    """
    tensors = OrderedDict((name, _Tensor(array, str(i))) for i, (name, array) in enumerate(arrays.items()))
    whole: Any = tensors if around is None else {around: tensors, "epoch": 3}
    raw = {tensor.key: tensor.array.ravel(order="K").tobytes() for tensor in tensors.values()}
    pickled = io.BytesIO()
    with _torch():
        _Pickler(pickled, legacy).dump(whole)
    if legacy:
        system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
        with path.open("wb") as file:
            for value in (0x1950A86A20F9469CFC6C, 1001, system):
                pickle.dump(value, file, 2)
            file.write(pickled.getvalue())
            pickle.dump(sorted(raw), file, 2)
            for key in sorted(raw):
                size = next(t.array.size for t in tensors.values() if t.key == key)
                file.write(struct.pack("<q", size) + raw[key])
        return
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled.getvalue())
        archive.writestr("archive/byteorder", "little")
        for key, data in raw.items():
            archive.writestr(f"archive/data/{key}", data)
