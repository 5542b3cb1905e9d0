"""Confidence intervals over slides."""

import math
import time

import numpy as np
import pytest

from metrics.bootstrap import interval, of_counts, resamples
from metrics.confusion import auc, miou


def test_resamples_are_seeded_and_draw_every_slide_alike() -> None:
    weight_RS = resamples(7, 4000, seed=5)
    assert weight_RS.shape == (4000, 7)
    assert (weight_RS.sum(axis=1) == 7).all()
    assert np.array_equal(weight_RS, resamples(7, 4000, seed=5))
    assert not np.array_equal(weight_RS, resamples(7, 4000, seed=6))
    assert weight_RS.mean(axis=0) == pytest.approx([1.0] * 7, abs=0.06)
    # that of a binomial distribution, 7 draws of one in 7
    assert weight_RS.var(axis=0) == pytest.approx([6 / 7] * 7, abs=0.08)


def test_sums_of_a_resample_are_those_of_its_slides() -> None:
    confusion_SKK = np.array([[[5, 1], [0, 2]], [[1, 0], [3, 3]], [[10, 0], [0, 0]]])
    histogram_S2N = np.array([[[1, 2, 0], [0, 0, 1]], [[0, 1, 0], [2, 0, 2]], [[4, 0, 0], [0, 0, 0]]])
    weight_RS = np.array([[1, 1, 1], [2, 0, 1], [0, 3, 0], [0, 0, 3]])
    got = of_counts([confusion_SKK, histogram_S2N], lambda c, h: np.array([miou(c), auc(h)]), weight_RS)
    assert got.shape == (4, 2)
    # all three: 16 1 / 3 5, and others 5 3 0 against tumor 2 0 3
    assert got[0].tolist() == pytest.approx([(16 / 20 + 5 / 9) / 2, (2 * 2.5 + 3 * 8) / 40])
    assert got[1].tolist() == pytest.approx([(20 / 22 + 4 / 6) / 2, 1.0])
    assert got[2].tolist() == pytest.approx([(1 / 4 + 3 / 6) / 2, 0.5])
    # one class only: no area
    assert got[3].tolist() == pytest.approx([1.0, math.nan], nan_ok=True)


def test_interval_is_of_percentiles_of_what_is_defined() -> None:
    values_R = np.append(np.arange(101.0), [math.nan] * 101)
    found = interval(values_R, slides=9, level=0.9)
    assert (found.low, found.high) == pytest.approx((5.0, 95.0))
    assert (found.slides, found.defined) == (9, 0.5)
    nothing = interval(np.array([math.nan]), slides=9)
    assert (math.isnan(nothing.low), math.isnan(nothing.high), nothing.defined) == (True, True, 0.0)
    with pytest.raises(ValueError, match=r"level 95"):
        interval(values_R, 9, level=95)


@pytest.mark.parametrize("slides", [0, 1])
def test_fewer_than_two_slides_have_no_interval(slides: int) -> None:
    weight_RS = resamples(slides, 100, seed=0)
    values_R = of_counts([np.ones((slides, 2, 2), np.int64)], miou, weight_RS)
    found = interval(values_R, slides)
    assert (math.isnan(found.low), math.isnan(found.high), found.slides) == (True, True, slides)


def test_the_interval_of_a_mean_is_about_that_of_the_normal_distribution() -> None:
    rng = np.random.default_rng(1)
    counts = np.stack([rng.integers(0, 100, 200), np.full(200, 100)], axis=1)
    values_R = of_counts([counts], lambda c: c[0] / c[1], resamples(200, 4000, seed=2))
    found = interval(values_R, 200)
    mean, error = counts[:, 0].mean() / 100, counts[:, 0].std() / 100 / math.sqrt(200)
    assert found.low == pytest.approx(mean - 1.96 * error, abs=0.004)
    assert found.high == pytest.approx(mean + 1.96 * error, abs=0.004)


def test_a_challenge_takes_seconds() -> None:
    rng = np.random.default_rng(2)
    confusion_SKK, histogram_S2N = rng.integers(0, 10**9, (129, 2, 2)), rng.integers(0, 10**7, (129, 2, 1024))
    begin = time.process_time()  # of this process: others may keep the machine busy
    got = of_counts([confusion_SKK, histogram_S2N], lambda c, h: np.array([miou(c), auc(h)]), resamples(129, 1000, 3))
    assert got.shape == (1000, 2)
    assert time.process_time() - begin < 20


def test_counts_of_other_slides_are_refused() -> None:
    with pytest.raises(ValueError, match="counts of 3 slides, resamples of 4"):
        of_counts([np.ones((3, 2, 2), np.int64)], miou, resamples(4, 5, 0))
    with pytest.raises(ValueError, match="-1 slides"):
        resamples(-1, 5, 0)
