"""Trained models, opened for prediction: runs and checkpoints of train.py, `.keras` files, SavedModels.

Shapes: B images, H rows, W columns, C channels (3, or 6 with a context view), K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

import models
from artifacts import keras_files, metadata, saved_model
from artifacts.checkpoints import CheckpointError, head, read_arrays
from artifacts.metadata import UINT8_RANGE, ModelInfo, ModelOverrides
from artifacts.paths import KINDS, require_model
from artifacts.saved_model import Call, OpenedModel
from models.adaptation import Adaptation
from models.layers import normalized_by
from options.choices import SIZE_MULTIPLE

SUM_TOLERANCE = 1e-3  # of probabilities to 1: half precision has three digits


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model ready for prediction.

    Attributes:
        info: what must be known about it.
        path: file or folder that it was read from.
        call: float32 or uint8 images (B, H, W, C) as the model takes them -> its output (B, H, W, K).
        source: the Keras model or loaded SavedModel that owns the variables.
        notes: notes on files that were skipped.
    """

    info: ModelInfo
    path: Path
    call: Call
    source: Any
    notes: tuple[str, ...] = ()

    def graph(self, image_BHWC: Any) -> Any:
        """Compute probabilities by TensorFlow operations, for use in a `tf.function`.

        Args:
            image_BHWC: uint8 images.

        Returns:
            Probabilities (B, H, W, K), float32.
        """
        out_BHWK = tf.cast(self.call(_as_taken(image_BHWC, self.info.input_range)), tf.float32)
        return out_BHWK if self.info.output == "probabilities" else tf.nn.softmax(out_BHWK)

    @cached_property
    def _compiled(self) -> Any:
        # Only the number of images is open: a smaller last batch must not be compiled again.
        shape = (None, self.info.img_size, self.info.img_size, self.info.channels)
        return tf.function(self.graph, input_signature=[tf.TensorSpec(shape, tf.uint8)], autograph=False)

    def probabilities(self, image_BHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Predict class probabilities of every pixel.

        Args:
            image_BHWC: uint8, RGB 0 .. 255 (B, img_size, img_size, 3) at `um_px`; with a context view 6 channels, of
                which the last 3 are the view at `context_um_px`. B may differ between calls.

        Returns:
            p_BHWK, float32; the sum over K is 1.

        Raises:
            ValueError: images of another shape or type.
        """
        wanted = (self.info.img_size, self.info.img_size, self.info.channels)
        if image_BHWC.dtype != np.uint8 or image_BHWC.ndim != 4 or image_BHWC.shape[1:] != wanted:
            raise ValueError(f"{image_BHWC.dtype} {image_BHWC.shape} given, {self.path} takes uint8 (B, *{wanted})")
        p_BHWK: NDArray[np.float32] = self._compiled(tf.convert_to_tensor(image_BHWC)).numpy()
        return p_BHWK

    def adaptation(self) -> Callable[[Iterable[NDArray[np.uint8]]], int]:
        """Return a function that gives batch normalization the statistics of images; see `models.adaptation`.

        It takes batches as `probabilities` does and returns the number of images. Each call starts from the trained
        statistics.

        Raises:
            ValueError: the model has no such layers, or they kept pre-trained statistics in training.
        """
        way_out = "omit --adapt_bn; --stain_norm works with every model that has targets"
        if not isinstance(self.source, keras.Model):
            raise ValueError(f"--adapt_bn: {self.path} is no run, checkpoint or .keras file of train.py; {way_out}")
        if self.info.freeze_bn:
            raise ValueError(f"--adapt_bn: {self.path} was trained with --freeze_bn, on other statistics; {way_out}")
        try:
            adaptation = Adaptation(self.source)
        except ValueError as error:
            raise ValueError(f"--adapt_bn: {error}; {way_out}") from error

        def adapt(batches: Iterable[NDArray[np.uint8]]) -> int:
            return adaptation.adapt(_as_taken(tf.constant(image_BHWC), self.info.input_range) for image_BHWC in batches)

        return adapt


def _as_taken(image_BHWC: Any, input_range: tuple[float, float]) -> Any:
    """Scale uint8 images to the model's input range; a model that scales by itself gets them unchanged."""
    low, high = input_range
    if input_range == UINT8_RANGE:
        return image_BHWC
    return tf.cast(image_BHWC, tf.float32) * ((high - low) / 255.0) + low


def open_model(path: Path, given: ModelOverrides = ModelOverrides()) -> LoadedModel:  # noqa: B008  # it is frozen
    """Open a trained model for prediction.

    Args:
        path: a run folder of train.py (its `checkpoints/best.npz`, else the newest readable `images-*.npz`) or one of
            its checkpoints, whose network is built for `given.img_size`; a `.keras` file, also from elsewhere; a
            SavedModel folder. The latter two keep their size if they were made for one.
        given: what the caller states: everything that does not come with the model, and the img_size if it differs.

    Raises:
        ValueError: the path does not exist, is not a model, is damaged or holds code that would be run; or information
            about the model is missing or contradictory.
    """
    require_model(path)
    if path.is_dir():
        if (path / "saved_model.pb").exists():
            return _from_saved_model(path, given)
        return _from_run(path, given)
    if path.suffix == ".npz":
        return _from_checkpoint(path, given)
    if path.suffix == ".keras":
        return _from_keras(path, given)
    raise ValueError(f"--model {path}: {KINDS} is needed")


def any_size(loaded: LoadedModel) -> LoadedModel:
    """Return the model for images whose sides are any multiples of `size_multiple`, or itself if it has one size."""
    info, model = loaded.info, loaded.source
    if info.network not in models.ANY_SIZE or getattr(model, "name", None) != info.network:
        return loaded
    with normalized_by(models.norm_of(model)):
        free = models.build(info.network, None, info.classes, info.channels)
    free.set_weights(model.get_weights())
    sized = replace(info, size_multiple=SIZE_MULTIPLE)
    return replace(loaded, info=sized, call=_calling(free), source=free)


def sized(loaded: LoadedModel, hw: tuple[int, int]) -> keras.Model:
    """Return the network for images of other sides, with the same weights: its layers can be read, as streaming needs.

    Args:
        loaded: a model.
        hw: rows and columns of the images, px.

    Raises:
        ValueError: it is a SavedModel, or a network from elsewhere that was built for one size.
    """
    info, model = loaded.info, loaded.source
    if not isinstance(model, keras.Model):
        raise ValueError(f"{loaded.path} is a SavedModel, whose layers cannot be read: give the run, or a .keras file")
    if info.network in models.ANY_SIZE:
        free = any_size(loaded).source
    elif info.network is not None and model.name == info.network:
        with normalized_by(models.norm_of(model)):
            free = models.build(info.network, hw, info.classes, info.channels)
        free.set_weights(model.get_weights())
    else:
        free = model
    rows, columns = free.inputs[0].shape[1:3]
    if rows not in (None, hw[0]) or columns not in (None, hw[1]):
        raise ValueError(
            f"{loaded.path} was built for images of {rows} x {columns} px only: give the run or checkpoint of "
            "train.py, or build it again with keras.Input((None, None, channels)), set_weights and save"
        )
    return free


# ------------------------------------------------------------------------------------------- runs and checkpoints


def _from_run(folder: Path, given: ModelOverrides) -> LoadedModel:
    """Open the best checkpoint of a run, else its newest readable one."""
    inner = folder / "checkpoints"
    inner = inner if inner.is_dir() else folder
    if (inner / "best.npz").exists():
        try:
            return _from_checkpoint(inner / "best.npz", given)
        except CheckpointError as error:
            # Another checkpoint is another model: that is for the user to choose.
            raise ValueError(f"{error} Choose another checkpoint of {inner} with --model") from error
    notes: list[str] = []
    for path in sorted(inner.glob("images-*.npz"), reverse=True):
        found = _readable(path, given, notes)
        if found is not None:
            return replace(found, notes=tuple(notes))
    held = " ".join(notes) or "contains neither best.npz nor images-*.npz nor saved_model.pb."
    raise ValueError(f"--model {folder}: {held} {KINDS} is needed")


def _readable(path: Path, given: ModelOverrides, notes: list[str]) -> LoadedModel | None:
    """Open the model of a checkpoint; a damaged one gives None and a note."""
    try:
        return _from_checkpoint(path, given)
    except CheckpointError as error:
        notes.append(f"{error} Falling back to the one before.")
        return None


def _from_checkpoint(path: Path, given: ModelOverrides) -> LoadedModel:
    """Build the network of a checkpoint, for the requested size, in float32."""
    arrays = read_arrays(path)
    try:
        state = head(arrays)
        options, images, networks = state["options"], state["images"], tuple(state["options"]["networks"])
        found = metadata.of_run(options, networks[0], images)
    except (KeyError, TypeError, IndexError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a checkpoint of train.py ({error}).") from error
    info = metadata.completed(found, given, path, {})
    # With pre-trained weights and no --model, train.py trained the first network that they fitted.
    reasons = []
    for name in networks:
        with normalized_by(info.norm):
            model = models.build(name, info.img_size, info.classes, info.channels)
        misfit = _fill(model, arrays)
        if misfit is not None:
            reasons.append(misfit)
            continue
        network = name if model.name == name else None
        return LoadedModel(info=replace(info, network=network), path=path, call=_calling(model), source=model)
    raise CheckpointError(f"{path}: its arrays do not fit its options and {', '.join(networks)}: {reasons[-1]}.")


def _fill(model: keras.Model, arrays: Mapping[str, NDArray[Any]]) -> str | None:
    """Fill a network with the weights of a checkpoint; what does not fit is returned, and then nothing is changed."""
    wanted = {f"model/{v.path}": v.value for v in model.weights}
    # The state of dropout's random generators is useless here, and its name differs between processes.
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


def _fits(array: NDArray[Any], variable: Any) -> bool:
    return array.shape == tuple(variable.shape) and array.dtype == variable.dtype.as_numpy_dtype


def _calling(model: keras.Model) -> Call:
    return lambda x: model(x, training=False)


# ------------------------------------------------------------------------------------------- .keras and SavedModel


def _from_keras(path: Path, given: ModelOverrides) -> LoadedModel:
    """Open a Keras file, ours or from elsewhere, with the information of the `.json` file beside it."""
    beside = path.with_suffix(".json")
    found = metadata.read(beside) if beside.exists() else None
    model = keras_files.load(path)
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ValueError(
            f"{path}: has {len(model.inputs)} inputs and {len(model.outputs)} outputs; one of each is needed"
        )
    shape, dtype = tuple(model.inputs[0].shape), model.inputs[0].dtype
    wanted = given.img_size
    if found is not None and model.name == found.network and wanted not in (None, shape[1]):
        # One of our networks: no weight depends on the size.
        with normalized_by(models.norm_of(model)):
            another = models.build(model.name, wanted, found.classes, found.channels)
        another.set_weights(model.get_weights())
        info = metadata.completed(found, given, path, {})
        return LoadedModel(info=info, path=path, call=_calling(another), source=another)
    return _checked(path, given, found, OpenedModel(_calling(model), model, shape, dtype))


def _from_saved_model(folder: Path, given: ModelOverrides) -> LoadedModel:
    """Open a SavedModel with the information of its `assets.extra/model.json`."""
    beside = folder / metadata.IN_SAVED_MODEL
    found = metadata.read(beside) if beside.exists() else None
    return _checked(folder, given, found, saved_model.load(folder))


def _checked(path: Path, given: ModelOverrides, found: ModelInfo | None, opened: OpenedModel) -> LoadedModel:
    """Check a model of unknown origin by predicting one image.

    Args:
        path: path of the model.
        given: what the caller states.
        found: information that came with the model.
        opened: the model.
    """
    shape, dtype = opened.shape, opened.dtype
    if found is None and dtype == "uint8" and given.input_range is None:
        given = replace(given, input_range=UINT8_RANGE)
    channels = 3 if found is None and given.context_um_px is None else found.channels if found else 6
    if len(shape) != 4 or shape[3] not in (channels, None) or shape[1] != shape[2]:
        raise ValueError(
            f"{path}: takes images {shape}; must take (B, H, W, {channels}) with H = W or both open"
            + (
                "; for a second view give its um per px by --context_spacing"
                if len(shape) == 4 and shape[3] == 6
                else ""
            )
        )
    side = given.img_size or (found.img_size if found else None) or shape[1]
    if shape[1] not in (side, None):
        raise ValueError(f"{path}: takes images of {shape[1]} px, not of {side} px; omit --img_size, or give the run")
    if side is None:
        metadata.completed(found, given, path, {"img_size": None, "classes": 2, "output": "logits"})
    multiple = found.size_multiple if found else None
    if multiple and side % multiple:
        raise ValueError(f"--img_size {side}: {path} takes multiples of {multiple} px")
    input_range = (found.input_range if found else None) or given.input_range or UINT8_RANGE
    if dtype == "uint8" and input_range != UINT8_RANGE:
        raise ValueError(f"{path}: takes uint8 images, which are not scaled: use --input_range 0 255")
    call = _casting(opened.call, dtype)
    out_BHWK = _probe(path, call, (1, side, side, channels), input_range)
    classes = out_BHWK.shape[-1]
    if found is not None and classes != found.classes:
        raise ValueError(f"{path}: gives {classes} classes, but the file beside it states {found.classes}")
    output = "probabilities" if _sums_to_one(out_BHWK) else "logits"
    info = metadata.completed(found, given, path, {"img_size": side, "classes": classes, "output": output})
    if info.output == "probabilities" != output:
        raise ValueError(f"{path}: the file beside it states that it gives probabilities, but it does not")
    return LoadedModel(info=info, path=path, call=call, source=opened.source)


def _casting(call: Call, dtype: str) -> Call:
    return lambda x: call(tf.cast(x, dtype))


def _probe(path: Path, call: Call, shape: tuple[int, ...], input_range: tuple[float, float]) -> NDArray[np.float32]:
    """Return the output for one image of noise, as float32.

    Raises:
        ValueError: the model fails, or does not give K values for every pixel.
    """
    image_BHWC = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    try:
        out = np.asarray(call(_as_taken(tf.constant(image_BHWC), input_range)), np.float32)
    except (ValueError, TypeError, tf.errors.OpError) as error:
        raise ValueError(f"{path}: fails for an image of {shape[1]} px: {str(error).splitlines()[0][:300]}") from error
    if out.ndim != 4 or out.shape[:3] != shape[:3] or not 2 <= out.shape[-1] <= 255:
        raise ValueError(f"{path}: gives {out.shape} for images {shape}; must give {shape[:3]} with 2 to 255 classes")
    if not np.isfinite(out).all():
        raise ValueError(f"{path}: its output for an image of noise is not finite; the weights are damaged")
    return out


def _sums_to_one(out_BHWK: NDArray[np.float32]) -> bool:
    return bool(out_BHWK.min() >= 0 and np.abs(out_BHWK.sum(-1) - 1).max() < SUM_TOLERANCE)
