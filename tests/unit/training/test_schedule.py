"""Learning rate, and when events fire."""

import pytest

from options.choices import SCHEDULES
from training.schedule import Schedule, of_options, passed, scaling


def rates(name: str, images: list[int]) -> list[float]:
    """Target 4, 100 images of warm-up, 1100 in all, triangles of 400."""
    schedule = Schedule(name, 4.0, 100, 1100, 400)
    return [schedule.rate(i) for i in images]


def test_rate_warms_up_and_stays() -> None:
    assert rates("constant", [0, 49, 99, 100, 1099]) == pytest.approx([0.04, 2.0, 4.0, 4.0, 4.0])
    assert Schedule("constant", 0.5, 0, 1100, 400).rate(0) == 0.5


def test_cosine_falls_to_one_percent() -> None:
    assert rates("cosine", [49, 100, 600, 1100, 5000]) == pytest.approx([2.0, 4.0, 2.02, 0.04, 0.04])


def test_poly_falls_with_the_power_of_what_is_left() -> None:
    # (1 - 1/2)^0.9 = 0.5358867; at the end a thousandth is left for steps past it.
    assert rates("poly", [100, 600, 1100, 5000]) == pytest.approx([4.0, 4 * 0.5358867, 0.004, 0.004])


def test_cyclic_goes_down_and_up() -> None:
    found = rates("cyclic", [100, 200, 300, 400, 500, 700])
    assert found == pytest.approx([4.0, 2.2, 0.4, 2.2, 4.0, 0.4])


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'linear' is unknown; choose one of constant, cosine, cyclic, poly"):
        Schedule("linear", 4.0, 100, 1100, 400)
    with pytest.raises(ValueError, match=r"'cosine' is unknown; choose one of linear, sqrt, none"):
        scaling("cosine", 2)


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_of_the_options_has_a_rate(name: str) -> None:
    assert rates(name, [100]) == [4.0]


@pytest.mark.parametrize(("rule", "factor"), [("linear", 9.0), ("sqrt", 3.0), ("none", 1.0)])
def test_scaling_with_ranks_and_passes(rule: str, factor: float) -> None:
    assert scaling(rule, 9) == factor


def test_the_rate_follows_the_joint_batch_over_that_of_the_rate() -> None:
    options = {"base_lr": 0.5, "lr_schedule": "constant", "warmup": 0, "num_steps": 100, "lr_cycle": 10}
    assert of_options({**options, "lr_scaling": "linear"}, joint_batch=6, base_batch=2).rate(0) == 1.5
    assert of_options({**options, "lr_scaling": "sqrt"}, joint_batch=8, base_batch=2).rate(0) == 1.0


def test_events_fire_when_a_multiple_is_passed() -> None:
    assert [passed(a, a + 6, 16) for a in range(0, 48, 6)] == [False, False, True, False, False, True, False, True]
