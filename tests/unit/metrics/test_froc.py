"""FROC: the published golden values, and every rule on its own."""

import math

import numpy as np
import pytest

from metrics.froc import Hits, Scorer, froc, slide_hits
from metrics.lesions import Lesions, lesion_map

FOCI = (114, 228, 342, 457)
HITS = ((114, 0.8), (228, 0.8))
FALSE = ((571, 0.6), (685, 0.4))


def case(foci: int, hits: int, false: int) -> Hits:
    """A slide 800 x 101 px of 1 um with the first `foci` squares, `hits` detections on them and `false` others."""
    tumor_HW = np.zeros((101, 800), np.bool_)
    for column in FOCI[:foci]:
        tumor_HW[47:53, column - 3 : column + 3] = True
    found = HITS[:hits] + FALSE[:false]
    lesions = lesion_map(tumor_HW, 1.0, grow_um=2.0, itc_um=0.0)
    assert lesions.count == foci
    return slide_hits(lesions, np.array([p for _, p in found]), np.array([(50, column) for column, _ in found]))


@pytest.mark.parametrize(
    ("slides", "score"),
    [
        ([(1, 0, 0)], 0.0),
        ([(1, 1, 1)], 1.0),
        ([(2, 1, 2)], 0.5),
        ([(1, 1, 1), (2, 1, 2)], 2 / 3),
        ([(3, 1, 1), (2, 1, 2)], 0.4),
        ([(3, 1, 1), (2, 1, 2), (1, 0, 1)], 1 / 3),
        ([(3, 1, 1), (2, 1, 2), (4, 0, 2)], 2 / 9),
        ([(0, 0, 0)], math.nan),
        ([(0, 0, 2), (0, 0, 1)], math.nan),
    ],
)
def test_golden_values(slides: list[tuple[int, int, int]], score: float) -> None:
    found = froc([case(*slide) for slide in slides])
    assert found.score == pytest.approx(score, rel=1e-12, nan_ok=True)
    assert found.lesions == sum(foci for foci, _, _ in slides)


def hits(false: list[float], lesions: list[float], itc: int = 0) -> Hits:
    return Hits(np.array(false, np.float64), np.array(lesions, np.float64), itc)


def test_the_curve_on_paper() -> None:
    # 2 slides, 4 lesions: thresholds 0.3 (5 false, 3 found), 0.5 (3, 2), 0.7 (1, 2), 0.9 (0, 1), infinite
    found = froc([hits([0.3, 0.5, 0.5], [0.9, 0.7, 0.0]), hits([0.3, 0.7], [0.3])])
    assert found.threshold_T.tolist() == [0.3, 0.5, 0.7, 0.9, math.inf]
    assert found.false_per_slide_T.tolist() == [2.5, 1.5, 0.5, 0.0, 0.0]
    assert found.sensitivity_T.tolist() == [0.75, 0.5, 0.5, 0.25, 0.0]
    # at 1/4 half way from 0.25 to 0.5; at 2 half way from 0.5 to 0.75; beyond the last point its sensitivity
    assert found.at.tolist() == [0.375, 0.5, 0.5, 0.625, 0.75, 0.75]
    assert found.score == pytest.approx(3.5 / 6)
    assert froc([hits([0.3, 0.5, 0.5], [0.9, 0.7, 0.0])], false_per_slide=(3.0,)).at.tolist() == [pytest.approx(2 / 3)]


def test_false_positives_are_averaged_over_all_slides_also_those_without_anything() -> None:
    busy = hits([0.9, 0.8], [0.7, 0.0])
    assert froc([busy]).at.tolist() == [0.0, 0.0, 0.0, 0.5, 0.5, 0.5]
    assert froc([busy, hits([], []), hits([], []), hits([], [])]).at.tolist() == [0.0, 0.5, 0.5, 0.5, 0.5, 0.5]


def test_the_organizers_drop_the_lowest_probability_when_everything_is_found() -> None:
    found = [hits([0.2], [0.9, 0.6, 0.4])]
    assert froc(found).threshold_T.tolist() == [0.4, 0.6, 0.9, math.inf]
    alone = [hits([], [0.9, 0.6])]
    assert froc(alone).score == 0.5
    assert froc(alone, every_threshold=True).score == 1.0
    # a lesion or a cluster without a hit counts with 0, which is what is dropped then
    assert froc([hits([], [0.9, 0.6, 0.0])]).score == pytest.approx(2 / 3)
    assert froc([hits([], [0.9, 0.6], itc=1)]).score == 1.0
    assert froc([hits([0.0], [0.9, 0.6])]).score == 1.0


def test_a_lesion_keeps_its_highest_probability_and_clusters_are_ignored() -> None:
    label_HW = np.array([[1, 1, 0, 0, 2], [0, 0, 0, 0, 2], [3, 0, 0, 0, 0]], np.int32)
    lesions = Lesions(label_HW, np.array([9.0, 9.0, 1.0]), np.array([False, False, True]))
    places = [(0, 0), (0.99, 1.99), (2, 0), (0, 2), (1, 4), (1, 0)]
    got = slide_hits(lesions, np.array([0.3, 0.8, 0.9, 0.7, 0.1, 0.6]), np.array(places))
    assert got.lesion_L.tolist() == [0.8, 0.1]
    assert got.false.tolist() == [0.7, 0.6]
    assert (got.itc, got.ignored) == (1, 1)


def test_places_outside_the_map_and_where_truth_is_unknown() -> None:
    lesions = lesion_map(np.array([[1, 0, 0], [0, 0, 0]], np.bool_), 1.0, 0.0, 0.0)
    unknown_HW = np.array([[1, 1, 0], [0, 0, 0]], np.bool_)
    places = np.array([(-0.1, 0), (0, 3), (2, 0), (0, 1), (0, 0), (1, 2)])
    got = slide_hits(lesions, np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]), places, unknown_HW)
    assert got.false.tolist() == [0.1, 0.2, 0.3, 0.6]
    assert (got.lesion_L.tolist(), got.ignored) == ([0.5], 1)


def test_any_detection_without_lesions_is_false() -> None:
    nothing = lesion_map(np.zeros((2, 3), np.bool_), 1.0)
    assert slide_hits(nothing, np.array([0.5]), np.array([(1, 1)])).false.tolist() == [0.5]
    empty = slide_hits(nothing, np.array([]), np.array([]))
    assert (empty.false.tolist(), empty.lesion_L.tolist()) == ([], [])


@pytest.mark.parametrize(
    ("probability", "place", "message"),
    [
        ([0.5, 0.5], [(0, 0)], "2 probabilities for 1 places"),
        ([1.01], [(0, 0)], "outside"),
        ([math.nan], [(0, 0)], "outside"),
        ([0.5], [(math.inf, 0)], "finite"),
    ],
)
def test_impossible_detections_are_refused(probability: list[float], place: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        slide_hits(lesion_map(np.zeros((2, 3), np.bool_), 1.0), np.array(probability), np.array(place))
    with pytest.raises(ValueError, match="no slides"):
        froc([])


def test_weights_stand_for_repeated_slides() -> None:
    slides = [hits([0.3, 0.5], [0.9, 0.0]), hits([0.7], [0.4]), hits([], [], itc=2), hits([0.2], [0.1, 0.0])]
    weight_RS = np.array([[1, 1, 1, 1], [2, 0, 1, 1], [0, 3, 0, 2], [0, 0, 4, 0]])
    repeated = [[slide for slide, n in zip(slides, row, strict=True) for _ in range(n)] for row in weight_RS.tolist()]
    expected = [froc(some).score for some in repeated]
    assert Scorer(slides).scores(weight_RS).tolist() == pytest.approx(expected, nan_ok=True)
    assert len({round(value, 6) for value in expected[:3]}) == 3
    assert math.isnan(expected[3])


def organizers(slides: list[Hits]) -> tuple[np.ndarray, np.ndarray]:
    """False positives per slide and sensitivity as their program computes them, with its types."""
    false = [float(p) for one in slides for p in one.false]
    lesions = [p for one in slides for p in np.concatenate([one.lesion_L, np.zeros(one.itc)]).astype(np.float32)]
    count = len(lesions) - sum(one.itc for one in slides)
    total_false, total_lesions = [], []
    for threshold in sorted(set(false + lesions))[1:]:
        total_false.append((np.asarray(false) >= threshold).sum())
        total_lesions.append((np.asarray(lesions) >= threshold).sum())
    return np.array([*total_false, 0]) / len(slides), np.array([*total_lesions, 0]) / count


def test_ties_are_broken_by_the_rounding_of_the_organizers() -> None:
    # float32(0.3) > 0.3: the lesion counts before the false positive; float32(0.7) < 0.7: with it
    for p, theirs in ((0.3, 0.5), (0.7, 0.25)):
        one = [Hits(np.array([p]), np.array([p, 0.0]))]
        double, organisers = (
            Scorer(one, false_per_slide=(0.5, 1.0), rule=rule).curve(np.ones(1, np.int64)).at.tolist()
            for rule in ("double", "organisers")
        )
        assert (double, organisers) == ([0.25, 0.5], [theirs, 0.5])


@pytest.mark.parametrize("seed", range(20))
def test_organisers_is_their_program_on_any_ties(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pick = [0.0, 0.1, 0.2, 0.3, 0.3, 0.5, 0.6, 0.7, 0.9]
    slides = [
        Hits(
            rng.choice(pick[1:], rng.integers(0, 5)), rng.choice(pick, rng.integers(1, 4)), itc=int(rng.integers(0, 2))
        )
        for _ in range(4)
    ]
    false_T, sensitivity_T = organizers(slides)
    curve = Scorer(slides, rule="organisers").curve(np.ones(4, np.int64))
    np.testing.assert_array_equal(curve.false_per_slide_T, false_T)
    np.testing.assert_array_equal(curve.sensitivity_T, sensitivity_T)
    # Slides that count twice are slides that are there twice.
    twice = Scorer([*slides, slides[0]], rule="organisers").curve(np.ones(5, np.int64))
    weighted = Scorer(slides, rule="organisers").curve(np.array([2, 1, 1, 1]))
    np.testing.assert_array_equal(weighted.sensitivity_T, twice.sensitivity_T)
