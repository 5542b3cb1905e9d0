"""`.keras` files of ours open whatever version of Keras wrote them; others are left to Keras."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import models
from artifacts import keras_files
from models.layers import normalized_by


@pytest.fixture(scope="module")
def network() -> keras.Model:
    """Random statistics, so that a layer that was not filled shows."""
    keras.utils.set_random_seed(3)
    model = models.build("effdetd0", None, 3)
    draw = np.random.default_rng(3)
    for variable in model.weights:
        if variable.path.endswith(("moving_mean", "gamma")):
            variable.assign(draw.uniform(0.5, 1.5, variable.shape))
    return model


def rewritten(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A file whose layers' configurations were changed, as another version of Keras writes others."""

    def visit(config: dict[str, Any]) -> None:
        for layer in config.get("layers", ()):
            visit(layer["config"])
            change(layer["config"])

    target = path.with_name("changed.keras")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name == "config.json":
                whole = json.loads(data)
                visit(whole["config"])
                data = json.dumps(whole).encode()
            new.writestr(name, data)
    return target


def unknown_argument(config: dict[str, Any]) -> None:
    config["argument_of_tomorrow"] = 1


def image(dtype: str) -> np.ndarray:
    draw = np.random.default_rng(5).integers(0, 256, (1, 128, 128, 3), np.uint8)
    return draw if dtype == "uint8" else draw.astype(np.float32) / 127.5 - 1


def test_a_network_written_by_another_version_opens(tmp_path: Path, network: keras.Model) -> None:
    network.save(tmp_path / "final.keras")
    changed = rewritten(tmp_path / "final.keras", unknown_argument)
    with pytest.raises(Exception, match="argument_of_tomorrow"):
        keras.models.load_model(changed, compile=False)
    opened = keras_files.load(changed)
    assert (opened.name, opened.input_shape, opened.output_shape[-1]) == ("effdetd0", (None, None, None, 3), 3)
    np.testing.assert_array_equal(opened(image("float32")), network(image("float32")))


def test_an_exported_model_written_by_another_version_opens(tmp_path: Path, network: keras.Model) -> None:
    exported = keras_files.wrapped(network, 2 / 255, -1.0, "image", "probabilities")
    exported.save(tmp_path / "model.keras")
    opened = keras_files.load(rewritten(tmp_path / "model.keras", unknown_argument))
    assert opened.inputs[0].dtype == "uint8"
    found, wanted = opened(image("uint8")), exported(image("uint8"))
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_allclose(np.sum(found, -1), 1, atol=1e-5)


def test_group_normalization_is_rebuilt(tmp_path: Path) -> None:
    with normalized_by("group"):
        models.build("effdetd0", 128, 2).save(tmp_path / "final.keras")
    opened = keras_files.load(rewritten(tmp_path / "final.keras", unknown_argument))
    assert models.norm_of(opened) == "group"


def test_a_network_of_that_name_with_other_layers_is_left_to_keras(tmp_path: Path) -> None:
    given = keras.Input((8, 8, 3))
    logits = keras.layers.Conv2D(2, 1, name="logits")(given)
    keras.Model(given, logits, name="deeplab").save(tmp_path / "other.keras")
    assert len(keras_files.load(tmp_path / "other.keras").layers) == 2
    with pytest.raises(ValueError, match=r"changed\.keras: cannot be opened: "):
        keras_files.load(rewritten(tmp_path / "other.keras", unknown_argument))


@pytest.mark.parametrize("config", [b"{", b"[]", b"{}", b'{"config": {"name": "effdetd0", "layers": []}}'])
def test_a_damaged_description_is_an_error_with_the_path(tmp_path: Path, config: bytes) -> None:
    with zipfile.ZipFile(tmp_path / "bad.keras", "w") as archive:
        archive.writestr("config.json", config)
    with pytest.raises(ValueError, match=r"bad\.keras: cannot be opened: "):
        keras_files.load(tmp_path / "bad.keras")


def test_a_network_of_that_name_without_layers_is_left_to_keras(tmp_path: Path) -> None:
    keras.Sequential(name="deeplab").save(tmp_path / "empty.keras")
    with pytest.raises(ValueError, match=r"empty\.keras: contains a Sequential; "):
        keras_files.load(tmp_path / "empty.keras")
