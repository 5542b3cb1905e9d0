"""Masks from XML: every px as training sees it, levels that lie on the slide, and what the command line says."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import shapely
import tifffile

from preprocessing.xml_to_mask import Field, xml_to_mask
from slides.geometry import Window
from slides.reader import Slide
from slides.synthetic.demo import position_coded, write_asap
from slides.truth.annotation import DEFAULT_LABEL_MAP
from slides.truth.mask_truth import MaskTruth
from slides.truth.xml_truth import XmlTruth
from tests.support.paths import ROOT, SHARED

needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason=f"real data are not at {SHARED}")


def ring(seed, centre_xy, radius):
    """A wavy outline with corners at any fraction of a px."""
    rng = np.random.default_rng(seed)
    turn = np.sort(rng.uniform(0, 2 * np.pi, 40))
    reach = radius * rng.uniform(0.7, 1.1, 40)
    return np.asarray(centre_xy) + reach[:, None] * np.stack([np.cos(turn), np.sin(turn)], axis=1)


def square(x, y, width, height):
    return np.array([[x, y], [x + width, y], [x + width, y + height], [x, y + height]], float)


AREAS = [
    ("_0", ring(0, (90, 80), 70)),
    ("_2", ring(1, (95, 75), 25)),
    ("_1", ring(2, (255, 150), 80)),  # beyond the border
    ("_0", square(64, 160, 48, 32)),  # along the edges of tiles of 16 px
    ("_0", square(200.2, 20.3, 0.4, 0.4)),  # the center of one px
    ("_0", square(210.6, 20.6, 0.3, 0.3)),  # no center
]


@pytest.fixture
def slide(tmp_path):
    """301 x 203 px, levels by 1, 2.001 and 6."""
    position_coded(tmp_path / "s.tif", (301, 203), (1.0, 2.001, 6.0), tile=16, um_px=0.243)
    return Slide(tmp_path / "s.tif")


def levels_of(path):
    with tifffile.TiffFile(path) as tiff:
        return [page.asarray() for page in tiff.pages]


@pytest.mark.parametrize("tile", [16, 64, 512])
def test_every_px_is_as_training_sees_it(tmp_path, slide, tile):
    write_asap(tmp_path / "a.xml", AREAS)
    notes = xml_to_mask(tmp_path / "a.xml", slide, tmp_path / "m.tif", tile=tile)
    assert len(notes) == 1
    assert "lie outside the slide, clipped" in notes[0]
    truth = XmlTruth(tmp_path / "a.xml", slide)
    mask = MaskTruth(tmp_path / "m.tif", slide, {0: 0, 1: 1})
    whole = Window((0.0, 0.0), (203, 301), (1.0, 1.0))
    np.testing.assert_array_equal(levels_of(tmp_path / "m.tif")[0], truth.label(whole))
    for window in (Window((-5.0, -7.0), (60, 70), (1.0, 1.0)), Window((250.0, 150.0), (60, 70), (1.0, 1.0)), whole):
        np.testing.assert_array_equal(mask.label(window), truth.label(window))
    assert levels_of(tmp_path / "m.tif")[0][20, 198:213].tolist() == [0, 0, 1] + [0] * 12


def test_the_mask_lies_on_its_slide(tmp_path, slide):
    write_asap(tmp_path / "a.xml", AREAS)
    xml_to_mask(tmp_path / "a.xml", slide, tmp_path / "m.tif", tile=16)
    mask = Slide(tmp_path / "m.tif")
    assert [level.size_xy for level in mask.levels] == [level.size_xy for level in slide.levels]
    assert [level.downsample_xy for level in mask.levels] == [level.downsample_xy for level in slide.levels]
    assert mask.um_px_xy_l0 == pytest.approx(slide.um_px_xy_l0, rel=1e-12)
    levels = levels_of(tmp_path / "m.tif")
    assert [level.shape for level in levels] == [(203, 301), (101, 150), (33, 50)]
    # The spot of one px is on every level.
    assert levels[1][10, 100] == 1
    assert levels[2][3, 33] == 1


def test_slides_of_one_level_get_halves(tmp_path):
    position_coded(tmp_path / "s.tif", (301, 203), tile=16)
    write_asap(tmp_path / "a.xml", AREAS)
    for slide in (Slide(tmp_path / "s.tif"), Field("s", Path("s"), (301, 203), (0.25, 0.5))):
        xml_to_mask(tmp_path / "a.xml", slide, tmp_path / "m.tif", tile=64)
        assert [level.shape for level in levels_of(tmp_path / "m.tif")] == [(203, 301), (102, 151), (51, 76), (26, 38)]
    assert Slide(tmp_path / "m.tif").um_px_xy_l0 == (0.25, 0.5)


def test_classes_and_areas_to_ignore(tmp_path, slide):
    areas = [("a", square(10, 10, 100, 50)), ("b", square(50, 20, 100, 20)), ("c", square(60, 25, 8, 8))]
    write_asap(tmp_path / "a.xml", [*areas, ("d", square(0, 0, 5, 5))])
    label_map = {"a": 1, "b": 2, "c": 255}
    xml_to_mask(tmp_path / "a.xml", slide, tmp_path / "m.tif", label_map, ("d",), tile=16)
    levels = levels_of(tmp_path / "m.tif")
    assert np.bincount(levels[0].ravel(), minlength=256)[[0, 1, 2, 255]].tolist() == [
        301 * 203 - 5000 - 40 * 20, 5000 - 60 * 20, 2000 - 64, 64,
    ]  # fmt: skip
    np.testing.assert_array_equal(
        levels[0], XmlTruth(tmp_path / "a.xml", slide, label_map, ("d",)).label(Window((0, 0), (203, 301), (1, 1)))
    )
    assert 255 in levels[1]
    # 8 px lie across two px of 6 by 6; both also have class 2.
    assert 255 not in levels[2]


def test_tiles_that_no_edge_passes_are_not_looked_at(tmp_path, slide, monkeypatch):
    write_asap(tmp_path / "a.xml", AREAS)
    truth = XmlTruth(tmp_path / "a.xml", slide)
    classes = truth.one_class(16)
    label = truth.label(Window((0.0, 0.0), (203, 301), (1.0, 1.0)))
    known = np.argwhere(classes >= 0)
    assert classes.shape == (13, 19)
    assert len(known) > 100
    assert {int(classes[row, column]) for row, column in known} == {0, 1}
    for row, column in known:
        assert (label[row * 16 : row * 16 + 16, column * 16 : column * 16 + 16] == classes[row, column]).all()
    assert (classes[10:12, 4:7] == 1).all()  # the box along the edges of tiles
    looked_at = []
    real = XmlTruth.label
    monkeypatch.setattr(XmlTruth, "label", lambda self, window: looked_at.append(window) or real(self, window))
    xml_to_mask(tmp_path / "a.xml", slide, tmp_path / "m.tif", tile=16)
    assert len(looked_at) == (classes < 0).sum()


@needs_data
def test_a_slide_of_20_gigapixels(tmp_path):
    """tumor_054 has regions of 1.5 Gpx; only its spots are compared, and the area of a coarse level."""
    xml = SHARED / "annotations" / "camelyon16_tumor_054.xml"
    field = Field("a", Path("a"), (100_000, 200_000), (0.243, 0.243))
    code = (
        "from pathlib import Path\n"
        "from benchmarks.report import peak_resident_bytes\n"
        "from preprocessing.xml_to_mask import Field, xml_to_mask\n"
        f"xml_to_mask(Path({str(xml)!r}), Field('a', Path('a'), (100_000, 200_000), (0.243, 0.243)),"
        f" Path({str(tmp_path / 'm.tif')!r}))\n"
        "print(peak_resident_bytes())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 400 * 2**20
    truth = XmlTruth(xml, field)
    mask = Slide(tmp_path / "m.tif")
    rng = np.random.default_rng(0)
    outlines = [shapely.get_coordinates(region) for region in truth.regions(1)]
    corners = [outline[k] for outline in outlines for k in rng.integers(0, len(outline), 3)]
    assert len(corners) >= 30
    for x, y in corners:
        corner = int(x) - 150, int(y) - 90
        expected = truth.label(Window((float(corner[0]), float(corner[1])), (200, 300), (1.0, 1.0)))
        assert 0 < (expected == 1).sum() < expected.size
        np.testing.assert_array_equal(mask.read_level(0, corner, (200, 300))[..., 0], expected)
    coarse = mask.thumbnail(len(mask.levels) - 1)[..., 0]
    cell = 512 * 512
    exact = sum(poly.area for poly in truth.regions(1))
    assert exact * 0.99 < coarse.sum() * cell * (mask.levels[-1].downsample_xy[0] / 512) ** 2 < exact * 1.4


@needs_data
@pytest.mark.parametrize("name", ["tumor_951", "tumor_952"])
def test_masks_of_real_slides_are_those_they_came_with(tmp_path, name):
    folder = SHARED / "c16mosaic" / "val"
    slide = Slide(folder / "images" / f"{name}.tif")
    xml_to_mask(folder / "annotations" / f"{name}.xml", slide, tmp_path / "m.tif")
    theirs = levels_of(folder / "masks" / f"{name}_Mask.tif")[0] > 0
    ours = levels_of(tmp_path / "m.tif")[0] > 0
    # Another program drew them: px on the outline may differ.
    assert (ours != theirs).sum() < 0.01 * theirs.sum()
    assert [level.size_xy for level in Slide(tmp_path / "m.tif").levels] == [level.size_xy for level in slide.levels]


# The command line


def run(*arguments):
    command = [sys.executable, "-m", "preprocessing.xml_to_mask", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_command_line(tmp_path, slide):
    write_asap(tmp_path / "ä 'a'.xml", [("mine", square(10, 10, 20, 30)), ("none", square(100, 100, 9, 9))])
    out = tmp_path / "m.tif"
    done = run("--xml", tmp_path / "ä 'a'.xml", "--slide", slide.path, "--out", out, "--label_map", "Mine:7")
    assert done.returncode == 0, done.stderr
    assert "mine -> class 7" in done.stdout
    assert "group 'none' is ignored" in done.stdout
    assert "m.tif: 301 x 203 px in" in done.stdout
    assert (levels_of(out)[0] == 7).sum() == 600
    done = run(
        "--xml", tmp_path / "ä 'a'.xml", "--size", 40, 50, "--um_px", 0.25, 0.5, "--out", out, "--label_map", "mine:1",
        "--mask_tile", 16,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert levels_of(out)[0].shape == (50, 40)
    assert Slide(out).um_px_xy_l0 == (0.25, 0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", 40, 50], "give --slide, or --size with --um_px"),
        (["--um_px", 0.25], "give --slide, or --size with --um_px"),
        (["--size", 40, 50, "--um_px", 1, 2, 3], "--um_px: give one number"),
        (["--slide", "s.tif", "--size", 40, 50], "--slide already gives the size"),
        (["--slide", "s.tif"], "no such file"),
        (["--size", 40, 50, "--um_px", 0.25, "--label_map", "_0:256"], "is not NAME:CLASS"),
        (["--size", 40, 50, "--um_px", 0.25, "--label_map", "_0:1", "_0:2"], "name each group once"),
        (["--size", 40, 50, "--um_px", 0.25, "--label_map", "_0:1", "--ignore_groups", "_0"], "name each group once"),
        (["--size", 40, 50, "--um_px", 0.25, "--mask_tile", 100], "a multiple of 16"),
        (["--size", 0, 50, "--um_px", 0.25], "at least 1"),
        (["--size", 40, 50, "--um_px", 0], "above 0"),
        (["--size", 40, 50, "--um_px", 0.25, "--label_map", "_1:1"], "unknown group '_0'"),
        (["--size", 4, 5, "--um_px", 0.25], "every annotation lies outside"),
    ],
)
def test_mistakes_are_said_in_one_line(tmp_path, arguments, message):
    write_asap(tmp_path / "a.xml", [("_0", square(10, 10, 20, 30))])
    done = run("--xml", tmp_path / "a.xml", "--out", tmp_path / "m.tif", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.xml"]


def test_an_annotation_without_areas_is_an_empty_mask(tmp_path, slide):
    write_asap(tmp_path / "a.xml", [])
    xml_to_mask(tmp_path / "a.xml", slide, tmp_path / "m.tif", DEFAULT_LABEL_MAP)
    assert not any(level.any() for level in levels_of(tmp_path / "m.tif"))
