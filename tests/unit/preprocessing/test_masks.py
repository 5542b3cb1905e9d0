"""The steps xml_to_mask and mask_to_xml over many slides."""

import csv
from pathlib import Path

import numpy as np
import pytest
import tifffile

from preprocessing.__main__ import main
from slides.reader import Slide
from slides.synthetic.demo import write_levels
from slides.truth.mask_truth import MaskTruth
from slides.truth.xml_truth import XmlTruth
from tests.support.steps import run_steps
from tests.support.tiny import write_label, write_slide

SHAPE_XY = (297, 271)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two slides with tumor and one without; annotations of the two."""
    for seed, name in enumerate(("tumor_1", "tumor_2", "normal_1")):
        write_slide(tmp_path / "img" / f"{name}.tif", SHAPE_XY, seed, tumor=name != "normal_1")
        if name != "normal_1":
            write_label(tmp_path / "xml" / f"{name}.xml")
    return tmp_path


def words_of(folder: Path, out: str, labels: str, *more: str) -> list[str]:
    words = ["--slide_path", str(folder / "img"), "--label_path", str(folder / labels), "--out", str(folder / out)]
    return [*words, "--num_processes", "1", *more]


def test_masks_are_the_truth_of_training_and_a_second_run_has_nothing_to_do(folder, capsys):
    words = words_of(folder, "out", "xml", "--label_format", "xml", "--mask_tile", "64")
    assert run_steps(["xml_to_mask"], words) == 0
    said = capsys.readouterr().out
    assert "masks of 2 of 3 slides" in said
    assert "the others have no outlines" in said
    assert "--mask_values" not in said
    assert sorted(path.name for path in (folder / "out" / "masks").iterdir()) == [
        "tumor_1_Mask.tif",
        "tumor_2_Mask.tif",
    ]
    for name in ("tumor_1", "tumor_2"):
        slide = Slide(folder / "img" / f"{name}.tif")
        made, true = (
            MaskTruth(folder / "out" / "masks" / f"{name}_Mask.tif", slide),
            XmlTruth(folder / "xml" / f"{name}.xml", slide),
        )
        window = slide.window((SHAPE_XY[0] / 2, SHAPE_XY[1] / 2), (300, 310), slide.um_px_xy_l0[0])
        np.testing.assert_array_equal(made.label(window), true.label(window))
        assert (made.label(window) == 1).sum() > 100
        levels = Slide(folder / "out" / "masks" / f"{name}_Mask.tif").levels
        assert [level.size_xy for level in levels] == [level.size_xy for level in slide.levels]
    assert run_steps(["xml_to_mask"], words) == 0
    assert "nothing to do, finished before: 3 slides" in capsys.readouterr().out


def test_there_and_back(folder, capsys):
    """Masks pair with their slides as labels, and their outlines give the same masks."""
    assert run_steps(["xml_to_mask"], words_of(folder, "a", "xml", "--label_format", "xml")) == 0
    assert run_steps(["mask_to_xml"], words_of(folder, "b", "a/masks")) == 0
    assert "2 areas of 2 of 3 slides" in capsys.readouterr().out
    assert run_steps(["xml_to_mask"], words_of(folder, "c", "b/annotations", "--label_format", "xml")) == 0
    for name in ("tumor_1_Mask.tif", "tumor_2_Mask.tif"):
        first, again = (tifffile.imread(folder / out / "masks" / name) for out in ("a", "c"))
        assert first.any()
        np.testing.assert_array_equal(first, again)


def test_classes_beyond_the_usual_are_said(folder, capsys):
    words = words_of(folder, "out", "xml", "--label_format", "xml", "--label_map", "_0:3", "_1:3", "_2:0", "tumor:255")
    assert run_steps(["xml_to_mask"], words) == 0
    assert "read them with --mask_values 0:0 3:3 255:255" in capsys.readouterr().out
    assert set(np.unique(tifffile.imread(folder / "out" / "masks" / "tumor_1_Mask.tif"))) == {0, 3}
    words = words_of(folder, "back", "out/masks", "--mask_values", "0:0", "3:3", "255:255")
    assert run_steps(["mask_to_xml"], words) == 0
    assert "read with --label_map _0:1 class_2:2 class_3:3 _2:0" in capsys.readouterr().out
    assert 'PartOfGroup="class_3"' in (folder / "back" / "annotations" / "tumor_1.xml").read_text()


def test_another_slides_mask_and_annotation_are_failures_of_that_slide(folder, capsys):
    (folder / "masks").mkdir()
    for name, size_xy in (("tumor_1", SHAPE_XY), ("tumor_2", (320, 271))):
        mask = np.zeros(size_xy[::-1], np.uint8)
        mask[20:50, 30:80] = 1
        write_levels(folder / "masks" / f"{name}_Mask.tif", [mask], tile=64)
    assert run_steps(["mask_to_xml"], words_of(folder, "out", "masks")) == 1
    assert "320 x 271 px" in capsys.readouterr().out
    assert [path.name for path in (folder / "out" / "annotations").iterdir()] == ["tumor_1.xml"]
    write_label(folder / "xml" / "tumor_2.xml", shape_xy=np.array([(9000, 9000), (9100, 9000), (9100, 9100)], float))
    assert run_steps(["xml_to_mask"], words_of(folder, "out", "xml", "--label_format", "xml")) == 1
    assert "lies outside" in capsys.readouterr().out
    assert [path.name for path in (folder / "out" / "masks").iterdir()] == ["tumor_1_Mask.tif"]


def test_steps_run_in_their_order_with_their_options(folder, capsys):
    words = words_of(folder, "out", "xml", "--label_format", "xml", "--trim_um_px", "4")
    assert main(["--steps", "trim_tissue", "manifest", "tissue", *words]) in (0, 1)
    said = capsys.readouterr().out
    assert said.index("tissue   ") < said.index("manifest   ") < said.index("trim_tissue   ")
    with (folder / "out" / "manifest.csv").open(encoding="utf-8", newline="") as file:
        assert [row["slide"] for row in csv.DictReader(file)] == ["normal_1", "tumor_1", "tumor_2"]
    assert not (folder / "out" / "check").exists()
    for wrong in (["--steps", "pack"], ["--steps", "tissue", "--trim_um_px", "4"]):
        with pytest.raises(SystemExit) as end:
            main([*wrong, *words_of(folder, "out", "xml")])
        assert end.value.code == 2
