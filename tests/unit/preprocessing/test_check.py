"""The step check: what is said of good, odd and bad slides and labels."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest

from cohorts.pairing import Case
from preprocessing.check import Options, duplicates, make
from slides.synthetic.demo import write_asap, write_levels, write_pyramid
from slides.truth.reading import Reading
from system.findings import PASS, WARN
from tests.support.paths import SHARED
from tests.support.steps import run_steps
from tests.support.tiny import TUMOR_XY, tissue, write_label, write_slide

needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason=f"real slides are not at {SHARED}")
SIZE = (311, 263)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """`normal_1` and `tumor_1` with its annotation, at 0.5 um/px as scanners give it."""
    for seed, name in enumerate(("normal_1", "tumor_1")):
        write_slide(tmp_path / "img" / f"{name}.tif", SIZE, seed, tumor=name[0] == "t", um_px=0.5)
    write_label(tmp_path / "xml" / "tumor_1.xml")
    return tmp_path


def check(data: Path, *more: str, code: int = 0) -> dict[str, list[dict[str, str]]]:
    """Run the step; returns the findings of each slide, with those that passed left out."""
    words = ["--slide_path", str(data / "img"), "--label_path", str(data / "xml"), "--label_format", "xml"]
    found = run_steps(
        ["check"], [*words, "--out", str(data / "out"), "--num_processes", "1", "--resolution", "0.5", *more]
    )
    assert found == code
    with (data / "out" / "check" / "check.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["level"] for row in rows} <= {"PASS", "WARN", "FAIL"}
    slides = {row["slide"] for row in rows}
    return {slide: [row for row in rows if row["slide"] == slide and row["level"] != "PASS"] for slide in slides}


def only(found: dict[str, list[dict[str, str]]], slide: str) -> str:
    """The one finding of a slide that did not pass."""
    (row,) = found[slide]
    return f"{row['level']} {row['what']}: {row['found']}"


def test_a_good_set_passes(data: Path, capsys: pytest.CaptureFixture[str]):
    assert check(data) == {"normal_1": [], "tumor_1": []}
    assert "check           slides: 2 PASS, 0 WARN, 0 FAIL; " in capsys.readouterr().out
    page = (data / "out/check/index.html").read_text(encoding="utf-8")
    assert "label: 1 annotation in _0" in page
    assert "tumor: 100% of it lies on tissue" in page
    assert page.count("<img ") == 2


def test_names_are_text_in_the_page(data: Path):
    name = "<script>alert('1')</script> \"é#%".replace("/", "-")
    write_slide(data / "img" / f"{name}.tif", SIZE, 7, tumor=False, um_px=0.5)
    assert check(data)[name] == []
    page = (data / "out/check/index.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;alert(&#x27;1&#x27;)&lt;-script&gt; &quot;é#%" in page
    assert 'src="%3Cscript%3Ealert%28%271%27%29%3C-script%3E%20%22%C3%A9%23%25.png"' in page


def test_what_does_not_pair_is_found_and_the_rest_looked_at(data: Path, capsys: pytest.CaptureFixture[str]):
    write_label(data / "xml" / "orphan.xml")
    found = check(data, code=1)
    assert only(found, "").startswith(f"FAIL pairing: labels without a slide: {data}/xml/orphan.xml")
    assert found["tumor_1"] == []
    said = capsys.readouterr().out
    assert "1 failed:" in said
    # A whole run ends there.
    words = ["--slide_path", str(data / "img"), "--label_path", str(data / "xml"), "--label_format", "xml"]
    assert run_steps(["check", "tissue"], [*words, "--out", str(data / "out2")]) == 2
    assert not (data / "out2").exists()


def unknown_group(data: Path) -> str:
    write_label(data / "xml" / "tumor_1.xml", "Nekrose")
    return r"FAIL label: .*unknown group 'Nekrose'"


def elsewhere(data: Path) -> str:
    write_label(data / "xml" / "tumor_1.xml", shape_xy=TUMOR_XY + 5000)
    return r"FAIL label: .*every annotation lies outside slide"


def partly_outside(data: Path) -> str:
    write_label(data / "xml" / "tumor_1.xml", shape_xy=TUMOR_XY + np.array([200, 0]))
    # x 260 to 311 of 260 to 380 lies inside: 69 of 120 columns are clipped, 130 rows.
    return r"WARN outlines: 8970 level-0 px2 lie outside the slide, clipped"


def crossing(data: Path) -> str:
    write_label(data / "xml" / "tumor_1.xml", shape_xy=TUMOR_XY[[0, 2, 1, 3]])
    return r"WARN outlines: 1 crossing or touching themselves, filled as ASAP does"


def tiny_outline(data: Path) -> str:
    small = np.array([(100, 100), (110, 100), (110, 110), (100, 110)], float)  # 25 um2
    write_asap(data / "xml" / "tumor_1.xml", [("_0", TUMOR_XY), ("_0", small)])
    return r"WARN outlines: 1 smaller than 50 um2: Annotation 1"


def two_points(data: Path) -> str:
    write_asap(data / "xml" / "tumor_1.xml", [("_0", TUMOR_XY), ("_0", TUMOR_XY[:2])])
    return r"WARN outlines: 1 with fewer than three points"


def ignored(data: Path) -> str:
    write_asap(data / "xml" / "tumor_1.xml", [("_0", TUMOR_XY), ("None", TUMOR_XY)])
    return r"WARN outlines: 1 in ignored groups"


def no_tumor(data: Path) -> str:
    write_label(data / "xml" / "tumor_1.xml", "normal")
    return r"WARN tumor: the label has none"


def on_glass(data: Path) -> str:
    image_HWC = tissue(SIZE, 1)
    image_HWC[:, :140] = 243
    write_pyramid(data / "img" / "tumor_1.tif", image_HWC, 0.5)
    return r"WARN tumor: only \d+% of it lies on tissue"


def no_tissue(data: Path) -> str:
    write_pyramid(data / "img" / "tumor_1.tif", np.full((263, 311, 3), 243, np.uint8), 0.5)
    (data / "xml" / "tumor_1.xml").unlink()
    (data / "img" / "tumor_1.tif").rename(data / "img" / "glass.tif")
    write_slide(data / "img" / "tumor_1.tif", SIZE, 1, um_px=0.5)
    write_label(data / "xml" / "tumor_1.xml")
    return r"WARN tissue: 0.00% of the slide"


def coarse(data: Path) -> str:
    write_slide(data / "img" / "tumor_1.tif", SIZE, 1, um_px=1.0)
    return r"WARN spacing: 1 um/px is coarser than --resolution 0.5: patches are enlarged"


def strange_spacing(data: Path) -> str:
    write_slide(data / "img" / "tumor_1.tif", SIZE, 1, um_px=4.0)
    return r"WARN spacing: 4 um/px: slides have 0.1 to 1.1"


def no_spacing(data: Path) -> str:
    write_levels(data / "img" / "tumor_1.tif", [tissue(SIZE)], um_px=None)
    return r"FAIL slide: .*its spacing is unknown"


def cut_short(data: Path) -> str:
    file = data / "img" / "tumor_1.tif"
    file.write_bytes(file.read_bytes()[:3000])
    return r"FAIL slide: .*truncated"


CASES = [
    unknown_group, elsewhere, partly_outside, crossing, tiny_outline, two_points, ignored, no_tumor, on_glass,
    no_tissue, coarse, strange_spacing, no_spacing, cut_short,
]  # fmt: skip


@pytest.mark.parametrize("spoil", CASES, ids=lambda spoil: spoil.__name__)
def test_one_thing_wrong(data: Path, spoil):
    expected = spoil(data)
    found = check(data, code=1 if expected.startswith("FAIL") else 0)
    (slide,) = (slide for slide, rows in found.items() if rows)
    assert re.match(expected, only(found, slide)), found[slide]
    assert found[slide][0]["fix"]


def test_a_mask_of_another_size(data: Path):
    (data / "masks").mkdir()
    write_pyramid(data / "masks" / "tumor_1_Mask.tif", np.ones((274, 311), np.uint8), 0.5, lossless=True)
    found = check(data, "--label_path", str(data / "masks"), "--label_format", "tif", code=1)
    assert only(found, "tumor_1").startswith("FAIL label: mask ")
    assert "has 311 x 274 px, its slide" in only(found, "tumor_1")


def test_known_slides_and_copies(data: Path):
    first = (data / "img" / "normal_1.tif").read_bytes()
    (data / "img" / "normal_086.tif").write_bytes(first)
    # Compressed again with other levels: other bytes, the same image.
    write_levels(data / "img" / "other.tif", [tissue(SIZE, 0, tumor=False)], um_px=0.5)
    found = check(data)
    assert only(found, "normal_086") == (
        f"WARN known: {data}/img/normal_086.tif is called normal but contains tumor, which would be learned as "
        "normal tissue"
    )
    assert only(found, "normal_1") == f"WARN duplicate: the same file as {data}/img/normal_086.tif"
    assert only(found, "other") == f"WARN duplicate: shows the same image as {data}/img/normal_086.tif"
    assert found["tumor_1"] == []


def test_glass_is_no_duplicate_of_glass():
    cases = [Case(name, Path(name), None) for name in "ab"]
    assert list(duplicates(cases, {"a": "f0" * 4096, "b": "f0" * 4096})) == []
    assert list(duplicates(cases, {"a": "", "b": ""})) == []


def test_a_slide_called_normal_with_tumor(data: Path):
    write_label(data / "xml" / "normal_1.xml")
    assert only(check(data), "normal_1") == "WARN tumor: a slide called normal has tumor"


@needs_data
def test_real_slides_of_four_formats(tmp_path: Path):
    for name, um_px in (("CMU-1-Small-Region.svs", None), ("fluorescence-dapi.ndpi", None), ("kidney-48-5.tif", 0.5)):
        path = SHARED / "slides" / name
        made = make(Case(path.stem, path, None), tmp_path, Options(Reading(um_px=um_px), 0.5))
        assert made.fault == ""
    path = SHARED / "slides" / "kidney-48-5.tif"
    assert "spacing is unknown" in make(Case(path.stem, path, None), tmp_path, Options(Reading(), 0.5)).fault


@needs_data
def test_no_mosaic_is_taken_for_another(tmp_path: Path):
    names = ("train/images/tumor_901", "train/images/normal_901", "val/images/tumor_951", "val/images/normal_951")
    cases = [Case(Path(name).name, SHARED / "c16mosaic" / f"{name}.tif", None) for name in names]
    made = {case.slide_id: make(case, tmp_path, Options(Reading(), 0.25)) for case in cases}
    assert list(duplicates(cases, {slide: one.values["signature"] for slide, one in made.items()})) == []


def test_tissue_is_what_the_step_tissue_takes_for_it(tmp_path: Path):
    """A slide that shows only a pen mark has no tissue, unless pen marks count."""
    image_HWC = np.full((400, 600, 3), 243, np.uint8)
    image_HWC[100:300, 100:500] = (20, 120, 60)
    write_pyramid(tmp_path / "a.tif", image_HWC, 4.0, lossless=True)
    case = Case("a", tmp_path / "a.tif", None)
    for keep_pen, level in ((False, WARN), (True, PASS)):
        made = make(case, tmp_path, Options(Reading(), 0.5, "hsv", keep_pen))
        assert [found[0] for found in made.values["findings"] if "tissue" in found] == [level]
    made = make(case, tmp_path, Options(Reading(), 0.5, "otsu"))
    (told,) = (found for found in made.values["findings"] if "tissue" in found)
    assert "--tissue_method" not in str(told)


def masks_of(data: Path, tumor: np.ndarray, name: str = "tumor_1") -> list[str]:
    """Masks in place of annotations; returns the options that read them."""
    (data / "masks").mkdir(exist_ok=True)
    write_levels(data / "masks" / f"{name}_mask.tif", [tumor], tile=64, um_px=0.5)
    return ["--label_path", str(data / "masks"), "--label_format", "tif"]


def test_values_and_areas_of_masks_are_listed(data: Path, capsys: pytest.CaptureFixture[str]):
    mask_HW = np.ones(SIZE[::-1], np.uint8)
    mask_HW[:, :11] = 0
    mask_HW[70:200, 60:180] = 2
    check(data, *masks_of(data, mask_HW))
    page = (data / "out/check/index.html").read_text(encoding="utf-8")
    # 11 columns of 263 px; 120 x 130 px of 0.25 um2 are 0.0039 mm2.
    assert "values 0 (2893 px), 1 (63300 px), 2 (15600 px); class 0 0.01655 mm2, class 1 0.0039 mm2" in page
    said = capsys.readouterr().out
    assert (
        "note    masks: 0 (background), 1 (tissue) -> normal (class 0), 2 -> tumor (class 1), as in CAMELYON's" in said
    )


def test_masks_whose_values_have_no_class_are_found(data: Path, capsys: pytest.CaptureFixture[str]):
    mask_HW = np.zeros(SIZE[::-1], np.uint8)
    mask_HW[70:200, 60:180] = 3
    words = masks_of(data, mask_HW)
    found = check(data, *words, code=1)
    assert "masks hold the values 0 (66193 px), 3 (15600 px), first with 3: " in only(found, "")
    assert only(found, "tumor_1") == (
        "FAIL label: mask tumor_1_mask.tif of the slide's size: values 0 (66193 px), 3 (15600 px); their classes are "
        "unknown"
    )
    # A whole run ends there; steps that open no label run.
    words += ["--slide_path", str(data / "img"), "--num_processes", "1", "--out"]
    capsys.readouterr()
    assert run_steps(["check", "manifest"], [*words, str(data / "out2")]) == 2
    assert "--mask_values 0:0 3:1 where all but 0 is tumor" in capsys.readouterr().err
    assert run_steps(["tissue"], [*words, str(data / "out3")]) == 0
