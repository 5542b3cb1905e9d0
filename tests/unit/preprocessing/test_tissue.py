"""The step tissue: areas, pen marks, glass, names that break quoting."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

from cohorts.pairing import Case
from preprocessing.overview import draw_outline, read_cells, write_cells
from preprocessing.tissue import Options, make
from slides.artefacts import is_black, pen_px
from slides.reader import Slide
from slides.synthetic.demo import write_levels, write_pyramid
from slides.tissue import in_cells, pen_marks, tissue_mask
from slides.truth.reading import Reading
from tests.support.paths import SHARED
from tests.support.steps import run_steps

needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason=f"real slides are not at {SHARED}")
PINK, GLASS, GREEN_PEN = (215, 150, 190), (243, 243, 243), (20, 120, 60)


def pink_slide(path: Path, um_px: float = 4.0) -> Path:
    """600 x 400 px of glass; tissue in x 100 to 400, y 50 to 250; a green line through it in x 200 to 240."""
    image_HWC = np.full((400, 600, 3), GLASS, np.uint8)
    image_HWC[50:250, 100:400] = PINK
    image_HWC[50:350, 200:240] = GREEN_PEN
    path.parent.mkdir(parents=True, exist_ok=True)
    write_pyramid(path, image_HWC, um_px, lossless=True)
    return path


def test_area_of_tissue_without_pen(tmp_path: Path):
    slide_path = pink_slide(tmp_path / "it's é.tif")
    made = make(Case("it's é", slide_path, None), tmp_path / "out", Options(Reading(), um_px=8.0))
    # 300 x 200 px of 16 um2, less a line 40 px wide and its rim of 60 um = 15 px on both sides.
    assert made.values["tissue_mm2"] == pytest.approx((300 - 70) * 200 * 16e-6, rel=0.04)
    assert made.values["um_px"] == 8.0
    assert made.notes[0].startswith("pen marks of ")
    kept = make(Case("it's é", slide_path, None), tmp_path / "out", Options(Reading(), um_px=8.0, keep_pen=True))
    # The line reaches 100 px beyond the tissue.
    assert kept.values["tissue_mm2"] == pytest.approx((300 * 200 + 40 * 100) * 16e-6, rel=0.02)
    assert kept.values["pen_mm2"] == 0
    assert kept.notes == ()


def test_the_mask_is_a_small_tiff_with_its_spacing(tmp_path: Path):
    slide_path = pink_slide(tmp_path / "a.tif")
    make(Case("a", slide_path, None), tmp_path, Options(Reading(), um_px=9.0))
    slide = Slide(slide_path)
    cells_HW, cell_l0 = read_cells(tmp_path / "tissue" / "a.tif", slide)
    # Whole px of level 0: 9 um asked, 8 um had.
    assert (cell_l0, cells_HW.shape) == (2, (200, 300))
    assert cells_HW[100, 80]
    assert not cells_HW[100, 20]
    assert np.unique(tifffile.imread(tmp_path / "tissue" / "a.tif")).tolist() == [0, 255]
    assert Slide(tmp_path / "tissue" / "a.tif").um_px_xy_l0 == (8.0, 8.0)
    picture_HWC = cv2.imread(str(tmp_path / "tissue" / "a.png"))
    # Level 0 has fewer px than a picture may have. Green in the outline's color, BGR.
    assert picture_HWC.shape == (400, 600, 3)
    assert (picture_HWC == (30, 150, 30)).all(axis=2).any()


def test_a_mask_of_another_slide_is_refused(tmp_path: Path):
    slide = Slide(pink_slide(tmp_path / "a.tif"))
    write_cells(tmp_path / "m.tif", np.ones((200, 299), np.bool_), 8.0)
    with pytest.raises(ValueError, match=r"m\.tif of \(200, 299\) rows and columns does not cover slide"):
        read_cells(tmp_path / "m.tif", slide)
    (tmp_path / "m.tif").write_bytes(b"II*\0")
    with pytest.raises(ValueError, match=r"m\.tif cannot be read: .*; run the step tissue"):
        read_cells(tmp_path / "m.tif", slide)


def test_glass_is_said_aloud(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    noise = np.random.default_rng(0).integers(236, 246, (300, 500, 3)).astype(np.uint8)
    (tmp_path / "in").mkdir()
    write_pyramid(tmp_path / "in" / "normal 1.tif", noise, 4.0, lossless=True)
    words = ["--slide_path", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--num_processes", "1"]
    for method in ("hsv", "otsu"):
        assert run_steps(["tissue"], [*words, "--tissue_method", method]) == 0
        said = capsys.readouterr().out
        assert "only 0.00% of the slide is tissue: look at tissue/normal 1.png" in said
        assert "under 1% tissue on 1 slide: normal 1" in said
    table = (tmp_path / "out" / "tissue" / "tissue.csv").read_text(encoding="utf-8")
    assert table == "slide,tissue_mm2,tissue_share,pen_mm2,um_px\nnormal 1,0.0,0.0,0.0,8.0\n"


def test_otsu_finds_stain_that_is_too_pale_for_the_fixed_threshold():
    rgb_HWC = np.full((120, 200, 3), GLASS, np.uint8)
    rgb_HWC[30:90, 40:160] = (238, 226, 233)  # saturation 13
    assert tissue_mask(rgb_HWC, 8.0).sum() == 0
    # 7,200 px less the rounded corners.
    assert 7100 < tissue_mask(rgb_HWC, 8.0, "otsu").sum() <= 7200
    with pytest.raises(ValueError, match="tissue method 'mean' is unknown; allowed are hsv, otsu"):
        tissue_mask(rgb_HWC, 8.0, "mean")


def test_px_of_pens_and_black():
    row_HWC = np.array([[PINK, GREEN_PEN, (30, 60, 190), (25, 25, 28), (90, 40, 120)]], np.uint8)
    assert pen_px(row_HWC).tolist() == [[False, True, True, True, False]]
    assert is_black(np.full((8, 9, 3), 12, np.uint8))
    half_HWC = np.full((8, 9, 3), 12, np.uint8)
    half_HWC[:, :5, 1] = 200
    assert not is_black(half_HWC)


def test_specks_of_a_pens_color_are_no_marks():
    rgb_HWC = np.full((200, 300, 3), PINK, np.uint8)
    rgb_HWC[50:60, 50:70] = GREEN_PEN  # 200 px of 64 um2
    assert not pen_marks(rgb_HWC, 8.0).any()
    rgb_HWC[50:80, 50:80] = GREEN_PEN
    assert pen_marks(rgb_HWC, 8.0)[65, 65]
    # The rim: 60 um are 7 px.
    assert pen_marks(rgb_HWC, 8.0)[65, 82:88].tolist() == [True] * 5 + [False]


def test_a_single_cell_does_not_vanish_from_a_small_picture():
    cells_HW = np.zeros((90, 130), np.bool_)
    cells_HW[44, 71] = True
    picture_HWC = np.zeros((9, 13, 3), np.uint8)
    draw_outline(picture_HWC, cells_HW, 10.0, (1, 2, 3), 1)
    assert {(4, 7)} == set(zip(*(axis.tolist() for axis in np.nonzero(picture_HWC[..., 0])), strict=True))


def test_bands_join_without_a_seam(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(1)
    write_levels(tmp_path / "a.tif", [rng.integers(0, 255, (301, 203, 3)).astype(np.uint8)], um_px=1.0)
    whole_HWC = in_cells(Slide(tmp_path / "a.tif"), 3)
    monkeypatch.setattr("slides.tissue.BAND_ROWS", 7)
    np.testing.assert_array_equal(in_cells(Slide(tmp_path / "a.tif"), 3), whole_HWC)
    assert whole_HWC.shape == (101, 68, 3)


@needs_data
def test_real_tissue_has_its_known_area(tmp_path: Path):
    # slides.csv: 5,450,207 px of tissue at 0.243 um/px.
    case = Case("tumor_901", SHARED / "c16mosaic/train/images/tumor_901.tif", None)
    made = make(case, tmp_path, Options(Reading()))
    assert made.values["tissue_mm2"] == pytest.approx(5450207 * 0.243e-3**2, rel=0.02)


@needs_data
def test_a_real_pen_mark_is_found():
    thumb_HWC = cv2.cvtColor(cv2.imread(str(SHARED / "tiles/thumb-tcga-green-pen.png")), cv2.COLOR_BGR2RGB)
    pen_HW = pen_marks(thumb_HWC, 8.0)
    # A broad line from top to bottom, tissue on both sides.
    assert pen_HW[20, 430]
    assert pen_HW[250, 270]
    assert not pen_HW[:, 500:].any()
    assert not pen_HW[:, :150].any()


def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    slide_path = pink_slide(tmp_path / "in" / "a.tif")
    words = ["--slide_path", str(slide_path), "--out", str(tmp_path / "out")]
    (tmp_path / "in" / "b.tif").write_bytes(slide_path.read_bytes()[:200])
    (tmp_path / "in" / "empty.tif").touch()
    both = ["--slide_path", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--num_processes", "1"]
    assert run_steps(["tissue"], both) == 1
    said = capsys.readouterr().out
    assert "2 failed:" in said
    assert f"tissue          b     slide {tmp_path}/in/b.tif cannot be opened" in said
    assert f"tissue          empty slide {tmp_path}/in/empty.tif cannot be opened" in said
    with pytest.raises(SystemExit):
        run_steps(["tissue"], [*words, "--label_map", "a:1", "a:0"])
    assert capsys.readouterr().err == (
        "python -m preprocessing.tissue: error: --label_map: group 'a' twice; name each group once\n"
        "python -m preprocessing.tissue --help lists all options\n"
    )
    assert run_steps(["tissue"], ["--slide_path", str(tmp_path / "gone"), "--out", str(tmp_path / "out")]) == 2
    assert f"error: slide_path {tmp_path}/gone does not exist; give a folder" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run_steps(["tissue"], ["--out", str(tmp_path / "out")])
    assert "no slides: give --slide_path" in capsys.readouterr().err
