"""Models of other people opened for prediction, what must be said of them, and refusals of what runs code."""

import json
import math
import pickle
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from artifacts.loading import open_model
from artifacts.metadata import ModelOverrides
from tests.support.hostile import Evil
from tests.support.models_on_disk import Served, noise, red, write_served

STATED = ModelOverrides(um_px=0.5, input_range=(-1.0, 1.0))


GOOD = {
    "format": "widefov model 1", "img_size": 4, "um_px": 0.5, "classes": 2, "class_names": ["a", "b"],
    "output": "logits", "input_range": [-1, 1],
}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"format": "another"}, "format is 'another'; must be 'widefov model 1'"),
        ({"um_px": -0.5}, "um_px is '-0.5'; must be a number above 0"),
        ({"um_px": True}, "um_px is 'True'; must be a number above 0"),
        ({"img_size": "4"}, "img_size is '4'; must be a whole number of px"),
        ({"class_names": ["a"]}, "1 class_names for 2 classes"),
        ({"classes": 3, "class_names": ["a", "b", "c"]}, "gives 2 classes, but the file beside it states 3"),
        ({"input_range": [1, -1]}, "input_range is .*; must be two numbers, the smaller first"),
        ({"network": "resnet"}, "network is 'resnet'; must be effdetd0, effdetd4, deeplab or null"),
        ({"context_um_px": 0.25}, "context_um_px 0.25 must be coarser than um_px 0.5"),
        ({"context_um_px": 2}, r"takes images \(None, 4, 4, 3\); must take \(B, H, W, 6\)"),
        ({"output": "probabilities"}, "states that it gives probabilities, but it does not"),
        ({"img_size": 8}, "takes images of 4 px, not of 8 px"),
    ],
)
def test_impossible_information_is_refused(tmp_path: Path, changed: dict, message: str) -> None:
    red().save(tmp_path / "m.keras")
    (tmp_path / "m.json").write_text(json.dumps(GOOD), encoding="utf-8")
    assert open_model(tmp_path / "m.keras").info.class_names == ("a", "b")
    (tmp_path / "m.json").write_text(json.dumps(GOOD | changed), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        open_model(tmp_path / "m.keras")


def test_a_damaged_or_incomplete_json_is_refused(tmp_path: Path) -> None:
    red().save(tmp_path / "m.keras")
    for text in ("{", "[]", "[" * 100_000):
        (tmp_path / "m.json").write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=r"m\.json does not describe a model"):
            open_model(tmp_path / "m.keras")
    (tmp_path / "m.json").write_text(json.dumps({"format": "widefov model 1", "img_size": 4}), encoding="utf-8")
    with pytest.raises(ValueError, match="um_px, classes, class_names, output, input_range missing"):
        open_model(tmp_path / "m.keras")


def test_images_are_scaled_as_stated_and_logits_become_probabilities(tmp_path: Path) -> None:
    red().save(tmp_path / "m.keras")
    image = np.zeros((1, 4, 4, 3), np.uint8)
    image[0, 1, 2, 0] = 255
    for input_range, black, white in (((-1.0, 1.0), -1, 1), ((0.0, 1.0), 0, 1), ((-2.0, 0.5), -2, 0.5)):
        trained = open_model(tmp_path / "m.keras", ModelOverrides(um_px=0.5, input_range=input_range))
        p_HWK = trained.probabilities(image)[0]
        assert p_HWK[0, 0, 0] == pytest.approx(1 / (1 + math.exp(-black)), abs=1e-6)
        assert p_HWK[1, 2, 0] == pytest.approx(1 / (1 + math.exp(-white)), abs=1e-6)
        assert (trained.info.img_size, trained.info.class_names, trained.info.network) == (
            4,
            ("class 0", "class 1"),
            None,
        )


def test_probabilities_stay_as_they_are(tmp_path: Path) -> None:
    red(activation="softmax").save(tmp_path / "m.keras")
    trained = open_model(tmp_path / "m.keras", STATED)
    assert trained.info.output == "probabilities"
    p_BHWK = trained.probabilities(np.full((2, 4, 4, 3), 255, np.uint8))
    np.testing.assert_allclose(p_BHWK[..., 0], 1 / (1 + math.exp(-1)), atol=1e-6)


def test_open_sides_need_a_size(tmp_path: Path) -> None:
    red(side=None).save(tmp_path / "m.keras")
    with pytest.raises(ValueError, match=r"no file beside it describes how it was trained; give --img_size \(px\)$"):
        open_model(tmp_path / "m.keras", STATED)
    with pytest.raises(ValueError, match=r"give --resolution \(um per px\), --img_size \(px\), --input_range \(-1 1, "):
        open_model(tmp_path / "m.keras")
    trained = open_model(tmp_path / "m.keras", ModelOverrides(6, 0.5, None, (-1.0, 1.0)))
    assert trained.probabilities(noise(1, 6, 6, 3)).shape == (1, 6, 6, 2)


def test_a_second_view_of_a_model_from_elsewhere_has_to_be_stated(tmp_path: Path) -> None:
    red(channels=6).save(tmp_path / "m.keras")
    with pytest.raises(
        ValueError, match=r"takes images \(None, 4, 4, 6\).* for a second view give its um per px by --context_spacing"
    ):
        open_model(tmp_path / "m.keras", STATED)
    assert open_model(tmp_path / "m.keras", ModelOverrides(4, 0.5, 2.0, (-1.0, 1.0))).info.channels == 6


def one_class() -> keras.Model:
    image = keras.Input((4, 4, 3))
    return keras.Model(image, keras.layers.Conv2D(1, 1)(image))


def half_size() -> keras.Model:
    image = keras.Input((4, 4, 3))
    return keras.Model(image, keras.layers.Conv2D(2, 2, strides=2)(image))


def of_the_whole_image() -> keras.Model:
    image = keras.Input((4, 4, 3))
    return keras.Model(image, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(image)))


def two_outputs() -> keras.Model:
    image = keras.Input((4, 4, 3))
    return keras.Model(image, [keras.layers.Conv2D(2, 1)(image), keras.layers.Conv2D(2, 1)(image)])


def oblong() -> keras.Model:
    image = keras.Input((4, 6, 3))
    return keras.Model(image, keras.layers.Conv2D(2, 1)(image))


def no_number() -> keras.Model:
    model = red()
    model.set_weights([np.full(w.shape, np.nan) for w in model.get_weights()])
    return model


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (one_class, r"gives \(1, 4, 4, 1\) for images \(1, 4, 4, 3\); must give \(1, 4, 4\) with 2 to 255 classes"),
        (half_size, r"gives \(1, 2, 2, 2\) for images"),
        (of_the_whole_image, r"gives \(1, 2\) for images"),
        (two_outputs, "has 1 inputs and 2 outputs; one of each is needed"),
        (oblong, r"takes images \(None, 4, 6, 3\); must take \(B, H, W, 3\) with H = W"),
        (no_number, "its output for an image of noise is not finite"),
    ],
)
def test_models_of_another_kind_are_refused(tmp_path: Path, build, message: str) -> None:
    build().save(tmp_path / "m.keras")
    with pytest.raises(ValueError, match=message):
        open_model(tmp_path / "m.keras", STATED)


def test_code_in_a_keras_file_is_never_run(tmp_path: Path) -> None:
    image = keras.Input((4, 4, 3))
    target = str(tmp_path / "hacked")
    evil = keras.layers.Lambda(lambda y, t=target: (open(t, "w").close(), y)[1])
    keras.Model(image, keras.layers.Conv2D(2, 1)(evil(image))).save(tmp_path / "m.keras")
    (tmp_path / "hacked").unlink()  # made while the model was built here
    with pytest.raises(
        ValueError, match=r"m\.keras: cannot be opened: it contains a Lambda layer, which is code and is never run"
    ):
        open_model(tmp_path / "m.keras", STATED)
    for junk in (pickle.dumps(Evil(tmp_path)), b"PK\x03\x04", b""):
        (tmp_path / "m.keras").write_bytes(junk)
        with pytest.raises(ValueError, match=r"m\.keras: cannot be opened: "):
            open_model(tmp_path / "m.keras", STATED)
    assert not (tmp_path / "hacked").exists()


def test_a_saved_model_of_others_is_opened(tmp_path: Path) -> None:
    write_served(Served(), tmp_path / "served")
    with pytest.raises(ValueError, match=r"give --resolution .* --img_size .* --input_range"):
        open_model(tmp_path / "served")
    trained = open_model(tmp_path / "served", ModelOverrides(5, 0.5, None, (0.0, 1.0)))
    p_BHWK = trained.probabilities(np.full((1, 5, 5, 3), 255, np.uint8))
    np.testing.assert_allclose(p_BHWK[..., 0], 1 / (1 + math.exp(-2)), atol=1e-6)


def reads_a_file(image):
    with tf.control_dependencies([tf.io.read_file("/etc/hostname")]):
        return tf.identity(image)


def writes_a_file(image):
    with tf.control_dependencies([tf.io.write_file("hacked", "x")]):
        return tf.identity(image)


def calls_python(image):
    return tf.ensure_shape(tf.py_function(lambda x: x, [image], tf.float32), image.shape)


def saves(image):
    write = tf.raw_ops.SaveV2(prefix="hacked", tensor_names=["a"], shape_and_slices=[""], tensors=[image])
    with tf.control_dependencies([write] if write is not None else []):
        return tf.identity(image)


@pytest.mark.parametrize(
    ("operation", "name"),
    [(reads_a_file, "ReadFile"), (writes_a_file, "WriteFile"), (calls_python, "EagerPyFunc"), (saves, "SaveV2")],
)
def test_a_saved_model_that_reaches_out_is_refused(tmp_path: Path, operation, name: str) -> None:
    write_served(Served(operation), tmp_path / "served")
    with pytest.raises(
        ValueError, match=rf"operations that are unknown or may reach files, the network or Python: .*{name}"
    ):
        open_model(tmp_path / "served", ModelOverrides(5, 0.5, None, (0.0, 1.0)))


def test_damaged_saved_models_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "served"
    write_served(Served(), folder)
    weights = folder / "variables" / "variables.data-00000-of-00001"
    weights.unlink()
    with pytest.raises(ValueError, match="damaged SavedModel"):
        open_model(folder, STATED)
    (folder / "saved_model.pb").write_bytes(b"junk")
    with pytest.raises(ValueError, match="damaged SavedModel"):
        open_model(folder, STATED)
