"""Values of masks: exact counts, what the values of a whole set mean, masks that cannot be used."""

import re

import numpy as np
import pytest
import pyvips
import tifffile

from slides.geometry import Window
from slides.reader import Slide
from slides.synthetic.demo import position_coded, write_levels
from slides.truth.mask_truth import MaskTruth
from slides.truth.mask_values import count_all, count_values, decide, listed
from slides.truth.reading import Reading


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    """90 x 70 px, one level."""
    path = tmp_path_factory.mktemp("values") / "slide.tif"
    position_coded(path, (90, 70), tile=16)
    return Slide(path)


def stored(path, spots, shape=(70, 90)):
    """A mask of zeros with a rectangle (top, left, height, width) of each value."""
    mask = np.zeros(shape, np.uint8)
    for value, (top, left, height, width) in spots.items():
        mask[top : top + height, left : left + width] = value
    write_levels(path, [mask], tile=16)
    return path


def test_values_are_counted_exactly_at_level_0(tmp_path):
    mask = np.zeros((70, 90), np.uint8)
    mask[:, 32:] = 1
    mask[69, 89] = 2
    # The coarser level has lost the one px of value 2.
    write_levels(tmp_path / "m.tif", [mask, mask[::2, ::2]], tile=16)
    assert count_values(tmp_path / "m.tif") == {0: 70 * 32, 1: 70 * 58 - 1, 2: 1}


@pytest.mark.parametrize("compression", ["deflate", "lzw"])  # ours to read, and libvips'
def test_equal_tiles_are_decoded_once(tmp_path, monkeypatch, compression):
    path, mask = tmp_path / "m.tif", np.zeros((70, 90), np.uint8)
    mask[:16, :16] = 7
    tifffile.imwrite(path, mask, photometric="minisblack", metadata=None, compression=compression, tile=(16, 16))
    read = []
    monkeypatch.setattr(
        "slides.truth.mask_values.MaskFile.read",
        lambda _self, level, corner, hw: read.append((level, corner, hw)) or np.full(hw, 7, np.uint8),
    )
    assert count_values(path)[7] == 70 * 90
    # The tile of 7; of zeros a whole one, and those cut at the right, below, and in the corner.
    assert [hw for _, _, hw in read] == [(16, 16), (16, 16), (16, 10), (6, 16), (6, 10)]


@pytest.mark.parametrize("kind", ["strips", "lzw", "packed"])
def test_masks_of_every_layout_are_counted(tmp_path, kind):
    mask = np.zeros((70, 90), np.uint8)
    mask[10:20, 30:45] = 1
    path = tmp_path / "m.tif"
    if kind == "packed":
        tifffile.imwrite(path, mask.astype(bool), tile=(16, 16), photometric="minisblack", metadata=None)
    else:
        more = {"compression": "lzw", "tile": (32, 16)} if kind == "lzw" else {}
        tifffile.imwrite(path, mask, photometric="minisblack", metadata=None, **more)
    assert count_values(path) == {0: 6300 - 150, 1: 150}


def test_a_changed_file_is_counted_again(tmp_path):
    path = stored(tmp_path / "m.tif", {1: (0, 0, 2, 3)})
    assert count_values(path)[1] == 6
    stored(path, {1: (0, 0, 20, 31)})
    assert count_values(path)[1] == 620


def test_0_1_and_0_255_are_plain(tmp_path):
    for value in (1, 255):
        found = decide({tmp_path / "a.tif": {0: 5}, tmp_path / "b.tif": {0: 3, value: 2}})
        assert found.classes is None
        assert found.text == f"0 -> normal (class 0), {value} -> tumor (class 1)"


def test_camelyons_values_are_tumor_2_over_the_whole_set(tmp_path):
    counts = {tmp_path / "patient_000_node_4_mask.tif": {0: 9, 1: 5}}
    assert "1 is tissue: give --mask_values 0:0 1:0 2:1" in decide(counts).text
    counts[tmp_path / "tumor_001_Mask.tif"] = {0: 7, 1: 5, 2: 1}
    found = decide(counts)
    assert found.classes == {0: 0, 1: 0, 2: 1}
    assert "2 -> tumor (class 1), as in CAMELYON's official masks" in found.text
    # With a slide of another name it is not CAMELYON's.
    with pytest.raises(
        ValueError, match="--mask_values 0:0 1:0 2:1 where 1 is tissue and 2 tumor, or --mask_values 0:0"
    ):
        decide(counts | {tmp_path / "biopsy_mask.tif": {0: 1, 1: 1}})


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({0: 8, 3: 2}, "0 (8 px), 3 (2 px), first with 3: b.tif; say which class each is: --mask_values 0:0 3:1"),
        ({0: 8, 1: 2, 255: 1}, "1 (2 px), 255 (1 px), first with 255: b.tif; say which class each is: --mask_values "
         "0:0 1:1 255:255 where 255 is to be ignored"),
        ({value: 40 - value for value in range(20)}, "7 (33 px) and 12 more values, first with 19: b.tif; these "),
    ],
)  # fmt: skip
def test_other_values_are_an_error_that_lists_them(tmp_path, values, said):
    with pytest.raises(ValueError, match="masks hold the values") as error:
        decide({tmp_path / "a.tif": {}, tmp_path / "b.tif": values})
    assert said in str(error.value).replace(f"{tmp_path}/", "")
    assert "\n" not in str(error.value)


def test_the_most_frequent_values_are_listed():
    assert listed({9: 1, 4: 30, 0: 20}) == "0 (20 px), 4 (30 px), 9 (1 px)"


def test_a_reading_is_settled_by_all_labels(tmp_path):
    masks = [
        stored(tmp_path / "normal_001_mask.tif", {1: (0, 0, 3, 3)}),
        stored(tmp_path / "tumor_001_mask.tif", {1: (0, 0, 9, 9), 2: (2, 2, 1, 1)}),
    ]
    reading, (line,) = Reading().settled([*masks, None])
    assert reading.mask_values == ((0, 0), (1, 0), (2, 1))
    assert line.startswith("masks: 0 (background), 1 (tissue) -> normal (class 0), 2 -> tumor")
    given = Reading(mask_values=((0, 0), (1, 1), (2, 255)))
    reading, (line,) = given.settled(masks, lambda _: pytest.fail("counted"))
    assert reading == given
    assert line == "masks: 0 -> normal (class 0), 1 -> tumor (class 1), 2 -> ignored (class 255), as --mask_values says"


def test_the_groups_of_annotations_are_said_for_annotations_only(tmp_path):
    mask = stored(tmp_path / "a_mask.tif", {1: (0, 0, 3, 3)})
    assert Reading().settled([mask])[1] == ["masks: 0 -> normal (class 0), 1 -> tumor (class 1)"]
    assert Reading().settled([None]) == (Reading(), [])
    lines = Reading().settled([mask, tmp_path / "b.XML"])[1]
    assert [line.split(" ")[0] for line in lines] == ["_0,", "masks:"]


def test_unreadable_masks_are_left_to_those_who_open_them(tmp_path):
    good = stored(tmp_path / "a.tif", {1: (0, 0, 3, 3)})
    (tmp_path / "b.tif").write_bytes(b"II*\0")
    assert count_all([good, tmp_path / "b.tif", tmp_path / "c.tif"], 2, lenient=True) == {good: {0: 6291, 1: 9}}
    with pytest.raises(ValueError, match=r"mask .*b\.tif cannot be opened"):
        count_all([good, tmp_path / "b.tif"])


def test_lossy_masks_are_refused(tmp_path, slide):
    mask = np.zeros((70, 90), np.uint8)
    mask[20:40, 30:60] = 255
    path = tmp_path / "m.tif"
    pyvips.Image.new_from_array(mask).tiffsave(
        str(path), compression="jpeg", tile=True, tile_width=16, tile_height=16, Q=95
    )
    with pytest.raises(ValueError, match=r"m\.tif is compressed as JPEG, which changes values .* moreeq 128$"):
        MaskTruth(path, slide, {0: 0, 255: 1})


def test_the_advice_for_lossy_masks_gives_a_mask_of_0_and_255(tmp_path, slide):
    mask = np.zeros((70, 90), np.uint8)
    mask[16:48, 32:64] = 255
    pyvips.Image.new_from_array(mask).tiffsave(str(tmp_path / "m.tif"), compression="jpeg", Q=90)
    out = f"{tmp_path}/out.tif[tile,pyramid,compression=deflate,region_shrink=nearest]"
    (pyvips.Image.new_from_file(str(tmp_path / "m.tif")) >= 128).write_to_file(out)
    assert count_values(tmp_path / "out.tif") == {0: 6300 - 1024, 255: 1024}
    assert (MaskTruth(tmp_path / "out.tif", slide).label(Window((32.0, 16.0), (32, 32), (1.0, 1.0))) == 1).all()


@pytest.mark.parametrize("white_is_zero", [False, True])
def test_1_bit_masks_are_read_as_viewers_show_them(tmp_path, slide, white_is_zero):
    mask = np.zeros((70, 90), np.uint8)
    mask[20:40, 30:60] = 255
    path = tmp_path / "m.tif"
    tiles = {"tile": True, "tile_width": 16, "tile_height": 16}
    pyvips.Image.new_from_array(mask).tiffsave(
        str(path), compression="ccittfax4", bitdepth=1, miniswhite=white_is_zero, **tiles
    )
    assert tifffile.TiffFile(path).pages[0].photometric == int(not white_is_zero)
    assert count_values(path) == {0: 5700, 1: 600}
    label = MaskTruth(path, slide).label(Window((0.0, 0.0), (70, 90), (1.0, 1.0)))
    assert np.array_equal(label, mask // 255)


def test_deeper_masks_that_call_white_zero_need_an_explanation(tmp_path):
    mask = np.full((70, 90), 255, np.uint8)
    mask[20:40, 30:60] = 0
    path = tmp_path / "m.tif"
    tifffile.imwrite(path, mask, tile=(16, 16), photometric="miniswhite", metadata=None)
    message = "holds 0 (600 px), 255 (5700 px) and calls white zero, so viewers show 255 as black; say which is tumor: "
    with pytest.raises(ValueError, match=re.escape(message + "--mask_values 0:1 255:0")):
        Reading().settled([path])
    assert Reading(mask_values=((0, 1), (255, 0))).settled([path])[0].class_of_value == {0: 1, 255: 0}


def test_the_error_names_the_mask_of_the_rarest_value(tmp_path):
    counts = {tmp_path / "a.tif": {0: 90, 255: 10}, tmp_path / "b.tif": {0: 80, 5: 3, 255: 17}}
    with pytest.raises(ValueError, match=rf"0 \(170 px\), 5 \(3 px\), 255 \(27 px\), first with 5: {tmp_path}/b\.tif"):
        decide(counts)
