"""The split into training and validation slides."""

import random
from pathlib import Path

import pytest

from cohorts.pairing import Case
from cohorts.splits import split


def slide(slide_id: str, labeled: bool = False, patient: str | None = None) -> Case:
    return Case(slide_id, Path(f"{slide_id}.tif"), Path(f"{slide_id}.xml") if labeled else None, patient)


def many(tumors: int, normals: int) -> list[Case]:
    return [slide(f"tumor_{number:03}", True) for number in range(tumors)] + [
        slide(f"normal_{number:03}") for number in range(normals)
    ]


def sizes(cases: list[Case], val_share: float, seed: int = 0) -> list[tuple[int, int]]:
    """(labeled, normal) slides in training and in validation."""
    sets = split(cases, val_share, seed)
    return [(sum(case.labeled for case in part), sum(not case.labeled for case in part)) for part in sets]


def test_validation_gets_the_share_and_training_the_rest() -> None:
    # 0.15 of CAMELYON16: 16.5 of 110 tumor slides (of two equally near, the fewer), 24 of 160 normal ones.
    assert sizes(many(110, 160), 0.15) == [(94, 136), (16, 24)]
    assert sizes(many(10, 20), 0.8) == [(2, 4), (8, 16)]


@pytest.mark.parametrize(
    ("tumors", "normals", "val_share", "expected"),
    [
        (2, 0, 0.01, [(1, 0), (1, 0)]),
        (2, 0, 0.99, [(1, 0), (1, 0)]),
        (2, 5, 0.01, [(1, 4), (1, 1)]),
        (4, 1, 0.25, [(3, 1), (1, 0)]),
        (4, 1, 0.75, [(1, 0), (3, 1)]),
        (1, 1, 0.01, [(1, 0), (0, 1)]),
        (1, 1, 0.99, [(1, 0), (0, 1)]),
        (1, 2, 0.99, [(1, 1), (0, 1)]),
        (0, 2, 0.15, [(0, 1), (0, 1)]),
        (0, 3, 0.99, [(0, 1), (0, 2)]),
    ],
)
def test_small_sets(tumors: int, normals: int, val_share: float, expected: list[tuple[int, int]]) -> None:
    assert sizes(many(tumors, normals), val_share) == expected


def test_the_sets_are_disjoint_complete_and_sorted() -> None:
    cases = many(7, 4)
    train, val = split(cases, 0.3, 5)
    names = [case.slide_id for case in train], [case.slide_id for case in val]
    assert names[0] == sorted(names[0])
    assert names[1] == sorted(names[1])
    assert sorted(names[0] + names[1]) == sorted(case.slide_id for case in cases)


def test_the_order_of_the_slides_does_not_matter_and_the_seed_does() -> None:
    cases = many(20, 20)
    shuffled = random.Random(3).sample(cases, len(cases))
    assert shuffled != cases
    assert split(shuffled, 0.25, 1) == split(cases, 0.25, 1)
    assert split(cases, 0.25, 2) != split(cases, 0.25, 1)


def test_the_split_is_the_same_on_every_machine() -> None:
    assert [case.slide_id for case in split(many(6, 5), 0.4, 42)[1]] == [
        "normal_001",
        "normal_004",
        "tumor_004",
        "tumor_005",
    ]


def test_every_slide_is_held_out_by_some_seed() -> None:
    held = {case.slide_id for seed in range(40) for case in split(many(5, 3), 0.2, seed)[1]}
    assert held == {f"tumor_00{number}" for number in range(5)} | {f"normal_00{number}" for number in range(3)}


def test_further_slides_leave_the_order_of_the_others() -> None:
    held = {case.slide_id for case in split(many(10, 0), 0.4, 0)[1]}
    held_of_more = {case.slide_id for case in split(many(20, 0), 0.4, 0)[1]}
    assert (len(held), len(held_of_more)) == (4, 8)
    kept = {slide_id for slide_id in held_of_more if slide_id < "tumor_010"}
    assert kept <= held or held <= kept


def test_patients_stay_whole_and_count_by_their_slides() -> None:
    cases = [
        slide(f"patient_{patient:03}_node_{node}", patient < 4 and node == 0, f"patient_{patient:03}")
        for patient in range(10)
        for node in range(5)
    ]
    train, val = split(cases, 0.3, 4)
    patients = {case.patient for case in train}, {case.patient for case in val}
    assert patients[0] & patients[1] == set()
    # 20 slides of patients with tumor, 30 of those without: 5 and 10 are nearest to 6 and 9.
    assert [len(train), len(val)] == [35, 15]
    assert len({case.patient for case in val if case.labeled}) == 1


def test_a_patient_and_a_slide_of_the_same_name_are_two_groups() -> None:
    train, val = split([slide("a"), slide("b", patient="a")], 0.5, 0)
    assert len(train) == len(val) == 1


@pytest.mark.parametrize("val_share", [0, 1, -0.1, 1.5, float("nan")])
def test_shares_that_leave_a_set_empty_are_refused(val_share: float) -> None:
    with pytest.raises(ValueError, match="must be above 0 and below 1"):
        split(many(4, 4), val_share, 0)


@pytest.mark.parametrize(
    ("cases", "given"),
    [
        ([], "fewer than two slides cannot"),
        ([slide("a", True)], "fewer than two slides cannot"),
        ([slide("a", True, "p"), slide("b", False, "p")], "2 slides of one patient cannot"),
    ],
)
def test_too_few_slides_are_refused_with_a_way_out(cases: list[Case], given: str) -> None:
    with pytest.raises(ValueError, match=f"{given} be split .*valid_slide_path"):
        split(cases, 0.15, 0)


def test_a_slide_given_twice_is_refused() -> None:
    with pytest.raises(ValueError, match=r"occur twice .*: tumor_001;"):
        split([*many(3, 0), slide("tumor_001")], 0.5, 0)
