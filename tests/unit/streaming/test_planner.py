"""What a stream will need, known before it starts."""

import re

import keras
import numpy as np
import pytest
from keras import layers

from models import resnet
from streaming import Streamed
from streaming.plan import main
from streaming.planner import estimate, forecast, plan


def one_convolution() -> keras.Model:
    image = keras.Input((None, None, 3))
    return keras.Model(image, layers.Conv2D(4, 3, use_bias=False, name="only")(image))


def test_one_convolution_on_paper() -> None:
    found = estimate(Streamed(one_convolution(), tile=100), (10, 12))
    # 8 x 10 outputs of 3 x 3 x 3 x 4 products; forward and the gradient of the kernel, none of the image. The one tile
    # keeps its intermediate results, so that it is not computed again.
    assert found.whole == 2 * 80 * 108
    assert found.multiplications == 2 * 80 * 108
    assert found.tiles == ((1, 1),)
    assert found.kept == (1,)
    kept_map, gradients, window, at_work = 2 * 80 * 4 * 4, 2 * 108 * 4, 120 * 3 * 4, 3 * 80 * 4 * 4
    assert found.bytes == kept_map + gradients + int(1.33 * (window + at_work))
    assert found.seconds(1e3) == pytest.approx(17.28)
    assert str(found) == "tile 100: 1 x 1 tiles, 0.00 GiB, 1.00 times the multiplications of the whole image"
    # Two bands, of 5 and 3 rows of outputs: the second keeps its results; for those of both there is no room.
    two = estimate(Streamed(one_convolution(), tile=7), (10, 7))
    assert two.tiles == ((2, 1),)
    assert two.kept == (1,)
    assert two.multiplications == (2 * 40 + 20) * 108


def test_resnet34_at_4096_px_has_the_multiplications_of_its_paper() -> None:
    # 3.6 G at 224 px (table 1 of the paper, without the classifier): x (4096 / 224)^2 = 1.2 T
    found = estimate(Streamed(resnet.build("resnet34", 2), "layer4_2", 2048), (4096, 4096))
    assert found.whole / 3 == pytest.approx(1.22e12, rel=0.01)
    assert found.tiles == ((3, 3),)
    two = estimate(Streamed(resnet.build("resnet34", 2), "layer4_2", (1024, 512), ["layer2_3"]), (4096, 4096))
    assert two.multiplications < 0.7 * found.multiplications


def test_the_plan_is_the_quickest_that_fits() -> None:
    network = resnet.build("resnet18", 2, width=8)
    sides = (128, 256, 448, 512, 768, 1024)
    choices = [(), ("layer2_1",)]
    plenty = plan(network, (1024, 1024), 2**40, "layer4_1", choices, sides)
    assert plenty.tile[0] == 1024
    assert plenty.factor == pytest.approx(1.0)
    less = plan(network, (1024, 1024), plenty.bytes // 2, "layer4_1", choices, sides)
    assert less.bytes <= plenty.bytes // 2
    assert less.segments == ("layer2_1",)
    assert less.multiplications > plenty.multiplications
    # What it says is what a stream of it has.
    stream = Streamed(network, "layer4_1", less.tile, less.segments, spare=less.spare)
    assert estimate(stream, (1024, 1024)) == less


def test_nothing_fits_says_the_least() -> None:
    with pytest.raises(ValueError, match=r"nothing fits into 0\.00 GiB; the least is tile 4: .* Give more memory"):
        plan(one_convolution(), (10, 12), 10, tiles=(2, 4, 8))
    with pytest.raises(ValueError, match="no tile of 1 to 2 px is large enough"):
        plan(one_convolution(), (10, 12), 10, tiles=(1, 2))


def test_a_forecast_measures_a_small_image_and_leaves_the_stream_as_it_is() -> None:
    network = resnet.build("resnet18", 2, width=8)
    stream = Streamed(network, "layer2_1", 200, spare=10**6)
    late = stream.forward(np.ones((60, 70, 3), np.float32))
    found = forecast(stream, (1000, 300), px=96)
    assert found.measured == (96, 96)
    assert found.estimate == estimate(stream, (1000, 300))
    assert found.seconds == pytest.approx(found.estimate.multiplications / found.rate)
    assert found.before > 2**27
    assert re.search(r"GiB with the process; \d+\.\d s forward and backward, at .* measured at 96 x 96 px", str(found))
    # The image before it is still there for its backward pass.
    assert len(stream.backward(late).variables) == len(stream.variables)


def test_the_command_says_tiles_and_memory(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", "resnet18", "--size", "900", "700", "--memory", "64", "--no_time"]) == 0
    assert re.match(r"tile \d+.*: 1 x 1.* 1\.00 times the multiplications", capsys.readouterr().out)
    assert main(["--model", "resnet18", "--size", "900", "--memory", "0.1", "--no_time"]) == 2
    assert "error: nothing fits into" in capsys.readouterr().err
