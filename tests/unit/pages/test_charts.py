"""Axes with round numbers; one and two curves."""

import math

import pytest

from pages.charts import Axis, chart, nice_axis


@pytest.mark.parametrize(
    ("values", "low", "high", "ticks"),
    [
        ([3.0, 247.0], 0, None, (0, 50, 100, 150, 200, 250)),
        ([0.12, 0.74], 0, None, (0, 0.2, 0.4, 0.6, 0.8)),
        ([0.4, 0.9], 0, 1, (0, 0.2, 0.4, 0.6, 0.8, 1)),
        ([2.0, 2.0], None, None, (2, 2.5, 3, 3.5, 4)),
        ([math.nan, math.inf], 0, None, (0, 0.2, 0.4, 0.6, 0.8, 1)),
        ([0.0], 0, None, (0, 0.2, 0.4, 0.6, 0.8, 1)),
        ([-7.0, 12.0], None, None, (-10, -5, 0, 5, 10, 15)),
    ],
)
def test_ticks_are_round(values: list[float], low: float | None, high: float | None, ticks: tuple[float, ...]) -> None:
    axis = nice_axis("x", values, low, high)
    assert axis.ticks == pytest.approx(ticks)
    assert (axis.low, axis.high) == (axis.ticks[0], axis.ticks[-1])


def test_logarithmic_ticks_are_powers_of_ten() -> None:
    axis = nice_axis("x", [0.0, 3e-5, 0.02], log=True)
    assert axis.ticks == pytest.approx((1e-5, 1e-4, 1e-3, 1e-2, 1e-1))
    assert nice_axis("x", [1.0], log=True).ticks == pytest.approx((1.0, 10.0))
    assert len(nice_axis("x", [1e-12, 1.0], log=True).ticks) <= 7


def test_two_curves_have_two_colors_and_one_point_is_a_dot() -> None:
    axis = Axis("x", 0, 1, (0, 1))
    drawn = chart([(0, 0), (1, 1)], axis, axis, "c", second=[(0.5, 0.5)])
    assert 'class="curve" points="46.0,228.0 348.0,12.0"' in drawn
    assert 'class="mark second" cx="197.0" cy="120.0"' in drawn
    assert "second" not in chart([(0, 0), (1, 1)], axis, axis, "c")
