"""The files that export.py writes, and their comparison with the model after they are opened again.

Every file takes uint8 images and gives probabilities: scaling and softmax are included.

Shapes: B images, H rows, W columns, C channels (3, or 6 with a context view), K classes.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from artifacts import keras_files, metadata, saved_model
from artifacts.loading import LoadedModel
from artifacts.metadata import UINT8_RANGE, ModelInfo

Network = Callable[[NDArray[np.uint8]], NDArray[np.float32]]

INPUT, OUTPUT = "image", "probabilities"
FILES = {"savedmodel": "savedmodel", "onnx": "model.onnx", "keras": "model.keras"}
INFO_FILE = "model.json"


def write(name: str, free: LoadedModel, folder: Path, opset: int) -> str:
    """Write one format into a folder, and what must be known about the model beside it.

    Args:
        name: "savedmodel", "onnx" or "keras".
        free: the model, for images of any size if it can take them (`loading.any_size`).
        folder: existing folder to write to.
        opset: version of ONNX' operator set.

    Returns:
        Name of the file or folder that was written.

    Raises:
        ValueError: the model cannot be written in this format.
        OSError: no space, no permission.
    """
    info = exported_info(free)
    metadata.write(info, folder / INFO_FILE)
    path = folder / FILES[name]
    if name == "savedmodel":
        _write_saved_model(free, path)
        metadata.write(info, path / metadata.IN_SAVED_MODEL)
    elif name == "onnx":
        path.write_bytes(_as_onnx(free, info, opset))
    else:
        _as_keras(free).save(path)
    return path.name


def exported_info(free: LoadedModel) -> ModelInfo:
    """Return what must be known about an exported model, which scales its input and gives probabilities."""
    return replace(free.info, input_range=UINT8_RANGE, output="probabilities")


def _spec(free: LoadedModel) -> tf.TensorSpec:
    side = None if free.info.size_multiple else free.info.img_size
    return tf.TensorSpec((None, side, side, free.info.channels), tf.uint8, name=INPUT)


def _write_saved_model(free: LoadedModel, path: Path) -> None:
    """Write by TensorFlow itself: Keras' `export` stores every weight twice."""
    module = tf.Module()
    # A SavedModel stores the variables that it finds in its root.
    own = isinstance(free.source, keras.Model)
    module.source = [v.value for v in free.source.variables] if own else free.source
    module.serve = tf.function(lambda x: {OUTPUT: free.graph(x)}, input_signature=[_spec(free)], autograph=False)
    tf.saved_model.save(module, str(path), signatures=dict.fromkeys(saved_model.ENTRIES, module.serve))


def _as_onnx(free: LoadedModel, info: ModelInfo, opset: int) -> bytes:
    """Convert the model to ONNX, with what must be known about it in the metadata."""
    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    import tf2onnx

    spec = _spec(free)
    function = tf.function(lambda x: {OUTPUT: free.graph(x)}, input_signature=[spec], autograph=False)
    stored, _ = tf2onnx.convert.from_function(function, input_signature=[spec], opset=opset)
    open_sides = ("height", "width") if free.info.size_multiple else ()
    for value in (*stored.graph.input, *stored.graph.output):
        for axis, name in enumerate(("batch", *open_sides)):
            value.type.tensor_type.shape.dim[axis].dim_param = name
    for key, value in info.as_json().items():
        text = value if isinstance(value, str) else json.dumps(value)
        stored.metadata_props.add(key=key, value=text)
    data: bytes = stored.SerializeToString()
    return data


def _as_keras(free: LoadedModel) -> keras.Model:
    """Put the model between a scaling and a softmax layer; our custom layers need `import models`.

    Raises:
        ValueError: the model is a SavedModel, whose layers are unknown.
    """
    if not isinstance(free.source, keras.Model):
        raise ValueError(f"--format keras: {free.path} is a SavedModel, whose layers are unknown; give the run")
    low, high = free.info.input_range
    softmax = None if free.info.output == "probabilities" else OUTPUT
    return keras_files.wrapped(free.source, (high - low) / 255.0, low, INPUT, softmax)


# ---------------------------------------------------------------------------------------------------------- compare


def compare(path: Path, loaded: LoadedModel, free: LoadedModel) -> tuple[float, str]:
    """Open what was written and compare its probabilities with the model's.

    Args:
        path: file or folder that `write` wrote.
        loaded: the model.
        free: the model that was written, for images of any size if it can take them.

    Returns:
        The largest absolute difference of a probability, and a description of the images compared.
    """
    run = _opened(path)
    side, channels = loaded.info.img_size, loaded.info.channels
    pairs: list[tuple[NDArray[np.uint8], Network]] = [
        (random_batch(2, side, side, channels), loaded.probabilities),
        (structured_batch(side, side, channels), loaded.probabilities),
    ]
    seen = f"2 of noise and 1 of shapes, {side} px"
    if free.info.size_multiple:
        wide = side + free.info.size_multiple
        pairs.append((random_batch(1, side, wide, channels), lambda x: np.asarray(free.graph(tf.constant(x)))))
        seen += f"; 1 of noise, {side} x {wide} px"
    # NumPy's maximum keeps NaN; Python's may drop it.
    return float(np.max([_difference(run(image), ours(image)) for image, ours in pairs])), seen


def _difference(theirs_BHWK: NDArray[np.float32], ours_BHWK: NDArray[np.float32]) -> float:
    if theirs_BHWK.shape != ours_BHWK.shape or theirs_BHWK.dtype != np.float32:
        raise ValueError(f"gives {theirs_BHWK.dtype} {theirs_BHWK.shape}, the model float32 {ours_BHWK.shape}")
    return float(np.abs(theirs_BHWK - ours_BHWK).max())


def _opened(path: Path) -> Network:
    """Open what was written as its users would."""
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return lambda x: session.run([OUTPUT], {INPUT: x})[0]
    if path.suffix == ".keras":
        model = keras_files.load(path)
        return lambda x: np.asarray(model(x, training=False))
    opened = saved_model.load(path)
    return lambda x: np.asarray(opened.call(tf.constant(x)))


def random_batch(count: int, rows: int, columns: int, channels: int) -> NDArray[np.uint8]:
    """Return noise, uint8 (count, rows, columns, channels)."""
    return np.random.default_rng(0).integers(0, 256, (count, rows, columns, channels), np.uint8)


def structured_batch(rows: int, columns: int, channels: int) -> NDArray[np.uint8]:
    """Return one image of white, a ramp of pink and darker discs, uint8 (1, rows, columns, channels)."""
    y_HW, x_HW = np.mgrid[:rows, :columns]
    image_HWC = np.full((rows, columns, channels), 255, np.uint8)
    pink_C = np.resize((215, 150, 190), channels)
    share_HW1 = (x_HW / columns)[..., None]
    tissue_HW = y_HW < rows * 3 // 4
    image_HWC[tissue_HW] = (255 - share_HW1 * (255 - pink_C)).astype(np.uint8)[tissue_HW]
    disc_HW = (y_HW % 32 - 16) ** 2 + (x_HW % 32 - 16) ** 2 < 36
    image_HWC[disc_HW & tissue_HW] = np.resize((90, 40, 130), channels)
    return image_HWC[None]
