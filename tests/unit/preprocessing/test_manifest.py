"""The manifest: areas, checksums, split; and what train.py reads from it."""

import csv
import hashlib
from pathlib import Path

import numpy as np
import pytest

from cohorts.pairing import Case
from cohorts.sets import from_manifest
from cohorts.splits import stratified
from options.train import train_options
from segmentation.inputs import find_cases
from slides.synthetic.demo import write_pyramid
from tests.support.steps import run_steps
from tests.support.tiny import write_label, write_slide

ALL = ([-1], [-1])


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """tumor_1 (120 x 130 px at 2 um/px less a hole of 20 x 10), tumor_2 (the same without a hole), two normal ones."""
    folder = tmp_path / "my 'data'"
    for seed, name in enumerate(("tumor_1", "tumor_2", "normal_é", "normal_2")):
        write_slide(folder / "images" / f"{name}.tif", (301, 263), seed, tumor=name.startswith("tumor"))
    write_label(folder / "xml" / "tumor_2.xml")
    rings = {"_0": [(60, 70), (180, 70), (180, 200), (60, 200)], "_2": [(80, 80), (100, 80), (100, 90), (80, 90)]}
    from slides.synthetic.demo import write_asap

    write_asap(folder / "xml" / "tumor_1.xml", [(group, np.array(ring, float)) for group, ring in rings.items()])
    return folder


def prepare(data: Path, out: Path, *more: str, labels: str = "xml") -> list[dict[str, str]]:
    words = ["--slide_path", str(data / "images"), "--out", str(out), "--num_processes", "1", *more]
    words += ["--label_path", str(data / labels), "--label_format", "xml" if labels == "xml" else "tif"]
    assert run_steps(["tissue", "manifest"], words) == 0
    with (out / "manifest.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_rows_of_a_small_set(data: Path, tmp_path: Path):
    rows = {row["slide"]: row for row in prepare(data, tmp_path / "out")}
    one = rows["tumor_1"]
    # (120 * 130 - 20 * 10) px of 4 um2.
    assert float(one["tumor_mm2"]) == pytest.approx(15400 * 4e-6, abs=1e-9)
    assert (one["class"], one["annotations"], rows["tumor_2"]["annotations"]) == ("tumor", "_0:1 _2:1", "_0:1")
    assert (one["um_px_x"], one["width"], one["height"], one["center"]) == ("2.0", "301", "263", "")
    # The whole slide is pink; it ends within cells of 8 um.
    assert float(one["tissue_mm2"]) == pytest.approx(301 * 263 * 4e-6, rel=0.01)
    slide = data / "images" / "tumor_1.tif"
    assert one["slide_sha256"] == hashlib.sha256(slide.read_bytes()).hexdigest()
    assert one["label_sha256"] == hashlib.sha256((data / "xml" / "tumor_1.xml").read_bytes()).hexdigest()
    assert (one["root"], one["slide_path"]) == (str(data), "images/tumor_1.tif")
    assert (rows["normal_é"]["class"], rows["normal_é"]["label_path"]) == ("normal", "")
    # One of two of each class is held out.
    assert sorted((row["class"], row["split"]) for row in rows.values()) == [
        ("normal", "train"), ("normal", "val"), ("tumor", "train"), ("tumor", "val"),
    ]  # fmt: skip


def test_areas_of_masks_are_px_of_level_0(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("preprocessing.manifest.BLOCK", 100)
    mask_HW = np.zeros((263, 301), np.uint8)
    mask_HW[13, 17:24] = 1
    mask_HW[200:203, 299:] = 255
    values = ["--mask_values", "0:0", "1:1", "255:1"]
    (data / "masks").mkdir()
    for name in ("tumor_1", "tumor_2"):
        write_pyramid(data / "masks" / f"{name}_Mask.tif", mask_HW, 2.0, lossless=True)
    rows = {row["slide"]: row for row in prepare(data, tmp_path / "out", *values, labels="masks")}
    assert float(rows["tumor_1"]["tumor_mm2"]) == pytest.approx(13 * 4e-6, abs=1e-9)
    assert rows["tumor_1"]["annotations"] == ""


def test_without_checksums_and_with_folders_for_validation(data: Path, tmp_path: Path):
    (data / "val").mkdir()
    (data / "images" / "tumor_2.tif").rename(data / "val" / "tumor_2.tif")
    (data / "val xml").mkdir()
    (data / "xml" / "tumor_2.xml").rename(data / "val xml" / "tumor_2.xml")
    more = ["--valid_slide_path", str(data / "val"), "--valid_label_path", str(data / "val xml"), "--no-checksums"]
    rows = {row["slide"]: row for row in prepare(data, tmp_path / "out", *more)}
    assert {slide for slide, row in rows.items() if row["split"] == "val"} == {"tumor_2"}
    assert rows["tumor_1"]["slide_sha256"] == ""


def test_the_tissue_mask_must_be_there(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["--slide_path", str(data / "images" / "normal_2.tif"), "--out", str(tmp_path / "out")]
    assert run_steps(["manifest"], [*words, "--num_processes", "1"]) == 1
    assert "tissue/normal_2.tif cannot be read: [Errno 2]" in capsys.readouterr().out


def manifest_rows(*words: str | Path) -> list[tuple[str, str, str, str]]:
    """Slide, patient, center and class of a run of tissue and manifest."""
    out = Path(words[-1])
    assert run_steps(["tissue", "manifest"], [*map(str, words), "--num_processes", "1"]) == 0
    with (out / "manifest.csv").open(encoding="utf-8", newline="") as file:
        return [(row["slide"], row["patient"], row["center"], row["class"]) for row in csv.DictReader(file)]


def test_centers_of_camelyon17(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    root = tmp_path / "CAMELYON17"
    for name, center in (("patient_004_node_4", 0), ("patient_021_node_0", 1), ("patient_022_node_1", 1)):
        write_slide(root / "training" / f"center_{center}" / f"{name}.tif", (301, 263), tumor=True)
        write_label(root / "training" / "lesion_annotations" / f"{name}.xml", "metastases")
    words = ["--dataset", "17", "--data_root", str(tmp_path)]
    assert manifest_rows(*words, "--proc_center", "1", "--out", tmp_path / "one") == [
        ("patient_021_node_0", "patient_021", "1", "tumor"), ("patient_022_node_1", "patient_022", "1", "tumor"),
    ]  # fmt: skip
    assert len(manifest_rows(*words, "--out", tmp_path / "all")) == 3
    capsys.readouterr()
    assert run_steps(["manifest"], [*words, "--proc_center", "3", "--out", str(tmp_path / "x")]) == 2
    assert "no slides of center 3; there are slides of centers 0 1" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run_steps(["manifest"], [*words, "--slide_path", "S", "--out", "O"])
    assert "--dataset replaces the path options" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------------------- split


def cases(count: int, center: int, tumor: bool, nodes: int = 1) -> dict[str, tuple[Case, str]]:
    """`count` patients of a center with `nodes` slides each."""
    name = "tumor" if tumor else "normal"
    found = {}
    for number in range(count):
        patient = f"patient_{center}{name}{number:02d}"
        for node in range(nodes):
            slide_id = f"{patient}_node_{node}"
            found[slide_id] = (Case(slide_id, Path(f"{slide_id}.tif"), None, patient, center), name)
    return found


def held(found: dict[str, tuple[Case, str]], share: float, seed: int = 0) -> list[str]:
    class_of = {slide_id: name for slide_id, (_, name) in found.items()}
    return sorted(stratified([case for case, _ in found.values()], class_of, share, seed))


def test_every_class_and_center_has_its_share():
    found = cases(20, 0, True) | cases(10, 1, True) | cases(40, 0, False) | cases(10, 3, False)
    val = held(found, 0.2)
    by = [
        sum(slide.startswith(f"patient_{key}") for slide in val) for key in ("0tumor", "1tumor", "0normal", "3normal")
    ]
    assert by == [4, 2, 8, 2]
    assert held(found, 0.2) == val
    assert held(found, 0.2, seed=1) != val


def test_small_centers_share_though_none_of_them_is_due_one():
    found = {key: case for center in range(5) for key, case in cases(2, center, True).items()}
    # 10 slides, 0.3: two per center are due 0.6 each, summed 0.6, 1.2, 1.8, 2.4, 3.0.
    assert [sum(f"patient_{center}" in slide for slide in held(found, 0.3)) for center in range(5)] == [1, 0, 1, 0, 1]


def test_patients_stay_together_and_have_one_class():
    found = cases(6, 0, True, nodes=5)
    # Four of five nodes of each patient are normal: still patients with tumor.
    found = {slide: (case, "tumor" if slide.endswith("_3") else "normal") for slide, (case, _) in found.items()}
    val = held(found, 0.34)
    assert len(val) == 10
    assert len({slide.rsplit("_node", 1)[0] for slide in val}) == 2


@pytest.mark.parametrize(("tumors", "normals", "share", "expected"), [(2, 1, 0.05, 1), (2, 2, 0.95, 2), (1, 1, 0.1, 1)])
def test_neither_set_is_empty(tumors: int, normals: int, share: float, expected: int):
    found = cases(tumors, 0, True) | cases(normals, 0, False)
    val = held(found, share)
    assert len(val) == expected
    assert held(cases(1, 0, True), 0.5) == []
    if tumors == 1:
        assert "normal" in val[0]


# ------------------------------------------------------------------------------------------------------------ train.py


def test_train_takes_a_manifest(data: Path, tmp_path: Path):
    rows = prepare(data, tmp_path / "out")
    opts = train_options(
        ["--manifest", str(tmp_path / "out" / "manifest.csv"), "--resolution", "2", "--img_size", "128"]
    )
    train, val, notes = find_cases(opts.slides, opts.training.seed)
    assert notes == []
    assert [case.slide_id for case in train] == [row["slide"] for row in rows if row["split"] == "train"]
    assert [case.slide_id for case in val] == [row["slide"] for row in rows if row["split"] == "val"]
    labels = {case.slide_id: case.label_path for case in [*train, *val]}
    assert labels["tumor_1"] == data / "xml" / "tumor_1.xml"
    assert labels["normal_é"] is None


def test_files_may_have_been_moved(data: Path, tmp_path: Path):
    prepare(data, tmp_path / "out")
    moved = data.rename(tmp_path / "elsewhere")
    with pytest.raises(
        ValueError, match=r"line 2: .*normal_2\.tif does not exist; give the current folder .* as --slide_root"
    ):
        from_manifest(tmp_path / "out" / "manifest.csv", None, ALL)
    train, val, _ = from_manifest(tmp_path / "out" / "manifest.csv", moved, ALL)
    assert all(case.slide_path.parent == moved / "images" for case in [*train, *val])


BAD = [
    ("slide,slide_path,split\n", "has no column label_path; a manifest comes from run_prepro.sh"),
    (
        "slide,slide_path,label_path,split\na,a.tif,,validate\n",
        "line 2: split 'validate' of a must be one of train, val, test",
    ),
    (
        "slide,slide_path,label_path,split,center\na,a.tif,,val,zero\n",
        "line 2: center 'zero' of a must be a whole number",
    ),
    (
        "slide,slide_path,label_path,split,class\na,a.tif,,val,tumor\n",
        "line 2: a is of class tumor but has no label_path",
    ),
    (
        "slide,slide_path,label_path,split\nb,a.tif,,val\n",
        "line 2: slide must be the name of a.tif without its suffix, not b",
    ),
    ("slide,slide_path,label_path,split\na,a.tif,,val\na,a.tif,,val\n", "line 3: slide a occurs twice"),
    ("slide,slide_path,label_path,split\na,a.tif,,val\n", "has no slide with split train"),
    ("slide,slide_path,label_path,split\na,a.tif,gone.xml,val\n", "line 2: .*gone.xml does not exist"),
    ("sl\xff", "is not a CSV table"),
    (None, "cannot be read: No such file or directory"),
]


@pytest.mark.parametrize(("text", "expected"), BAD, ids=[expected[:20] for _, expected in BAD])
def test_bad_manifests(tmp_path: Path, text: str | None, expected: str):
    (tmp_path / "a.tif").touch()
    if text is not None:
        (tmp_path / "m.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=expected):
        from_manifest(tmp_path / "m.csv", None, ALL)


def test_centers_and_test_slides(tmp_path: Path):
    lines = ["slide,slide_path,label_path,split,center,patient"]
    for name, split, center in (("a", "train", 0), ("b", "train", 1), ("c", "val", 1), ("d", "test", 1)):
        (tmp_path / f"{name}.tif").touch()
        lines.append(f"{name},{name}.tif,,{split},{center},patient_{name}")
    (tmp_path / "m.csv").write_text("\n".join(lines), encoding="utf-8")
    train, val, notes = from_manifest(tmp_path / "m.csv", None, ([0], [1]))
    assert [(case.slide_id, case.patient, case.center) for case in train] == [("a", "patient_a", 0)]
    assert [case.slide_id for case in val] == ["c"]
    assert notes == ["not used: 1 slide with split test"]
    # Manifests written before the spelling of the column changed.
    (tmp_path / "m.csv").write_text("\n".join(lines).replace("center", "centre"), encoding="utf-8")  # old spelling
    assert from_manifest(tmp_path / "m.csv", None, ([0], [1])) == (train, val, notes)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--slide_path", "S"], "--manifest replaces the four path options and --dataset"),
        (["--dataset", "16", "--data_root", "D"], "--manifest replaces the four path options"),
    ],
)
def test_one_way_to_name_the_data(words: list[str], expected: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        train_options(["--manifest", "M", *words])
    assert expected in capsys.readouterr().err
    with pytest.raises(SystemExit):
        train_options(["--slide_root", "R", "--slide_path", "S", "--label_path", "L"])
    assert "--slide_root is the folder of a manifest's files" in capsys.readouterr().err


@pytest.mark.parametrize(("table", "disk"), [("\u00e9", "e\u0301"), ("e\u0301", "\u00e9")])
def test_names_in_another_form_of_unicode(tmp_path: Path, table: str, disk: str):
    for name in ("a", "b"):
        (tmp_path / f"{name}{disk}.tif").touch()
    rows = "".join(f"{name}{table},{name}{table}.tif,,{split}\n" for name, split in (("a", "train"), ("b", "val")))
    (tmp_path / "m.csv").write_text(f"slide,slide_path,label_path,split\n{rows}", encoding="utf-8")
    train, val, _ = from_manifest(tmp_path / "m.csv", None, ALL)
    assert [case.slide_id for case in (*train, *val)] == ["a\u00e9", "b\u00e9"]
    assert train[0].slide_path.name == f"a{disk}.tif"
