"""ROC of slides, against numbers on paper and scikit-learn."""

import math

import numpy as np
import pytest
from sklearn import metrics

from metrics.ranking import auc_R, roc


def test_the_curve_on_paper() -> None:
    found = roc(np.array([1, 0, 1, 0, 0], bool), np.array([0.9, 0.9, 0.4, 0.4, 0.1]))
    assert found.threshold_T.tolist() == [math.inf, 0.9, 0.4, 0.1]
    assert found.false_rate_T.tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert found.true_rate_T.tolist() == [0, 0.5, 1, 1]
    # pairs won: 0.9 against 0.9, 0.4, 0.1: 2.5; 0.4 against them: 0 + 0.5 + 1
    assert found.area == pytest.approx(4 / 6)


def test_one_kind_of_slide_has_no_area() -> None:
    for kind in (True, False):
        found = roc(np.array([kind] * 3), np.array([0.1, 0.2, 0.3]))
        assert math.isnan(found.area)
    assert math.isnan(roc(np.array([], bool), np.array([])).area)


def test_against_scikit_learn() -> None:
    rng = np.random.default_rng(4)
    positive_S = rng.random(129) < 0.4
    probability_S = np.round(np.clip(rng.normal(0.4 + 0.2 * positive_S, 0.2), 0, 1), 1)
    found = roc(positive_S, probability_S)
    assert found.area == pytest.approx(metrics.roc_auc_score(positive_S, probability_S), rel=1e-12)
    false_rate, true_rate, _ = metrics.roc_curve(positive_S, probability_S, drop_intermediate=False)
    assert found.false_rate_T == pytest.approx(false_rate)
    assert found.true_rate_T == pytest.approx(true_rate)


def test_weights_stand_for_repeated_slides() -> None:
    positive_S, probability_S = np.array([1, 0, 1, 0], bool), np.array([0.8, 0.5, 0.5, 0.2])
    areas = auc_R(positive_S, probability_S, np.array([[1, 1, 1, 1], [1, 1, 2, 0], [0, 2, 2, 0], [2, 0, 2, 0]]))
    assert areas.tolist() == pytest.approx([7 / 8, 2 / 3, 0.5, math.nan], nan_ok=True)


def test_what_cannot_be_ranked_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        roc(np.array([True, False]), np.array([0.5, math.nan]))
    with pytest.raises(ValueError, match="two lists"):
        roc(np.array([True, False]), np.array([0.5]))
