"""docs/streaming_tutorial.md runs as it is written, on small images; and what its `StreamingResNet` promises."""

import csv
import re
from pathlib import Path
from typing import Any

import cv2
import keras
import numpy as np
import pytest

import models  # noqa: F401  # registers the layers of the saved model
from classification.streaming_resnet import StreamingResNet
from models import resnet
from streaming import ArrayImage
from tests.support.paths import ROOT

SIZES = "IMAGE, TILE = 8192, 2048"
EPOCHS = "EPOCHS, BATCH = 30, 4"


@pytest.fixture(autouse=True)
def _thin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resnet, "STEM_FILTERS", 8)
    keras.utils.set_random_seed(1)


def write_slides(folder: Path) -> None:
    """Twelve images of other sizes than the view, half of them with a dark square, and the table of CAMELYON16."""
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    with (folder / "reference.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "type", "class", "center"])
        for number in range(12):
            kind = "tumor" if number % 2 else "normal"
            image_HWC = rng.integers(190, 230, (200 + 20 * number, 330 - 9 * number, 3)).astype(np.uint8)
            if number % 2:
                image_HWC[120:170, 100:150] = (90, 40, 120)
            name = f"{kind}_{number:03d}"
            cv2.imwrite(str(folder / "images" / f"{name}.png"), image_HWC[..., ::-1])
            table.writerow([f"{name}.tif", kind, "macro" if number % 2 else "negative", number % 3])
        table.writerow(["tumor_111.tif", "tumor", "micro", 1])


def blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/streaming_tutorial.md").read_text(), re.DOTALL | re.M)


def test_the_tutorial_runs_block_by_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_slides(tmp_path)
    monkeypatch.chdir(tmp_path)
    code = blocks()
    assert len(code) == 7
    assert SIZES in code[0]
    assert EPOCHS in code[0]
    code[0] = code[0].replace(SIZES, "IMAGE, TILE = 256, 224").replace(EPOCHS, "EPOCHS, BATCH = 3, 2")
    names: dict[str, Any] = {}
    for block in code:
        exec(compile(block, "docs/streaming_tutorial.md", "exec"), names)
    said = capsys.readouterr().out
    assert "('normal', 'tumor') 10 2 1 slide of labels.csv left out, no image in images: tumor_111" in said
    assert re.search(r"loss \d+\.\d{3} -> \d+\.\d{3}", said)
    assert len(names["losses"]) == 15
    assert np.mean(names["losses"][-5:]) < np.mean(names["losses"][:5])
    np.testing.assert_allclose(names["probabilities_NK"].sum(1), 1, rtol=1e-5)
    # A tile is smaller than the view: it was streamed.
    counts = names["network"]._stream._early_used.counts
    assert counts.forward > 4
    view = names["sample"](0)[0]
    assert view.shape == (1, 256, 256, 3)
    loaded = keras.models.load_model("network.keras")
    plain = view.read((0, 256), (0, 256)).astype(np.float32) / 127.5 - 1
    expected = keras.ops.softmax(loaded(plain, training=False))[0]
    np.testing.assert_allclose(names["network"].predict(view), expected, atol=1e-4)


def samples(counter: int) -> Any:
    image = np.random.default_rng(counter).integers(0, 256, (1, 230, 250, 3)).astype(np.uint8)
    return ArrayImage(image), np.eye(2, dtype=np.float32)[counter % 2]


def changed(network: StreamingResNet, before: list[Any]) -> set[str]:
    """Names of the layers whose weights are others than before."""
    after = {layer.name: layer.get_weights() for layer in network.classifier.model.layers}
    return {
        name
        for name, arrays in before
        if any(not np.array_equal(a, b) for a, b in zip(arrays, after[name], strict=True))
    }


@pytest.mark.parametrize("early", [True, False])
def test_streamed_layers_are_trained_if_wanted(early: bool) -> None:
    network = StreamingResNet("resnet18", 224, 2, train_streaming_layers=early)
    before = [(layer.name, layer.get_weights()) for layer in network.classifier.model.layers]
    losses = network.fit(samples, images=3, batch_size=2)
    assert len(losses) == 2
    moved = changed(network, before)
    assert {"fc", "layer4_0_conv1"} <= moved
    assert ("conv1" in moved) == early


def test_the_counter_goes_on_and_a_broken_loss_names_its_image() -> None:
    network = StreamingResNet("resnet18", 224, 2, train_streaming_layers=False)
    seen: list[int] = []

    def noted(counter: int) -> Any:
        seen.append(counter)
        return samples(counter)

    network.fit(noted, images=3, batch_size=2)
    network.fit(noted, images=1)
    assert seen == [0, 1, 2, 3]
    with pytest.raises(ValueError, match=r"the loss became nan .* not finite: image 5"):
        network.fit(
            lambda counter: (samples(counter)[0], np.full(2, np.nan if counter == 5 else 0.5, np.float32)), 2, 2
        )


def test_outputs_of_other_kinds() -> None:
    image = samples(0)[0]
    plain = image.image_BHWC.astype(np.float32) / 127.5 - 1
    answers = StreamingResNet("resnet18", 224, 3, kind="multilabel", pool="average")
    logits_K = answers.classifier.model(plain, training=False)[0]
    np.testing.assert_allclose(answers.predict(image), keras.ops.sigmoid(logits_K), rtol=1e-4)
    number = StreamingResNet("resnet18", 224, 1, kind="regression", pool="average")
    np.testing.assert_allclose(number.predict(image), number.classifier.model(plain, training=False)[0], rtol=1e-4)
