"""Slides predicted as one image: equal to the network on the whole image, whatever the tiles."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import models
from artifacts.loading import LoadedModel, open_model
from artifacts.metadata import ModelOverrides
from inference.plan import PlannedSlide, plan_slide
from inference.whole import EIGHTFOLD, INFO, Region, WholeCells, region_of
from models.layers import normalized_by
from samplers.index import Places
from segmentation import streamed_prediction
from segmentation.streamed_prediction import StreamedNetwork, StreamOptions
from slides.reader import Slide, SlideError
from streaming.storage import Storage
from tests.support.models_on_disk import run_options, save
from tests.support.streams import randomize
from tests.support.thin import thin_networks
from tests.support.tiny import write_slide

SIZE_XY = (301, 203)
HW = (256, 384)  # rounded up to whole 128 px


@pytest.fixture
def slide(tmp_path: Path) -> Slide:
    write_slide(tmp_path / "slide.tif", SIZE_XY, um_px=0.5)
    return Slide(tmp_path / "slide.tif")


def trained(folder: Path, name: str) -> LoadedModel:
    """A run with a thin network of random weights, made for windows of 128 px."""
    model = models.build(name, 128, 2)
    randomize(model)
    # Logits of single px that differ by about 1, so that probabilities tell them apart.
    last = model.get_layer("logits")
    logits_HWK = model(np.random.default_rng(0).uniform(-1, 1, (1, 128, 128, 3)), training=False)[0].numpy()
    kernel, _ = last.get_weights()
    scale = 1 / np.ptp(logits_HWK, axis=(0, 1)).max()
    last.set_weights([kernel * scale, (last.get_weights()[1] - logits_HWK.mean((0, 1))) * scale])
    save(folder, model, run_options("--model", name))
    return open_model(folder)


def gated(folder: Path) -> LoadedModel:
    """A small network from elsewhere for images of any size; its gate is a mean over the image."""
    image = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(6, 3, 2, "same", activation="tanh")(image)
    mean = keras.layers.GlobalAveragePooling2D(keepdims=True)(x)
    x = keras.layers.Multiply()([x, keras.layers.Conv2D(6, 1, activation="sigmoid")(mean)])
    model = keras.Model(image, keras.layers.Conv2DTranspose(2, 4, 2, "same")(x), name="gated")
    randomize(model)
    folder.mkdir()
    model.save(folder / "gated.keras")
    given = ModelOverrides(img_size=128, um_px=0.5, input_range=(-1.0, 1.0))
    return open_model(folder / "gated.keras", given)


def planned_for(slide: Slide, tissue_only: bool = False) -> PlannedSlide:
    return plan_slide(slide.path, None, 128, 0.5, 0.25, 7, tissue_only, 2)


def probability(
    loaded: LoadedModel, slide: Slide, planned: PlannedSlide, folder: Path, tile: int, **how: Any
) -> np.ndarray:
    """The map of tumor, bytes."""
    done: list[int] = []
    network = StreamedNetwork(loaded, StreamOptions(tile, **how))
    network.predict(slide, planned, folder, None, done.append)
    assert sum(done) == network.mpx(planned) == 1
    cells = WholeCells(folder, planned.grid)
    assert (cells.infos[0]["windows"] > 1) == (tile < 256)
    map_HW = cells.tile(0, 0, 512, "probability")
    assert isinstance(map_HW, np.ndarray)
    return map_HW


def image_of(slide: Slide) -> Any:
    """The whole slide (1, *HW, 3) as networks take it, white beyond its border."""
    image_HWC = np.full((*HW, 3), 255, np.uint8)
    image_HWC[: SIZE_XY[1], : SIZE_XY[0]] = slide.read_level(0, (0, 0), SIZE_XY[::-1])
    return tf.cast(image_HWC[None], tf.float32) * np.float32(2 / 255.0) - 1.0


def tumor(model: Any, image_BHWC: Any) -> Any:
    """Probability of tumor of every px (H, W), times 255."""
    return tf.nn.softmax(model(image_BHWC, training=False))[0, ..., 1].numpy() * 255


@pytest.mark.kind("streamed prediction")
def test_the_map_is_that_of_the_whole_image_for_any_tile(slide: Slide, tmp_path: Path) -> None:
    loaded = gated(tmp_path / "model")
    p_HW = tumor(loaded.source, image_of(slide))[:203, :301]
    assert p_HW.std() > 10
    maps = [probability(loaded, slide, planned_for(slide), tmp_path / str(tile), tile) for tile in (60, 131, 4096)]
    for map_HW in maps:
        assert map_HW.shape == p_HW.shape
        # Half a step of rounding to bytes, and nothing else.
        assert np.abs(map_HW - p_HW).max() < 0.5 + 1e-2
        assert np.abs(map_HW.astype(int) - maps[0]).max() <= 1


@pytest.mark.slow
@pytest.mark.kind("streamed prediction")
@pytest.mark.parametrize("name", ["effdetd0", "deeplab"])
def test_the_map_of_our_networks_is_that_of_the_whole_image(name: str, slide: Slide, tmp_path: Path) -> None:
    with thin_networks():
        loaded = trained(tmp_path / "run", name)
        map_HW = probability(loaded, slide, planned_for(slide), tmp_path / "s", 160)
        model = models.build(name, HW, 2)
        model.set_weights(loaded.source.get_weights())
    p_HW = tumor(model, image_of(slide))[:203, :301]
    assert p_HW.std() > 3
    assert np.abs(map_HW - p_HW).max() < 0.5 + 1e-2


def test_eight_orientations_are_those_of_the_whole_image(slide: Slide, tmp_path: Path) -> None:
    loaded = gated(tmp_path / "model")
    map_HW = probability(loaded, slide, planned_for(slide), tmp_path / "s", 100, eightfold=True)
    mean_HW = np.zeros(HW)
    for turns, flipped in EIGHTFOLD:
        seen = np.rot90(image_of(slide)[0], turns)
        p_HW = tumor(loaded.source, (seen[:, ::-1] if flipped else seen)[None])
        mean_HW += np.rot90(p_HW[:, ::-1] if flipped else p_HW, -turns) / 8
    assert np.abs(map_HW - mean_HW[:203, :301]).max() < 0.5 + 1e-2
    plain_HW = probability(loaded, slide, planned_for(slide), tmp_path / "p", 100)
    assert np.abs(map_HW.astype(int) - plain_HW).max() > 5


def test_off_the_tissue_the_map_is_empty_and_on_it_as_of_the_region(slide: Slide, tmp_path: Path) -> None:
    tissue_HW = np.zeros((21, 31), bool)
    tissue_HW[15:17, 24:26] = True  # px 150 to 170 and 240 to 260
    planned = replace(planned_for(slide), tissue=Places(tissue_HW), cell_l0=10)
    loaded = gated(tmp_path / "model")
    # Half a window of 128 px around the tissue, and then to whole 128 px.
    assert region_of(planned, 64) == Region((0, 256), (128, 384))
    map_HW = probability(loaded, slide, planned, tmp_path / "s", 100)
    expected_HW = np.zeros(SIZE_XY[::-1])
    expected_HW[150:170, 240:260] = tumor(loaded.source, image_of(slide)[:, :, 128:])[150:170, 112:132]
    assert np.abs(map_HW - expected_HW).max() < 0.5 + 1e-2
    assert map_HW[150:170, 240:260].min() > 0


def test_large_maps_are_files_and_a_full_disk_is_said_first(slide: Slide, tmp_path: Path, monkeypatch) -> None:
    loaded, planned = gated(tmp_path / "model"), planned_for(slide)
    in_memory = probability(loaded, slide, planned, tmp_path / "a", 100)
    monkeypatch.setattr(streamed_prediction, "IN_MEMORY", 1000)
    made: list[Path | None] = []
    zeros = Storage.zeros

    def noted(self: Storage, shape: Any, dtype: str) -> Any:
        made.append(self.scratch)
        return zeros(self, shape, dtype)

    monkeypatch.setattr(Storage, "zeros", noted)
    in_files = probability(loaded, slide, planned, tmp_path / "b", 100)
    assert made == [tmp_path / "b"]
    np.testing.assert_array_equal(in_files, in_memory)
    network = StreamedNetwork(loaded, StreamOptions(100))
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=2**10))
    # 128 x 192 cells of 6 channels
    with pytest.raises(SlideError, match=r"c: 0\.6 MiB are needed for maps between the segments of the network, 0\.0"):
        network.predict(slide, planned, tmp_path / "c", None, lambda _: None)


def test_networks_that_cannot_be_streamed_are_refused_in_one_line(tmp_path: Path) -> None:
    given = ModelOverrides(img_size=64, um_px=0.5, input_range=(-1.0, 1.0))
    image = keras.Input((64, 64, 3))
    keras.Model(image, keras.layers.Conv2D(2, 1)(image), name="mine").save(tmp_path / "fixed.keras")
    with pytest.raises(ValueError, match=r"fixed.keras was built for images of 64 x 64 px only: give the run .*Input"):
        StreamedNetwork(open_model(tmp_path / "fixed.keras", given), StreamOptions(256))
    free = keras.Input((None, None, 3))
    keras.Model(free, keras.layers.Conv2D(2, 1)(free), name="mine").save(tmp_path / "free.keras")
    StreamedNetwork(open_model(tmp_path / "free.keras", given), StreamOptions(256))
    with thin_networks():
        with normalized_by("group"):
            model = models.build("effdetd0", 128, 2)
        save(tmp_path / "group", model, run_options("--model", "effdetd0", "--norm", "group"))
        loaded = open_model(tmp_path / "group")
        with pytest.raises(ValueError, match=r"--stream 256: .*GroupNormalization.* statistics are those of the whole"):
            StreamedNetwork(loaded, StreamOptions(256))
        model = models.build("effdetd0", 128, 2, 6)
        save(tmp_path / "context", model, run_options("--model", "effdetd0", "--context_spacing", "2"))
        loaded = open_model(tmp_path / "context")
        with pytest.raises(ValueError, match=r"--stream: the model takes a second, coarser view .* omit --stream"):
            StreamedNetwork(loaded, StreamOptions(256))
        loaded = trained(tmp_path / "deeplab", "deeplab")
        with pytest.raises(ValueError, match=r"--stream 32: tile 32 is too small: .* the smallest tile that works is"):
            StreamedNetwork(loaded, StreamOptions(32))


def test_a_request_to_stop_leaves_no_complete_maps(slide: Slide, tmp_path: Path) -> None:
    network = StreamedNetwork(gated(tmp_path / "model"), StreamOptions(100))

    def stop(mpx: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        network.predict(slide, planned_for(slide), tmp_path / "s", None, stop)
    assert not (tmp_path / "s" / INFO).exists()
