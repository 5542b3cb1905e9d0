"""Synthetic slides hold the truth they claim; tissue is found on them and on real ones."""

import numpy as np
import pytest
import tifffile

from slides.geometry import Window
from slides.reader import Slide
from slides.synthetic.demo import DEMO, decode, exact_code, make_demo, position_coded, ramp_code
from slides.tissue import tissue_mask
from slides.truth.annotation import DEFAULT_LABEL_MAP, read_annotations
from slides.truth.interface import open_truth
from tests.support.paths import SHARED

needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason=f"real slides are not at {SHARED}")

SMALL = tuple(
    type(plan)(plan.name, plan.split, (701 + 30 * number, 633 + 17 * number), plan.um_px, plan.stain, plan.tumors)
    for number, plan in enumerate(DEMO)
)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The demo's slides at a fifth of their size."""
    out = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("slides.synthetic.demo.DEMO", SMALL)
        make_demo(out, seed=4)
    return out


def test_codes_can_be_decoded():
    x, y = decode(exact_code(np.array([0.5, 16.9, 255.5, 4095.9]), np.array([3.5, 256.0, 4000.2])))
    assert x[0].tolist() == [0, 16, 255, 4095]
    assert y[:, 0].tolist() == [3, 256, 4000]
    assert ramp_code(np.array([160.0]), np.array([32.0])).tolist() == [[[10, 2, 6]]]


def test_position_coded_levels_are_sampled_at_their_centers(tmp_path):
    position_coded(tmp_path / "a.tif", (101, 57), (1.0, 2.5), tile=16)
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        fine, coarse = (page.asarray() for page in tiff.pages)
    assert fine.shape == (57, 101, 3)
    assert coarse.shape == (22, 40, 3)
    assert decode(fine)[0][7].tolist() == list(range(101))
    assert decode(coarse)[0][0, :5].tolist() == [1, 3, 6, 8, 11]
    assert decode(coarse)[1][:3, 0].tolist() == [1, 3, 6]
    with pytest.raises(ValueError, match="at most 4096"):
        position_coded(tmp_path / "a.tif", (5000, 57))


def test_demo_has_the_layout_of_the_field(demo):
    found = sorted(str(path.relative_to(demo)) for path in demo.rglob("*.*"))
    assert found == [
        "train/annotations/tumor_001.xml",
        "train/annotations/tumor_002.xml",
        "train/annotations/tumor_003.xml",
        "train/images/normal_001.tif",
        "train/images/tumor_001.tif",
        "train/images/tumor_002.tif",
        "train/images/tumor_003.tif",
        "train/masks/tumor_001_Mask.tif",
        "train/masks/tumor_002_Mask.tif",
        "train/masks/tumor_003_Mask.tif",
        "val/annotations/tumor_101.xml",
        "val/annotations/tumor_102.xml",
        "val/images/tumor_101.tif",
        "val/images/tumor_102.tif",
        "val/masks/tumor_101_Mask.tif",
        "val/masks/tumor_102_Mask.tif",
    ]


def test_demo_slides_are_pyramids_with_spacing(demo):
    slide = Slide(demo / "train/images/tumor_002.tif")
    assert slide.um_px_xy_l0 == pytest.approx((0.243, 0.243), rel=1e-6)
    assert slide.size_xy_l0 == (731, 650)
    assert [level.downsample_xy for level in slide.levels] == [(1.0, 1.0), (2.0, 2.0), (4.0, 4.0)]
    assert Slide(demo / "val/images/tumor_101.tif").um_px_xy_l0 == pytest.approx((0.25, 0.25), rel=1e-6)


@pytest.mark.parametrize("name", ["train/{}/tumor_001", "train/{}/tumor_003", "val/{}/tumor_102"])
def test_demo_annotation_and_mask_are_equal_and_have_a_hole(demo, name):
    slide = Slide(demo / (name.format("images") + ".tif"))
    annotations = read_annotations(demo / (name.format("annotations") + ".xml"), DEFAULT_LABEL_MAP)[0]
    drawn = open_truth(demo / (name.format("annotations") + ".xml"), slide)
    mask = open_truth(demo / (name.format("masks") + "_Mask.tif"), slide)
    width, height = slide.size_xy_l0
    window = Window((0.0, 0.0), (height, width), (1.0, 1.0))
    assert sorted({item.group for item in annotations}) == ["_0", "_2"]
    assert np.array_equal(drawn.label(window), mask.label(window))
    assert 0.1 < mask.label(window).mean() < 0.4
    assert sum(len(part.interiors) for part in drawn.regions(1)) == 1


def test_demo_tumor_is_darker_tissue_than_the_rest(demo):
    slide = Slide(demo / "train/images/tumor_001.tif")
    width, height = slide.size_xy_l0
    window = Window((0.0, 0.0), (height, width), (1.0, 1.0))
    label = open_truth(demo / "train/annotations/tumor_001.xml", slide).label(window)
    image = slide.read(window)
    tissue = tissue_mask(image, 0.25)
    assert image[label == 1].mean() < image[(label == 0) & tissue].mean() - 15
    assert (label[~tissue] == 1).mean() < 0.01
    assert image[:6, :6].mean() > 235


def test_same_seed_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr("slides.synthetic.demo.DEMO", SMALL[:1])
    files = [make_demo(tmp_path / str(number), seed)[0].read_bytes() for number, seed in enumerate((4, 4, 5))]
    assert files[0] == files[1]
    assert files[0] != files[2]


# Tissue


def painted(um_px, tissue_um):
    """A white image of 3000 x 2000 um with one pink rectangle of given left, top, right, bottom."""
    image = np.full((round(2000 / um_px), round(3000 / um_px), 3), 243, np.uint8)
    left, top, right, bottom = (round(value / um_px) for value in tissue_um)
    image[top:bottom, left:right] = (220, 140, 180)
    return image


@pytest.mark.parametrize("um_px", [4.0, 8.0, 16.0])
def test_tissue_has_its_size_at_any_spacing(um_px):
    mask = tissue_mask(painted(um_px, (500, 600, 1700, 1400)), um_px)
    assert mask.sum() * um_px**2 == pytest.approx(1200 * 800, rel=0.03)
    rows, columns = np.nonzero(mask)
    assert (rows.min() * um_px, columns.min() * um_px) == (pytest.approx(600, abs=17), pytest.approx(500, abs=17))


@pytest.mark.parametrize("um_px", [4.0, 8.0, 16.0])
def test_gaps_are_closed_by_their_width_in_micrometers(um_px):
    image = painted(um_px, (0, 0, 3000, 2000))
    for left, width in ((500, 32), (1500, 128)):
        image[:, round(left / um_px) : round((left + width) / um_px)] = 243
    mask = tissue_mask(image, um_px)
    assert mask[:, round(508 / um_px)].all()
    assert not mask[:, round(1560 / um_px)].any()


def test_dust_is_dropped_gaps_are_closed_and_borders_kept():
    image = painted(8.0, (0, 0, 800, 2000))
    image[100:104, 200:204] = (220, 140, 180)
    image[:, 50:54] = 243
    mask = tissue_mask(image, 8.0)
    assert mask[:, :100].all()
    assert not mask[:, 101:].any()


def test_glass_black_and_tiny_images_are_no_tissue():
    assert not tissue_mask(np.full((30, 50, 3), 250, np.uint8), 8.0).any()
    assert not tissue_mask(np.zeros((30, 50, 3), np.uint8), 8.0).any()
    assert tissue_mask(np.full((1, 2, 3), 250, np.uint8), 1000.0).tolist() == [[False, False]]


@needs_data
def test_tissue_of_real_slides():
    # Tissue px of slides.csv: the layout's outline, which includes pale places.
    for name, tissue in (("tumor_901", 5450207), ("normal_901", 5471579)):
        slide = Slide(SHARED / "c16mosaic/train/images" / f"{name}.tif")
        found = tissue_mask(slide.thumbnail(3), 8 * 0.243).sum() * 64
        assert found == pytest.approx(tissue, rel=0.03)
    svs = Slide(SHARED / "slides/CMU-1-Small-Region.svs")
    thumbnail = svs.read(Window((0.0, 0.0), (185, 138), (16.0, 16.0)))
    assert 0.3 < tissue_mask(thumbnail, 8.0).mean() < 0.5
