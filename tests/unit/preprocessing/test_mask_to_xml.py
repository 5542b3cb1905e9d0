"""XML from masks: exact edges across blocks, holes and islands, and the same mask again."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile

from preprocessing.mask_to_xml import mask_to_xml
from preprocessing.xml_to_mask import Field, xml_to_mask
from slides.synthetic.demo import write_levels
from slides.truth.asap_areas import asap_label_map
from slides.truth.xml_truth import XmlTruth
from tests.support.paths import ROOT


def field_of(mask):
    return Field("m", Path("m"), mask.shape[::-1], (0.25, 0.25))


def again(tmp_path, mask, **options):
    """The mask that the XML of a mask gives, level 0."""
    write_levels(tmp_path / "m.tif", [mask], tile=16, um_px=None)
    block = options.pop("block", 4096)
    values = options.pop("values", None)
    count = mask_to_xml(tmp_path / "m.tif", tmp_path / "m.xml", values, block)
    xml_to_mask(tmp_path / "m.xml", field_of(mask), tmp_path / "n.tif", tile=16, **options)
    with tifffile.TiffFile(tmp_path / "n.tif") as tiff:
        return count, tiff.pages[0].asarray()


def rings():
    """A box, a ring with an island in its hole, and one px; 45 x 70 px."""
    mask = np.zeros((45, 70), np.uint8)
    mask[0:5, 60:70] = 1
    mask[8:40, 4:50] = 1
    mask[12:36, 10:44] = 0
    mask[20:28, 20:30] = 1
    mask[44, 69] = 1
    return mask


@pytest.mark.parametrize("block", [4096, 16, 7, 25])
def test_the_same_mask_again(tmp_path, block):
    count, mask = again(tmp_path, rings(), block=block)
    assert count == 4
    np.testing.assert_array_equal(mask, rings())


@pytest.mark.parametrize("block", [4096, 13])
def test_noise_comes_back_px_by_px(tmp_path, block):
    noise = (np.random.default_rng(0).random((40, 61)) < 0.5).astype(np.uint8)
    count, mask = again(tmp_path, noise, block=block)
    assert count > 20
    np.testing.assert_array_equal(mask, noise)


def test_outlines_are_exact_and_without_traces_of_the_blocks(tmp_path):
    write_levels(tmp_path / "m.tif", [rings()], tile=16, um_px=None)
    mask_to_xml(tmp_path / "m.tif", tmp_path / "m.xml", block=16)
    found = XmlTruth(tmp_path / "m.xml", field_of(rings())).regions(1)
    assert sorted(polygon.bounds for polygon in found) == [
        (4, 8, 50, 40),
        (20, 20, 30, 28),
        (60, 0, 70, 5),
        (69, 44, 70, 45),
    ]
    text = (tmp_path / "m.xml").read_text()
    # 4 corners each, the ring 8 and 2 for the way in and out of its hole.
    assert len(re.findall("<Coordinate ", text)) <= 3 * 4 + 8 + 2 + 4
    assert "_2" not in text


def test_holes_are_exclusions(tmp_path):
    mask = np.zeros((20, 30), np.uint8)
    mask[2:12, 2:20] = 200
    mask[4:8, 5:9] = 0
    _, back = again(tmp_path, mask)
    assert (tmp_path / "m.xml").read_text().count('PartOfGroup="_2"') == 1
    np.testing.assert_array_equal(back, mask // 200)


def test_more_classes_and_areas_to_ignore(tmp_path):
    mask = np.zeros((20, 30), np.uint8)
    mask[2:18, 2:20] = 7
    mask[4:12, 5:12] = 9
    mask[6:8, 6:9] = 7
    mask[0:2, 25:30] = 50
    values = {0: 0, 7: 1, 9: 3, 50: 255}
    count, back = again(tmp_path, mask, values=values, label_map=asap_label_map(4))
    assert count == 3
    expected = np.select([mask == 7, mask == 9], [1, 3], 0)
    np.testing.assert_array_equal(back, expected)


def test_an_empty_mask_has_no_areas(tmp_path):
    count, back = again(tmp_path, np.zeros((20, 30), np.uint8))
    assert count == 0
    assert not back.any()


def run(*arguments):
    command = [sys.executable, "-m", "preprocessing.mask_to_xml", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_command_line(tmp_path):
    write_levels(tmp_path / "ä m.tif", [rings() * 3], tile=16, um_px=None)
    done = run("--mask", tmp_path / "ä m.tif", "--out", tmp_path / "m.xml")
    assert done.returncode == 2
    assert "say which class each is: --mask_values 0:0 3:1 where all but 0 is tumor" in done.stderr
    done = run("--mask", tmp_path / "ä m.tif", "--out", tmp_path / "m.xml", "--mask_values", "0:0", "3:2")
    assert done.returncode == 0, done.stderr
    assert "m.xml: 4 areas in" in done.stdout
    assert "read with --label_map _0:1 class_2:2 _2:0" in done.stdout
    assert (tmp_path / "m.xml").read_text().count('PartOfGroup="class_2"') == 4


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["0:0"], "holds values [1]"),
        (["0:0", "0:1"], "name each value once"),
        (["0:256"], "is not NAME:CLASS"),
        (["0"], "is not NAME:CLASS"),
        (["\u00b2:1"], "whole numbers from 0 to 255"),
    ],
)
def test_mistakes_are_said_in_one_line(tmp_path, values, message):
    write_levels(tmp_path / "m.tif", [rings()], tile=16)
    done = run("--mask", tmp_path / "m.tif", "--out", tmp_path / "m.xml", "--mask_values", *values)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["m.tif"]
