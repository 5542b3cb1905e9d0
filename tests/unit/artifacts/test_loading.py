"""Trained models opened for prediction: from checkpoints, Keras files and SavedModels; refusal of everything else."""

import json
import pickle
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import pytest

import models
from artifacts import metadata
from artifacts.checkpoints import export
from artifacts.loading import open_model
from artifacts.metadata import ModelOverrides
from options.choices import MODELS
from tests.support.hostile import Evil
from tests.support.models_on_disk import by_hand, disturb, noise, run_options, save
from tests.support.network import network
from tests.support.thin import thin_networks


@pytest.fixture
def small_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "build", lambda _, side, classes, channels: network(classes, True, 3, side, channels))


# ------------------------------------------------------------------------------------------------------ checkpoints


@pytest.fixture
def thin() -> Iterator[None]:
    with thin_networks():
        yield


@pytest.mark.usefixtures("thin")
def test_a_run_is_opened_at_its_own_and_at_another_size(tmp_path: Path) -> None:
    keras.utils.set_random_seed(1)  # how much an image matters depends on it
    model = models.build("effdetd0", 128, 2)
    disturb(model)
    save(tmp_path, model, run_options("--model", "effdetd0", "--mixed_precision", "bfloat16"))
    trained = open_model(tmp_path)
    assert (trained.info.img_size, trained.info.um_px, trained.info.context_um_px, trained.info.channels) == (
        128,
        0.5,
        None,
        3,
    )
    assert (trained.info.classes, trained.info.class_names, trained.info.precision) == (
        2,
        ("normal", "tumor"),
        "bfloat16",
    )
    assert (trained.info.network, trained.info.images) == ("effdetd0", 24)
    assert trained.path == tmp_path / "checkpoints" / "best.npz"
    image = noise(3, 128, 128, 3)
    expected = by_hand(model, image)
    assert expected.std() > 0.05
    p_BHWK = trained.probabilities(image)
    assert p_BHWK.dtype == np.float32
    np.testing.assert_allclose(p_BHWK, expected, atol=2e-6)
    np.testing.assert_allclose(trained.probabilities(image[1:2]), expected[1:2], atol=2e-6)
    assert trained._compiled.experimental_get_tracing_count() == 1
    wide = open_model(tmp_path / "checkpoints" / "best.npz", ModelOverrides(img_size=256))
    assert wide.info.img_size == 256
    free = models.build("effdetd0", None, 2)
    free.set_weights(model.get_weights())
    image = noise(1, 256, 256, 3)
    np.testing.assert_allclose(wide.probabilities(image), by_hand(free, image), atol=2e-6)


@pytest.mark.usefixtures("thin")
@pytest.mark.parametrize("name", MODELS)
def test_weights_do_not_depend_on_the_size(name: str) -> None:
    shapes = [[(v.path, v.shape) for v in models.build(name, size, 3).weights] for size in (128, 384)]
    assert len(shapes[0]) > 100
    assert shapes[0] == shapes[1]


def test_a_network_of_one_size_cannot_be_built_without() -> None:
    with pytest.raises(ValueError, match="deeplab needs an img_size; effdetd0, effdetd4 can be built without"):
        models.build("deeplab", None, 2)


def test_a_size_that_no_network_takes_is_refused(tmp_path: Path) -> None:
    save(tmp_path, network(), run_options())
    with pytest.raises(
        ValueError, match="img_size 200 is not a positive multiple of 128; the nearest allowed: 128, 256"
    ):
        open_model(tmp_path, ModelOverrides(img_size=200))


@pytest.mark.usefixtures("small_build")
def test_without_a_best_the_newest_readable_is_taken_and_the_rest_is_said(tmp_path: Path) -> None:
    model = network(norm=True, side=128)
    for images in (8, 16, 24):
        model.get_layer("first").set_weights(
            [w + images for w in network(norm=True, side=128).get_layer("first").get_weights()]
        )
        save(tmp_path, model, run_options(), f"images-{images:09d}.npz")
    newest = tmp_path / "checkpoints" / "images-000000024.npz"
    newest.write_bytes(newest.read_bytes()[:-200])
    trained = open_model(tmp_path)
    assert trained.path.name == "images-000000016.npz"
    assert len(trained.notes) == 1
    assert "images-000000024.npz: damaged checkpoint" in trained.notes[0]
    model.get_layer("first").set_weights(
        [w + 16 for w in network(norm=True, side=128).get_layer("first").get_weights()]
    )
    image = noise(1, 128, 128, 3)
    np.testing.assert_allclose(trained.probabilities(image), by_hand(model, image), atol=2e-6)


def test_two_models_with_dropout_can_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keras counts the random generators of a process: the second has another name."""

    def build(_: str, side: int, classes: int, channels: int) -> keras.Model:
        small = network(classes, True, 3, side, channels)
        return keras.Model(small.input, keras.layers.Dropout(0.5, seed=1, name="drop")(small.output))

    model = build("", 128, 2, 3)
    assert any("seed_generator" in v.path for v in model.variables)
    save(tmp_path, model, run_options())
    monkeypatch.setattr(models, "build", build)
    image = noise(1, 128, 128, 3)
    for _ in range(2):
        np.testing.assert_allclose(open_model(tmp_path).probabilities(image), by_hand(model, image), atol=2e-6)


@pytest.mark.usefixtures("small_build")
def test_a_damaged_best_is_not_replaced_by_another(tmp_path: Path) -> None:
    save(tmp_path, network(norm=True, side=128), run_options(), "images-000000008.npz")
    best = save(tmp_path, network(norm=True, side=128), run_options())
    best.write_bytes(best.read_bytes()[:-200])
    with pytest.raises(
        ValueError, match=r"best\.npz: damaged checkpoint .* Choose another checkpoint of .* with --model"
    ):
        open_model(tmp_path)


@pytest.mark.usefixtures("small_build")
def test_a_context_view_and_a_label_map_travel_with_a_checkpoint(tmp_path: Path) -> None:
    model = network(4, norm=True, side=128, channels=6)
    words = ("--context_spacing", "2", "--label_map", "Gland:1", "Stroma:2", "Vessel:2", "--classes", "4")
    trained = open_model(save(tmp_path, model, run_options(*words)))
    assert (trained.info.um_px, trained.info.context_um_px, trained.info.channels, trained.info.classes) == (
        0.5,
        2.0,
        6,
        4,
    )
    assert trained.info.class_names == ("background", "gland", "stroma+vessel", "class 3")
    image = noise(2, 128, 128, 6)
    np.testing.assert_allclose(trained.probabilities(image), by_hand(model, image), atol=2e-6)
    with pytest.raises(ValueError, match=r"uint8 \(2, 128, 128, 3\) given, .* takes uint8 \(B, \*\(128, 128, 6\)\)"):
        trained.probabilities(image[..., :3])
    with pytest.raises(ValueError, match=r"float32 .* given"):
        trained.probabilities(image.astype(np.float32))
    with pytest.raises(ValueError, match=r"--context_spacing 4: .* was trained at 2 um/px; omit the option"):
        open_model(tmp_path, ModelOverrides(context_um_px=4.0))


def test_pretrained_weights_leave_the_network_open_which_the_variables_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(name: str, side: int, classes: int, channels: int) -> keras.Model:
        return network(classes, name == "effdetd4", 3, side, channels)

    monkeypatch.setattr(models, "build", build)
    options = run_options("--weights_path", "pretrained.h5")
    assert options["networks"] == ["effdetd0", "effdetd4", "deeplab"]
    save(tmp_path, network(norm=True, side=128), options)
    assert any("norm" in v.path for v in open_model(tmp_path).source.variables)
    save(tmp_path, network(5, norm=True, side=128), options)
    with pytest.raises(
        ValueError, match=r"do not fit its options and effdetd0, effdetd4, deeplab: .* variables differ"
    ):
        open_model(tmp_path)


def no_state(path: Path) -> None:
    np.savez(path, weights=np.zeros(3))


def no_options(path: Path) -> None:
    np.savez(path, state=np.frombuffer(json.dumps({"images": 3, "options": {"networks": []}}).encode(), np.uint8))


def list_of_options(path: Path) -> None:
    np.savez(path, state=np.frombuffer(b"[1, 2]", np.uint8))


def many_classes(path: Path) -> None:
    state = {"images": 3, "options": run_options() | {"classes": 10**12}}
    np.savez(path, state=np.frombuffer(json.dumps(state).encode(), np.uint8))


def a_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Evil(path.parent)))


def a_text(path: Path) -> None:
    path.write_text("not a model", encoding="ascii")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (no_state, "not a checkpoint of this program"),
        (no_options, "not a checkpoint of train.py"),
        (list_of_options, "not a checkpoint of train.py"),
        (many_classes, "classes is '1000000000000'; must be a whole number from 2 to 255"),
        (a_pickle, "holds pickled objects, which could run any program: not read"),
        (a_text, "pickled objects|damaged checkpoint"),
    ],
)
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, write, message: str) -> None:
    write(tmp_path / "x.npz")
    with pytest.raises(ValueError, match=message):
        open_model(tmp_path / "x.npz")
    assert not (tmp_path / "hacked").exists()


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    kinds = "a run folder .* a checkpoint .npz, a .keras file, or a SavedModel folder is needed"
    with pytest.raises(ValueError, match=f"no such file or folder; {kinds}"):
        open_model(tmp_path / "x")
    with pytest.raises(ValueError, match=f"contains neither best.npz nor images-.*.npz nor saved_model.pb. {kinds}"):
        open_model(tmp_path)
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(Evil(tmp_path)))
    with pytest.raises(ValueError, match=f"model.pkl: {kinds}"):
        open_model(tmp_path / "model.pkl")
    assert not (tmp_path / "hacked").exists()


# -------------------------------------------------------------------------------------- models of train.py, exported


def test_exported_models_of_a_run_know_their_facts(tmp_path: Path) -> None:
    model = network(norm=True, side=128)
    options = run_options("--label_map", "tumor:1", "--resolution_tolerance", "0.05")
    facts = metadata.of_run(options, model.name, 24)
    export(model, tmp_path, facts.as_json())
    assert {path.name for path in tmp_path.iterdir()} == {"final.keras", "final.json", "final_savedmodel"}
    image = noise(2, 128, 128, 3)
    for name in ("final.keras", "final_savedmodel"):
        trained = open_model(tmp_path / name)
        assert (trained.info.img_size, trained.info.um_px, trained.info.class_names) == (128, 0.5, ("normal", "tumor"))
        assert trained.info.um_px_tolerance == 0.05
        assert (trained.info.output, trained.info.input_range, trained.info.images) == ("logits", (-1.0, 1.0), 24)
        np.testing.assert_allclose(trained.probabilities(image), by_hand(model, image), atol=2e-6)
        with pytest.raises(ValueError, match="takes images of 128 px, not of 256 px"):
            open_model(tmp_path / name, ModelOverrides(img_size=256))
        with pytest.raises(ValueError, match=r"--resolution 1: .* was trained at 0.5 um/px; omit the option"):
            open_model(tmp_path / name, ModelOverrides(um_px=1.0))
        assert open_model(tmp_path / name, ModelOverrides(um_px=0.5)).info.um_px == 0.5


def test_a_run_of_before_the_tolerance_has_none() -> None:
    options = run_options()
    del options["resolution_tolerance"]
    assert metadata.of_run(options, "effdetd0", 8).um_px_tolerance == 0.0


def test_a_keras_file_of_a_network_of_ours_is_opened_at_another_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(name: str, side: int, classes: int, channels: int) -> keras.Model:
        small = network(classes, False, 4, side, channels)
        return keras.Model(small.input, small.output, name=name)

    monkeypatch.setattr(models, "build", build)
    model = build("effdetd0", 128, 2, 3)
    model.set_weights([w + 0.1 for w in model.get_weights()])
    model.save(tmp_path / "final.keras")
    metadata.write(metadata.of_run(run_options(), "effdetd0", 8), tmp_path / "final.json")
    trained = open_model(tmp_path / "final.keras", ModelOverrides(img_size=256))
    wide = build("effdetd0", 256, 2, 3)
    wide.set_weights(model.get_weights())
    image = noise(1, 256, 256, 3)
    np.testing.assert_allclose(trained.probabilities(image), by_hand(wide, image), atol=2e-6)


@pytest.mark.parametrize(
    ("label_map", "names"),
    [
        ({"_0": 1}, ("normal", "tumor")),
        (None, ("normal", "tumor")),
        ({"tumour": 1}, ("normal", "tumour")),  # old spelling
    ],
)
def test_models_written_before_0_1_0_have_class_names_of_today(label_map: dict | None, names: tuple[str, ...]) -> None:
    stored = metadata.of_run(run_options(), "effdetd0", 8).as_json()
    old = {"class_names": ["normal", "tumour"], "label_map": label_map}  # old spelling
    read = metadata.from_json(stored | old)
    assert read.class_names == names


@pytest.mark.parametrize(
    ("label_map", "classes", "expected"),
    [
        ({"_0": 1, "_1": 1, "_2": 0}, 2, ["normal", "tumor"]),
        ({"metastases": 1}, 2, ["normal", "tumor"]),
        ({"_0": 0, "_2": 1}, 2, ["_0", "_2"]),
        ({"dcis": 1, "tumor": 2, "artefact": 255}, 3, ["background", "dcis", "tumor"]),
    ],
)
def test_class_names_are_never_those_of_other_truths(label_map: dict, classes: int, expected: list[str]) -> None:
    assert metadata.class_names(label_map, classes) == expected
    assert metadata.class_count(label_map, None) == classes
