"""export.py: what it writes agrees with the model and can be used without this project."""

import errno
import json
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import onnxruntime
import pytest
import tensorflow as tf

import export
import models
from artifacts import exporting
from artifacts.loading import open_model
from artifacts.metadata import ModelOverrides
from options.export import export_options
from tests.support.models_on_disk import Served, by_hand, disturb, noise, red, run_options, save, write_served
from tests.support.paths import ROOT
from tests.support.thin import thin_networks

RED = ("--resolution", "0.5", "--input_range", "-1", "1")


def exported(*arguments: str | Path) -> int:
    return export.main([str(argument) for argument in arguments])


# --------------------------------------------------------------------------------------------------- a network of ours


@pytest.fixture(scope="module")
def effdet(tmp_path_factory: pytest.TempPathFactory) -> tuple[keras.Model, Path]:
    """A thin EfficientDet-D0 and the folder that it was exported to."""
    folder = tmp_path_factory.mktemp("effdet")
    keras.utils.set_random_seed(1)  # how much an image matters depends on it
    with thin_networks():
        model = models.build("effdetd0", 128, 2)
        disturb(model)
        save(folder, model, run_options("--model", "effdetd0"))
        assert exported("--model", folder, "--out", folder / "new" / "out") == 0
    return model, folder / "new" / "out"


def test_a_network_is_exported_for_any_size(effdet: tuple[keras.Model, Path]) -> None:
    model, out = effdet
    assert sorted(path.name for path in out.iterdir()) == ["model.json", "model.onnx", "savedmodel"]
    facts = json.loads((out / "model.json").read_text(encoding="utf-8"))
    names = ("img_size", "um_px", "size_multiple", "class_names", "output", "input_range", "network", "channels")
    assert {name: facts[name] for name in names} == {
        "img_size": 128, "um_px": 0.5, "size_multiple": 128, "class_names": ["normal", "tumor"],
        "output": "probabilities", "input_range": [0, 255], "network": "effdetd0", "channels": 3,
    }  # fmt: skip
    image = noise(3, 128, 128, 3)
    expected = by_hand(model, image)
    assert expected.std() > 0.05
    session = onnxruntime.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    (given,), (taken,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, given.shape) == ("image", "tensor(uint8)", ["batch", "height", "width", 3])
    assert (taken.name, taken.type, taken.shape) == ("probabilities", "tensor(float)", ["batch", "height", "width", 2])
    metadata = session.get_modelmeta().custom_metadata_map
    assert (metadata["um_px"], metadata["network"]) == ("0.5", "effdetd0")
    assert json.loads(metadata["class_names"]) == ["normal", "tumor"]
    np.testing.assert_allclose(session.run(None, {"image": image})[0], expected, atol=1e-5)
    opened = open_model(out / "savedmodel")
    assert (opened.info.img_size, opened.info.um_px, opened.info.class_names) == (128, 0.5, ("normal", "tumor"))
    np.testing.assert_allclose(opened.probabilities(image), expected, atol=1e-5)
    oblong = noise(1, 128, 256, 3)
    loaded = tf.saved_model.load(str(out / "savedmodel"))
    served = loaded.serve(tf.constant(oblong))["probabilities"]
    np.testing.assert_allclose(session.run(None, {"image": oblong})[0], served, atol=1e-5)


def test_the_example_of_the_documentation_runs(effdet: tuple[keras.Model, Path], tmp_path: Path) -> None:
    text = (ROOT / "docs" / "model_files.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(code.strip().splitlines()) <= 12
    from PIL import Image

    image = noise(1, 128, 128, 3)
    Image.fromarray(image[0]).save(tmp_path / "patch.png")
    (tmp_path / "model.onnx").symlink_to(effdet[1] / "model.onnx")
    done = subprocess.run(
        [sys.executable, "-c", code + "\nassert 'tensorflow' not in __import__('sys').modules\n"],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    p_HWK = by_hand(effdet[0], image)[0]
    assert done.stdout.split()[:2] == ["0.5", "um/px"]
    assert float(done.stdout.split()[-1]) == pytest.approx(p_HWK[..., 1].mean(), abs=1e-3)


# ----------------------------------------------------------------------------------------------- models from elsewhere


def test_a_keras_file_of_others_is_exported_to_every_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    red().save(tmp_path / "m.keras")
    arguments = ("--format", "keras", "onnx", "savedmodel", "--opset", "13", *RED)
    assert exported("--model", tmp_path / "m.keras", "--out", tmp_path / "out", *arguments) == 0
    said = capsys.readouterr().out
    assert "input       uint8 (B, H, W, 3), B any, H and W 4 px only" in said
    assert len(re.findall(r"differs from the model by at most \d\.\de[-+]\d\d", said)) == 3
    image = noise(3, 4, 4, 3)
    expected = by_hand(red(), image)
    for name in ("model.keras", "savedmodel"):
        np.testing.assert_allclose(open_model(tmp_path / "out" / name).probabilities(image), expected, atol=1e-6)
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["batch", 4, 4, 3]
    np.testing.assert_allclose(session.run(None, {"image": image})[0], expected, atol=1e-6)


def test_a_saved_model_of_others_becomes_onnx_but_not_keras(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_served(Served(), tmp_path / "served")
    arguments = ("--model", tmp_path / "served", "--img_size", "6", *RED)
    assert exported(*arguments, "--out", tmp_path / "out") == 0
    image = noise(2, 6, 6, 3)
    ours = open_model(tmp_path / "served", ModelOverrides(6, 0.5, None, (-1.0, 1.0))).probabilities(image)
    np.testing.assert_allclose(open_model(tmp_path / "out" / "savedmodel").probabilities(image), ours, atol=1e-6)
    assert exported(*arguments, "--out", tmp_path / "keras", "--format", "keras") == 2
    assert "is a SavedModel, whose layers are unknown; give the run" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "served"]


# ------------------------------------------------------------------------------------------ disagreement, bad input


@pytest.mark.parametrize("wrong", [1.5e-4, float("nan")])
def test_a_file_that_disagrees_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], wrong: float
) -> None:
    red().save(tmp_path / "m.keras")
    right = exporting._opened
    monkeypatch.setattr(exporting, "_opened", lambda path: lambda x: right(path)(x) + np.float32(wrong))
    arguments = ("--model", tmp_path / "m.keras", "--out", tmp_path / "out", "--format", "savedmodel", *RED)
    assert exported(*arguments) == 1
    assert "more than 0.0001; nothing was kept" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["m.keras"]


def test_a_full_disk_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    red().save(tmp_path / "m.keras")

    def full(*_: object) -> bytes:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(exporting, "_as_onnx", full)
    assert exported("--model", tmp_path / "m.keras", "--out", tmp_path / "out", *RED) == 2
    assert "export.py: error: [Errno 28] No space left on device" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["m.keras"]


def test_a_folder_that_cannot_be_written_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    red().save(tmp_path / "m.keras")
    (tmp_path / "file").write_text("", encoding="ascii")
    assert exported("--model", tmp_path / "m.keras", "--out", tmp_path / "file" / "out", *RED) == 2
    assert "export.py: error: [Errno 17] File exists" in capsys.readouterr().err
    assert exported("--model", tmp_path / "m.keras", "--out", tmp_path / "file", *RED) == 2
    assert "exists but is not a folder; choose a new or empty folder" in capsys.readouterr().err


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("kept", encoding="ascii")
    assert exported("--model", tmp_path / "m.keras", "--out", tmp_path / "out") == 2
    assert "is not empty; choose a new or empty folder" in capsys.readouterr().err
    assert (tmp_path / "out" / "mine").read_text(encoding="ascii") == "kept"


def test_what_is_no_model_ends_with_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exported("--model", tmp_path, "--out", tmp_path / "out") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"export.py: error: --model {tmp_path}: contains neither best.npz")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--opset", "12"), "argument --opset: 12 given, must be at least 13 and at most 18"),
        (("--format", "tflite"), "argument --format: invalid choice: 'tflite'"),
        (("--img_size", "0"), "argument --img_size: 0 given, must be at least 1"),
        (("--input_range", "1", "-1"), "--input_range 1 -1: the smaller number first"),
        (("--input_range", "nan", "1"), "--input_range nan 1: the smaller number first"),
        (("--resolution", "0.5", "--context_spacing", "0.5"), "--context_spacing 0.5: the second view is coarser"),
    ],
)
def test_options_are_validated(arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        export_options(["--model", "m", "--out", "o", *arguments])
    assert left.value.code == 2
    assert message in capsys.readouterr().err


def test_the_structured_image_has_white_ramp_and_discs() -> None:
    image = exporting.structured_batch(128, 64, 6)
    assert (image.shape, image.dtype) == ((1, 128, 64, 6), np.uint8)
    assert image[0, 120, 5].tolist() == [255] * 6
    assert image[0, 16, 16].tolist() == [90, 40, 130] * 2
    assert image[0, 0, 0].tolist() == [255] * 6
    assert image[0, 0, 63, 0] < image[0, 0, 32, 0] < 255
