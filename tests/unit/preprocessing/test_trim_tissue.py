"""Slides cut to their tissue: which rows and columns stay, where px come from, what is written, bad input."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import openslide
import pytest
import pyvips
import simplejpeg
import tifffile
from PIL import Image

from preprocessing.overview import write_cells
from slides.geometry import Trim, l0_from_trimmed, trimmed_from_l0
from slides.reader import Slide
from slides.synthetic.demo import decode, position_coded, write_pyramid
from slides.tiff.jpeg_files import write_jpeg
from slides.tiff.pyramid import write_jpeg_pyramid
from slides.tiff.shrink import halved
from slides.trimming import kept_runs, read_strips, read_trim, trim_text, trimmed, whole_grid
from tests.support.paths import ROOT
from tests.support.steps import run_steps

PINK, GLASS = (215, 150, 190), (243, 243, 243)


def smooth(hw: tuple[int, int]) -> np.ndarray:
    """A picture that JPEG keeps well: ramps and one bright square."""
    rows, columns = np.mgrid[: hw[0], : hw[1]]
    image_HWC = np.stack([rows * 200 // hw[0], columns * 200 // hw[1], (rows + columns) // 8 % 256], axis=2)
    image_HWC[40:60, 70:110] = 230
    return image_HWC.astype(np.uint8)


def strips(image_HWC: np.ndarray):
    return (image_HWC[top : top + 256] for top in range(0, image_HWC.shape[0], 256))


# ------------------------------------------------------------------------------------------------------------ geometry

TRIM = Trim((4.0, 2.5), ((10, 30), (50, 55)), ((0, 8),))


def test_points_of_both_frames_on_paper():
    assert TRIM.size_xy_trim == (25, 8)
    xy_trim = [[0, 0], [0.5, 1], [19.5, 7.5], [20, 4], [25, 8]]
    xy_l0 = [[40, 0], [42, 2.5], [118, 18.75], [200, 10], [220, 20]]
    np.testing.assert_array_equal(l0_from_trimmed(TRIM, xy_trim), xy_l0)
    np.testing.assert_array_equal(trimmed_from_l0(TRIM, xy_l0), xy_trim)
    # The far edge of the first run is the seam; what is between the runs is nowhere.
    seam, between, before = trimmed_from_l0(TRIM, [[120, 10], [121, 10], [39, 10]])
    assert seam.tolist() == [20, 4]
    assert np.isnan(between[0])
    assert between[1] == 4
    assert np.isnan(before[0])


def test_every_px_comes_back_at_a_step_that_is_no_binary_number():
    step = 2.0 / 0.243
    trim = Trim((step, step / 3), ((7, 1003), (1100, 40011)), ((3, 20000),))
    width, height = trim.size_xy_trim
    rng = np.random.default_rng(0)
    whole = np.stack([rng.integers(0, width, 5000), rng.integers(0, height, 5000)], axis=1)
    whole[:4] = [[0, 0], [996, 0], [995, 5], [width, height]]
    for xy_trim in (whole, whole[4:] + 0.5):
        np.testing.assert_allclose(trimmed_from_l0(trim, l0_from_trimmed(trim, xy_trim)), xy_trim, atol=1e-7)


@pytest.mark.parametrize(
    ("step", "runs"), [((0.0, 1.0), ((0, 1),)), ((1.0, 1.0), ()), ((1.0, 1.0), ((0, 5), (5, 9))), ((1, 1), ((3, 3),))]
)
def test_what_is_no_cut_is_refused(step, runs):
    with pytest.raises(ValueError, match=r"step \(0\.0, 1\.0\)|runs along x"):
        Trim(step, runs, ((0, 4),))


def test_runs_on_paper():
    filled = np.zeros(60, np.bool_)
    filled[[5, 6, 20, 50]] = True
    # 4 px per cell: 20-28, 80-84, 200-204. Between them 52 and 116 empty px, of which 64 stay, 32 on both sides.
    assert kept_runs(filled, 4.0, 240, 64) == ((20, 116), (168, 204))
    assert kept_runs(filled, 4.0, 240, 116) == ((20, 204),)
    assert kept_runs(filled, 4.0, 240, 0) == ((20, 28), (80, 84), (200, 204))
    # An odd number: one more in front.
    assert kept_runs(filled, 4.0, 240, 53) == ((20, 111), (174, 204))
    # Px that a cell only touches stay; none beyond the image.
    filled = np.array([False, True, False, True])
    assert kept_runs(filled, 1.5, 5, 0) == ((1, 3), (4, 5))
    assert kept_runs(np.zeros(9, np.bool_), 4.0, 36, 64) == ()


@pytest.mark.parametrize("um_px", [0.25, 0.5, 0.8])
def test_px_are_those_of_the_slide_at_the_place_the_map_says(tmp_path, um_px):
    position_coded(tmp_path / "a.tif", (1210, 830), (1.0, 2.0), smooth=um_px == 0.8)
    slide = Slide(tmp_path / "a.tif")
    tissue_RS = np.zeros((26, 38), np.bool_)  # cells of 32 px
    tissue_RS[[3, 20], [4, 33]] = True
    grid = whole_grid(slide, um_px)
    trim = trimmed(grid, tissue_RS, 32, gap_px=17)
    assert (len(trim.runs_x), len(trim.runs_y)) == (2, 2)
    image_HWC = np.concatenate(list(read_strips(slide, trim, 20)))
    width, height = trim.size_xy_trim
    assert image_HWC.shape == (height, width, 3)
    columns, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    xy_l0 = l0_from_trimmed(trim, np.stack([columns, rows], axis=2))
    if um_px == 0.8:
        assert np.abs(image_HWC[..., 0] - xy_l0[..., 0] / 16).max() < 1.01
        assert np.abs(image_HWC[..., 1] - xy_l0[..., 1] / 16).max() < 1.01
    else:
        x_l0, y_l0 = decode(image_HWC)
        np.testing.assert_array_equal(x_l0, np.floor(xy_l0[..., 0]))
        np.testing.assert_array_equal(y_l0, np.floor(xy_l0[..., 1]))


def test_the_map_is_read_as_written(tmp_path):
    position_coded(tmp_path / "a.tif", (300, 200), um_px=0.243)
    slide = Slide(tmp_path / "a.tif")
    grid = whole_grid(slide, 1.0)
    assert grid.size_xy_trim == (73, 49)
    trim = Trim(grid.step_xy_l0, ((1, 5), (9, 70)), ((2, 3),))
    (tmp_path / "a.json").write_text(trim_text(slide, trim), encoding="utf-8")
    assert read_trim(tmp_path / "a.json") == trim
    for bad in ("{", "[]", '{"version": 1}', '{"version": 1, "step_xy_l0": [1, 1], "runs_x_grid": [[0.5, 2]]}'):
        (tmp_path / "b.json").write_text(bad, encoding="utf-8")
        with pytest.raises(ValueError, match=r"b\.json is no map of a trimmed slide"):
            read_trim(tmp_path / "b.json")
    with pytest.raises(ValueError, match="finer than what was scanned"):
        whole_grid(slide, 0.2)


# --------------------------------------------------------------------------------------------------------------- files


def test_all_readers_see_the_same_px_of_a_pyramid(tmp_path):
    image_HWC = smooth((701, 1003))
    path = tmp_path / "a.tif"
    write_jpeg_pyramid(path, (1003, 701), (2.0, 2.5), strips(image_HWC), 95)
    slide = Slide(path)
    assert [level.size_xy for level in slide.levels] == [(1003, 701), (502, 351), (251, 176)]
    assert slide.um_px_xy_l0 == (2.0, 2.5)
    ours_HWC = slide.thumbnail(0)
    assert np.abs(ours_HWC.astype(int) - image_HWC).mean() < 1
    np.testing.assert_array_equal(pyvips.Image.new_from_file(str(path)).numpy(), ours_HWC)
    with openslide.OpenSlide(path) as other, Image.open(path) as third:
        np.testing.assert_array_equal(np.asarray(other.read_region((0, 0), 0, (1003, 701)))[..., :3], ours_HWC)
        np.testing.assert_array_equal(np.asarray(third), ours_HWC)
        assert float(other.properties["openslide.mpp-y"]) == 2.5
    with tifffile.TiffFile(path) as tiff:
        assert [page.tags["XResolution"].value for page in tiff.pages] == [(5000, 1), (2500, 1), (1250, 1)]
    # Level 2: means of 4 x 4 px, but for rounding; within 1 in the ramps.
    means = image_HWC[:700, :1000].reshape(175, 4, 250, 4, 3).mean(axis=(1, 3))
    assert np.abs(slide.thumbnail(2)[:175, :250] - means).mean() < 1


def test_halves_on_paper():
    image_HWC = np.zeros((3, 5, 3), np.uint8)
    image_HWC[..., 1] = [[0, 1, 10, 10, 9], [0, 1, 10, 11, 7], [4, 5, 6, 7, 8]]
    # (0 + 1 + 0 + 1) / 4 = 0.5, up; 41 / 4; the last column and row count twice.
    assert halved(image_HWC)[..., 1].tolist() == [[1, 10, 8], [5, 7, 8]]


@pytest.mark.parametrize("size_xy", [(1003, 701), (64, 64), (9, 65), (1, 1), (2000, 513)])
def test_one_jpeg_is_that_of_the_whole_image(tmp_path, size_xy):
    image_HWC = smooth((800, 2000))[: size_xy[1], : size_xy[0]]
    path = tmp_path / "a.jpg"
    write_jpeg(path, size_xy, (2.0, 2.5), strips(image_HWC), 90)
    whole_HWC = simplejpeg.decode_jpeg(simplejpeg.encode_jpeg(np.ascontiguousarray(image_HWC), 90, "RGB", "444"))
    np.testing.assert_array_equal(simplejpeg.decode_jpeg(path.read_bytes()), whole_HWC)
    with Image.open(path) as other:
        np.testing.assert_array_equal(np.asarray(other), whole_HWC)
        assert other.info["jfif_density"] == (5000, 4000)
    np.testing.assert_array_equal(pyvips.Image.new_from_file(str(path)).numpy(), whole_HWC)


@pytest.mark.parametrize("write", [write_jpeg, write_jpeg_pyramid])
def test_a_disk_that_fills_up_leaves_nothing(tmp_path, write):
    image_HWC = smooth((600, 300))

    def ends():
        yield image_HWC[:256]
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "a", (300, 600), (1.0, 1.0), ends(), 90)
    with pytest.raises(ValueError, match="strips end at row 256 of 600"):
        write(tmp_path / "a", (300, 600), (1.0, 1.0), [image_HWC[:256]], 90)
    with pytest.raises(ValueError, match=r"strip at row 256: uint8 of shape \(100, 300, 3\); wanted uint8 \(256"):
        write(tmp_path / "a", (300, 600), (1.0, 1.0), [image_HWC[:256], image_HWC[:100]], 90)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"old")]


@pytest.mark.skipif(not os.access("/dev/full", os.W_OK), reason="no /dev/full")
def test_a_full_disk_is_an_error_of_the_system(tmp_path, monkeypatch):
    """Buffers fill before the device says that it is full: nothing may swallow that."""
    real = Path.open
    monkeypatch.setattr(
        Path, "open", lambda path, *words: real(Path("/dev/full") if path.name == ".a.part" else path, *words)
    )
    with pytest.raises(OSError, match="No space left") as caught:
        write_jpeg(tmp_path / "a", (300, 600), (1.0, 1.0), strips(smooth((600, 300))), 90)
    assert caught.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_fit_into_one_jpeg_is_said(tmp_path):
    with pytest.raises(
        ValueError, match="65501 x 3 px do not fit into one JPEG, which takes 65500 a side: write a TIFF"
    ):
        write_jpeg(tmp_path / "a.jpg", (65_501, 3), (1.0, 1.0), [], 90)
    write_jpeg(tmp_path / "a.jpg", (65_500, 3), (1.0, 1.0), [np.full((3, 65_500, 3), 9, np.uint8)], 90)
    assert simplejpeg.decode_jpeg((tmp_path / "a.jpg").read_bytes())[2, 65_499].tolist() == [9, 9, 9]


# ---------------------------------------------------------------------------------------------------------------- step


def slide_with_islands(path: Path) -> Path:
    """1200 x 900 px of 4 um; tissue in x 100-300, y 200-400 and x 900-1100, y 300-700."""
    image_HWC = np.full((900, 1200, 3), GLASS, np.uint8)
    image_HWC[200:400, 100:300] = PINK
    image_HWC[300:700, 900:1100] = PINK
    path.parent.mkdir(parents=True, exist_ok=True)
    write_pyramid(path, image_HWC, 4.0, lossless=True)
    return path


def words(tmp_path: Path, *more: str) -> list[str]:
    return ["--slide_path", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--num_processes", "1", *more]


def written(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in (out / "trim_tissue").iterdir()}


def test_islands_move_together_and_glass_is_reported(tmp_path, capsys):
    name = 'it\'s é "x"'
    slide_with_islands(tmp_path / "in" / f"{name}.tif")
    write_pyramid(tmp_path / "in" / "glass.tif", np.full((300, 500, 3), GLASS, np.uint8), 4.0, lossless=True)
    assert run_steps(["tissue", "trim_tissue"], words(tmp_path, "--trim_um_px", "8")) == 1
    said = capsys.readouterr().out
    assert "FAILED  trim_tissue     glass: no tissue was found: look at tissue/glass.png" in said
    assert "1 failed:" in said
    folder = tmp_path / "out" / "trim_tissue"
    assert sorted(path.name for path in folder.iterdir()) == [f"{name}.json", f"{name}.tif", "trim_tissue.csv"]
    trim = read_trim(folder / f"{name}.json")
    # 300 empty columns of 8 um were between them, 64 stay; in y they overlap.
    assert (trim.runs_x, trim.runs_y) == (((50, 182), (418, 550)), ((100, 350),))
    slide = Slide(folder / f"{name}.tif")
    assert (slide.size_xy_l0, slide.um_px_xy_l0) == ((264, 250), (8.0, 8.0))
    image_HWC = slide.thumbnail(0)
    assert np.abs(image_HWC[:90, :90].astype(int) - PINK).max() < 6
    assert np.abs(image_HWC[60:, 176:].astype(int) - PINK).max() < 6
    assert np.abs(image_HWC[:, 110:150].astype(int) - GLASS).max() < 6
    table = (folder / "trim_tissue.csv").read_text(encoding="utf-8").splitlines()
    assert table[1].endswith(",8.0,8.0,264,250,0.24444,2,1")


def test_one_jpeg_and_a_spacing_that_is_too_fine(tmp_path, capsys):
    slide_with_islands(tmp_path / "in" / "a.tif")
    assert run_steps(["tissue", "trim_tissue"], words(tmp_path, "--trim_um_px", "8", "--trim_format", "jpg")) == 0
    path = tmp_path / "out" / "trim_tissue" / "a.jpg"
    assert simplejpeg.decode_jpeg(path.read_bytes()).shape == (250, 264, 3)
    capsys.readouterr()
    assert run_steps(["trim_tissue"], words(tmp_path)) == 1
    assert "has 4 um/px; a spacing of 2 um/px is finer than what was scanned" in capsys.readouterr().out
    # What other options had made is gone: it would pass for theirs.
    assert sorted(path.name for path in path.parent.iterdir()) == ["trim_tissue.csv"]


def test_without_the_step_tissue_it_says_what_to_run(tmp_path, capsys):
    slide_with_islands(tmp_path / "in" / "a.tif")
    assert run_steps(["trim_tissue"], words(tmp_path, "--trim_um_px", "8")) == 1
    assert "run the step tissue with the same --out" in capsys.readouterr().out


def test_processes_write_the_same_bytes_and_a_second_run_nothing(tmp_path, capsys):
    for name in ("a", "b"):
        slide_with_islands(tmp_path / "in" / f"{name}.tif")
    more = ("--trim_um_px", "8")
    assert run_steps(["tissue", "trim_tissue"], words(tmp_path, *more)) == 0
    before = written(tmp_path / "out")
    assert len(before) == 5
    capsys.readouterr()
    assert run_steps(["trim_tissue"], words(tmp_path, *more)) == 0
    assert "nothing to do, finished before: 2 slides" in capsys.readouterr().out
    other = tmp_path / "other"
    again = ["--slide_path", str(tmp_path / "in"), "--out", str(other), "--num_processes", "2", *more]
    assert run_steps(["tissue", "trim_tissue"], again) == 0
    assert written(other) == before


def test_kill_9_and_again_gives_the_same_bytes(tmp_path):
    rng = np.random.default_rng(0)
    noise_HWC = rng.integers(0, 255, (4000, 5000, 3)).astype(np.uint8)
    slide = tmp_path / "in" / "a.tif"
    slide.parent.mkdir()
    write_pyramid(slide, noise_HWC, 1.0)
    cells = np.ones((500, 625), np.bool_)
    write_cells(tmp_path / "out" / "tissue" / "a.tif", cells, 8.0)
    step = ["preprocessing.trim_tissue", *words(tmp_path, "--trim_um_px", "1")]
    part = tmp_path / "out" / "trim_tissue" / ".a.tif.part"
    dying = [sys.executable, "-m", "tests.support.killed", str(part), *step]
    assert subprocess.run(dying, cwd=ROOT, check=False, capture_output=True, timeout=120).returncode == -signal.SIGKILL
    assert [path.name for path in part.parent.iterdir()] == [".a.tif.part"]
    command = [sys.executable, "-m", *step]
    assert subprocess.run(command, cwd=ROOT, check=False, capture_output=True, timeout=120).returncode == 0
    (tmp_path / "whole").mkdir()
    grid = whole_grid(Slide(slide), 1.0)
    write_jpeg_pyramid(tmp_path / "whole" / "a.tif", (5000, 4000), (1.0, 1.0), read_strips(Slide(slide), grid, 256), 90)
    assert (part.parent / "a.tif").read_bytes() == (tmp_path / "whole" / "a.tif").read_bytes()
    assert not part.exists()
