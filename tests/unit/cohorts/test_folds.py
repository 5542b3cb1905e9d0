"""Folds: balanced, reproducible, and without leaks."""

import random
from collections import Counter
from pathlib import Path

import pytest

from cohorts import folds
from cohorts.folds import Folds, Sample
from system.csv_tables import csv_text


def data_set(patients: int = 40, cells: int = 5) -> list[Sample]:
    """A third of the patients have blasts."""
    return [
        Sample(f"c{patient}_{cell}", f"p{patient}", "blast" if patient % 3 == 0 else "other")
        for patient in range(patients)
        for cell in range(cells + patient % 4)
    ]


def test_no_group_is_divided_and_labels_are_balanced() -> None:
    samples = data_set()
    found = folds.make(samples, 5, seed=1, inner=3, holdout=0.2)
    folds.check(found, samples, "folds.csv")
    assert found.count == 5
    blasts = Counter(found.fold[sample.id] for sample in samples if sample.label == "blast")
    alls = Counter(found.fold[sample.id] for sample in samples)
    share = sum(blasts.values()) / len(samples)
    for fold in range(-1, 5):
        assert blasts[fold] / alls[fold] == pytest.approx(share, abs=0.12)
    assert alls[-1] / len(samples) == pytest.approx(0.2, abs=0.05)
    for outer, inner in enumerate(found.inner):
        assert set(inner) == {sample.id for sample in samples if found.fold[sample.id] not in (-1, outer)}
        assert set(inner.values()) == {0, 1, 2}


def test_order_does_not_matter_and_the_seed_does() -> None:
    samples = data_set()
    found = folds.make(samples, 4, seed=1)
    shuffled = samples.copy()
    random.Random(3).shuffle(shuffled)
    assert folds.make(shuffled, 4, seed=1).fold == found.fold
    assert folds.make(samples, 4, seed=2).fold != found.fold


def test_a_table_comes_back_as_it_was(tmp_path: Path) -> None:
    samples = data_set(12)
    found = folds.make(samples, 3, seed=0, inner=2, holdout=0.25)
    path = tmp_path / "folds.csv"
    path.write_text(csv_text(*folds.rows(found, samples)), encoding="utf-8")
    assert folds.read(path) == found


def test_fewer_patients_than_folds() -> None:
    with pytest.raises(ValueError, match="5 folds need as many patients or more; the samples are of 4 patients"):
        folds.make(data_set(4), 5, seed=0)
    with pytest.raises(ValueError, match="4 inner folds of fold 0 need"):
        folds.make(data_set(4), 2, seed=0, inner=4)


def test_labels_of_single_samples_are_divided_too() -> None:
    samples = [Sample(str(index), f"p{index}", str(index)) for index in range(6)]
    assert Counter(folds.make(samples, 3, seed=0).fold.values()) == {0: 2, 1: 2, 2: 2}


def test_the_same_image_in_two_groups_is_an_error() -> None:
    samples = [Sample("a", "p1", "x", "d1"), Sample("b", "p2", "y", "d1"), Sample("c", "p3", "x", "d2")]
    with pytest.raises(ValueError, match="a and b are the same image, in two groups: p1 and p2"):
        folds.make(samples, 2, seed=0)
    one = [Sample("a", "p1", "x", "d1"), Sample("b", "p1", "y", "d1"), Sample("c", "p3", "x", "d2")]
    assert folds.make(one, 2, seed=0).fold["a"] == folds.make(one, 2, seed=0).fold["b"]


def test_leaks_in_a_users_own_table() -> None:
    samples = [Sample("a", "p1", "x"), Sample("b", "p1", "y"), Sample("c", "p2", "x")]
    with pytest.raises(ValueError, match=r"mine\.csv: group p1 is in two folds: a in 0, b in 1"):
        folds.check(Folds({"a": 0, "b": 1, "c": 1}), samples, "mine.csv")
    with pytest.raises(ValueError, match="group p1 is in two folds: a in 0, b in holdout"):
        folds.check(Folds({"a": 0, "b": -1, "c": 1}), samples, "mine.csv")
    with pytest.raises(ValueError, match="group p1 is in two inner folds of fold 1"):
        folds.check(Folds({"a": 0, "b": 0, "c": 1}, ({}, {"a": 0, "b": 1})), samples, "mine.csv")
    with pytest.raises(ValueError, match=r"mine\.csv has no fold for 1 sample, the first is c"):
        folds.check(Folds({"a": 0, "b": 0}), samples, "mine.csv")
    same = [Sample("a", "p1", "x", "d"), Sample("c", "p2", "x", "d")]
    with pytest.raises(ValueError, match="a and c are the same image, in two folds: 0 and 1"):
        folds.check(Folds({"a": 0, "c": 1}), same, "mine.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,label\na,x\n", "needs the columns id and fold"),
        ("id,fold\n", "needs the columns id and fold"),
        ("id,fold\na,0\na,1\n", "line 3: a occurs twice"),
        ("id,fold\na,first\n", "line 2: 'first' is not a fold"),
        ("id,fold\na,-1\n", "line 2: '-1' is not a fold"),
    ],
)
def test_tables_that_cannot_be_used(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "folds.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        folds.read(path)
