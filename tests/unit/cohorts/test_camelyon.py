"""CAMELYON16 and CAMELYON17 in their standard layouts."""

from pathlib import Path

import pytest

from cohorts.camelyon import by_centers, camelyon, filter_centers, read_stages
from cohorts.pairing import Case
from tests.support.paths import SHARED

REAL_STAGES = SHARED / "tables" / "camelyon17_stage_labels_000-049.csv"
STAGES = """patient,stage
patient_000.zip,pN0
patient_000_node_0.tif,negative
patient_000_node_1.tif,negative
patient_004.zip,pN1
patient_004_node_4.tif,macro
patient_020_node_0.tif,Negative
patient_020_node_1.tif,itc
patient_040_node_0.tif,negative
"""


def make(root: Path, *names: str) -> Path:
    """Empty files below the root."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def found(cases: list[Case]) -> dict[str, str | None]:
    """Slide id -> name of its label file."""
    return {case.slide_id: case.label_path.name if case.label_path else None for case in cases}


def center_cases(*centers: int | None) -> list[Case]:
    return [Case(f"s{place}", Path(f"s{place}.tif"), None, None, center) for place, center in enumerate(centers)]


OFFICIAL_16 = (
    "training/tumor/tumor_001.tif",
    "training/normal/normal_002.tif",
    "training/lesion_annotations/tumor_001.xml",
    "testing/images/test_001.tif",
    "testing/lesion_annotations/test_001.xml",
)
FLAT_16 = (
    "images/tumor_001.tif",
    "images/normal_002.tif",
    "images/test_003.tif",
    "annotations/tumor_001.xml",
    "annotations/test_003.xml",
    "annotations/test_004.xml",
    "masks/tumor_001_mask.tif",
    "masks/normal_002_mask.tif",
)


@pytest.mark.parametrize("below", ["", "CAMELYON16/", "camelyon16/"])
def test_camelyon16_official(tmp_path: Path, below: str) -> None:
    make(tmp_path, *(f"{below}{name}" for name in OFFICIAL_16))
    sets = camelyon("16", tmp_path, label_format="xml")
    assert found(sets.train) == {"normal_002": None, "tumor_001": "tumor_001.xml"}
    assert (sets.val, sets.notes) == (None, [])


def test_camelyon16_masks_and_capitals_of_folders(tmp_path: Path) -> None:
    make(tmp_path, "Training/Tumor/tumor_001.tif", "Training/Mask/tumor_001_Mask.tif")
    assert found(camelyon("16", tmp_path).train) == {"tumor_001": "tumor_001_Mask.tif"}


@pytest.mark.parametrize(("label_format", "label"), [("xml", "Tumor_001.xml"), ("tif", "Tumor_001_Mask.tif")])
def test_camelyon16_older_layout(tmp_path: Path, label_format: str, label: str) -> None:
    make(
        tmp_path,
        "TrainingData/Train_Tumor/Tumor_001.tif",
        "TrainingData/Train_Normal/Normal_002.tif",
        "TrainingData/Ground_Truth/XML/Tumor_001.xml",
        "TrainingData/Ground_Truth/Mask/Tumor_001_Mask.tif",
    )
    assert found(camelyon("16", tmp_path, label_format=label_format).train) == {"Normal_002": None, "Tumor_001": label}


def test_camelyon16_flat_leaves_the_test_slides_out_and_says_so(tmp_path: Path) -> None:
    make(tmp_path, *FLAT_16)
    sets = camelyon("16", tmp_path, label_format="xml")
    assert found(sets.train) == {"normal_002": None, "tumor_001": "tumor_001.xml"}
    assert len(sets.notes) == 1
    assert sets.notes[0].startswith("left out: 1 test slide of CAMELYON16: ")
    assert sets.notes[0].endswith("images/test_003.tif")


def test_camelyon16_masks_of_normal_slides_are_not_used(tmp_path: Path) -> None:
    make(tmp_path, *FLAT_16)
    sets = camelyon("16", tmp_path, label_format="tif")
    assert found(sets.train) == {"normal_002": None, "tumor_001": "tumor_001_mask.tif"}
    assert sets.notes[1] == "1 labels of normal slides are not used: a normal slide is class 0 everywhere"


def test_camelyon16_keeps_the_rules_of_pairing(tmp_path: Path) -> None:
    make(tmp_path, *OFFICIAL_16, "training/lesion_annotations/tumor_009.xml")
    with pytest.raises(ValueError, match=r"labels without a slide: .*tumor_009\.xml"):
        camelyon("16", tmp_path, label_format="xml")
    make(tmp_path, "training/tumor/tumor_009.tif", "training/tumor/tumor_010.tif")
    with pytest.raises(ValueError, match=r"tumor slides without a label: .*tumor_010\.tif"):
        camelyon("16", tmp_path, label_format="xml")


def test_a_mask_beside_the_slides_needs_its_slide(tmp_path: Path) -> None:
    make(tmp_path, *OFFICIAL_16, "training/tumor/tumor_001_mask.tif")
    assert found(camelyon("16", tmp_path, label_format="xml").train) == {
        "normal_002": None,
        "tumor_001": "tumor_001.xml",
    }
    make(tmp_path, "training/tumor/tumor_008_mask.tif")
    with pytest.raises(ValueError, match=r"labels without a slide: .*tumor_008_mask\.tif"):
        camelyon("16", tmp_path, label_format="xml")


def test_folders_that_differ_only_in_capitals_are_refused(tmp_path: Path) -> None:
    make(tmp_path, *OFFICIAL_16, "training/Tumor/tumor_009.tif")
    if (tmp_path / "training" / "TUMOR").exists():
        pytest.skip("this file system does not tell capitals apart")
    with pytest.raises(ValueError, match=r"training/Tumor, .*training/tumor differ only in case"):
        camelyon("16", tmp_path, label_format="xml")


def test_camelyon16_has_no_centres(tmp_path: Path) -> None:
    make(tmp_path, *OFFICIAL_16)
    with pytest.raises(ValueError, match=r"center of .*normal_002\.tif, .*tumor_001\.tif is unknown"):
        camelyon("16", tmp_path, [0], [-1], "xml")


def camelyon17(root: Path, stages: str | None = STAGES, flat: bool = False) -> Path:
    folders = {"000": "center_0", "004": "center_0", "020": "center_1", "040": "center_2", "100": "center_0"}
    slides = ["000_node_0", "000_node_1", "004_node_4", "020_node_0", "020_node_1", "040_node_0", "100_node_0"]
    kept = slides if flat else slides[:-1]
    for name in kept:
        make(root, f"{'images' if flat else 'training/' + folders[name[:3]]}/patient_{name}.tif")
    make(root, f"{'annotations' if flat else 'training/lesion_annotations'}/patient_004_node_4.xml")
    if stages is not None:
        (root / ("stages.csv" if flat else "training/stage_labels.csv")).write_text(stages)
    return root


@pytest.mark.parametrize("flat", [False, True])
def test_camelyon17_takes_as_normal_only_what_is_known_to_be_negative(tmp_path: Path, flat: bool) -> None:
    sets = camelyon("17", camelyon17(tmp_path, flat=flat), label_format="xml")
    assert found(sets.train) == {
        "patient_000_node_0": None,
        "patient_000_node_1": None,
        "patient_004_node_4": "patient_004_node_4.xml",
        "patient_020_node_0": None,
        "patient_040_node_0": None,
    }
    assert [case.center for case in sets.train] == [0, 0, 0, 1, 2]
    assert sets.val is None
    table = "stages.csv" if flat else "stage_labels.csv"
    left_out = f"left out: 1 slide without a label, of class itc ({table}): "
    assert sets.notes[-1].startswith(left_out)
    assert sets.notes[-1].endswith("patient_020_node_1.tif")
    assert [note.rpartition(":")[0] for note in sets.notes[:-1]] == ["left out: 1 test slide of CAMELYON17"] * flat


def test_camelyon17_without_the_table_keeps_labeled_slides_only(tmp_path: Path) -> None:
    sets = camelyon("17", camelyon17(tmp_path, stages=None), label_format="xml")
    assert found(sets.train) == {"patient_004_node_4": "patient_004_node_4.xml"}
    assert sets.notes[0].startswith("left out: 5 slides without a label, of class unknown (there is no training/")


def test_camelyon17_without_any_known_truth_is_refused(tmp_path: Path) -> None:
    make(
        tmp_path, "images/patient_000_node_0.tif", "images/patient_100_node_0.tif", "annotations/patient_100_node_0.xml"
    )
    with pytest.raises(ValueError, match=r"no slide in .* known to be negative: left out: 1 slide without"):
        camelyon("17", tmp_path, label_format="xml")


def test_camelyon17_notes_an_annotated_negative_slide(tmp_path: Path) -> None:
    sets = camelyon("17", camelyon17(tmp_path, STAGES.replace("macro", "negative")), label_format="xml")
    assert "patient_004_node_4" in found(sets.train)
    assert sets.notes[0].endswith(
        "patient_004_node_4.tif has a label but is negative in stage_labels.csv; the label is used"
    )


def test_camelyon17_centres(tmp_path: Path) -> None:
    sets = camelyon("17", camelyon17(tmp_path), [0, 1], [2], "xml")
    assert [case.slide_id for case in sets.train] == [
        "patient_000_node_0",
        "patient_000_node_1",
        "patient_004_node_4",
        "patient_020_node_0",
    ]
    assert found(sets.val or []) == {"patient_040_node_0": None}
    with pytest.raises(ValueError, match=r"no slides of center 3; there are slides of centers 0 1 2"):
        camelyon("17", tmp_path, [-1], [3], "xml")


def test_labels_of_other_centres_need_no_slides(tmp_path: Path) -> None:
    camelyon17(tmp_path)
    make(tmp_path, "training/lesion_annotations/patient_099_node_1.xml")
    assert len(camelyon("17", tmp_path, [0], [1], "xml").train) == 3
    for centers in ([-1], [0, 4]):
        with pytest.raises(ValueError, match=r"labels without a slide: .*patient_099_node_1\.xml"):
            camelyon("17", tmp_path, centers, [1], "xml")


def test_a_folder_without_a_layout_says_what_was_looked_for_and_what_is_there(tmp_path: Path) -> None:
    make(tmp_path, "tumor/tumor_001.tif", "notes.txt")
    with pytest.raises(ValueError, match=r"looked for training/tumor and training/normal; .*; images; found") as error:
        camelyon("16", tmp_path)
    assert f"found {tmp_path}/notes.txt, {tmp_path}/tumor; set data_root" in str(error.value)
    with pytest.raises(ValueError, match=r"data_root .*absent is not a folder"):
        camelyon("16", tmp_path / "absent")
    with pytest.raises(ValueError, match="dataset '18' is unknown; choose one of 16, 17"):
        camelyon("18", tmp_path)


def test_two_layouts_at_once_are_refused(tmp_path: Path) -> None:
    make(tmp_path, *OFFICIAL_16, *FLAT_16)
    with pytest.raises(
        ValueError, match=r"more than one layout of CAMELYON16 \(training/tumor, training/normal, images\)"
    ):
        camelyon("16", tmp_path)


def test_missing_and_ambiguous_label_folders(tmp_path: Path) -> None:
    make(tmp_path, *OFFICIAL_16)
    with pytest.raises(
        ValueError, match=r"no folder of tif labels: looked for training/tumor_mask, .*lesion_annotations"
    ):
        camelyon("16", tmp_path)
    make(tmp_path, "training/mask/tumor_001_mask.tif", "training/masks/tumor_001_mask.tif")
    with pytest.raises(ValueError, match="more than one folder of tif labels"):
        camelyon("16", tmp_path)


@pytest.mark.parametrize(
    ("train", "val", "expected"),
    [
        ([-1], [-1], ("s0 s1 s2 s3", None)),
        ([2], [-1], ("s1 s3", None)),
        ([0, 2], [1], ("s0 s1 s3", "s2")),
        ([-1], [2], ("s0 s2", "s1 s3")),
        ([0, 1], [1, 2], ("s0", "s1 s2 s3")),
    ],
)
def test_by_centers_never_trains_on_what_is_validated(
    train: list[int], val: list[int], expected: tuple[str, str | None]
) -> None:
    trained, validated, _ = by_centers(center_cases(0, 2, 1, 2), train, val)
    names = [None if part is None else " ".join(case.slide_id for case in part) for part in (trained, validated)]
    assert tuple(names) == expected


def test_by_centers_says_what_it_took_from_training() -> None:
    cases = center_cases(0, 2, 1, 2)
    assert by_centers(cases, [-1], [2])[2] == ["not trained on: 2 slides of validation centers 2"]
    assert by_centers(cases, [0], [2])[2] == []
    with pytest.raises(ValueError, match=r"val_centers 1 2 hold every slide of train_centers 2, so none is left"):
        by_centers(cases, [2], [1, 2])


@pytest.mark.parametrize(
    ("centers", "message"),
    [
        ([3], "no slides of center 3; there are slides of centers 0 2; -1 is all"),
        ([0, 5], "no slides of center 5; there are slides of centers 0 2"),
        ([], r"no slides of center \(none\)"),
        ([-1, 2], r"centers -1 2 name all \(-1\) and single ones"),
    ],
)
def test_centres_that_do_not_exist(centers: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        filter_centers(center_cases(0, 2), centers)


def test_a_slide_of_unknown_centre_is_named_only_when_centres_matter() -> None:
    cases = center_cases(0, None)
    assert filter_centers(cases, [-1]) == cases
    with pytest.raises(ValueError, match=r"the center of s1\.tif is unknown"):
        filter_centers(cases, [0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("slide,stage\na.tif,negative\n", r"must have the columns patient and stage, not \['slide', 'stage'\]"),
        ("", "must have the columns patient and stage, not None"),
        (
            "patient,stage\na.zip,pN0\na.tif,pN0\n",
            r"line 3: class 'pn0' of a\.tif must be one of negative, itc, micro, macro",
        ),
        ("patient,stage\na.tif\n", r"line 2: class '' of a\.tif"),
        ("patient,stage\na.tif,itc\na.tif,micro\n", "line 3: a is both itc and micro"),
    ],
)
def test_a_malformed_table_of_stages_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "stages.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_stages(tmp_path / "stages.csv")


def test_stages_with_byte_order_mark_blanks_and_a_third_column(tmp_path: Path) -> None:
    text = "\ufeffpatient,stage,center\r\npatient_000.zip,pN0,0\r\npatient_000_node_0.tif, ITC ,0\r\n"
    (tmp_path / "stages.csv").write_text(text, encoding="utf-8", newline="")
    assert read_stages(tmp_path / "stages.csv") == {"patient_000_node_0": "itc"}


@pytest.mark.skipif(not REAL_STAGES.is_file(), reason=f"the published table is not at {REAL_STAGES}")
def test_the_published_table_of_stages() -> None:
    class_of = read_stages(REAL_STAGES)
    assert len(class_of) == 250
    assert class_of["patient_004_node_4"] == "itc"
    assert class_of["patient_000_node_0"] == "negative"


def test_stages_of_names_in_decomposed_unicode(tmp_path: Path) -> None:
    (tmp_path / "stages.csv").write_text("patient,stage\npra\u0308parat.tif,itc\n", encoding="utf-8")
    assert read_stages(tmp_path / "stages.csv") == {"pr\u00e4parat": "itc"}
