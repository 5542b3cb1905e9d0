"""What the benchmark of a shared image makes of its rounds."""

from typing import Any

import pytest

from benchmarks.share_slide import summary


def step(wall_s: float, cpu_s: float, norm: float = 2.0) -> dict[str, Any]:
    return {"wall_s": wall_s, "cpu_s": cpu_s, "norm": norm, "counts": {"forward": 4}}


def test_speed_up_is_of_the_slower_rank_and_the_median_of_rounds() -> None:
    def of(alone: float, shared: tuple[float, float]) -> dict[str, list[dict[str, Any]]]:
        pair = [step(seconds, seconds - 0.5) for seconds in shared]
        return {"alone": [step(alone, 9.0)], "shared": pair, "independent": [step(11.0, 9.0), step(12.0, 10.0, 2.5)]}

    found = summary([of(10.0, (5.0, 4.0)), of(12.0, (5.0, 8.0)), of(10.0, (2.0, 4.0))])
    assert (found["speed_up"], found["speed_up_min"], found["speed_up_max"]) == (2.0, 1.5, 2.5)
    assert (found["alone_wall_s"], found["shared_wall_s"]) == (10.0, 5.0)
    assert found["cpu_speed_up"] == pytest.approx(9.0 / 4.5)
    assert found["efficiency"] == pytest.approx(12.0 / 10.0)
    assert found["norm_difference"] == pytest.approx(0.2)
    assert found["counts"] == {"alone": [{"forward": 4}], "shared": [{"forward": 4}] * 2}
