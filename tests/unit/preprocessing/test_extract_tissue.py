"""Whole slides with sampling masks and labels: what is written, tables of labels, memory, bad input."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import tifffile

from preprocessing.extract_tissue import read_labels
from preprocessing.overview import write_cells
from slides.geometry import Trim
from slides.reader import Slide
from slides.synthetic.demo import write_pyramid
from slides.trimming import read_trim, tissue_tile
from tests.support.paths import ROOT, SHARED
from tests.support.steps import run_steps

PINK, GLASS = (215, 150, 190), (243, 243, 243)
NAME = 'it\'s é, "x"'


def pink(path: Path) -> Path:
    """700 x 500 px of 4 um; tissue in x 200-400, y 96-296."""
    image_HWC = np.full((500, 700, 3), GLASS, np.uint8)
    image_HWC[96:296, 200:400] = PINK
    path.parent.mkdir(parents=True, exist_ok=True)
    write_pyramid(path, image_HWC, 4.0, lossless=True)
    return path


def words(tmp_path: Path, table: str, *more: str) -> list[str]:
    (tmp_path / "labels.csv").write_text(table, encoding="utf-8")
    where = ["--slide_path", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--num_processes", "1"]
    return [*where, "--labels", str(tmp_path / "labels.csv"), "--extract_um_px", "4", *more]


def files(out: Path) -> dict[str, bytes]:
    folder = out / "extract_tissue"
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# -------------------------------------------------------------------------------------------------------- sampling mask


def test_a_mask_on_paper():
    tissue_RS = np.array([[0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]], np.bool_)  # cells of 10 px
    trim = Trim((1.0, 1.0), ((8, 24), (28, 40)), ((9, 30),))
    whole_HW = tissue_tile(trim, tissue_RS, 10, 1, (0, 0), 99)
    expected_HW = np.repeat(np.repeat(tissue_RS, 10, 0), 10, 1)[9:30][:, [*range(8, 24), *range(28, 40)]]
    np.testing.assert_array_equal(whole_HW, expected_HW)
    # 7 px of the image per px: those that any tissue touches. Columns 8-14, 15-21, 22-23 + 28-32, 33-39.
    assert tissue_tile(trim, tissue_RS, 10, 7, (0, 0), 99).tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 1, 1]]
    assert tissue_tile(trim, tissue_RS, 10, 7, (1, 2), 2).tolist() == [[0, 1]]
    # A last px of the mask with less than 16 px of the image.
    assert tissue_tile(trim, tissue_RS, 10, 16, (1, 1), 9).tolist() == [[1]]


def test_a_mask_at_a_step_that_is_no_whole_number():
    tissue_RS = np.random.default_rng(0).random((13, 17)) < 0.2
    trim = Trim((3.3, 2.1), ((2, 30), (33, 41)), ((1, 60),))
    got_HW = tissue_tile(trim, tissue_RS, 8, 1, (3, 5), 20)
    columns = [*range(2, 30), *range(33, 41)][3:23]
    for row in range(20):
        for column, at in enumerate(columns):
            y0, y1 = (row + 6) * 2.1 / 8, (row + 7) * 2.1 / 8
            x0, x1 = at * 3.3 / 8, (at + 1) * 3.3 / 8
            cells = tissue_RS[int(y0) : int(np.ceil(y1)), int(x0) : int(np.ceil(x1))]
            assert got_HW[row, column] == cells.any()
    assert 0 < got_HW.mean() < 1


# ---------------------------------------------------------------------------------------------------------------- step


def test_image_mask_and_label_of_a_slide(tmp_path, capsys):
    pink(tmp_path / "in" / f"{NAME}.tif")
    pink(tmp_path / "in" / "not asked.tif")
    table = 'label,slide_id,age\n"a, b","it\'s é, ""x""",7\n'
    assert run_steps(["tissue", "extract_tissue"], words(tmp_path, table, "--mask_step", "10")) == 0
    said = capsys.readouterr().out
    assert "note    skipped, not in " in said
    assert "first not asked" in said
    folder = tmp_path / "out" / "extract_tissue"
    assert sorted(files(tmp_path / "out")) == [
        f"images/{NAME}.json", f"images/{NAME}.tif", "manifest.csv", f"masks/{NAME}.tif",
    ]  # fmt: skip
    assert (folder / "manifest.csv").read_text(encoding="utf-8") == (
        "slide_id,label,image,mask,mask_step,um_px_x,um_px_y,width,height,kept_share,tissue_share\n"
        '"it\'s é, ""x""","a, b","images/it\'s é, ""x"".tif","masks/it\'s é, ""x"".tif",'
        "10,4.0,4.0,200,200,0.11429,1.0\n"
    )
    image, mask = (Slide(folder / kind / f"{NAME}.tif") for kind in ("images", "masks"))
    assert (image.size_xy_l0, image.um_px_xy_l0) == ((200, 200), (4.0, 4.0))
    assert (mask.size_xy_l0, mask.um_px_xy_l0) == ((20, 20), (40.0, 40.0))
    assert read_trim(folder / "images" / f"{NAME}.json").runs_x == ((200, 400),)
    assert tifffile.imread(folder / "masks" / f"{NAME}.tif").min() == 1


def test_the_whole_slide_with_its_glass_and_a_mask_of_its_size(tmp_path):
    pink(tmp_path / "in" / "a.tif")
    more = ("--keep_glass", "--mask_step", "1", "--extract_format", "jpg")
    assert run_steps(["tissue", "extract_tissue"], words(tmp_path, "slide_id,label\na,1\n", *more)) == 0
    folder = tmp_path / "out" / "extract_tissue"
    image_HWC = simplejpeg.decode_jpeg((folder / "images" / "a.jpg").read_bytes())
    mask_HW = tifffile.imread(folder / "masks" / "a.tif")
    assert image_HWC.shape == (500, 700, 3)
    pink_HW = image_HWC[..., 1] < 200
    assert mask_HW.shape == pink_HW.shape
    assert np.unique(mask_HW).tolist() == [0, 1]
    # Corners of tissue masks are round.
    assert (mask_HW != pink_HW).sum() < 0.01 * pink_HW.sum()


def test_another_label_changes_the_manifest_only(tmp_path, capsys):
    pink(tmp_path / "in" / "a.tif")
    pink(tmp_path / "in" / "b.tif")
    assert run_steps(["tissue", "extract_tissue"], words(tmp_path, "slide_id,label\nb,0\na,1\n")) == 0
    before = files(tmp_path / "out")
    assert [row.split(",")[:2] for row in before["manifest.csv"].decode().splitlines()[1:]] == [["b", "0"], ["a", "1"]]
    capsys.readouterr()
    assert run_steps(["extract_tissue"], words(tmp_path, "slide_id,label\nb,2\n")) == 0
    said = capsys.readouterr().out
    assert "nothing to do, finished before: 1 slide; also 1 slide of earlier runs: a" in said
    after = files(tmp_path / "out")
    assert after.pop("manifest.csv").decode().splitlines()[1].startswith("b,2,images/b.tif,")
    assert after == {name: data for name, data in before.items() if name != "manifest.csv"}


def test_a_slide_without_tissue_is_not_lost_silently(tmp_path, capsys):
    pink(tmp_path / "in" / "a.tif")
    write_pyramid(tmp_path / "in" / "glass.tif", np.full((300, 500, 3), GLASS, np.uint8), 4.0, lossless=True)
    assert run_steps(["tissue", "extract_tissue"], words(tmp_path, "slide_id,label\nglass,1\na,0\n")) == 1
    said = capsys.readouterr().out
    assert "extract_tissue  glass no tissue was found: look at tissue/glass.png" in said
    assert len((tmp_path / "out" / "extract_tissue" / "manifest.csv").read_text(encoding="utf-8").splitlines()) == 2


def test_what_a_killed_run_left_is_removed(tmp_path):
    pink(tmp_path / "in" / "a.tif")
    for folder in ("images", "masks"):
        left = tmp_path / "out" / "extract_tissue" / folder / ".gone.tif.part"
        left.parent.mkdir(parents=True)
        left.touch()
    (tmp_path / "out" / ".done" / "extract_tissue").mkdir(parents=True)
    assert run_steps(["tissue", "extract_tissue"], words(tmp_path, "slide_id,label\na,0\n")) == 0
    assert sorted(files(tmp_path / "out")) == ["images/a.json", "images/a.tif", "manifest.csv", "masks/a.tif"]


@pytest.mark.parametrize(
    ("table", "why"),
    [
        ("slide_id,label\na,1\nx,0\ny,0\n", r"names 2 slides that have no file: x, y; a slide_id is a file name"),
        ("slide_id,label\na,1\na,1\n", r"line 3: slide a occurs twice; keep one row"),
        ("slide_id,label\na,\n", r"line 2: slide_id 'a' and label '': both are needed"),
        ("slide_id,label\na\n", r"line 2: slide_id 'a' and label ''"),
        ("slide,label\na,1\n", r"has no column slide_id; its first line must name the columns"),
        ("slide_id,label\n", r"has no rows"),
        ("", r"has no column label, slide_id"),
        ('slide_id,label\n"a,1\n', r"is not a CSV table in UTF-8"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path, capsys, table, why):
    pink(tmp_path / "in" / "a.tif")
    assert run_steps(["extract_tissue"], words(tmp_path, table)) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()
    assert re.search(why, error), error


def test_a_table_that_is_not_there_or_no_text(tmp_path):
    with pytest.raises(ValueError, match=r"labels .*gone\.csv cannot be read: No such file"):
        read_labels(tmp_path / "gone.csv")
    (tmp_path / "b.csv").write_bytes(b"slide_id,label\n\xff\xfe,1\n")
    with pytest.raises(ValueError, match="is not a CSV table"):
        read_labels(tmp_path / "b.csv")
    (tmp_path / "c.csv").write_bytes(b"\xef\xbb\xbfslide_id,label\r\na,1\r\n")
    assert read_labels(tmp_path / "c.csv") == {"a": "1"}


MEMORY = """
import sys
from tests.support.steps import run_steps
def peak():
    # Not getrusage: that keeps the peak of the process that started this one.
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1])
before = peak()
assert run_steps(["extract_tissue"], sys.argv[1:]) == 0
print("grown", peak() - before)
"""


def test_memory_does_not_grow_with_the_height(tmp_path):
    """8,000 x 600 px, and 8 times as many rows: 115 MB of px."""
    grown = {}
    for rows in (600, 4_800):
        folder = tmp_path / str(rows)
        (folder / "in").mkdir(parents=True)
        image_HWC = np.full((rows, 8000, 3), PINK, np.uint8)
        write_pyramid(folder / "in" / "a.tif", image_HWC, 4.0)
        write_cells(folder / "out" / "tissue" / "a.tif", np.ones((rows // 2, 4000), np.bool_), 8.0)
        command = [sys.executable, "-c", MEMORY, *words(folder, "slide_id,label\na,1\n", "--mask_step", "1")]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        grown[rows] = int(done.stdout.split("grown")[1]) / 1024
    # The tissue mask is read whole: 10 MB, twice.
    assert grown[4_800] - grown[600] < 50


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"real slides are not at {SHARED}")
def test_real_tissue_has_its_known_area(tmp_path):
    (tmp_path / "in").symlink_to(SHARED / "c16mosaic" / "train" / "images")
    more = ("--label_path", str(SHARED / "c16mosaic/train/masks"), "--mask_step", "1")
    table = "slide_id,label\ntumor_901,tumor\n"
    assert run_steps(["tissue", "extract_tissue"], words(tmp_path, table, *more)) == 0
    row = (tmp_path / "out/extract_tissue/manifest.csv").read_text(encoding="utf-8").splitlines()[1].split(",")
    width, height, share = int(row[7]), int(row[8]), float(row[10])
    # slides.csv: 5,450,207 px of tissue at 0.243 um/px.
    assert width * height * share * 16 == pytest.approx(5450207 * 0.243**2, rel=0.04)
