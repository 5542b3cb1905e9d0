"""Learning rate, and when events fire."""

import pytest

from training.schedule import learning_rate, passed


def test_learning_rate_warms_up_to_base_times_ranks():
    rates = [learning_rate(i, 0.001, 4, 100, 1000, "constant") for i in (0, 49, 100, 999)]
    assert rates == pytest.approx([0.00004, 0.002, 0.004, 0.004])
    assert learning_rate(0, 0.001, 2, 0, 1000, "constant") == 0.002


def test_cosine_falls_to_one_percent():
    rates = [learning_rate(i, 1.0, 1, 100, 1100, "cosine") for i in (100, 600, 1100, 5000)]
    assert rates == pytest.approx([1.0, 0.505, 0.01, 0.01])


def test_events_fire_when_a_multiple_is_passed():
    assert [passed(a, a + 6, 16) for a in range(0, 48, 6)] == [False, False, True, False, False, True, False, True]
