"""Tile statistics are those of the predecessors, and a tile that is too small is never used."""

from pathlib import Path

import keras
import pytest

from models import resnet
from streaming.borders import Layer, Lost, checked_statistics, smallest_tile, tile_statistics
from streaming.statistics import cached_statistics, graph_hash, layers_of, main

# What StreamingResNet("resnet18", 2880) prints: top = left, bottom = right, layer by layer forward, the output, layer
# by layer backward, the gradient of the image.
FORWARD = "2,1 2,1 3,2 4,3 5,4 6,5 4,3 5,4 3,2 6,5 7,6 4,3 5,4 4,3 6,5 7,6 4,3 5,4 4,3 6,5 7,6"
BACKWARD = (
    "7,6 8,7 9,8 9,8 10,9 22,21 23,22 24,23 24,23 25,24 52,51 52,51 56,55 56,55 55,54 112,111 113,112 120,119 119,118 "
    "120,119 241,239"
)


def borders(text: str) -> list[Lost]:
    pairs = [[int(n) for n in pair.split(",")] for pair in text.split()]
    return [Lost(before, before, after, after) for before, after in pairs]


@pytest.fixture(scope="module")
def resnet18() -> list[Layer]:
    return layers_of(resnet.build("resnet18", 1, width=4))


def test_borders_of_resnet18_are_the_published_ones(resnet18: list[Layer]) -> None:
    found = tile_statistics(resnet18, 2880)
    assert [lost for _, lost in found.forward] == borders(FORWARD)
    assert found.output == Lost(7, 7, 6, 6)
    assert [lost for _, lost in found.backward] == borders(BACKWARD)
    assert found.gradient == Lost(490, 490, 487, 487)
    assert (found.stride, found.step) == (32, 1888)


def test_text_is_that_of_torch() -> None:
    lines = tile_statistics(layers_of(resnet.build("resnet18", 1)), 1024).lines()
    assert lines[0] == (
        "Conv2d(3, 64, kernel_size=(7, 7), stride=(2, 2), padding=(3, 3), bias=False) \n"
        " Lost(top:2.0, left:2.0, bottom:1.0, right:1.0)"
    )
    assert lines[1].startswith("MaxPool2d(kernel_size=3, stride=2, padding=1, dilation=1, ceil_mode=False) \n")
    assert lines[8].startswith("Conv2d(64, 128, kernel_size=(1, 1), stride=(2, 2), bias=False) \n")
    assert lines[-1] == "\n Input gradient lost Lost(top:490.0, left:490.0, bottom:487.0, right:487.0)"


@pytest.mark.parametrize(("name", "smallest"), [("resnet18", 1024), ("resnet34", 1920)])
def test_smallest_tiles(name: str, smallest: int) -> None:
    assert smallest_tile(layers_of(resnet.build(name, 1, width=4))) == smallest


def test_a_tile_too_small_is_refused_though_it_gives_numbers(resnet18: list[Layer]) -> None:
    assert tile_statistics(resnet18, 928).gradient.top == 458
    with pytest.raises(ValueError, match="928 px is too small: its gradient would be wrong; the smallest is 1024 px"):
        checked_statistics(resnet18, 928)


def test_one_convolution_loses_its_padding() -> None:
    found = tile_statistics([Layer("conv", (0,), "conv", kernel=5, stride=1, padding=2)], 20)
    assert found.output == Lost(2, 2, 2, 2)
    assert found.gradient == Lost(4, 4, 4, 4)


def test_stored_statistics_belong_to_one_network_and_tile(tmp_path: Path, resnet18: list[Layer]) -> None:
    shallow = layers_of(resnet.build("resnet18", 1, width=4), "layer2_1")
    assert graph_hash(shallow) != graph_hash(resnet18)
    first = cached_statistics(shallow, 512, tmp_path)
    (path,) = tmp_path.iterdir()
    assert path.name == f"tile_statistics_{graph_hash(shallow)}_512.json"
    stored = path.read_text(encoding="utf-8")
    assert cached_statistics(shallow, 512, tmp_path) == first
    path.write_text("{", encoding="utf-8")
    assert cached_statistics(shallow, 512, tmp_path) == first
    assert path.read_text(encoding="utf-8") == stored


def test_stored_statistics_are_read(tmp_path: Path) -> None:
    layers = layers_of(resnet.build("resnet18", 1, width=4), "layer1_0")
    found = cached_statistics(layers, 256, tmp_path)
    (path,) = tmp_path.iterdir()
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(f'"stride": {found.stride}', '"stride": 99'), encoding="utf-8")
    assert cached_statistics(layers, 256, tmp_path).stride == 99


def test_layers_without_such_statistics_are_named() -> None:
    image = keras.Input((64, 64, 3))
    smaller = keras.layers.Conv2D(4, 3, strides=2, padding="same", name="down")(image)
    with pytest.raises(ValueError, match="down: its SAME padding depends on the size of the map"):
        layers_of(keras.Model(image, smaller), "down")
    larger = keras.layers.UpSampling2D(2, name="up")(image)
    with pytest.raises(ValueError, match="up: tile statistics are defined for convolutions"):
        layers_of(keras.Model(image, larger), "up")


def test_the_command_prints_all_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", "resnet18", "--cut", "layer2_1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Conv2d(3, 64, kernel_size=(7, 7)")
    assert sum("Lost(" in line for line in lines) == 2 * 11 + 2
    assert lines[-1].startswith("Smallest tile that works: ")


@pytest.mark.parametrize("tile", ["960", "0", "-32"])
def test_the_command_names_the_smallest_tile(tile: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", "resnet18", "--tile", tile]) == 2
    assert "the smallest is 1024 px" in capsys.readouterr().err


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    arguments = ["--model", "resnet18", "--cut", "layer1_0", "--tile", "256", "--cache", str(tmp_path / "file")]
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path / "file") in line
