"""A place that cannot be decoded loses itself, not the slide; with --strict, the slide."""

import csv
from pathlib import Path

import numpy as np
import pytest
import tifffile

from slides.filled import FilledSlide, read_or_fill
from slides.geometry import Window
from slides.reader import SlideError
from tests.support.broken import SIDE, TILE, damage, write_noise
from tests.support.steps import run_steps

STEPS = ["check", "tissue", "extract_patches", "trim_tissue"]


@pytest.fixture
def slide_path(tmp_path: Path) -> Path:
    path = tmp_path / "in" / "a.tif"
    write_noise(path)
    return path


def run(slide_path: Path, out: Path, *more: str) -> int:
    words = ["--slide_path", str(slide_path), "--out", str(out), "--num_processes", "1", "--resolution", "0.5"]
    return run_steps(STEPS, [*words, "--patch_size", "256", "--save_neg", "--trim_um_px", "0.5", *more])


def names(out: Path) -> list[str]:
    with (out / "patches" / "patches.csv").open(encoding="utf-8", newline="") as file:
        return [row["name"] for row in csv.DictReader(file)]


def test_a_broken_tile_loses_its_patch(slide_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    assert run(slide_path, tmp_path / "whole") == 0
    assert "cannot be decoded" not in capsys.readouterr().out
    damage(slide_path, 9, 54)  # in patches (0, 0) and (768, 768)
    assert run(slide_path, tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "note    extract_patches a: no patch of 2 places that cannot be decoded: slide " in said
    assert "note    tissue          a: places that cannot be decoded are white (" in said
    assert set(names(tmp_path / "whole")) - set(names(tmp_path / "out")) == {"a_x0_y0", "a_x768_y768"}
    assert len(names(tmp_path / "out")) == 14
    assert "places that cannot be decoded are white" in (tmp_path / "out" / "check" / "check.csv").read_text("utf-8")
    for name in names(tmp_path / "out"):
        made, whole = (
            (folder / "patches/a/normal" / f"{name}.png") for folder in (tmp_path / "out", tmp_path / "whole")
        )
        assert made.read_bytes() == whole.read_bytes()
    # The trimmed image is white there and unchanged elsewhere.
    made, whole = (tifffile.imread(tmp_path / folder / "trim_tissue" / "a.tif") for folder in ("out", "whole"))
    assert made[TILE + 20 : 2 * TILE - 20, TILE + 20 : 2 * TILE - 20].min() > 240
    np.testing.assert_array_equal(made[: TILE - 16], whole[: TILE - 16])


def test_strict_refuses_the_slide(slide_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    damage(slide_path, 9)
    assert run(slide_path, tmp_path / "out") == 0
    capsys.readouterr()
    # Also what an earlier run finished without it.
    assert run(slide_path, tmp_path / "out", "--strict") == 1
    assert "FAILED  check           a: places that cannot be decoded" in capsys.readouterr().out
    assert run(slide_path, tmp_path / "new", "--strict") == 1
    assert not (tmp_path / "new" / "patches" / "a").exists()


def test_a_slide_of_broken_tiles_fails(slide_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    damage(slide_path, *range(40))
    assert run(slide_path, tmp_path / "out") == 1
    assert "FAILED" in capsys.readouterr().out


def test_squares_that_can_be_read_are(slide_path: Path):
    whole_HWC = FilledSlide(slide_path).read(Window((0.0, 0.0), (SIDE, SIDE - 30), (1.0, 1.0)))
    damage(slide_path, 9)
    slide = FilledSlide(slide_path)
    assert slide.damage() == ""
    read_HWC = slide.read(Window((0.0, 0.0), (SIDE, SIDE - 30), (1.0, 1.0)))
    expected_HWC = whole_HWC.copy()
    expected_HWC[TILE : 2 * TILE, TILE : 2 * TILE] = 255
    np.testing.assert_array_equal(read_HWC, expected_HWC)
    assert slide.damage().startswith("places that cannot be decoded are white (1.61% of the px read): slide ")
    assert "level 0, tile in row 1, column 1" in slide.damage()
    lost = FilledSlide(slide_path)
    lost.read(Window((TILE, TILE), (TILE, TILE), (1.0, 1.0)))
    with pytest.raises(SlideError, match="tile in row 1, column 1"):
        lost.damage()


def test_nothing_is_read_twice_where_nothing_is_broken(slide_path: Path):
    calls = []
    slide = FilledSlide(slide_path)

    def read(window: Window) -> np.ndarray:
        calls.append(window)
        return slide.read(window)

    window = Window((0.0, 0.0), (300, 200), (1.0, 1.0))
    image_HWC, fault, filled = read_or_fill(read, window)
    assert (calls, image_HWC.shape, fault, filled) == ([window], (300, 200, 3), "", 0)
