"""EfficientDet from the authors' checkpoints: activations against sums over variables with the published names."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import models
from models import automl
from models.weights import MISSING_IN_FILE, LoadReport, MisfitError, build_with_weights, load_weights
from options.choices import MODELS
from tests.support.efficientdet_reference import Detector
from tests.support.naive import difference

SIZE = 128
# Nodes without counterpart in the detector: levels 1 and 2, level 3 on the way up.
OURS_ALONE = ("td2", "td1", "bu2", "bu3")
OTHERS = {
    "global_step": np.int64(300_000),
    "learning_rate": np.float32(0.08),
    "efficientnet-b0/head/conv2d/kernel": np.ones((1, 1, 2, 3), np.float32),
    "class_net/class-0/depthwise_kernel": np.ones((3, 3, 64, 1), np.float32),
    "class_net/class-0-bn-3/gamma": np.ones(64, np.float32),
    "class_net/class-0-bn-3/gamma/ExponentialMovingAverage": np.ones(64, np.float32),
    "box_net/box-predict/bias": np.ones(36, np.float32),
    "fpn_cells/cell_3/fnode0/WSM": np.float32(1),
    "efficientnet-b0/stem/conv2d/kernel/Momentum": np.ones((3, 3, 3, 32), np.float32),
    "resample_p6/bn/gamma/Momentum": np.ones(64, np.float32),
}
OTHERS_LEFT = ["box_net", "class_net", "efficientnet-b0/head", "fpn_cells/cell_3", "global_step", "learning_rate"]


def write(prefix: Path, variables: dict[str, np.ndarray]) -> None:
    """A checkpoint as TensorFlow 1's Saver writes it."""
    tensors = [tf.constant(value) for value in variables.values()]
    tf.raw_ops.SaveV2(
        prefix=str(prefix), tensor_names=list(variables), shape_and_slices=[""] * len(tensors), tensors=tensors
    )


def averaged(variables: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The variables as averages, next to others' values that are not the evaluated ones."""
    averages = {f"{name}/ExponentialMovingAverage": value for name, value in variables.items()}
    return {name: value + 1 for name, value in variables.items()} | averages


def image(rng_seed: int = 4) -> np.ndarray:
    return np.random.default_rng(rng_seed).integers(0, 256, (SIZE, SIZE, 3)).astype(np.float64)


class Loaded:
    """D0 with a checkpoint's weights, and the reference that wrote it, both run on one image."""

    def __init__(self, folder: Path) -> None:
        self.detector = Detector("b0", 64)
        self.levels = self.detector.features(image())
        self.levels |= self.detector.coarser(self.levels[5])
        self.theirs = [self.detector.cell(0, self.levels)]
        for number in (1, 2):
            outputs = dict(zip((3, 4, 5, 6, 7), self.theirs[-1][8:], strict=True))
            self.theirs.append(self.detector.cell(number, outputs))
        self.prefix = folder / "model"
        write(self.prefix, averaged(self.detector.variables) | OTHERS)
        keras.utils.set_random_seed(1)
        self.model = models.build("effdetd0", SIZE, 2)
        self.report: LoadReport = load_weights(self.model, self.prefix)
        names = [layer.name for layer in self.model.layers if layer.name.endswith(("_bn", "_add", "_maxpool"))]
        probe = keras.Model(self.model.input, [self.model.get_layer(name).output for name in names])
        outputs = probe((image()[None] / 127.5 - 1).astype(np.float32), training=False)
        self.ours = {name: np.asarray(output[0], np.float64) for name, output in zip(names, outputs, strict=True)}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory) -> Iterator[Loaded]:
    yield Loaded(tmp_path_factory.mktemp("automl"))
    keras.backend.clear_session()


def test_all_that_has_a_counterpart_is_loaded_and_the_rest_is_named(loaded: Loaded) -> None:
    with_weights = [layer.name for layer in loaded.model.layers if layer.weights]
    new = [f"fpn_cell{cell}_{node}_" for cell in range(3) for node in OURS_ALONE] + ["head_", "logits"]
    expected = [name for name in with_weights if not name.startswith(tuple(new))]
    assert loaded.report.loaded == expected
    # 128 layers of the backbone, 2 of resample_p6, 5 lateral pairs, 8 nodes of 3 layers in 3 cells.
    assert len(expected) == 128 + 2 + 10 + 72
    skipped = dict(loaded.report.skipped)
    assert len(skipped) == len(loaded.report.skipped)
    assert [name for name, reason in skipped.items() if reason == MISSING_IN_FILE] == [
        name for name in with_weights if name not in expected
    ]
    assert [name for name, reason in skipped.items() if reason == "the model has no such part"] == OTHERS_LEFT
    assert skipped["*/Momentum"] == "state of the optimizer, 2 variables"
    assert len(skipped) == len(with_weights) - len(expected) + len(OTHERS_LEFT) + 1


def test_every_variable_of_the_detector_is_taken(loaded: Loaded) -> None:
    taken = [name for arrays in automl.table("effdetd0").values() for names in arrays for name in names]
    assert sorted(taken) == sorted(loaded.detector.variables)


def test_backbone_activations(loaded: Loaded) -> None:
    names = ["block1a_project_bn", "block2b_add", "block3b_add", "block5c_add", "block7a_project_bn"]
    got = [difference(loaded.ours[name], loaded.levels[level]) for level, name in enumerate(names, start=1)]
    assert max(got) < 1e-4, got


def test_coarser_levels(loaded: Loaded) -> None:
    assert difference(loaded.ours["resample_p6_maxpool"], loaded.levels[6]) < 1e-4
    assert difference(loaded.ours["resample_p7_maxpool"], loaded.levels[7]) < 1e-4


def test_top_down_nodes_of_the_first_cell_are_the_detectors(loaded: Loaded) -> None:
    names = [f"fpn_cell0_td{level}_bn" for level in (6, 5, 4, 3)]
    got = [difference(loaded.ours[name], loaded.theirs[0][5 + index]) for index, name in enumerate(names)]
    assert max(got) < 1e-4, got


@pytest.mark.parametrize("cell", [0, 1, 2])
def test_nodes_are_the_detectors_given_our_level_3_from_below(loaded: Loaded, cell: int) -> None:
    inputs = loaded.levels
    if cell:
        inputs = {level: loaded.ours[f"fpn_cell{cell - 1}_bu{level}_bn"] for level in (3, 4, 5, 6, 7)}
    level3_up = loaded.ours[f"fpn_cell{cell}_bu3_bn"]
    nodes = loaded.detector.cell(cell, inputs, level3_up)[5:]
    names = ["td6", "td5", "td4", "td3", "bu4", "bu5", "bu6", "bu7"]
    got = [difference(loaded.ours[f"fpn_cell{cell}_{name}_bn"], node) for name, node in zip(names, nodes, strict=True)]
    assert max(got) < 1e-4, got


def test_without_averages_the_variables_themselves_are_taken(loaded: Loaded, tmp_path: Path) -> None:
    write(tmp_path / "plain", loaded.detector.variables)
    model = models.build("effdetd0", SIZE, 2)
    report = load_weights(model, tmp_path / "plain")
    assert report.loaded == loaded.report.loaded
    assert {reason for _, reason in report.skipped} == {MISSING_IN_FILE}
    kernel = loaded.detector.variables["efficientnet-b0/stem/conv2d/kernel"]
    np.testing.assert_array_equal(model.get_layer("stem_conv").get_weights()[0], kernel)


def test_d4_from_its_checkpoint(tmp_path: Path) -> None:
    detector = Detector("b4", 224)
    levels = detector.features(image())
    levels |= detector.coarser(levels[5])
    theirs = detector.cell(0, levels)
    write(tmp_path / "model.ckpt-123", averaged(detector.variables) | {"fpn_cells/cell_6/fnode0/WSM": np.float32(1)})
    # Without --model the checkpoint says which network it is of; D0 would take its fusion weights.
    model, report = build_with_weights(MODELS, SIZE, 2, tmp_path)
    assert model.name == "effdetd4"
    assert [name for name, _ in report.skipped if "cell_" in name] == ["fpn_cells/cell_6"]
    names = ["block1b_add", "block2d_add", "block3d_add", "block5f_add", "block7b_add", "fpn_cell0_td3_bn"]
    probe = keras.Model(model.input, [model.get_layer(name).output for name in names])
    outputs = probe((image()[None] / 127.5 - 1).astype(np.float32), training=False)
    expected = [*(levels[level] for level in (1, 2, 3, 4, 5)), theirs[8]]
    got = [difference(ours[0], reference) for ours, reference in zip(outputs, expected, strict=True)]
    assert max(got) < 1e-4, got


@pytest.fixture
def small(tmp_path: Path) -> keras.Model:
    """A model of D0's name with two of its layers, and a checkpoint for it at `model`."""
    kernel = np.arange(864, dtype=np.float32).reshape(3, 3, 3, 32)
    norm = {
        f"efficientnet-b0/stem/tpu_batch_normalization/{name}": np.full(32, value, np.float32)
        for name, value in {"gamma": 1.5, "beta": -2.0, "moving_mean": 3.0, "moving_variance": 0.5}.items()
    }
    write(tmp_path / "model", {"efficientnet-b0/stem/conv2d/kernel": kernel} | norm)
    return stem()


def stem(channels: int = 3) -> keras.Model:
    pixels = keras.Input((4, 6, channels))
    x = keras.layers.Conv2D(32, 3, use_bias=False, name="stem_conv")(pixels)
    return keras.Model(pixels, keras.layers.BatchNormalization(name="stem_bn")(x), name="effdetd0")


@pytest.mark.parametrize("given", ["", "model", "model.index", "model.data-00000-of-00001"])
def test_a_checkpoint_may_be_named_by_folder_prefix_or_file(small: keras.Model, given: str, tmp_path: Path) -> None:
    assert load_weights(small, tmp_path / given) == LoadReport(["stem_conv", "stem_bn"], [])
    assert [array[0] for array in small.get_layer("stem_bn").get_weights()] == [1.5, -2.0, 3.0, 0.5]
    assert small.get_layer("stem_conv").get_weights()[0][2, 2, 2, 31] == 863


def test_the_newest_of_several_is_the_one_in_the_file_checkpoint(small: keras.Model, tmp_path: Path) -> None:
    write(tmp_path / "model.ckpt-9", {"efficientnet-b0/stem/conv2d/kernel": np.full((3, 3, 3, 32), 9.0, np.float32)})
    with pytest.raises(ValueError, match=r"found: model\.ckpt-9\.index, model\.index\. Name the file itself"):
        load_weights(small, tmp_path)
    elsewhere = 'model_checkpoint_path: "/gone/model.ckpt-9"\nall_model_checkpoint_paths: "/gone/model"\n'
    (tmp_path / "checkpoint").write_text(elsewhere)
    assert load_weights(small, tmp_path).loaded == ["stem_conv"]
    assert small.get_layer("stem_conv").get_weights()[0].max() == 9
    stem().save(tmp_path / "other.keras")
    with pytest.raises(ValueError, match=r"found: other\.keras, model\.ckpt-9\.index"):
        load_weights(small, tmp_path)


def test_further_views_start_at_zero(small: keras.Model, tmp_path: Path) -> None:
    del small
    model = stem(channels=6)
    load_weights(model, tmp_path)
    kernel = model.get_layer("stem_conv").get_weights()[0]
    assert (kernel[2, 2, 2, 31], np.abs(kernel[:, :, 3:]).max()) == (863, 0)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.98])
@pytest.mark.parametrize("file_name", ["model.index", "model.data-00000-of-00001"])
def test_truncated_checkpoint(small: keras.Model, file_name: str, share: float, tmp_path: Path) -> None:
    before = small.get_weights()
    whole = (tmp_path / file_name).read_bytes()
    (tmp_path / file_name).write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ValueError, match=r"model\.index cannot be read; the file is truncated or no TensorFlow checkp"):
        load_weights(small, tmp_path)
    assert [np.array_equal(a, b) for a, b in zip(small.get_weights(), before, strict=True)] == [True] * 5


@pytest.mark.parametrize("damage", ["changed", "gone", "text"])
def test_damaged_checkpoint(small: keras.Model, damage: str, tmp_path: Path) -> None:
    data = tmp_path / "model.data-00000-of-00001"
    if damage == "changed":
        values = bytearray(data.read_bytes())
        values[200] ^= 1
        data.write_bytes(values)
    elif damage == "gone":
        data.unlink()
    else:
        (tmp_path / "model.index").write_text("not a checkpoint " * 50)
    with pytest.raises(ValueError, match=r"model\.index cannot be read"):
        load_weights(small, tmp_path / "model.index")


def test_foreign_checkpoints_are_refused(small: keras.Model, tmp_path: Path) -> None:
    tf.train.Checkpoint(step=tf.Variable(1.0)).write(str(tmp_path / "objects"))
    with pytest.raises(MisfitError, match=r"objects\.index do not fit model effdetd0.*Layers in the file: .*step"):
        load_weights(small, tmp_path / "objects")
    # Another variant: its fusion weights would fit by their shapes.
    other = {"efficientnet-b1/stem/conv2d/kernel": np.ones((3, 3, 3, 32), np.float32)}
    fusion = {f"fpn_cells/cell_0/fnode0/WSM{end}": np.float32(1) for end in ("", "_1")}
    write(tmp_path / "d1", other | fusion)
    with pytest.raises(MisfitError, match="Layers in the file: efficientnet-b1, fpn_cells; in the model: stem_conv"):
        load_weights(small, tmp_path / "d1")
    for layer in ("net", "deeplab"):
        with pytest.raises(MisfitError, match="Layers in the file: efficientnet-b0"):
            load_weights(keras.Model(small.inputs, small.outputs, name=layer), tmp_path / "model")


def test_incomplete_layers_and_words_are_skipped(small: keras.Model, tmp_path: Path) -> None:
    kernel = np.ones((3, 3, 3, 32), np.float32)
    scope = "efficientnet-b0/stem/tpu_batch_normalization"
    norm = {f"{scope}/{name}": np.ones(32, np.float32) for name in ("gamma", "beta", "moving_mean")}
    words = {f"{scope}/moving_variance": np.array([b"x"] * 32)}
    write(tmp_path / "part", {"efficientnet-b0/stem/conv2d/kernel": kernel} | norm | words)
    report = load_weights(small, tmp_path / "part")
    assert report == LoadReport(["stem_conv"], [("stem_bn", "shapes 32 32 32 in the file, 32 32 32 32 in the model")])


def test_a_moved_checkpoint_needs_no_meta_file(small: keras.Model, tmp_path: Path) -> None:
    folder = tmp_path / "moved"
    folder.mkdir()
    for name in ("model.index", "model.data-00000-of-00001"):
        shutil.move(tmp_path / name, folder / name)
    assert load_weights(small, folder / "model").loaded == ["stem_conv", "stem_bn"]
