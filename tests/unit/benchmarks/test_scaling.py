"""What the scaling benchmarks make of their measurements, and the processes they start."""

import sys
import textwrap
from pathlib import Path

import pytest

from benchmarks.allreduce import fitted
from benchmarks.ranks import Group
from benchmarks.scaling import common_steps, compared, rate, summary, variation

# Two jobs: steps of 1 s from 0 to 4, and of 1.5 s from 1 to 5.5.
FIRST = [(0.0, 1.0), (1.0, 2.0), (2.0, 3.0), (3.0, 4.0)]
SECOND = [(1.0, 2.5), (2.5, 4.0), (4.0, 5.5)]


def test_steps_count_while_all_jobs_run() -> None:
    # both run from 1 to 4
    assert common_steps([FIRST, SECOND]) == [[1.0, 1.0, 1.0], [1.5, 1.5]]
    with pytest.raises(ValueError, match="did not run at the same time"):
        common_steps([FIRST, [(4.0, 5.0)]])


def test_rate_and_variation_by_hand() -> None:
    # one step per second, and one in 2 s on average: 1 and 3
    assert rate([[1.0, 1.0, 1.0], [1.0, 3.0]]) == 1.5
    # 0 of the first; deviation 1 of mean 2
    assert variation([[1.0, 1.0, 1.0], [1.0, 3.0]]) == 0.25


def test_shares_by_hand() -> None:
    independent, joined = [[2.0, 2.0], [2.0, 2.0]], [[2.5, 2.5], [2.5, 2.5]]
    found = compared(independent, joined, total_s=2.0)
    # 0.8 against 1 image/s; half a second more, of two
    assert found == {"efficiency": 0.8, "step_s": 2.5, "exposed_s": 0.5, "total_s": 2.0, "overlapped": 0.75}
    # noise: neither below 0 nor above 1
    assert compared(independent, joined, total_s=0.25)["overlapped"] == 0.0
    assert compared(joined, independent, total_s=0.25)["overlapped"] == 1.0


def test_summary_by_hand() -> None:
    def one(efficiency: float, exposed_s: float) -> dict:
        row = {"efficiency": efficiency, "step_s": 1.0, "exposed_s": exposed_s, "total_s": 0.4, "overlapped": 0.0}
        return {"alone_s": 1.0, "independent_s": 2.0, "variation": 0.1, "fp32": row, "fp16": row}

    found = summary([one(0.9, 0.1), one(0.97, 0.3), one(0.95, 0.2)])["fp32"]
    assert (found["efficiency"], found["efficiency_min"], found["efficiency_max"]) == (0.95, 0.9, 0.97)
    # half of the total by the medians, not the median of the shares
    assert found["overlapped"] == pytest.approx(0.5)


def test_fit_finds_the_line() -> None:
    sizes = [1e3, 1e6, 2.5e8]
    # 2 ms and 0.5 ns per byte
    found = fitted(sizes, [0.0020005, 0.0025, 0.127])
    assert found["alpha_s"] == pytest.approx(0.002)
    assert found["beta_s"] == pytest.approx(0.5e-9)


def test_fit_weighs_errors_by_the_time() -> None:
    # The last is 10 % off: far more seconds than alpha, which still is what the small ones say.
    found = fitted([1e3, 1e4, 1e6, 2.5e8], [0.0020005, 0.002005, 0.0025, 0.14])
    assert found["alpha_s"] == pytest.approx(0.002, rel=0.05)


def script(folder: Path, text: str) -> list[str]:
    """A command that runs a program; it answers `serve`'s requests."""
    path = folder / "job.py"
    path.write_text(f"import sys\nsys.path.insert(0, '.')\n{textwrap.dedent(text)}", encoding="utf-8")
    return [sys.executable, str(path)]


def test_group_answers_also_after_a_pause(tmp_path: Path) -> None:
    text = """
        import os
        from benchmarks.ranks import serve
        serve({"double": lambda number: 2 * number, "threads": lambda: os.environ["OMP_NUM_THREADS"]})
    """
    group = Group(script(tmp_path, text), size=1, threads=3)
    try:
        assert group.ask(do="double", number=21) == [42]
        assert group.ask(do="threads") == ["3"]
        group.pause(True)
        group.send(do="double", number=1)
        group.pause(False)
        assert group.answers() == [2]
    finally:
        group.end()


def test_job_that_never_calls_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="ended with code 7"):
        Group(script(tmp_path, "sys.exit(7)"), size=1, threads=1)


def test_job_that_ends_is_an_error(tmp_path: Path) -> None:
    text = """
        import os
        from benchmarks.ranks import serve
        serve({"leave": lambda: os._exit(3)})
    """
    group = Group(script(tmp_path, text), size=1, threads=1)
    try:
        with pytest.raises(RuntimeError, match="ended before it answered"):
            group.ask(do="leave")
    finally:
        group.end()
