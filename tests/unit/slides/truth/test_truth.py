"""Truth: pixel centers, whole and cut windows, tiny lesions, masks of every kind."""

import pickle

import numpy as np
import pytest
import pyvips
import tifffile

from slides.geometry import Window
from slides.reader import Slide
from slides.synthetic.demo import position_coded, write_asap, write_levels
from slides.truth.annotation import DEFAULT_LABEL_MAP, AnnotationError
from slides.truth.interface import EmptyTruth, open_truth
from slides.truth.label import IGNORE
from slides.truth.mask_truth import MaskTruth
from slides.truth.xml_truth import XmlTruth
from tests.support.paths import SHARED

DATA = SHARED / "c16mosaic" / "train"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"real slides are not at {DATA}")


def square(x, y, width, height):
    return np.array([[x, y], [x + width, y], [x + width, y + height], [x, y + height]], float)


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    """90 x 70 px, one level."""
    path = tmp_path_factory.mktemp("truth") / "slide.tif"
    position_coded(path, (90, 70), tile=16)
    return Slide(path)


def xml_truth(tmp_path, slide, areas, label_map=DEFAULT_LABEL_MAP):
    write_asap(tmp_path / "a.xml", areas)
    return XmlTruth(tmp_path / "a.xml", slide, label_map)


def mask_truth(tmp_path, slide, levels, value_map=None):
    write_levels(tmp_path / "a.tif", levels, tile=16)
    return MaskTruth(tmp_path / "a.tif", slide, value_map)


def whole(slide, step=1.0):
    width, height = (round(side / step) for side in slide.size_xy_l0)
    return Window((0.0, 0.0), (height, width), (step, step))


# XML


def test_label_is_class_inside_0_around_and_ignore_outside(tmp_path, slide):
    truth = xml_truth(tmp_path, slide, [("_0", square(80, 60, 10, 10)), ("_2", square(84, 62, 2, 3))])
    label = truth.label(Window((79.0, 60.0), (12, 13), (1.0, 1.0)))
    assert label[0].tolist() == [0] + [1] * 10 + [IGNORE] * 2
    assert label[3].tolist() == [0, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1, IGNORE, IGNORE]
    assert (label[10:] == IGNORE).all()
    assert (label == 1).sum() == 94
    assert (label == 0).sum() == 10 + 6
    assert truth.slide_id == "slide"


def test_label_agrees_with_the_image_at_any_step(tmp_path, slide):
    truth = xml_truth(tmp_path, slide, [("_0", square(20, 10, 30, 40))])
    label = truth.label(Window((15.5, 5.25), (20, 12), (3.0, 2.5)))
    columns = [c for c in range(12) if 20 <= 15.5 + (c + 0.5) * 3 < 50]
    rows = [r for r in range(20) if 10 <= 5.25 + (r + 0.5) * 2.5 < 50]
    assert (columns[0], columns[-1], rows[0], rows[-1]) == (1, 10, 2, 17)
    assert np.argwhere(label == 1).min(axis=0).tolist() == [2, 1]
    assert np.argwhere(label == 1).max(axis=0).tolist() == [17, 10]
    assert (label == 1).sum() == len(columns) * len(rows)


def test_own_regions_of_class_0(tmp_path, slide):
    truth = xml_truth(tmp_path, slide, [("normal", square(5, 5, 20, 10)), ("tumor", square(15, 5, 20, 10))])
    # The default map paints normal last.
    assert truth.classes == frozenset({0, 1})
    assert [part.bounds for part in truth.regions(0)] == [(5, 5, 25, 15)]
    assert [part.bounds for part in truth.regions(1)] == [(25, 5, 35, 15)]
    assert truth.regions(2) == []


def test_a_lesion_smaller_than_a_cell_survives(tmp_path, slide):
    truth = xml_truth(tmp_path, slide, [("_0", square(33.2, 17.6, 0.2, 0.1))])
    occurs = truth.label_max(16, 1)
    assert occurs.shape == (5, 6)
    assert np.argwhere(occurs).tolist() == [[1, 2]]
    assert truth.label_max(16, 0).all()
    assert truth.label(whole(slide)).max() == 0


def test_occurrence_is_exact_at_cell_borders(tmp_path, slide):
    truth = xml_truth(tmp_path, slide, [("_0", square(16, 32, 32, 16))])
    assert np.argwhere(truth.label_max(16, 1)).tolist() == [[2, 1], [2, 2]]
    assert np.argwhere(~truth.label_max(16, 0)).tolist() == [[2, 1], [2, 2]]
    inner = xml_truth(tmp_path, slide, [("_0", square(10, 10, 60, 50))])
    assert inner.label_max(10, 1).sum() == 6 * 5


def test_annotations_are_clipped_to_the_slide_and_noted(tmp_path, slide):
    truth = xml_truth(tmp_path, slide, [("_0", square(80, 60, 30, 30))])
    assert [part.bounds for part in truth.regions(1)] == [(80, 60, 90, 70)]
    assert "800 level-0 px2 lie outside" in truth.notes[0]
    with pytest.raises(AnnotationError, match="every annotation lies outside"):
        xml_truth(tmp_path, slide, [("_0", square(91, 0, 10, 10))])


def test_class_255_is_painted_as_ignore(tmp_path, slide):
    areas = [("a", square(0, 0, 9, 9)), ("unsure", square(3, 3, 2, 4))]
    truth = xml_truth(tmp_path, slide, areas, {"a": 1, "unsure": 255})
    label = truth.label(whole(slide))
    assert np.bincount(label.ravel(), minlength=256)[[0, 1, 255]].tolist() == [90 * 70 - 81, 73, 8]
    assert truth.classes == frozenset({1})
    with pytest.raises(ValueError, match="classes"):
        xml_truth(tmp_path, slide, areas, {"a": 1, "unsure": 256})


# Masks


def spots(shape=(70, 90)):
    mask = np.zeros(shape, np.uint8)
    mask[10:30, 20:55] = 1
    mask[15:18, 30:34] = 0
    mask[64, 85] = 1
    return mask


@pytest.mark.parametrize("value", [1, 255, 7])
def test_any_value_but_0_is_tumor_by_default(tmp_path, slide, value):
    truth = mask_truth(tmp_path, slide, [spots() * value])
    assert np.array_equal(truth.label(whole(slide)), spots())
    assert truth.classes == frozenset({1})
    assert sum(part.area for part in truth.regions(1)) == 20 * 35 - 12 + 1
    assert len(truth.regions(1)) == 2


def test_label_of_a_cut_window_and_outside(tmp_path, slide):
    truth = mask_truth(tmp_path, slide, [spots()])
    expected = np.full((80, 100), IGNORE)
    expected[5:75, 5:95] = spots()
    assert np.array_equal(truth.label(Window((-5.0, -5.0), (80, 100), (1.0, 1.0))), expected)
    assert (truth.label(Window((200.0, 0.0), (4, 5), (1.0, 1.0))) == IGNORE).all()


@pytest.mark.parametrize("step", [0.5, 1.3, 2.0, 3.7])
def test_label_is_the_pixel_under_the_center(tmp_path, slide, step):
    codes = np.random.default_rng(2).integers(0, 5, (70, 90), dtype=np.uint8)
    truth = mask_truth(tmp_path, slide, [codes], {0: 0, 1: 1, 2: 2, 3: 3, 4: 255})
    label = truth.label(Window((3.2, 4.7), (15, 20), (step, step)))
    x = np.floor(3.2 + (np.arange(20) + 0.5) * step).astype(int)
    y = np.floor(4.7 + (np.arange(15) + 0.5) * step).astype(int)
    assert np.array_equal(label, np.where(codes == 4, 255, codes)[np.ix_(y, x)])


def test_coarse_labels_come_from_a_level_of_at_least_two_px_per_step(tmp_path, slide):
    levels = [np.full((70, 90), 1), np.full((35, 45), 2), np.full((17, 22), 3), np.full((8, 11), 4)]
    truth = mask_truth(tmp_path, slide, [level.astype(np.uint8) for level in levels], {1: 1, 2: 2, 3: 3, 4: 4})
    picked = [int(truth.label(Window((0.0, 0.0), (3, 4), (step, step))).max()) for step in (1.0, 4.0, 4.5, 8.0, 16.0)]
    assert picked == [1, 1, 2, 3, 4]


def test_bands_of_coarse_windows_equal_one_read(tmp_path, slide, monkeypatch):
    truth = mask_truth(tmp_path, slide, [spots()])
    window = Window((-4.0, -7.0), (25, 30), (3.5, 3.5))
    once = truth.label(window)
    monkeypatch.setattr("slides.truth.mask_truth.SCAN_PX", 500)
    assert np.array_equal(truth.label(window), once)
    assert sorted(np.unique(once).tolist()) == [0, 1, 255]


def test_a_single_pixel_survives_the_largest_cell(tmp_path, slide):
    truth = mask_truth(tmp_path, slide, [spots()])
    assert np.argwhere(truth.label_max(32, 1)).tolist() == [[0, 0], [0, 1], [2, 2]]
    assert truth.label_max(7, 1).shape == (10, 13)
    assert truth.label_max(7, 1)[9, 12]
    assert np.array_equal(truth.label_max(1, 1), spots().astype(bool))


def test_large_masks_are_scanned_at_a_coarser_level(tmp_path, slide, monkeypatch):
    coarse = np.zeros((17, 22), np.uint8)
    coarse[3, 5] = 1
    truth = mask_truth(tmp_path, slide, [spots(), np.zeros((35, 45), np.uint8), coarse, np.zeros((8, 11), np.uint8)])
    monkeypatch.setattr("slides.truth.mask_truth.SCAN_LEVEL0_PX", 1000)
    # 2 um/px are 8 level-0 px here; cells of 4 px allow level 2 at most.
    assert np.argwhere(truth.label_max(4, 1)).tolist() == [[3, 5]]
    assert truth.label_max(4, 1).shape == (18, 23)
    assert not truth.label_max(16, 1).any()
    coarse[:] = 0
    coarse[4, 5] = 1
    odd = mask_truth(tmp_path, slide, [spots(), np.zeros((35, 45), np.uint8), coarse])
    # The center of that px is (22, 18); cells of 6 do not fit px of 4.
    assert np.argwhere(odd.label_max(6, 1)).tolist() == [[3, 3]]


def test_outlines_of_large_masks_use_cells(tmp_path, slide, monkeypatch):
    truth = mask_truth(tmp_path, slide, [spots()])
    monkeypatch.setattr("slides.truth.mask_truth.SCAN_PX", 500)
    found = truth.regions(1)
    assert sorted(part.bounds for part in found) == [(20, 8, 56, 32), (84, 64, 88, 68)]


def test_values_that_are_not_listed_are_an_error(tmp_path, slide):
    truth = mask_truth(tmp_path, slide, [spots() * 9], {0: 0, 1: 1})
    with pytest.raises(ValueError, match=r"a\.tif holds values \[9\].*--mask_values"):
        truth.label(whole(slide))
    assert (truth.label(Window((60.0, 0.0), (5, 6), (1.0, 1.0))) == 0).all()


@pytest.mark.parametrize("value_map", [{0: 0, 256: 1}, {0: 0, 1: 300}, {0: 0, 1: -1}])
def test_impossible_value_maps_are_refused(tmp_path, slide, value_map):
    with pytest.raises(ValueError, match="--mask_values"):
        mask_truth(tmp_path, slide, [spots()], value_map)


def test_mask_of_another_size_is_refused(tmp_path, slide):
    with pytest.raises(ValueError, match=r"a\.tif has 99 x 70 px.*slide\.tif 90 x 70"):
        mask_truth(tmp_path, slide, [spots((70, 99))])


@pytest.mark.parametrize(
    ("image", "message"), [(np.zeros((70, 90, 3), np.uint8), "3 channels"), (None, "the file is truncated")]
)
def test_unusable_masks_are_refused(tmp_path, slide, image, message):
    path = tmp_path / "a.tif"
    write_levels(path, [spots() if image is None else image], tile=16)
    if image is None:
        path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=rf"a\.tif.*{message}"):
        MaskTruth(path, slide)


def test_damaged_masks_raise_instead_of_saying_normal(tmp_path, slide):
    truth = mask_truth(tmp_path, slide, [spots()])
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        start, count = tiff.pages[0].dataoffsets[7], tiff.pages[0].databytecounts[7]
    data = bytearray((tmp_path / "a.tif").read_bytes())
    data[start : start + count] = bytes(count)
    (tmp_path / "a.tif").write_bytes(bytes(data))
    # Tile 7 of 6 in a row: columns 16 to 31, rows 16 to 31.
    with pytest.raises(
        ValueError, match=r"a\.tif cannot be read in level 0, corner \(17, 17\), .* \(3, 5\): [^['\"]+$"
    ):
        truth.label(Window((17.0, 17.0), (3, 5), (1.0, 1.0)))
    with pytest.raises(ValueError, match=r"a\.tif cannot be read in level 0"):
        truth.label_max(8, 1)


def test_1_bit_masks_hold_0_and_1(tmp_path, slide):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, spots().astype(bool), tile=(16, 16), photometric="minisblack", metadata=None)
    assert np.array_equal(MaskTruth(path, slide, {0: 0, 1: 3}).label(whole(slide)), spots() * 3)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_packed_masks_give_the_stored_number(tmp_path, slide, bits):
    top = 2**bits - 1
    stretched = np.ascontiguousarray(spots() * 255)
    image = pyvips.Image.new_from_memory(stretched.data, 90, 70, 1, "uchar").copy(interpretation="b-w")
    image.tiffsave(str(tmp_path / "a.tif"), tile=True, tile_width=16, tile_height=16, bitdepth=bits)
    assert tifffile.TiffFile(tmp_path / "a.tif").pages[0].bitspersample == bits
    assert np.array_equal(MaskTruth(tmp_path / "a.tif", slide, {0: 0, top: 5}).label(whole(slide)), spots() * 5)


def test_masks_that_call_white_zero_keep_their_stored_values(tmp_path, slide):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, spots() * 2, tile=(16, 16), photometric="miniswhite", metadata=None)
    assert np.array_equal(MaskTruth(path, slide, {0: 0, 2: 1}).label(whole(slide)), spots())


@pytest.mark.parametrize("gray", [False, True])
def test_palette_masks_give_their_index(tmp_path, slide, gray):
    colors = np.zeros((3, 256), np.uint16)
    colors[:, 1], colors[:, 2] = ((200, 200, 200), (9, 9, 9)) if gray else ((255, 0, 0), (0, 255, 0))
    path = tmp_path / "a.tif"
    indices = spots() * 2
    indices[0, 0] = 1
    tifffile.imwrite(path, indices, tile=(16, 16), photometric="palette", colormap=colors * 257, metadata=None)
    label = MaskTruth(path, slide, {0: 0, 1: 4, 2: 1}).label(whole(slide))
    assert label[0, 0] == 4
    assert np.array_equal(label[1:], spots()[1:])


def test_annotations_of_which_none_is_left_are_an_error(tmp_path, slide):
    areas = [("None", square(1, 2, 30, 20)), ("None", square(40, 2, 30, 20))]
    with pytest.raises(
        AnnotationError, match=r"all 2 annotations are ignored, as of group None \(no group .*none:CLASS"
    ):
        xml_truth(tmp_path, slide, areas)
    assert xml_truth(tmp_path, slide, areas, {"none": 1}).classes == {1}
    # One that is left, of whatever class, is enough; so is a file without annotations.
    assert xml_truth(tmp_path, slide, [*areas, ("_2", square(1, 40, 3, 3))]).classes == {0}
    assert xml_truth(tmp_path, slide, []).classes == frozenset()
    write_asap(tmp_path / "a.xml", [("Artifact", square(1, 2, 30, 20))])
    with pytest.raises(
        AnnotationError, match=r"its only annotation is ignored, as of group 'artifact'; .*artifact:CLASS"
    ):
        XmlTruth(tmp_path / "a.xml", slide, ignore_groups=("none", "ARTIFACT"))
    write_asap(tmp_path / "a.xml", [("my notes", square(1, 2, 30, 20))])
    with pytest.raises(AnnotationError, match="--label_map 'my notes:CLASS', or remove"):
        XmlTruth(tmp_path / "a.xml", slide, ignore_groups=("none", "my notes"))
    with pytest.raises(
        AnnotationError, match=r"only annotation is skipped, first: annotation .* 2 points without area"
    ):
        xml_truth(tmp_path, slide, [("_0", square(1, 2, 30, 20)[:2])])


# One interface


def test_suffix_chooses_the_kind(tmp_path, slide):
    write_asap(tmp_path / "a.XML", [("_0", square(1, 2, 30, 20))])
    write_levels(tmp_path / "a.tif", [spots()], tile=16)
    kinds = [type(open_truth(path, slide)) for path in (None, tmp_path / "a.XML", tmp_path / "a.tif")]
    assert kinds == [EmptyTruth, XmlTruth, MaskTruth]
    with pytest.raises(ValueError, match=r"a\.json.*labels are"):
        open_truth(tmp_path / "a.json", slide)


def test_a_slide_without_tumor(slide):
    truth = open_truth(None, slide)
    label = truth.label(Window((-2.0, -1.0), (6, 9), (1.0, 1.0)))
    assert (label == 0).sum() == 5 * 7
    assert (label == IGNORE).sum() == 54 - 35
    assert truth.label_max(32, 0).tolist() == [[True] * 3] * 3
    assert not truth.label_max(32, 1).any()
    assert (truth.regions(1), truth.classes) == ([], frozenset())


def test_truths_are_picklable(tmp_path, slide):
    truths = [xml_truth(tmp_path, slide, [("_0", square(20, 10, 35, 20))]), mask_truth(tmp_path, slide, [spots()])]
    again = pickle.loads(pickle.dumps(truths))
    assert [int((truth.label(whole(slide)) == 1).sum()) for truth in again] == [700, 689]


@needs_data
@pytest.mark.parametrize(("name", "positive"), [("tumor_901", 1090092), ("tumor_903", 971739)])
def test_xml_and_mask_of_real_slides_agree(name, positive):
    slide = Slide(DATA / "images" / f"{name}.tif")
    drawn = open_truth(DATA / "annotations" / f"{name}.xml", slide)
    mask = open_truth(DATA / "masks" / f"{name}_Mask.tif", slide)
    window = whole(slide)
    assert (mask.label(window) == 1).sum() == positive
    assert (drawn.label(window) == 1).sum() == pytest.approx(positive, rel=0.005)
    # The masks were filled by another rule, which counts pixels on the outline.
    assert (mask.label(window) != drawn.label(window)).sum() < 0.005 * positive
    assert (mask.label_max(128, 1) != drawn.label_max(128, 1)).sum() <= 1
