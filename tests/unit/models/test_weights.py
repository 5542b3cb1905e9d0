"""Pre-trained weights: by layer name from every kind of Keras file, and refusals of what does not fit."""

import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest

from models.weights import MISSING_IN_FILE, MISSING_IN_MODEL, load_weights
from tests.support.weight_files import keras2_file


def small(classes: int = 2, norm: str = "norm", seed: int = 0) -> keras.Model:
    """A model with the kinds of layers the networks have: 8x6 pixels, a few channels."""
    keras.utils.set_random_seed(seed)
    image = keras.Input((6, 8, 3))
    x = keras.layers.Conv2D(4, 3, use_bias=False, name="stem")(image)
    x = keras.layers.BatchNormalization(name=norm)(x)
    x = keras.layers.DepthwiseConv2D(3, use_bias=False, name="depth")(x)
    x = keras.layers.Dropout(0.1, name="drop")(x)
    model = keras.Model(image, keras.layers.Conv2D(classes, 1, name="logits")(x), name="small")
    for layer in model.layers:
        layer.set_weights([value + 0.01 * index for index, value in enumerate(layer.get_weights(), start=1)])
    return model


def of_layer(model: keras.Model, name: str) -> list[np.ndarray]:
    return model.get_layer(name).get_weights()


def assert_same(model: keras.Model, source: keras.Model, names: list[str]) -> None:
    got = [array for name in names for array in of_layer(model, name)]
    expected = [array for name in names for array in of_layer(source, name)]
    assert len(got) == len(expected) > 0
    assert [np.array_equal(a, b) for a, b in zip(got, expected, strict=True)] == [True] * len(expected)


@pytest.mark.parametrize("file_name", ["w.weights.h5", "model.keras", "model.h5"])
def test_another_class_count_loads_all_but_the_logits(file_name: str, tmp_path: Path) -> None:
    source, model = small(classes=5, seed=1), small(classes=2, seed=2)
    logits_before = of_layer(model, "logits")
    (source.save_weights if "weights" in file_name else source.save)(tmp_path / file_name)
    report = load_weights(model, tmp_path / file_name)
    assert report.loaded == ["stem", "norm", "depth"]
    assert report.skipped == [("logits", "shapes 1x1x4x5 5 in the file, 1x1x4x2 2 in the model")]
    assert_same(model, source, ["stem", "norm", "depth"])
    np.testing.assert_array_equal(of_layer(model, "logits")[0], logits_before[0])


def test_names_decide_not_the_order_and_both_sides_leftovers_are_listed(tmp_path: Path) -> None:
    source, model = small(seed=1), small(norm="other_norm", seed=2)
    source.save_weights(tmp_path / "w.weights.h5")
    report = load_weights(model, tmp_path / "w.weights.h5")
    assert report.loaded == ["stem", "depth", "logits"]
    assert report.skipped == [("other_norm", MISSING_IN_FILE), ("norm", MISSING_IN_MODEL)]


@pytest.mark.parametrize("whole_model", [False, True])
def test_keras_2_file_in_another_order(whole_model: bool, tmp_path: Path) -> None:
    model = small()
    kernel = np.arange(36, dtype=np.float32).reshape(3, 3, 4, 1)
    norm = [np.full(4, value, np.float32) for value in (1.5, -2.0, 3.0, 0.5)]
    names = ("gamma", "beta", "moving_mean", "moving_variance")
    layers = {
        "image": {},
        "norm": {f"norm/{name}:0": value for name, value in zip(names, norm, strict=True)},
        "depth": {"depth/depthwise_kernel:0": kernel},
    }
    keras2_file(tmp_path / "public.h5", layers, whole_model)
    report = load_weights(model, tmp_path / "public.h5")
    assert report.loaded == ["norm", "depth"]
    np.testing.assert_array_equal(of_layer(model, "depth")[0], kernel)
    np.testing.assert_array_equal(of_layer(model, "norm"), norm)


def test_keras_2_model_inside_a_model(tmp_path: Path) -> None:
    model = small()
    arrays = {"stem/kernel:0": np.full((3, 3, 3, 4), 7.0), "depth/depthwise_kernel:0": np.full((3, 3, 4, 1), 8.0)}
    keras2_file(tmp_path / "nested.h5", {"backbone": arrays})
    assert load_weights(model, tmp_path / "nested.h5").loaded == ["stem", "depth"]
    assert (of_layer(model, "stem")[0].max(), of_layer(model, "depth")[0].min()) == (7.0, 8.0)


def test_nothing_fits_names_both_sides(tmp_path: Path) -> None:
    keras2_file(tmp_path / "w.h5", {f"conv{i}": {f"conv{i}/kernel:0": np.zeros(3)} for i in range(7)})
    with pytest.raises(
        ValueError, match=r"conv0, conv1, conv2, conv3, conv4, \.\.\. \(7 in all\); in the model: stem, norm, "
    ):
        load_weights(small(), tmp_path / "w.h5")


def test_values_that_are_not_finite_are_skipped(tmp_path: Path) -> None:
    model = small()
    kernel = np.zeros((3, 3, 4, 1), np.float32)
    stem = np.full((3, 3, 3, 4), 2.0, np.float32)
    keras2_file(tmp_path / "w.h5", {"depth": {"depth/k:0": kernel + np.nan}, "stem": {"stem/k:0": stem}})
    report = load_weights(model, tmp_path / "w.h5")
    assert report.loaded == ["stem"]
    assert ("depth", "the file's values are not all finite") in report.skipped


@pytest.mark.parametrize("file_name", ["w.weights.h5", "model.keras", "model.h5"])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.98])
def test_truncated_file(file_name: str, share: float, tmp_path: Path) -> None:
    path = tmp_path / file_name
    model = small()
    (model.save_weights if "weights" in file_name else model.save)(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ValueError, match=rf"weights .*{file_name} cannot be read; the file is truncated"):
        load_weights(model, path)


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.h5").write_text("not a weight file")
    with pytest.raises(ValueError, match=r"text\.h5 cannot be read"):
        load_weights(small(), tmp_path / "text.h5")
    with zipfile.ZipFile(tmp_path / "zip.keras", "w") as archive:
        archive.writestr("config.json", "{}")
    with pytest.raises(ValueError, match=r"zip\.keras cannot be read"):
        load_weights(small(), tmp_path / "zip.keras")
    (tmp_path / "weights.pkl").write_bytes(b"\x80\x04")
    with pytest.raises(ValueError, match=r"weights\.pkl are of an unknown kind"):
        load_weights(small(), tmp_path / "weights.pkl")
    with pytest.raises(ValueError, match=r"absent\.h5 do not exist"):
        load_weights(small(), tmp_path / "absent.h5")


@pytest.mark.parametrize("link", [h5py.SoftLink("/norm"), h5py.ExternalLink("other.h5", "/stem")])
def test_links_are_refused(link: object, tmp_path: Path) -> None:
    keras2_file(tmp_path / "other.h5", {"stem": {"stem/kernel:0": np.zeros((3, 3, 3, 4))}})
    keras2_file(tmp_path / "w.h5", {"norm": {}})
    with h5py.File(tmp_path / "w.h5", "a") as file:
        file["stem"] = link
        file.attrs["layer_names"] = [b"stem"]
    with pytest.raises(ValueError, match="/stem is a link"):
        load_weights(small(), tmp_path / "w.h5")


def test_layers_that_would_run_code_are_never_built(tmp_path: Path) -> None:
    image = keras.Input((6, 8, 3))
    x = keras.layers.Conv2D(4, 3, use_bias=False, name="stem")(image)
    hostile = keras.Model(image, keras.layers.Lambda(lambda y: y + 1, name="hostile")(x))
    hostile.save(tmp_path / "hostile.keras")
    with pytest.raises(ValueError, match="Lambda"):
        keras.models.load_model(tmp_path / "hostile.keras")
    # Only arrays are read: the code is neither needed nor touched, and a file without any configuration serves as well.
    with zipfile.ZipFile(tmp_path / "hostile.keras") as archive, zipfile.ZipFile(tmp_path / "bare.keras", "w") as bare:
        bare.writestr("model.weights.h5", archive.read("model.weights.h5"))
    for name in ("hostile.keras", "bare.keras"):
        model = small()
        assert load_weights(model, tmp_path / name).loaded == ["stem"]
        assert_same(model, hostile, ["stem"])


def test_folders(tmp_path: Path) -> None:
    model, best, final = small(seed=1), small(seed=2), small(seed=3)
    with pytest.raises(ValueError, match="found: none"):
        load_weights(model, tmp_path)
    best.save(tmp_path / "first.h5")
    load_weights(model, tmp_path)
    assert_same(model, best, ["stem", "logits"])
    final.save(tmp_path / "second.keras")
    with pytest.raises(ValueError, match=r"found: first\.h5, second\.keras\. Name the file itself"):
        load_weights(model, tmp_path)
    best.save(tmp_path / "best.keras")
    load_weights(model, tmp_path)
    assert_same(model, best, ["stem", "logits"])
    final.save(tmp_path / "final.keras")
    load_weights(model, tmp_path)
    assert_same(model, final, ["stem", "logits"])
