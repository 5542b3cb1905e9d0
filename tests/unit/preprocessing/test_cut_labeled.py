"""Images with one label each, cut from slides with masks."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from preprocessing import cut_labeled
from slides.synthetic.demo import write_pyramid
from slides.synthetic.texture import STAINS, stained_tissue


def write_slides(folder: Path) -> None:
    """One slide of 3 x 2 windows of 64 px (and a bit) at twice its spacing."""
    for name in ("images", "masks"):
        (folder / name).mkdir()
    tissue_HW = np.ones((270, 400), np.bool_)
    tissue_HW[128:256, 256:] = False
    tumor_HW = np.zeros_like(tissue_HW)
    tumor_HW[10:60, 140:200] = True  # r00_c01: 18 %
    tumor_HW[200:202, 5:30] = True  # r01_c00: 0.3 %
    image_HWC = stained_tissue(np.random.default_rng(0), tissue_HW, tumor_HW, STAINS["standard"])
    write_pyramid(folder / "images" / "tumor_001.tif", image_HWC, 2.0)
    write_pyramid(folder / "masks" / "tumor_001_Mask.tif", tumor_HW.astype(np.uint8), 2.0, lossless=True)


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, *words: str) -> None:
    given = ["--slide_path", folder / "images", "--label_path", folder / "masks", "--um_px", "4.0"]
    given += ["--out", folder / "out", *words]
    monkeypatch.setattr(sys, "argv", ["cut_labeled", *map(str, given)])
    cut_labeled.main()


def test_windows_get_the_label_of_their_mask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_slides(tmp_path)
    run(monkeypatch, tmp_path, "--side", "64", "--table", "train.csv")
    # Left out: r01_c00 with a touch of tumor, r01_c02 without tissue.
    assert (tmp_path / "out" / "train.csv").read_text() == (
        "slide_id,label,patient\n"
        "tumor_001_r00_c00,0,tumor_001\n"
        "tumor_001_r00_c01,1,tumor_001\n"
        "tumor_001_r00_c02,0,tumor_001\n"
        "tumor_001_r01_c01,0,tumor_001\n"
    )
    images = sorted((tmp_path / "out" / "images").iterdir())
    assert [path.stem[-7:] for path in images] == ["r00_c00", "r00_c01", "r00_c02", "r01_c01"]
    assert {Image.open(path).size for path in images} == {(64, 64)}
    assert "4 images in" in (said := capsys.readouterr().out)
    assert said.endswith(": 1 with label 1, 3 with label 0\n")


def test_windows_larger_than_the_slides_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_slides(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, tmp_path, "--side", "640")
    assert capsys.readouterr().err.endswith(
        "error: no window of 640 px at 4.0 um/px lies in the tissue of 1 slides; take a smaller --side or --um_px\n"
    )
