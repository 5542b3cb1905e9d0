"""PNG masks: every depth, places, um/px, and files that cannot be used."""

import numpy as np
import PIL.Image
import pytest

import slides.truth.png_mask
from cohorts.pairing import pair
from preprocessing.mask_to_xml import mask_to_xml
from slides.geometry import Window
from slides.reader import Slide
from slides.synthetic.demo import position_coded
from slides.truth.interface import open_truth
from slides.truth.mask_file import MaskFile
from slides.truth.mask_values import count_values
from slides.truth.xml_truth import XmlTruth

SHAPE = (300, 520)  # more than one tile of 256 each way


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    """520 x 300 px at 0.25 um/px."""
    path = tmp_path_factory.mktemp("png") / "a.tif"
    position_coded(path, SHAPE[::-1], tile=128)
    return Slide(path)


def numbers(values):
    """Noise of the values 0 to `values` - 1."""
    return np.random.default_rng(3).integers(0, values, SHAPE, np.uint8)


def save(path, stored, kind):
    """As programs write it: gray of 1 or 8 bits, or a palette of 1 to 8 bits."""
    if kind == "gray 1":
        PIL.Image.fromarray(stored.astype(bool)).save(path)
    elif kind.startswith("palette"):
        image = PIL.Image.fromarray(stored, "P")
        image.putpalette([0, 0, 0, 9, 200, 9, 200, 9, 9] + [7] * 759)
        image.save(path, bits=int(kind.split()[1]))
    else:
        PIL.Image.fromarray(stored).save(path)


@pytest.mark.parametrize(
    ("kind", "values"),
    [("gray 1", 2), ("gray 8", 255), ("palette 1", 2), ("palette 2", 3), ("palette 4", 9), ("palette 8", 200)],
)
def test_the_stored_numbers_are_read(tmp_path, kind, values):
    stored = numbers(values)
    save(tmp_path / "m.png", stored, kind)
    mask = MaskFile(tmp_path / "m.png")
    assert mask.pages[0].bits == int(kind.split()[1])
    np.testing.assert_array_equal(mask.read(0, (0, 0), SHAPE), stored)
    np.testing.assert_array_equal(mask.read(0, (250, 17), (270, 200)), stored[17:287, 250:450])
    np.testing.assert_array_equal(mask.read(0, (519, 299), (1, 1)), stored[299:, 519:])
    assert count_values(tmp_path / "m.png") == dict(zip(*np.unique(stored, return_counts=True), strict=True))


@pytest.mark.parametrize("bits", [2, 4])
def test_gray_of_few_bits_is_not_stretched(tmp_path, bits):
    # Pillow writes no such files: 4 px, one row with the filter 0.
    import struct
    import zlib

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = {2: bytes([0b00011011]), 4: bytes([0x01, 0x23])}[bits]
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 1, bits, 0, 0, 0, 0))
    (tmp_path / "m.png").write_bytes(data + chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b""))
    assert MaskFile(tmp_path / "m.png").read(0, (0, 0), (1, 4)).tolist() == [[0, 1, 2, 3]]


def test_labels_come_from_a_png(tmp_path, slide):
    stored = np.zeros(SHAPE, np.uint8)
    stored[100:280, 200:320] = 255
    save(tmp_path / "a.png", stored, "gray 8")
    truth = open_truth(tmp_path / "a.png", slide)
    np.testing.assert_array_equal(truth.label(Window((0.0, 0.0), SHAPE, (1.0, 1.0))), stored // 255)
    assert [region.bounds for region in truth.regions(1)] == [(200, 100, 320, 280)]
    assert mask_to_xml(tmp_path / "a.png", tmp_path / "a.xml") == 1
    assert XmlTruth(tmp_path / "a.xml", slide).regions(1)[0].area == 180 * 120


def test_um_px_place_a_smaller_png(tmp_path, slide):
    image = PIL.Image.fromarray(np.zeros((38, 65), np.uint8))
    image.save(tmp_path / "m.png", dpi=(12700, 12700))  # 2 um/px, 8 times those of the slide
    truth = open_truth(tmp_path / "m.png", slide)
    assert MaskFile(tmp_path / "m.png").pages[0].um_px_xy == pytest.approx((2.0, 2.0))
    assert truth.notes[0].endswith(
        "placed by um/px (2, the slide 0.25 um/px), one px is 8 x 8 px of the slide, and it ends +0 px beside the "
        "right and +4 px beside the lower edge"
    )


def test_what_is_no_mask_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "m.png"
    for image, said in (
        (np.zeros((4, 5, 3), np.uint8), "has 3 channels of 8 bits"),
        (np.zeros((4, 5), np.uint16), "has 1 channels of 16 bits"),
    ):
        PIL.Image.fromarray(image).save(path)
        with pytest.raises(ValueError, match=said):
            MaskFile(path)
    save(path, numbers(2), "gray 8")
    whole = path.read_bytes()
    path.write_bytes(whole[:20])
    with pytest.raises(ValueError, match=r"m\.png cannot be opened: a PNG with a damaged header"):
        MaskFile(path)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"m\.png cannot be read in level 0"):
        MaskFile(path).read(0, (0, 0), (1, 1))
    path.write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(ValueError, match="neither a TIFF nor a PNG"):
        MaskFile(path)
    path.write_bytes(whole)
    monkeypatch.setattr(slides.truth.png_mask, "MAX_PX", 519 * 300)
    with pytest.raises(ValueError, match="a PNG of 520 x 300 px, at most 155700 px are read; write a pyramid: vips"):
        MaskFile(path)


def test_png_masks_pair(tmp_path):
    for name in ("s/a.tif", "s/b.tif", "s/c.tif", "m/a.png", "m/b_mask.png", "m/c_Mask.PNG"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    cases = pair(tmp_path / "s", tmp_path / "m", "tif", "png")
    assert [case.label_path.name for case in cases if case.label_path] == ["a.png", "b_mask.png", "c_Mask.PNG"]
