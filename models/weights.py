"""Pre-trained weights by layer name, from Keras 2 and Keras 3 files and from EfficientDet's published checkpoints.

A file is read as an archive of named arrays: no layer, configuration or pickled object in it is ever built or run, so
files from elsewhere (with Lambda layers, for example) are safe to open, and unknown layers are not an obstacle.
"""

import re
import shutil
import tempfile
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import h5py
import keras
import numpy as np
import numpy.typing as npt

from models import automl, build, torch_files

SUFFIXES = (".h5", ".hdf5", ".keras", *torch_files.SUFFIXES)
ENDINGS = ", ".join((*SUFFIXES, ".index (a checkpoint)"))

# The largest network with its optimizer takes an eighth of it; an archive of zeros must not fill the disk.
MAX_UNPACKED = 4 * 2**30

# A run folder holds several models; these are the ones meant for further use, best first.
PREFERRED = ("final.keras", "best.keras")

# How variables of EfficientDet's authors are called in a file of layers; `models/automl.py` has the whole table.
PUBLISHED = re.compile(r"efficientnet-b\d/|fpn_cells/cell_\d+/|segmentation_head(_\d+)?/|resample_p\d/conv2d/")

MISSING_IN_MODEL = "the model has no layer of this name"
MISSING_IN_FILE = "the file has no layer of this name"


# A layer's name in files of others -> ours. SURF's public trainer calls DeepLab's class layer so for any number of
# classes but 21; its `logits_semantic` is that of the public weights, of other classes.
OTHER_NAMES = {"deeplab": {"custom_logits_semantic": "logits"}}


class StoredArray(Protocol):
    """What a file's array must offer: its shape, and its values by `array[()]`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sides of the array."""

    def __getitem__(self, key: tuple[()]) -> npt.NDArray[np.generic]: ...


Stored = Mapping[str, Sequence[StoredArray]]


@dataclass(frozen=True)
class LoadReport:
    """What a weight file gave.

    Attributes:
        loaded: Names of the layers that took the file's weights, in the model's order.
        skipped: (layer, reason) for every layer with weights, of the model or of the file, that did not.
    """

    loaded: list[str]
    skipped: list[tuple[str, str]]


def load_weights(model: keras.Model, path: str | Path) -> LoadReport:
    """Copies weights into a model's layers of the same name; layers whose arrays do not all fit in shape are skipped.

    A first convolution of 3 channels fits a model of several views: the weights of further channels start at 0.
    Reads Keras 2 `.h5` (weights or whole models), Keras 3 `.weights.h5` and `.keras`, the TensorFlow checkpoints of
    EfficientDet's authors (`models/automl.py`), and PyTorch's `.safetensors`, `.pth` and `.pt`
    (`models/torch_files.py`). The model changes only after the whole file was read without a fault.

    Args:
        model: A built model.
        path: A weight file; a checkpoint (PREFIX or one of its files); or a folder with one of these (a run folder:
            `final.keras`, else `best.keras`).

    Returns:
        The layers loaded and those skipped, with reasons.

    Raises:
        ValueError: The path holds no weight file or several, the file is damaged or of another kind, or nothing in it
            fits the model (MisfitError).
    """
    file = weight_file(Path(path))
    try:
        if file.suffix in torch_files.SUFFIXES:
            return _transfer(model, torch_files.layers_of(torch_files.read(file)), file)
        if file.suffix == ".index":
            layers, left = automl.read(file, model.name)
            return _transfer(model, layers, file, left)
        with _stored_layers(file) as stored:
            named = _published(stored)
            if named:
                layers, left = automl.as_layers(named, sorted(named), model.name)
                return _transfer(model, layers, file, left)
            return _transfer(model, _renamed(stored, model), file)
    except (OSError, KeyError, TypeError, RuntimeError, EOFError, zipfile.BadZipFile) as error:
        kind = "TensorFlow checkpoint" if file.suffix == ".index" else "Keras file"
        raise ValueError(f"weights {file} cannot be read; the file is truncated or no {kind}: {error}") from error


class MisfitError(ValueError):
    """Nothing in a weight file fits the model."""


def build_with_weights(
    names: Sequence[str], img_size: int, classes: int, path: str | Path, channels: int = 3, precision: str = "float32"
) -> tuple[keras.Model, LoadReport]:
    """Builds the first network that a weight file fits.

    Args:
        names: Networks to try, best first; see `models.build`.
        img_size: Side of the input, px.
        classes: Number of classes.
        path: See `load_weights`.
        channels: Channels of the image, 3 for each view.
        precision: See `models.build`.

    Raises:
        MisfitError: The weights fit none of the networks.
        ValueError: See `load_weights`.
    """
    reasons = []
    for name in names:
        model = build(name, img_size, classes, channels, precision)
        try:
            return model, load_weights(model, path)
        except MisfitError as error:
            reasons.append(str(error))
    raise MisfitError(reasons[0])


def weight_file(path: Path) -> Path:
    """Returns the weight file a path means, itself or the one in a folder; of a checkpoint, its `.index`.

    Raises:
        ValueError: Nothing there, an unknown suffix, or a folder with no weight file or with several.
    """
    if path.is_dir():
        for name in PREFERRED:
            if (path / name).is_file():
                return path / name
        files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES and file.is_file())
        files += automl.folder_checkpoints(path)
        if len(files) != 1:
            found = ", ".join(file.name for file in files) or "none"
            raise ValueError(
                f"weights folder {path} must hold one file ending in {ENDINGS}, "
                f"or {' or '.join(PREFERRED)}; found: {found}. Name the file itself."
            )
        return files[0]
    if path.is_file() and path.suffix in SUFFIXES:
        return path
    index = automl.index_file(path)
    if index is not None:
        return index
    if not path.exists():
        raise ValueError(f"weights {path} do not exist; name a file ending in {ENDINGS}, or a folder with one")
    raise ValueError(f"weights {path} are of an unknown kind; allowed are files ending in {ENDINGS}")


@contextmanager
def _stored_layers(file: Path) -> Iterator[Stored]:
    """Opens a weight file as layer name -> datasets, valid inside the context."""
    with tempfile.TemporaryFile() as unpacked:
        source: object = file
        if file.suffix == ".keras":
            with zipfile.ZipFile(file) as archive, archive.open("model.weights.h5") as member:
                size = archive.getinfo("model.weights.h5").file_size
                if size > MAX_UNPACKED:
                    raise OSError(f"its weights would take {size} bytes on disk; at most {MAX_UNPACKED} are unpacked")
                shutil.copyfileobj(member, unpacked)
            source = unpacked
        with h5py.File(source, "r") as h5:
            if "layer_names" in h5.attrs or "layer_names0" in h5.attrs:
                yield _keras2_layers(h5)
            elif "model_weights" in h5:
                yield _keras2_layers(_member(h5, "model_weights"))
            else:
                yield _keras3_layers(h5, file)


def _keras2_layers(group: h5py.Group) -> Stored:
    """Lists the layers of a Keras 2 file: attribute `layer_names`, per layer a group with attribute `weight_names`.

    An EfficientDet of its authors' code keeps the names of its variables in place of those of layers: see `_published`.
    """
    stored: dict[str, list[StoredArray]] = {}
    for layer_name in _texts(group, "layer_names"):
        layer = _member(group, layer_name)
        names = _texts(layer, "weight_names")
        if any(PUBLISHED.match(name) for name in names):
            stored |= {name.removesuffix(":0"): [_member(layer, name)] for name in names}
            continue
        # A model used as a layer keeps all its layers' weights in one group; their own names stand in the weights'
        # paths.
        owners = [name.split("/")[-2] if "/" in name else layer_name for name in names]
        nested = len(set(owners)) > 1
        for name, owner in zip(names, owners, strict=True):
            stored.setdefault(owner if nested else layer_name, []).append(_member(layer, name))
    return stored


def _published(stored: Stored) -> dict[str, automl.Variable]:
    """Returns the variables of an EfficientDet of its authors' code by their names; empty for any other file."""
    if not any(PUBLISHED.match(name) for name in stored):
        return {}

    def values_of(name: str) -> npt.NDArray[np.generic]:
        return stored[name][0][()]

    return {name: automl.Variable(tuple(arrays[0].shape), values_of) for name, arrays in stored.items()}


def _renamed(stored: Stored, model: keras.Model) -> Stored:
    """Calls layers of other programs by our names, unless the file has a layer of that name, too."""
    ours = OTHER_NAMES.get(model.name, {})
    return {name if ours.get(name, name) in stored else ours[name]: arrays for name, arrays in stored.items()}


def _keras3_layers(h5: h5py.File, file: Path) -> Stored:
    """Lists the layers of a Keras 3 file: groups `vars`, named by an attribute, with datasets 0, 1, ..."""
    groups: list[str] = []
    h5.visit(lambda path: groups.append(path) if path.rsplit("/", 1)[-1] == "vars" else None)
    stored: dict[str, list[StoredArray]] = {}
    unnamed = False
    for path in groups:
        group = _member(h5, path)
        if not len(group) or path.startswith("optimizer/") or "/seed_generator" in path:
            continue
        if "name" not in group.attrs:
            unnamed = True
            continue
        name = _text(group.attrs["name"])
        if name in stored:
            raise ValueError(f"weights {file} hold two layers named {name!r}: names do not identify them")
        stored[name] = [_member(group, key) for key in sorted(filter(str.isdigit, group), key=int)]
    if unnamed and not stored:
        raise ValueError(
            f"weights {file} carry no layer names (an early Keras 3 wrote them); "
            "open them with keras.models.load_model in a current Keras and save them again"
        )
    return stored


def _member(group: h5py.Group, path: str) -> h5py.Group | h5py.Dataset:
    """Returns a group or dataset inside the file itself; links and arrays that lead to other files are refused."""
    node = group
    for part in path.split("/"):
        if not isinstance(node, h5py.Group) or part not in node:
            raise KeyError(f"{group.name}/{path} is missing")
        if not isinstance(node.get(part, getlink=True), h5py.HardLink):
            raise TypeError(f"{group.name}/{path} is a link, which weight files have no use for")
        node = node[part]
    if isinstance(node, h5py.Dataset) and (node.external or node.is_virtual or node.dtype.kind not in "fiu"):
        raise TypeError(f"{group.name}/{path} is not an array of numbers")
    return node


def _texts(group: h5py.Group, attribute: str) -> list[str]:
    """Returns a list of names; Keras splits long lists over attributes `NAME0`, `NAME1`, ..."""
    if attribute in group.attrs:
        return [_text(value) for value in group.attrs[attribute]]
    names: list[str] = []
    chunk = 0
    while f"{attribute}{chunk}" in group.attrs:
        names += [_text(value) for value in group.attrs[f"{attribute}{chunk}"]]
        chunk += 1
    if not chunk:
        raise KeyError(f"{group.name} lacks the attribute {attribute}")
    return names


def _text(value: str | bytes) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def _transfer(model: keras.Model, stored: Stored, file: Path, left: Sequence[tuple[str, str]] = ()) -> LoadReport:
    """Copies what fits; `left` is what the file holds besides the stored layers, with reasons."""
    targets = {layer.name: layer for layer in model.layers if layer.weights}
    arrays: dict[str, list[npt.NDArray[np.generic]]] = {}
    skipped: list[tuple[str, str]] = []
    for name, layer in targets.items():
        reason = _misfit(layer, stored[name]) if name in stored else MISSING_IN_FILE
        if reason is None:
            arrays[name] = [_widened(a[()], w.shape) for a, w in zip(stored[name], layer.weights, strict=True)]
            if not all(np.isfinite(array).all() for array in arrays[name]):
                del arrays[name]
                reason = "the file's values are not all finite"
        if reason is not None:
            skipped.append((name, reason))
    skipped += [(name, MISSING_IN_MODEL) for name in stored if name not in targets]
    skipped += left
    if not arrays:
        raise MisfitError(
            f"weights {file} do not fit model {model.name}: no layer has the same name and shapes. "
            f"Layers in the file: {_sample([*stored, *dict(left)])}; in the model: {_sample(targets)}. "
            "Choose the --model the file was made for, or other weights."
        )
    for name, values in arrays.items():
        targets[name].set_weights(values)
    return LoadReport(loaded=list(arrays), skipped=skipped)


def _misfit(layer: keras.Layer, arrays: Sequence[StoredArray]) -> str | None:
    """Returns why the arrays do not fit the layer, None if they do; from the shapes alone, before any array is read."""
    wanted = [tuple(weight.shape) for weight in layer.weights]
    given = [tuple(array.shape) for array in arrays]
    if wanted == given or (len(wanted) == len(given) and all(map(_widens, given, wanted))):
        return None
    return f"shapes {_shapes(given)} in the file, {_shapes(wanted)} in the model"


def _widens(given: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether a kernel (rows, columns, channels, filters) is the wanted one, or its first view's part of it."""
    if given == wanted:
        return True
    same = len(given) == len(wanted) == 4 and given[:2] + given[3:] == wanted[:2] + wanted[3:]
    return same and given[2] == 3 and wanted[2] % 3 == 0


def _widened(array: npt.NDArray[np.generic], wanted: tuple[int, ...]) -> npt.NDArray[np.generic]:
    """Adds channels with weights of 0, so that further views change nothing at first."""
    return np.pad(array, [(0, more - size) for size, more in zip(array.shape, wanted, strict=True)])


def _shapes(shapes: list[tuple[int, ...]]) -> str:
    return " ".join("x".join(str(side) for side in shape) or "scalar" for shape in shapes)


def _sample(names: Collection[str]) -> str:
    first = ", ".join(list(names)[:5]) or "none"
    return f"{first}, ... ({len(names)} in all)" if len(names) > 5 else first
