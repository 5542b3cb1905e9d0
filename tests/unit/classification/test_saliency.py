"""Input gradient and class activation: equal to those of the whole image, at the right place, level 0 included."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from classification.augment import view
from classification.images import WholeImage
from classification.network import build, split
from classification.saliency import CellSums, _slope, activation, explained, gradient
from classification.saliency_files import write
from classification.stream import Stream
from classification.targets import Targets
from inference.maps import MapPyramid
from slides.geometry import Trim
from streaming import Streamed
from streaming.images import ArrayImage
from streaming.places import centers

TWO = Targets("classes", ("normal", "tumor"))
THREE = Targets("classes", ("1", "2", "3"))
MANY = Targets("multilabel", ("0", "1", "2"))


def network(pool: str, outputs: int = 2, tile: int = 500, keep: tuple[str, ...] = ()) -> Stream:
    """A thin ResNet-18 with random weights and statistics."""
    keras.utils.set_random_seed(3)
    classifier, _ = build("resnet18", outputs, pool, width=4)
    rng = np.random.default_rng(5)
    for weight in classifier.model.weights:
        if "moving_variance" not in weight.path and weight.shape.rank == 1:
            weight.assign(rng.normal(0.1, 0.1, weight.shape))
    classifier.train(early=False, norm=False)
    return Stream(classifier, tile, late_tile=15, keep=keep)


def noise(hw: tuple[int, int]) -> ArrayImage:
    return ArrayImage(np.random.default_rng(7).uniform(-1, 1, (1, *hw, 3)).astype(np.float32))


def whole_gradient(model: keras.Model, image: ArrayImage, weight_K: np.ndarray) -> np.ndarray:
    image_BHWC = tf.constant(image.image_BHWC)
    with tf.GradientTape() as tape:
        tape.watch(image_BHWC)
        score = tf.reduce_sum(model(image_BHWC, training=False) * weight_K)
    return np.abs(tape.gradient(score, image_BHWC).numpy()[0]).sum(axis=-1)


@pytest.mark.parametrize(("pool", "keep", "tile"), [("max", (), 500), ("average", ("layer1_1",), 200)])
def test_the_input_gradient_is_that_of_the_whole_image(pool: str, keep: tuple[str, ...], tile: int) -> None:
    stream = network(pool, tile=tile, keep=keep)
    image = noise((403, 451) if keep else (610, 541))
    found = gradient(stream, image, TWO, cell=16)
    _, height, width, _ = image.shape
    assert max(len(part.rows) for part in stream.early_for(image).layout((height, width)).parts) > 1
    wanted_HW = whole_gradient(stream.classifier.model, image, np.array([-1, 1], np.float32))
    cells = np.add.reduceat(np.add.reduceat(wanted_HW, np.arange(0, height, 16), 0), np.arange(0, width, 16), 1)
    assert found.map_RS == pytest.approx(cells, rel=1e-4, abs=1e-4 * cells.max())
    assert (found.method, found.output, found.step_xy_view) == ("gradient", "tumor", (16, 16))


@pytest.mark.parametrize("pool", ["max", "average"])
def test_shares_of_the_last_map_add_up_to_the_output(pool: str) -> None:
    stream = network(pool, outputs=3)
    model = stream.classifier.model
    image = noise((131, 170))
    logits_K = model(image.image_BHWC, training=False).numpy()[0]
    best = int(np.argmax(logits_K))
    found = activation(stream, image, THREE)
    assert found.output == THREE.names[best]
    kernel_CK, bias_K = (weight.numpy() for weight in model.get_layer("fc").weights)
    weight_K = np.where(np.arange(3) == best, 1.0, -0.5)
    last_RSC = stream.late.forward(stream.map(image))[0]
    weight_C = kernel_CK @ weight_K
    if pool == "average":
        shares = (last_RSC * weight_C).sum(axis=-1) / last_RSC[..., 0].size
    else:
        # Every channel's maximum, at its place; this network has no ties above 0.
        flat = last_RSC.reshape(-1, last_RSC.shape[-1])
        shares = np.zeros(len(flat))
        for channel, place in enumerate(flat.argmax(axis=0)):
            shares[place] += flat[place, channel] * weight_C[channel]
        shares = shares.reshape(last_RSC.shape[:2])
    assert shares.sum() == pytest.approx(weight_K @ (logits_K - bias_K), rel=1e-4)
    assert found.map_RS == pytest.approx(np.maximum(shares, 0), abs=1e-5 * np.abs(shares).max())
    assert (found.map_RS > 0).any()


def test_cells_of_the_last_map_lie_where_they_look() -> None:
    """Every strided layer of a ResNet is centered on its even cells: cell c looks at px 32 c, whose center is + 0.5."""
    stream = network("max")
    for hw in ((131, 170), (203, 64)):
        found = activation(stream, noise(hw), TWO)
        assert found.step_xy_view == (32, 32)
        assert found.corner_xy_view == (0.5 - 16, 0.5 - 16)


def test_centers_follow_the_padding_of_the_whole_map() -> None:
    """SAME of stride 2 and 3 taps pads nothing in front of an even map, one px in front of an odd one."""
    image = layers.Input((None, None, 3))
    model = keras.Model(image, layers.Conv2D(2, 3, 2, "same")(image))
    assert centers(Streamed(model, tile=9).graph, (20, 31)) == ((0.5, 2.0), (1.5, 2.0))


def bright_network(pool: str = "average") -> Stream:
    """Responds to red above 0.5 only: 0 everywhere else, and so is its gradient."""
    image = layers.Input((None, None, 3))
    x = layers.ReLU()(layers.Conv2D(1, 1, name="red")(image))
    x = layers.AveragePooling2D(4, name="cut")(x)
    x = layers.Conv2D(1, 1, use_bias=False, kernel_initializer="ones", name="late")(x)
    pooling = layers.GlobalAveragePooling2D if pool == "average" else layers.GlobalMaxPooling2D
    x = pooling(name="pool")(x)
    model = keras.Model(image, layers.Dense(2, name="fc")(x))
    model.get_layer("red").set_weights([np.array([1, 0, 0], np.float32).reshape(1, 1, 3, 1), np.array([-0.5])])
    model.get_layer("fc").set_weights([np.array([[0, 100]], np.float32), np.zeros(2, np.float32)])
    return Stream(split(model, "bright", "cut", pool, "float32"), tile=32)


@pytest.mark.parametrize("method", ["gradient", "activation"])
def test_a_bright_place_of_a_trimmed_slide_is_found_on_level_0(method: str, tmp_path: Path) -> None:
    """Of a slide of 1000 x 700 px, columns 80 to 240 and 600 to 760 and rows 120 to 440 were kept, at 4 px per px."""
    trim = Trim((4.0, 4.0), ((20, 60), (150, 190)), ((30, 110),))
    px = np.full((80, 80, 3), 120, np.uint8)
    # Columns 48 to 56 of the image are 158 to 166 of the grid, 632 to 664 on level 0; rows 24 to 32: 216 to 248.
    px[24:32, 48:56, 0] = 255
    whole = WholeImage(
        "s", (80, 80), lambda rows, columns: px[slice(*rows), slice(*columns)], trim=trim, um_px=2.0,
        size_xy_l0=(1000, 700), um_px_xy_l0=(0.5, 0.5),
    )  # fmt: skip
    seen = view(whole, (88, 72))

    stream = bright_network()
    found = gradient(stream, seen, TWO, cell=4) if method == "gradient" else activation(stream, seen, TWO)
    write(tmp_path, found, seen)
    facts = json.loads((tmp_path / "saliency.json").read_text())
    pyramid = MapPyramid(tmp_path / "saliency.tif", facts["size_xy_l0"], (0.5, 0.5), facts["step_xy_l0"])
    level = pyramid.levels[0]
    rows, columns = (np.flatnonzero(pyramid.whole(level).any(axis=axis)) for axis in (1, 0))
    (step_x, step_y) = level.step_xy_l0
    assert (columns[0] * step_x, (columns[-1] + 1) * step_x) == (632, 664)
    assert (rows[0] * step_y, (rows[-1] + 1) * step_y) == (216, 248)
    assert facts["output"] == "tumor"


def test_windows_may_overlap_and_are_summed_before_the_absolute_value() -> None:
    rng = np.random.default_rng(2)
    sums, whole_BHWC = CellSums((1, 23, 19, 2), 5), np.zeros((1, 23, 19, 2), np.float32)
    for rows in ((0, 9), (4, 15), (13, 23)):
        for columns in ((0, 12), (8, 19)):
            window = rng.normal(size=(1, rows[1] - rows[0], columns[1] - columns[0], 2)).astype(np.float32)
            for place in (sums, whole_BHWC):
                place[:, slice(*rows), slice(*columns)] += window
    wanted_HW = np.abs(whole_BHWC[0]).sum(axis=-1)
    wanted = np.add.reduceat(np.add.reduceat(wanted_HW, np.arange(0, 23, 5), 0), np.arange(0, 19, 5), 1)
    assert sums.finished() == pytest.approx(wanted, rel=1e-5)
    with pytest.raises(AssertionError, match="row 3 is complete"):
        sums[:, slice(3, 9), slice(0, 12)] += 1


def test_rows_that_no_window_touches_are_zero() -> None:
    sums = CellSums((1, 20, 8, 1), 4)
    sums[:, slice(12, 16), slice(4, 8)] += np.float32(-2)
    assert sums.finished().tolist() == [[0, 0], [0, 0], [0, 0], [0, 32], [0, 0]]


def test_what_is_explained() -> None:
    number, weight_K = explained(TWO, np.array([3.0, 1.0]))
    assert (number, weight_K.tolist()) == (1, [-1, 1])
    number, weight_K = explained(THREE, np.array([0.0, 1.0, 5.0]))
    assert (number, weight_K.tolist()) == (2, [-0.5, -0.5, 1])
    number, weight_K = explained(MANY, np.array([0.0, 2.0, 1.0]))
    assert (number, weight_K.tolist()) == (1, [0, 1, 0])
    assert explained(Targets("regression", ("value",)), np.array([-2.0]))[1].tolist() == [1]
    assert explained(THREE, np.array([0.0, 1.0, 5.0]), output=0)[0] == 0
    with pytest.raises(ValueError, match=r"output 3: the network has outputs 0 to 2 \(1, 2, 3\)"):
        explained(THREE, np.zeros(3), output=3)


def test_ranks_that_share_an_image_get_the_same_map(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, image = bright_network(), noise((60, 52))
    alone = gradient(stream, image, TWO, cell=8)
    monkeypatch.setattr(Streamed, "shared", True)
    assert np.array_equal(gradient(stream, image, TWO, cell=8).map_RS, alone.map_RS)
    early = stream.early_for(image)
    early.forward(image)
    with pytest.raises(ValueError, match=r"ranks that share an image fill an array"):
        early.backward(np.zeros((1, 15, 13, 1), np.float32), image_gradient=CellSums((1, 60, 52, 3), 8))


def test_gradients_of_16_bits_behind_the_mean_of_a_large_map() -> None:
    """1 / 90000 times a weight of 1e-3 is below the smallest number of 16 bits that has all its digits."""
    last = layers.Input((None, None, 1), dtype="float16")
    head = layers.Dense(2, dtype="float32")
    logits = head(layers.GlobalAveragePooling2D(dtype="float32")(last))
    model = keras.Model(last, logits)
    head.set_weights([np.array([[0, 1e-3]], np.float32), np.zeros(2, np.float32)])

    class Half:
        class classifier:  # noqa: N801
            head = model

    last_BHWC = np.ones((1, 300, 300, 1), np.float16)
    number, slope_BHWC, scale = _slope(Half, last_BHWC, TWO, None)
    assert number == 1
    assert slope_BHWC / scale == pytest.approx(np.full((1, 300, 300, 1), 1e-3 / 90000), rel=1e-3)
    head.set_weights([np.array([[0, 1e4]], np.float32), np.zeros(2, np.float32)])
    assert _slope(Half, last_BHWC, TWO, None)[1].max() == pytest.approx(1e4, rel=1e-3)
