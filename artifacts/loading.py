"""Trained models, opened for prediction: runs and checkpoints of train.py, `.keras` files, SavedModels.

Shapes: B images, H rows, W columns, C channels (3, or 6 with a context view), K classes.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import models
from artifacts import metadata, saved_model
from artifacts.checkpoints import CheckpointError, head, read_arrays
from artifacts.metadata import UINT8_RANGE, Facts, Given
from models.weights import MAX_UNPACKED

KINDS = "a run folder (--log_dir of train.py), a checkpoint .npz, a .keras file, or a SavedModel folder"
SUM_TOLERANCE = 1e-3  # of probabilities to 1: half precision has three digits
Call = Callable[[Any], Any]


@dataclass(frozen=True, kw_only=True)
class Trained(Facts):
    """A model ready for prediction, and what must be known of it.

    Attributes:
        path: file or folder that it came from.
        call: float32 or uint8 images (B, H, W, C) as the model takes them -> its output (B, H, W, K).
        source: the Keras model or loaded SavedModel that owns the variables.
        notes: files passed over.
    """

    path: Path
    call: Call
    source: Any
    notes: tuple[str, ...] = ()

    def graph(self, image_BHWC: Any) -> Any:
        """Probabilities as TensorFlow operations, for use in a `tf.function`.

        Args:
            image_BHWC: uint8.

        Returns:
            probabilities (B, H, W, K), float32.
        """
        out_BHWK = tf.cast(self.call(_as_taken(image_BHWC, self.input_range)), tf.float32)
        return out_BHWK if self.output == "probabilities" else tf.nn.softmax(out_BHWK)

    @cached_property
    def _compiled(self) -> Any:
        # The number of images alone is open: the last batch is smaller, and must not be compiled anew.
        shape = (None, self.img_size, self.img_size, self.channels)
        return tf.function(self.graph, input_signature=[tf.TensorSpec(shape, tf.uint8)], autograph=False)

    def probabilities(self, image_BHWC: np.ndarray) -> np.ndarray:
        """Class probabilities of every pixel.

        Args:
            image_BHWC: uint8, RGB 0 .. 255 (B, img_size, img_size, 3) at `um_px`; with a context view 6 channels, the
                last 3 of the view at `context_um_px`. B may be another in every call.

        Returns:
            p_BHWK, float32; the sum over K is 1.

        Raises:
            ValueError: images of another shape or type.
        """
        wanted = (self.img_size, self.img_size, self.channels)
        if image_BHWC.dtype != np.uint8 or image_BHWC.ndim != 4 or image_BHWC.shape[1:] != wanted:
            raise ValueError(f"{image_BHWC.dtype} {image_BHWC.shape} given, {self.path} takes uint8 (B, *{wanted})")
        p_BHWK: np.ndarray = self._compiled(tf.convert_to_tensor(image_BHWC)).numpy()
        return p_BHWK


def _as_taken(image_BHWC: Any, input_range: tuple[float, float]) -> Any:
    """uint8 images as a model takes them; those of a model that scales by itself stay."""
    low, high = input_range
    if input_range == UINT8_RANGE:
        return image_BHWC
    return tf.cast(image_BHWC, tf.float32) * ((high - low) / 255.0) + low


def open_model(path: Path, given: Given = Given()) -> Trained:  # noqa: B008 - it is frozen
    """Open a trained model for prediction.

    Args:
        path: A run folder of train.py (its `checkpoints/best.npz`, else the newest readable `images-*.npz`) or a
            checkpoint of one, whose network is built anew for `given.img_size`; a `.keras` file, also of others; a
            SavedModel folder. The latter two are for one size where they were made for one.
        given: What the caller says; must give what does not travel with the model, may give another img_size.

    Raises:
        ValueError: Nothing there, no model, damaged, of code that would be run, facts missing or contradicted.
    """
    if not path.exists():
        raise ValueError(f"--model {path}: no such file or folder; {KINDS} is needed")
    if path.is_dir():
        if (path / "saved_model.pb").exists():
            return _from_saved_model(path, given)
        return _from_run(path, given)
    if path.suffix == ".npz":
        return _from_checkpoint(path, given)
    if path.suffix == ".keras":
        return _from_keras(path, given)
    raise ValueError(f"--model {path}: {KINDS} is needed")


def any_size(trained: Trained) -> Trained:
    """The same model for images of any sides that are multiples of `size_multiple`; itself where it has one size."""
    model = trained.source
    if trained.network not in models.ANY_SIZE or getattr(model, "name", None) != trained.network:
        return trained
    free = models.build(trained.network, None, trained.classes, trained.channels)
    free.set_weights(model.get_weights())
    return replace(trained, size_multiple=models.SIZE_MULTIPLE, call=_calling(free), source=free)


# ------------------------------------------------------------------------------------------- runs and checkpoints


def _from_run(folder: Path, given: Given) -> Trained:
    """The best checkpoint of a run, else its newest readable one."""
    inner = folder / "checkpoints"
    inner = inner if inner.is_dir() else folder
    if (inner / "best.npz").exists():
        try:
            return _from_checkpoint(inner / "best.npz", given)
        except CheckpointError as error:
            # Another checkpoint is another model: that is for the user to choose.
            raise ValueError(f"{error} Name another checkpoint of {inner} with --model") from error
    notes: list[str] = []
    for path in sorted(inner.glob("images-*.npz"), reverse=True):
        found = _readable(path, given, notes)
        if found is not None:
            return replace(found, notes=tuple(notes))
    held = " ".join(notes) or "it holds neither best.npz nor images-*.npz nor saved_model.pb."
    raise ValueError(f"--model {folder}: {held} {KINDS} is needed")


def _readable(path: Path, given: Given, notes: list[str]) -> Trained | None:
    """The model of a checkpoint; None, and a note, where that is damaged."""
    try:
        return _from_checkpoint(path, given)
    except CheckpointError as error:
        notes.append(f"{error} Falling back to the one before.")
        return None


def _from_checkpoint(path: Path, given: Given) -> Trained:
    """The network of a checkpoint, with the size asked for, in float32."""
    arrays = read_arrays(path)
    try:
        state = head(arrays)
        options, images, networks = state["options"], state["images"], tuple(state["options"]["networks"])
        found = metadata.of_run(options, networks[0], images)
    except (KeyError, TypeError, IndexError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a checkpoint of train.py ({error}).") from error
    facts = metadata.completed(found, given, path, {})
    # With pre-trained weights and no --model, the first network that they fitted was trained.
    reasons = []
    for name in networks:
        model = models.build(name, facts.img_size, facts.classes, facts.channels)
        misfit = _fill(model, arrays)
        if misfit is not None:
            reasons.append(misfit)
            continue
        network = name if model.name == name else None
        return _trained(replace(facts, network=network), path, _calling(model), model)
    raise CheckpointError(f"{path}: its arrays do not fit {', '.join(networks)} with its options: {reasons[-1]}.")


def _fill(model: keras.Model, arrays: Mapping[str, np.ndarray]) -> str | None:
    """Give a network the weights of a checkpoint; what does not fit, in which case nothing is changed."""
    wanted = {f"model/{v.path}": v.value for v in model.weights}
    # The state of dropout's random generators is of no use here, and its name is another in every process.
    stored = {
        key: a for key, a in arrays.items() if key.startswith("model/") and not key.endswith("/seed_generator_state")
    }
    wrong = sorted(set(wanted) ^ set(stored))
    wrong += [key for key, v in wanted.items() if key in stored and not _fits(stored[key], v)]
    if wrong:
        return f"{len(wrong)} of {len(wanted)} variables differ, first {wrong[0]}"
    for key, variable in wanted.items():
        variable.assign(stored[key])
    return None


def _fits(array: np.ndarray, variable: Any) -> bool:
    return array.shape == tuple(variable.shape) and array.dtype == variable.dtype.as_numpy_dtype


def _calling(model: keras.Model) -> Call:
    return lambda x: model(x, training=False)


def _trained(facts: Facts, path: Path, call: Call, source: Any) -> Trained:
    own = {name: value for name, value in vars(facts).items() if name in Facts.__dataclass_fields__}
    return Trained(**own, path=path, call=call, source=source)


# ------------------------------------------------------------------------------------------- .keras and SavedModel


def _from_keras(path: Path, given: Given) -> Trained:
    """A Keras file, ours or another's, with what `NAME.json` or `model.json` beside it says."""
    beside = path.with_suffix(".json")
    found = metadata.read(beside) if beside.exists() else None
    model = _load_keras(path)
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ValueError(
            f"{path}: has {len(model.inputs)} inputs and {len(model.outputs)} outputs; one of each is needed"
        )
    shape, dtype = tuple(model.inputs[0].shape), model.inputs[0].dtype
    wanted = given.img_size
    if found is not None and model.name == found.network and wanted not in (None, shape[1]):
        # A network of ours: no weight depends on the size.
        another = models.build(model.name, wanted, found.classes, found.channels)
        another.set_weights(model.get_weights())
        return _trained(metadata.completed(found, given, path, {}), path, _calling(another), another)
    return _checked(path, given, found, (_calling(model), model, shape, dtype))


def _load_keras(path: Path) -> keras.Model:
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > MAX_UNPACKED:
            raise ValueError(f"unpacks to {size} bytes; at most {MAX_UNPACKED} are read")
        model = keras.models.load_model(path, compile=False)
    except Exception as error:  # Keras raises what its layers raise
        first = (str(error).strip() or repr(error)).splitlines()[0][:300]
        if "Lambda" in str(error):
            first = "it holds a Lambda layer, which is code and is never run; rebuild it with layers of Keras alone"
        raise ValueError(f"{path}: not opened: {first}") from error
    if not isinstance(model, keras.Model) or not getattr(model, "inputs", None):
        raise ValueError(f"{path}: holds a {type(model).__name__}; a functional or sequential model is needed")
    return model


def _from_saved_model(folder: Path, given: Given) -> Trained:
    """A SavedModel with what `assets.extra/model.json` in it says."""
    beside = folder / metadata.IN_SAVED_MODEL
    found = metadata.read(beside) if beside.exists() else None
    loaded, call, shape, dtype = saved_model.load(folder)
    return _checked(folder, given, found, (call, loaded, shape, dtype))


def _checked(path: Path, given: Given, found: Facts | None, opened: tuple[Call, Any, tuple[Any, ...], str]) -> Trained:
    """A model of anybody's, after one image went through it.

    Args:
        path: of the model.
        given: by the caller.
        found: facts that came with it.
        opened: how it is called, what owns its variables, shape and type of the images that it takes.
    """
    call, source, shape, dtype = opened
    if found is None and dtype == "uint8" and given.input_range is None:
        given = replace(given, input_range=UINT8_RANGE)
    channels = 3 if found is None and given.context_um_px is None else found.channels if found else 6
    if len(shape) != 4 or shape[3] not in (channels, None) or shape[1] != shape[2]:
        raise ValueError(
            f"{path}: takes images {shape}; (B, H, W, {channels}) with H = W or both open is needed"
            + ("; of a second view --context_spacing tells the um per px" if len(shape) == 4 and shape[3] == 6 else "")
        )
    side = given.img_size or (found.img_size if found else None) or shape[1]
    if shape[1] not in (side, None):
        raise ValueError(
            f"{path}: takes images of {shape[1]} px, {side} asked for; leave --img_size out, or give the run"
        )
    if side is None:
        metadata.completed(found, given, path, {"img_size": None, "classes": 2, "output": "logits"})
    multiple = found.size_multiple if found else None
    if multiple and side % multiple:
        raise ValueError(f"--img_size {side}: {path} takes multiples of {multiple} px")
    input_range = (found.input_range if found else None) or given.input_range or UINT8_RANGE
    if dtype == "uint8" and input_range != UINT8_RANGE:
        raise ValueError(f"{path}: takes uint8 images, so 0 and 255 stay as they are: --input_range 0 255")
    taking = _taking(call, dtype)
    out_BHWK = _probe(path, taking, (1, side, side, channels), input_range)
    classes = out_BHWK.shape[-1]
    if found is not None and classes != found.classes:
        raise ValueError(f"{path}: gives {classes} classes, {found.classes} by the facts that came with it")
    output = "probabilities" if _sums_to_one(out_BHWK) else "logits"
    facts = metadata.completed(found, given, path, {"img_size": side, "classes": classes, "output": output})
    if facts.output == "probabilities" != output:
        raise ValueError(f"{path}: its output is no probabilities, which by the facts that came with it it gives")
    return _trained(facts, path, taking, source)


def _taking(call: Call, dtype: str) -> Call:
    return lambda x: call(tf.cast(x, dtype))


def _probe(path: Path, call: Call, shape: tuple[int, ...], input_range: tuple[float, float]) -> np.ndarray:
    """The output for one image of noise, as float32.

    Raises:
        ValueError: the model fails, or gives no map of classes for every pixel.
    """
    image_BHWC = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    try:
        out = np.asarray(call(_as_taken(tf.constant(image_BHWC), input_range)), np.float32)
    except (ValueError, TypeError, tf.errors.OpError) as error:
        raise ValueError(f"{path}: fails for an image of {shape[1]} px: {str(error).splitlines()[0][:300]}") from error
    if out.ndim != 4 or out.shape[:3] != shape[:3] or not 2 <= out.shape[-1] <= 255:
        raise ValueError(f"{path}: gives {out.shape} for images {shape}; {shape[:3]} with 2 to 255 classes is needed")
    if not np.isfinite(out).all():
        raise ValueError(f"{path}: its output for an image of noise is not finite; the weights are damaged")
    return out


def _sums_to_one(out_BHWK: np.ndarray) -> bool:
    return bool(out_BHWK.min() >= 0 and np.abs(out_BHWK.sum(-1) - 1).max() < SUM_TOLERANCE)
