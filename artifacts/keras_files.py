"""`.keras` files, opened by any version of Keras if they are ours.

Keras stores how to construct every layer, in terms of the version that wrote the file: another version, older or newer,
may refuse an argument. Networks of `models` and what `export.py` puts around them are built here instead, from the few
numbers that describe them, and filled by the names of their layers. Other files are left to Keras.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import keras

import models
from models.layers import normalized_by
from models.weights import MAX_UNPACKED, MisfitError, load_weights
from options.choices import MODELS

MAX_CONFIG_BYTES = 64 * 2**20
EXPORTED, SCALED = "exported", "scaled"


def load(path: Path) -> keras.Model:
    """Open a `.keras` file; nothing in it is run.

    Raises:
        ValueError: damaged, too large, with code in it, or of a kind that is not a model with inputs and outputs.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
            if size > MAX_UNPACKED:
                raise ValueError(f"unpacks to {size} bytes; at most {MAX_UNPACKED} are read")
            described = _described(archive)
        if described is not None and _filled(described[1], path):
            return described[0]
        model = keras.models.load_model(path, compile=False)
    except Exception as error:  # Keras raises what its layers raise
        first = (str(error).strip() or repr(error)).splitlines()[0][:300]
        if "Lambda" in str(error):
            first = "it contains a Lambda layer, which is code and is never run; rebuild it with Keras' own layers"
        raise ValueError(f"{path}: cannot be opened: {first}") from error
    if not isinstance(model, keras.Model) or not getattr(model, "inputs", None):
        raise ValueError(f"{path}: contains a {type(model).__name__}; a functional or sequential model is needed")
    return model


def _filled(network: keras.Model, path: Path) -> bool:
    """Whether every layer of a network took its weights from a file, and the file had no others."""
    try:
        return not load_weights(network, path).skipped
    except MisfitError:
        return False


def _described(archive: zipfile.ZipFile) -> tuple[keras.Model, keras.Model] | None:
    """The untrained model that a file describes, and the network of `models` in it; None if it is not of ours."""
    if "config.json" not in archive.namelist() or archive.getinfo("config.json").file_size > MAX_CONFIG_BYTES:
        return None
    try:
        config = json.loads(archive.read("config.json"))["config"]
        if config["name"] == EXPORTED:
            return _exported(config)
        network = _network(config)
    except (ValueError, LookupError, TypeError, StopIteration, RecursionError):
        # Of another kind, or of a version of ours that described networks differently.
        return None
    return None if network is None else (network, network)


def _network(config: dict[str, Any]) -> keras.Model | None:
    """A network of `models`, from the configuration of a functional model."""
    if config["name"] not in MODELS:
        return None
    _, rows, columns, channels = config["layers"][0]["config"]["batch_shape"]
    if rows != columns:
        return None
    classes = next(layer for layer in config["layers"] if layer["name"] == "logits")["config"]["filters"]
    groups = any("GroupNormalization" in layer["class_name"] for layer in config["layers"])
    with normalized_by("group" if groups else "batch"):
        return models.build(config["name"], rows, classes, channels)


def _exported(config: dict[str, Any]) -> tuple[keras.Model, keras.Model] | None:
    """What `wrapped` made, and the network in it."""
    image, scaled, inner, *softmax = config["layers"]
    if image["class_name"] != "InputLayer" or scaled["name"] != SCALED or len(softmax) > 1:
        return None
    network = _network(inner["config"])
    if network is None:
        return None
    scale, offset = scaled["config"]["scale"], scaled["config"]["offset"]
    return wrapped(network, scale, offset, image["name"], softmax[0]["name"] if softmax else None), network


def wrapped(network: keras.Model, scale: float, offset: float, image: str, softmax: str | None) -> keras.Model:
    """Put a network between a scaling and a softmax layer.

    Args:
        network: from images (B, H, W, C) to logits or probabilities.
        scale: factor of uint8 values.
        offset: added to them.
        image: name of the input.
        softmax: name of the last layer; None for a network that gives probabilities.
    """
    image_BHWC = keras.Input(network.input_shape[1:], dtype="uint8", name=image)
    x = network(keras.layers.Rescaling(scale, offset, name=SCALED)(image_BHWC), training=False)
    out = x if softmax is None else keras.layers.Softmax(name=softmax)(x)
    return keras.Model(image_BHWC, out, name=EXPORTED)
