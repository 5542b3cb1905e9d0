"""Pairing of slides with labels: by exact id, and nothing is dropped in silence."""

import pickle
from pathlib import Path

import pytest

from cohorts.pairing import Case, center_of, find_slides, known_problems, list_files, pair
from cohorts.sets import Source, paired_only
from tests.support.paths import SHARED

REAL = SHARED / "c16mosaic"


def make(folder: Path, *names: str) -> Path:
    """Empty files at these paths below the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def labels_of(cases: list[Case]) -> dict[str, str | None]:
    """Slide id -> name of its label file."""
    return {case.slide_id: case.label_path.name if case.label_path else None for case in cases}


def test_xml_labels_pair_by_id_and_not_by_sort_order(tmp_path: Path) -> None:
    slides = make(tmp_path / "s", "tumor_002.tif", "normal_001.TIF", "patient_004_node_4.tiff", "tumor_010.tif")
    labels = make(tmp_path / "l", "tumor_010.xml", "tumor_002.XML", "patient_004_node_4.xml", "notes.txt")
    cases = pair(slides, labels, "tif", "xml")
    assert [(case.slide_id, case.slide_path.name) for case in cases] == [
        ("normal_001", "normal_001.TIF"),
        ("patient_004_node_4", "patient_004_node_4.tiff"),
        ("tumor_002", "tumor_002.tif"),
        ("tumor_010", "tumor_010.tif"),
    ]
    assert labels_of(cases) == {
        "normal_001": None,
        "patient_004_node_4": "patient_004_node_4.xml",
        "tumor_002": "tumor_002.XML",
        "tumor_010": "tumor_010.xml",
    }
    assert [case.labeled for case in cases] == [False, True, True, True]


def test_masks_pair_with_and_without_ending(tmp_path: Path) -> None:
    slides = make(tmp_path / "s", "tumor_001.tif", "tumor_002.tif", "tumor_003.tif", "test_001.tif")
    labels = make(tmp_path / "l", "tumor_001_Mask.tif", "tumor_002_mask.tiff", "tumor_003.tif")
    assert labels_of(pair(slides, labels)) == {
        "test_001": None,
        "tumor_001": "tumor_001_Mask.tif",
        "tumor_002": "tumor_002_mask.tiff",
        "tumor_003": "tumor_003.tif",
    }


def test_an_id_is_no_prefix_of_another(tmp_path: Path) -> None:
    slides = make(tmp_path / "s", "a_1.tif", "a_10.tif", "a.1.tif")
    labels = make(tmp_path / "l", "a_10.xml", "a.1.xml")
    assert labels_of(pair(slides, labels, "tif", "xml")) == {"a.1": "a.1.xml", "a_1": None, "a_10": "a_10.xml"}


def test_masks_beside_their_slides_are_no_slides(tmp_path: Path) -> None:
    both = make(tmp_path / "s", "tumor_001.tif", "tumor_001_Mask.tif", "normal_001.tif", "tumor_001.xml")
    assert labels_of(pair(both, both)) == {"normal_001": None, "tumor_001": "tumor_001_Mask.tif"}
    assert labels_of(pair(both, both / ".." / "s")) == {"normal_001": None, "tumor_001": "tumor_001_Mask.tif"}
    assert labels_of(pair(both, both, "tif", "xml")) == {"normal_001": None, "tumor_001": "tumor_001.xml"}
    assert [case.slide_id for case in find_slides(both)] == ["normal_001", "tumor_001"]


def test_bare_names_in_the_slides_folder_are_masks_only_of_other_formats(tmp_path: Path) -> None:
    both = make(tmp_path / "s", "a.svs", "a.tif", "b.svs")
    assert labels_of(pair(both, both, "svs", "tif")) == {"a": "a.tif", "b": None}
    only = make(tmp_path / "t", "a.tif", "b.tif")
    with pytest.raises(ValueError, match=r"no label in .* belongs to a slide of .*a\.tif.*b\.tif"):
        pair(only, only)


def test_single_files(tmp_path: Path) -> None:
    both = make(tmp_path / "s", "a.tif", "a_mask.tif", "b.tif", "b_mask.tif", "b.tiff")
    assert labels_of(pair(both / "a.tif", both / "a_mask.tif")) == {"a": "a_mask.tif"}
    label = make(tmp_path / "l", "a.tif") / "a.tif"
    assert [case.label_path for case in pair(both / "a.tif", label)] == [label]


def test_one_slide_with_the_labels_of_all(tmp_path: Path) -> None:
    slides = make(tmp_path / "s", "a.tif", "b.tif", "b_mask.tif", "a_mask.tif")
    labels = make(tmp_path / "l", "a.xml", "b.xml")
    assert labels_of(pair(slides / "a.tif", labels, "tif", "xml")) == {"a": "a.xml"}
    assert labels_of(pair(slides / "a.tif", slides)) == {"a": "a_mask.tif"}
    assert labels_of(pair(slides, labels / "b.xml", "tif", "xml")) == {"a": None, "b": "b.xml"}
    with pytest.raises(ValueError, match=r"labels without a slide: .*b\.xml"):
        pair(slides / "a.tif", labels / "b.xml", "tif", "xml")


def test_twin_of_a_single_slide_is_not_its_label(tmp_path: Path) -> None:
    both = make(tmp_path / "s", "a.tif", "a.tiff")
    with pytest.raises(ValueError, match="no label in"):
        pair(both / "a.tif", both)


def test_folders_and_hidden_files_are_not_slides(tmp_path: Path) -> None:
    slides = make(tmp_path / "s", "a.mrxs", "a/Data0000.dat", "b.mrxs/Slidedat.ini", "._a.mrxs", "sub/c.mrxs")
    assert [case.slide_id for case in pair(slides, None, "mrxs")] == ["a"]
    assert [case.slide_id for case in pair(slides, None, ".MRXS")] == ["a"]


def test_center_folders_are_searched_when_the_top_holds_nothing(tmp_path: Path) -> None:
    names = ("center_0/patient_004_node_4.tif", "centre_1/patient_020_node_0.tif", "other/patient_040_node_0.tif")
    slides = make(tmp_path / "s", *names)
    labels = make(tmp_path / "l", "center_0/patient_004_node_4.xml", "readme.txt")
    cases = pair(slides, labels, "tif", "xml")
    assert labels_of(cases) == {"patient_004_node_4": "patient_004_node_4.xml", "patient_020_node_0": None}
    assert [(case.patient, case.center) for case in cases] == [("patient_004", 0), ("patient_020", 1)]


@pytest.mark.parametrize(
    ("path", "center"),
    [
        ("patient_000_node_0.tif", 0),
        ("patient_019_node_4.tif", 0),
        ("patient_020_node_0.tif", 1),
        ("patient_099_node_4.tif", 4),
        ("patient_100_node_0.tif", 0),
        ("patient_199_node_0.tif", 4),
        ("patient_200_node_0.tif", None),
        ("patient_0041_node_0.tif", None),
        ("tumor_001.tif", None),
        ("Center_3/patient_000_node_0.tif", 3),
        ("center_3/images/tumor_001.tif", 3),
        ("center_3/centre_4/a.tif", 4),
        ("my_center_3/a.tif", None),
    ],
)
def test_centre(path: str, center: int | None) -> None:
    assert center_of(Path("/data") / path) == center


def test_patient_comes_from_the_name(tmp_path: Path) -> None:
    slides = make(
        tmp_path / "s", "patient_004_node_4.tif", "Patient_104.tif", "xpatient_004_node_1.tif", "normal_3.tif"
    )
    patients = {case.slide_id: case.patient for case in pair(slides, None)}
    assert patients == {
        "patient_004_node_4": "patient_004",
        "Patient_104": "patient_104",
        "xpatient_004_node_1": None,
        "normal_3": None,
    }


@pytest.mark.parametrize(
    ("slides", "labels", "formats", "message"),
    [
        (["a.tif", "a.tiff", "b.tif"], ["b.xml"], ("tif", "xml"), r"same id: .*a\.tif, .*a\.tiff"),
        (["a.tif"], ["a_mask.tif", "a_Mask.tif"], ("tif", "tif"), r"more than one label.*a_Mask\.tif, .*a_mask\.tif"),
        (["a.tif"], ["a_mask.tif", "a.tif"], ("tif", "tif"), r"more than one label.*a\.tif, .*a_mask\.tif"),
        (["a.tif"], ["a.xml", "b.xml", "c.xml"], ("tif", "xml"), r"labels without a slide: \S*b\.xml, \S*c\.xml;"),
        (["a.tif"], ["a_mask.xml"], ("tif", "xml"), r"labels without a slide: .*a_mask\.xml"),
        (["a.tif"], ["A.xml"], ("tif", "xml"), r"labels without a slide: .*A\.xml; .* only in case: a;"),
        (
            ["tumor_1.tif", "Tumor_2.tif", "b.tif"],
            ["b.xml"],
            ("tif", "xml"),
            r"without a label: .*Tumor_2.*, .*tumor_1",
        ),
        (["a.tif"], ["a.txt", "b"], ("tif", "xml"), r"no \.xml file \(it has \.txt, files without a suffix\)"),
        (["a.svs"], ["a.xml"], ("tif", "xml"), r"slide_path .* no \.tif or \.tiff file \(it has \.svs\)"),
        (["a.tif"], [], ("tif", "xml"), r"label_path .* \(it is empty\)"),
        (["a.tif"], ["center_1"], ("tif", "xml"), r"label_path .* \(it has files without a suffix\)"),
        (["a.tif"], ["sub/a.xml"], ("tif", "xml"), r"label_path .* \(only folders\)"),
        (["a_mask.tif", "b_Mask.tif"], ["a.xml"], ("tif", "xml"), r"has only masks: .*a_mask\.tif, .*b_Mask\.tif"),
        (["a.tif", "b_mask.tif"], ["a.xml"], ("tif", "xml"), r"labels without a slide: .*b_mask\.tif"),
        (["a.tif"], ["a.xml"], ("gif", "xml"), r"slide_format 'gif' is unknown; choose one of tif, "),
        (["a.tif"], ["a.xml"], ("tif", "svs"), r"label_format 'svs' is unknown; choose one of tif, tiff, xml"),
    ],
)
def test_errors_name_the_files(
    tmp_path: Path, slides: list[str], labels: list[str], formats: tuple[str, str], message: str
) -> None:
    slide_folder, label_folder = make(tmp_path / "s", *slides), make(tmp_path / "l", *labels)
    with pytest.raises(ValueError, match=message):
        pair(slide_folder, label_folder, *formats)


def test_missing_paths_and_dangling_links(tmp_path: Path) -> None:
    slides = make(tmp_path / "s", "a.tif")
    with pytest.raises(ValueError, match=r"slide_path .*absent does not exist"):
        pair(tmp_path / "absent", None)
    with pytest.raises(ValueError, match=r"label_path .*absent does not exist"):
        pair(slides, tmp_path / "absent")
    with pytest.raises(ValueError, match=r"slide_path .*a\.tif is not a \.svs file"):
        pair(slides / "a.tif", None, "svs")
    (slides / "b.tif").symlink_to(tmp_path / "gone.tif")
    with pytest.raises(ValueError, match=r"do not exist: .*b\.tif;"):
        pair(slides, None)


def test_no_label_path_states_that_all_slides_are_normal(tmp_path: Path) -> None:
    assert labels_of(pair(make(tmp_path / "n", "normal_1.tif", "x.tif"), None)) == {"normal_1": None, "x": None}
    with pytest.raises(ValueError, match=r"tumor slides without a label: .*tumor_1\.tif"):
        pair(make(tmp_path / "t", "tumor_1.tif"), None)
    with pytest.raises(ValueError, match=r"masks beside the slides, but no label path: .*x_mask\.tif"):
        pair(make(tmp_path / "m", "x.tif", "x_mask.tif"), None)
    assert [case.slide_id for case in find_slides(tmp_path / "t")] == ["tumor_1"]


def test_archives_deliver_a_folder_per_slide(tmp_path: Path) -> None:
    root = make(tmp_path / "r", "1f/a.tif", "1f/logs/a.txt", "2e/deep/er/b.tif", "c.tif", ".trash/d.tif", "2e/b.xml")
    (root / "2e" / "loop").symlink_to(root)
    make(root, "out/.done/tissue/a.json", "out/tissue/a.tif", "p/a/summary.json", "p/a/label.tif")
    assert [case.slide_id for case in find_slides(root)] == ["c"]
    assert [case.slide_id for case in find_slides(root, recursive=True)] == ["a", "b", "c"]
    cases = pair(root, root, "tif", "xml", recursive=True)
    assert labels_of(cases) == {"a": None, "b": "b.xml", "c": None}
    make(root, "3d/a.tif")
    with pytest.raises(ValueError, match=r"more than one slide with the same id: .*1f/a\.tif, .*3d/a\.tif"):
        find_slides(root, recursive=True)
    with pytest.raises(ValueError, match=r"center_K are searched \(--recursive: all folders in it\)"):
        find_slides(root, "svs")
    with pytest.raises(ValueError, match=r"no \.svs file .*; all folders in it were searched"):
        find_slides(root, "svs", recursive=True)


def test_a_folder_of_labels_below_the_slides_holds_no_slides(tmp_path: Path) -> None:
    root = make(tmp_path / "r", "images/1/a.tif", "images/2/b.tif", "masks/a.tif")
    assert labels_of(pair(root, root / "masks", recursive=True)) == {"a": "a.tif", "b": None}
    assert pair(root, root / "masks", recursive=True)[0].slide_path == root / "images/1/a.tif"
    with pytest.raises(ValueError, match=r"files of slides only in the label path .*masks; give the folder"):
        pair(make(tmp_path / "only", "masks/a.tif"), tmp_path / "only" / "masks", recursive=True)


@pytest.mark.parametrize(("label_folder", "recursive"), [("all", False), ("all/labels", True)])
def test_slides_of_folders_that_do_not_pair_keep_their_labels(
    tmp_path: Path, label_folder: str, recursive: bool
) -> None:
    make(tmp_path / "all", "a.tif", "b.tif")
    labels = make(tmp_path / label_folder, "a_mask.tif", "orphan_mask.tif")
    if recursive:
        make(labels, "b.tif")  # named like its slide
    source = Source(tmp_path / "all", labels, "tif", "tif", recursive)
    found = paired_only([source], "fault")
    assert found.faults == ("fault",)
    assert [case.slide_path for case in found.cases] == [tmp_path / "all/a.tif", tmp_path / "all/b.tif"]
    assert labels_of(list(found.cases)) == {"a": "a_mask.tif", "b": "b.tif" if recursive else None}


def test_ten_files_are_named_and_the_rest_counted(tmp_path: Path) -> None:
    slides = make(tmp_path / "s", "a.tif")
    labels = make(tmp_path / "l", *(f"b{number:02}.xml" for number in range(13)))
    with pytest.raises(ValueError, match=r"b09\.xml and 3 more;") as error:
        pair(slides, labels, "tif", "xml")
    assert "b10.xml" not in str(error.value)


def test_files_come_sorted(tmp_path: Path) -> None:
    folder = make(tmp_path / "s", "b.tif", "a.tiff", "c.svs")
    assert [path.name for path in list_files(folder, "tif", "slide")] == ["a.tiff", "b.tif"]


def test_cases_come_sorted_by_id_not_by_path(tmp_path: Path) -> None:
    slides = make(tmp_path / "s", "a-1.tif", "a.tif")
    assert [path.stem for path in list_files(slides, "tif", "slide")] == ["a-1", "a"]
    assert [case.slide_id for case in pair(slides, None)] == ["a", "a-1"]
    assert [case.slide_id for case in find_slides(slides)] == ["a", "a-1"]


def test_known_problem_slides_are_reported_not_dropped(tmp_path: Path) -> None:
    slides = make(tmp_path / "s", "normal_086.tif", "normal_087.tif", "Test_049.tif", "test_114.tif")
    cases = pair(slides, None)
    warnings = known_problems(cases)
    assert [warning.split(" ")[0].rsplit("/", 1)[1] for warning in warnings] == [
        "Test_049.tif",
        "normal_086.tif",
        "test_114.tif",
    ]
    assert "duplicate" in warnings[0]
    assert "contains tumor" in warnings[1]
    assert "not annotated completely" in warnings[2]
    assert len(cases) == 4


def test_a_case_survives_pickling(tmp_path: Path) -> None:
    case = Case("a", tmp_path / "a.tif", None, "patient_004", 0)
    assert pickle.loads(pickle.dumps(case)) == case


@pytest.mark.skipif(not REAL.is_dir(), reason=f"real slides are not at {REAL}")
@pytest.mark.parametrize(("folder", "label_format"), [("annotations", "xml"), ("masks", "tif")])
def test_real_folders(folder: str, label_format: str) -> None:
    cases = pair(REAL / "val" / "images", REAL / "val" / folder, "tif", label_format)
    ending = {"xml": ".xml", "tif": "_Mask.tif"}[label_format]
    assert labels_of(cases) == {
        "normal_951": None,
        "tumor_951": f"tumor_951{ending}",
        "tumor_952": f"tumor_952{ending}",
    }


@pytest.mark.parametrize("label", ["x.xml", "x.ome.xml"])
def test_xml_labels_pair_with_and_without_ome(tmp_path: Path, label: str) -> None:
    make(tmp_path, "x.ome.tif", "y.ome.tiff", "z.tif", label)
    found = pair(tmp_path, tmp_path, "ome.tif", "xml")
    assert [(case.slide_id, case.label_path) for case in found] == [("x.ome", tmp_path / label), ("y.ome", None)]
    assert [case.slide_id for case in find_slides(tmp_path, "tif")] == ["x.ome", "y.ome", "z"]


@pytest.mark.parametrize("mask", ["x_mask.tif", "x_mask.ome.tif", "x.ome_mask.tif", "x_Mask.ome.tiff"])
def test_masks_pair_with_and_without_ome(tmp_path: Path, mask: str) -> None:
    make(tmp_path, "x.ome.tif", mask)
    assert [case.label_path for case in pair(tmp_path, tmp_path, "tif", "tif")] == [tmp_path / mask]
    assert [case.slide_id for case in find_slides(tmp_path, "tif")] == ["x.ome"]


def test_exact_names_go_before_those_without_ome(tmp_path: Path) -> None:
    make(tmp_path, "x.tif", "x.ome.tif", "x.xml", "x.ome.xml")
    labels = {case.slide_id: case.label_path.name for case in pair(tmp_path, tmp_path, "tif", "xml")}
    assert labels == {"x": "x.xml", "x.ome": "x.ome.xml"}
    (tmp_path / "x.ome.tif").unlink()
    (tmp_path / "x.xml").unlink()
    with pytest.raises(ValueError, match="labels without a slide"):
        pair(tmp_path, tmp_path, "tif", "xml")


COMPOSED, DECOMPOSED = "pr\u00e4parat_\u00e91", "pra\u0308parat_e\u03011"


@pytest.mark.parametrize(("slide", "label"), [(COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED), (DECOMPOSED, DECOMPOSED)])
def test_composed_and_decomposed_names_pair(tmp_path: Path, slide: str, label: str) -> None:
    slides = make(tmp_path / "s", f"{slide}.tif", "b.tif")
    for name, label_format in ((f"{label}.xml", "xml"), (f"{label}_Mask.tif", "tif")):
        labels = make(tmp_path / label_format, name)
        cases = pair(slides, labels, "tif", label_format)
        assert labels_of(cases) == {"b": None, COMPOSED: name}
        assert [case.slide_path.name for case in cases] == ["b.tif", f"{slide}.tif"]
        assert labels_of(pair(slides / f"{slide}.tif", labels, "tif", label_format)) == {COMPOSED: name}
    assert [case.slide_id for case in find_slides(slides)] == ["b", COMPOSED]


def test_two_forms_of_one_name_are_one_id(tmp_path: Path) -> None:
    both = make(tmp_path / "s", f"{COMPOSED}.tif", f"{DECOMPOSED}.tif")
    with pytest.raises(ValueError, match="more than one slide with the same id"):
        pair(both, None)
