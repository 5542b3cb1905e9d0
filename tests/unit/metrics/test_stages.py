"""Classes of nodes, stages of patients and their agreement, against the challenge's own tables."""

import math
from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics

from metrics.stages import (
    STAGES,
    Submission,
    node_class,
    patient_of,
    patient_stage,
    quadratic_kappa,
    read_submission,
    score_submission,
    stage_confusion,
    stages_of_patients,
    submission_text,
)
from tests.support.paths import SHARED

TABLES = SHARED / "tables"
needs_tables = pytest.mark.skipif(not TABLES.is_dir(), reason=f"{TABLES} is not there")


@pytest.mark.parametrize(
    ("mm", "cls"),
    [
        (0.0, "negative"),
        (0.001, "itc"),
        (0.2, "itc"),
        (0.1 + 0.1 + 1e-17, "itc"),
        (0.2000004, "itc"),
        (0.200001, "micro"),
        (2.0, "micro"),
        (math.nextafter(2.0, 3), "micro"),
        (2.000001, "macro"),
        (31.0, "macro"),
    ],
)
def test_node_class_at_its_limits(mm: float, cls: str) -> None:
    assert node_class(mm) == cls


@pytest.mark.parametrize("mm", [-0.1, math.nan, math.inf])
def test_a_diameter_that_is_none_is_refused(mm: float) -> None:
    with pytest.raises(ValueError, match="at least 0"):
        node_class(mm)


@pytest.mark.parametrize(
    ("nodes", "stage"),
    [
        (["negative"] * 5, "pN0"),
        (["itc", "negative", "itc", "itc", "itc"], "pN0(i+)"),
        (["itc", "Micro", "negative"], "pN1mi"),
        (["micro"] * 5, "pN1mi"),
        (["macro", "itc", "itc", "itc", "itc"], "pN1"),
        (["macro", "micro", "micro", "itc", "itc"], "pN1"),
        (["macro", "micro", "micro", "micro", "itc"], "pN2"),
        (["macro"] * 5, "pN2"),
    ],
)
def test_patient_stage(nodes: list[str], stage: str) -> None:
    assert patient_stage(nodes) == stage


def test_unknown_nodes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\['mini'\]: one or more of negative, itc, micro, macro"):
        patient_stage(["micro", "mini"])
    with pytest.raises(ValueError, match="missing"):
        patient_stage([])
    with pytest.raises(ValueError, match="'tumor_001' is not called"):
        stages_of_patients({"tumor_001": "itc"})


def test_names() -> None:
    assert patient_of("patient_007_node_3") == ("patient_007", 3)
    assert patient_of("Patient_107_node_0.tif") == ("patient_107", 0)
    assert [patient_of(name) for name in ("patient_07_node_1", "patient_007_node_1_mask", "tumor_001")] == [None] * 3


@needs_tables
def test_the_rule_gives_every_published_stage() -> None:
    table = read_submission(TABLES / "camelyon17_stage_labels_000-049.csv")
    assert (len(table.stages), len(table.nodes)) == (50, 250)
    assert stages_of_patients(table.nodes) == table.stages
    assert set(table.stages.values()) == set(STAGES)


@needs_tables
def test_kappa_of_the_organizers_example() -> None:
    reference, submission = (
        read_submission(TABLES / f"camelyon17_kappa_{name}.csv") for name in ("reference", "submission")
    )
    kappa, confusion_KK = score_submission(reference, submission)
    assert kappa == 0.8888888888888888
    assert confusion_KK.tolist() == [
        [1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 1, 0],
    ]  # fmt: skip


def test_kappa_against_scikit_learn_and_where_there_is_none() -> None:
    rng = np.random.default_rng(3)
    truth, guess = rng.integers(0, 5, 97), rng.integers(0, 5, 97)
    guess = np.where(rng.random(97) < 0.5, truth, guess)
    confusion_KK = stage_confusion([STAGES[i] for i in truth], [STAGES[i].upper() for i in guess])
    expected = metrics.cohen_kappa_score(truth, guess, labels=range(5), weights="quadratic")
    assert quadratic_kappa(confusion_KK) == pytest.approx(expected, rel=1e-12)
    assert quadratic_kappa(np.array([[0, 3], [3, 0]])) == -1.0
    assert math.isnan(quadratic_kappa(np.zeros((5, 5), np.int64)))
    assert math.isnan(quadratic_kappa(np.diag([4, 0, 0])))
    with pytest.raises(ValueError, match="2 true and 1 predicted"):
        stage_confusion(["pN0", "pN1"], ["pN0"])


def test_a_submission_is_written_and_read_back(tmp_path: Path) -> None:
    nodes = {"patient_012_node_1": "macro", "patient_012_node_0": "itc", "patient_003_node_4": "negative"}
    text = submission_text(Submission(stages_of_patients(nodes), nodes))
    assert text.splitlines() == [
        "patient,stage",
        "patient_003.zip,pN0",
        "patient_003_node_4.tif,negative",
        "patient_012.zip,pN1",
        "patient_012_node_0.tif,itc",
        "patient_012_node_1.tif,macro",
    ]
    path = tmp_path / "s.csv"
    path.write_text(text)
    assert read_submission(path) == Submission({"patient_003": "pN0", "patient_012": "pN1"}, nodes)
    # as spreadsheets write it, in any case
    path.write_bytes(b"\xef\xbb\xbfPatient, Stage\r\nPATIENT_003.zip,PN0(I+)\r\n\r\n")
    assert read_submission(path).stages == {"patient_003": "pN0(i+)"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the header is patient,stage"),
        ("patient,class\n", "begins with patient,class; the header is patient,stage"),
        ("patient,stage\n", "no patient"),
        ("patient,stage\npatient_001.zip,pN3\n", r"line 2: patient_001.zip: stage 'pN3' is unknown; allowed are pN0, "),
        ("patient,stage\npatient_001.zip,pN0\npatient_001_node_0.tif,big\n", "line 3: patient_001_node_0.tif: class"),
        ("patient,stage\npatient_001,pN0\n", "line 2: 'patient_001' is neither patient_NNN.zip nor"),
        ("patient,stage\npatient_001.zip,pN0\npatient_001.zip,pN0\n", "line 3: patient_001.zip occurs twice"),
        ("patient,stage\npatient_001.zip\n", "line 2: 1 cells in 'patient_001.zip'"),
        ("patient,stage\npatient_001_node_0.tif,itc\n", "nodes without their patient's stage: patient_001_node_0"),
    ],
)
def test_what_is_wrong_with_a_submission_is_said(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "s.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_submission(path)


def test_a_file_that_is_no_text_or_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_bytes(b"\xff\xfe\x00")
    for name in ("s.csv", "none.csv"):
        with pytest.raises(ValueError, match=f"{name} cannot be read as CSV"):
            read_submission(tmp_path / name)


def test_missing_and_unknown_patients_are_named() -> None:
    reference = Submission({"patient_001": "pN0", "patient_002": "pN1"})
    with pytest.raises(ValueError, match="lacks patient_002;"):
        score_submission(reference, Submission({"patient_001": "pN0"}))
    with pytest.raises(ValueError, match="has patient_009, which"):
        score_submission(reference, Submission({"patient_001": "pN0", "patient_002": "pN1", "patient_009": "pN0"}))
