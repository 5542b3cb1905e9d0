"""predict.py --stream as a user starts it: on one and two ranks, after a kill, and where it is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tifffile

from tests.support.paths import ROOT
from tests.support.streams import randomize
from tests.support.tiny import TinySet, environment, run_train
from tests.support.warm import warm

pytestmark = pytest.mark.xdist_group("predict")
SCRIPT = str(ROOT / "predict.py")
MODEL = ("--img_size", "128", "--resolution", "2", "--input_range", "-1", "1")
FILES = {
    "probability.tif", "label.tif", "polygons.geojson", "polygons.xml", "detections.csv", "overlay.png", "summary.json",
}  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinySet:
    """Slides, and a network for images of any size with a mean over the image."""
    tiny = TinySet(tmp_path_factory.mktemp("stream"))
    image = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(6, 3, 2, "same", activation="tanh")(image)
    mean = keras.layers.GlobalAveragePooling2D(keepdims=True)(x)
    x = keras.layers.Multiply()([x, keras.layers.Conv2D(6, 1, activation="sigmoid")(mean)])
    model = keras.Model(image, keras.layers.Conv2DTranspose(2, 4, 2, "same")(x), name="gated")
    randomize(model)
    model.save(tiny.folder / "gated.keras")
    return tiny


def predict(tiny: TinySet, out: Path, *more: str, ranks: int = 1) -> Any:
    given = ["--model", str(tiny.folder / "gated.keras"), *MODEL, "--slide_path", str(tiny.folder / "train" / "images")]
    given += ["--out", str(out), "--no_cuda", *more]
    if ranks == 1:
        return warm.run(SCRIPT, given, environment(OMP_NUM_THREADS="1"))
    return run_train(*given, NP=str(ranks), SCRIPT=SCRIPT, OMP_NUM_THREADS="1")


def maps(out: Path) -> dict[str, np.ndarray]:
    return {path.parent.name: tifffile.imread(path, level=0) for path in sorted(out.glob("*/probability.tif"))}


def test_the_map_is_that_of_the_whole_slide_on_one_rank_and_on_two(tiny: TinySet) -> None:
    alone, shared = tiny.folder / "alone", tiny.folder / "shared"
    done = predict(tiny, alone, "--stream", "100", "--no-tissue_only")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "streaming   3 Mpx in tiles of 100 px, over" in done.stdout
    assert "done        tumor_001, as one image" in done.stdout
    # What a killed run left must not be taken for a result.
    stale = shared / ".scratch" / "tumor_001"
    stale.mkdir(parents=True)
    (stale / "whole.json").write_text('{"region": null, "windows": 0, "faults": [], "seconds": 0}')
    done = predict(tiny, shared, "--stream", "60", "--no-tissue_only", ranks=2)
    assert done.returncode == 0, done.stderr[-3000:]
    model = keras.models.load_model(tiny.folder / "gated.keras")
    assert list(maps(alone)) == list(maps(shared)) == ["normal_001", "tumor_001", "tumor_002"]
    for name, map_HW in maps(alone).items():
        assert {path.name for path in (alone / name).iterdir()} == FILES
        slide_HWC = tifffile.imread(tiny.slide(name), level=0)
        height, width = slide_HWC.shape[:2]
        assert map_HW.shape == (height, width)
        image_BHWC = np.full((1, 384, 384, 3), 255, np.float32)
        image_BHWC[0, :height, :width] = slide_HWC
        p_HWK = keras.ops.softmax(model(image_BHWC / 127.5 - 1, training=False))[0]
        away = np.abs(map_HW - np.asarray(p_HWK)[:height, :width, 1] * 255)
        assert map_HW.std() > 5
        assert away.max() < 0.5 + 1e-2
        assert np.abs(maps(shared)[name].astype(int) - map_HW).max() <= 1
    summary = json.loads((alone / "tumor_001" / "summary.json").read_text(encoding="utf-8"))
    assert summary["options"]["stream"] is True
    assert summary["windows"] > 9
    assert summary["windows_unreadable"] == 0


def test_another_way_to_predict_is_no_continuation(tiny: TinySet) -> None:
    out = tiny.folder / "again"
    assert predict(tiny, out, "--stream", "100").returncode == 0
    done = predict(tiny, out, "--stream", "120")
    assert done.returncode == 0
    assert "slides      3, 3 of them done before" in done.stdout
    shutil.rmtree(out / "tumor_002")
    windows = predict(tiny, out)
    assert windows.returncode == 2
    assert "was predicted with other options (stream); choose another --out" in windows.stderr


def test_what_cannot_be_streamed_is_one_line(tiny: TinySet) -> None:
    out = tiny.folder / "refused"
    done = predict(tiny, out, "--stream", "1")
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if "--stream" in line]
    assert "--stream 1: tile 1 is too small: a cell of" in line
    assert "the smallest tile that works is" in line
    done = predict(tiny, out, "--stream", "100", "--overlap", "0.5")
    assert done.returncode == 2
    assert "--overlap 0.5: with --stream a slide is one image without windows; omit one of them" in done.stderr
