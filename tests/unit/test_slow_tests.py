"""Which slow tests a run takes: a quarter after the other all of them, and never a kind of test without any."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.slow import QUARTERS, chosen, without_sibling

RECORD = """
import json, pytest

class Recorder:
    def pytest_collection_finish(self, session):
        def of(item):
            kind = item.get_closest_marker("kind")
            return [item.nodeid, kind and kind.args[0], item.get_closest_marker("slow") is not None]
        print("COLLECTED", json.dumps([of(item) for item in session.items]))

pytest.main(["tests/integration", "--collect-only", "-qq", "-p", "no:cacheprovider"], plugins=[Recorder()])
"""


def collected(which: str) -> list[tuple[str, str | None, bool]]:
    """Node id, kind and slowness of every integration test that would run."""
    env = os.environ | {"WIDEFOV_SLOW": which}
    done = subprocess.run([sys.executable, "-c", RECORD], cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("COLLECTED ")]
    return [(name, kind, slow) for name, kind, slow in json.loads(line.removeprefix("COLLECTED "))]


def test_quarters_are_disjoint_and_all() -> None:
    names = ["c", "a", "e", "b", "d"]
    assert [chosen(names, str(quarter)) for quarter in range(QUARTERS)] == [{"a", "e"}, {"b"}, {"c"}, {"d"}]
    assert chosen(names, "all") == set(names)
    assert chosen(names, "none") == set()
    with pytest.raises(ValueError, match="WIDEFOV_SLOW=4 is not 0, 1, 2, 3, none or all"):
        chosen(names, "4")


def test_a_slow_test_alone_of_its_kind_is_found() -> None:
    tests = [("quick", "x", False), ("slow", "x", True), ("lonely", "y", True), ("other", "y", True)]
    tests += [("plain", None, False), ("unnamed", None, True)]
    assert without_sibling(tests) == ["lonely", "other", "unnamed"]


def test_every_slow_test_has_a_quick_sibling_and_its_quarter() -> None:
    every = collected("all")
    slow = [name for name, _, is_slow in every if is_slow]
    assert len(slow) > 15
    assert without_sibling(every) == []
    second = [name for name, _, _ in collected("2")]
    assert set(second) == {name for name, _, is_slow in every if not is_slow} | chosen(slow, "2")
    assert len(second) < len(every) - len(slow) / 2


@pytest.mark.parametrize(
    ("arguments", "slow", "message"),
    [
        (["--al"], "", "unknown part or option --al"),
        (["unit"], "", "unknown part or option unit"),
        ([], "4", "WIDEFOV_SLOW=4 is not 0, 1, 2, 3, none or all"),
    ],
)
def test_run_tests_refuses_what_it_does_not_know(arguments: list[str], slow: str, message: str) -> None:
    env = os.environ | {"WIDEFOV_SLOW": slow}
    command = [str(ROOT / "run_tests.sh"), *arguments]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == f"run_tests.sh: {message}; see ./run_tests.sh --help\n"


GROUPED = """
import pytest

@pytest.mark.xdist_group("one process")
@pytest.mark.parametrize("number", range(4))
def test_grouped(number):
    pass
"""


def test_tests_of_a_group_run_in_one_process(tmp_path: Path) -> None:
    """As run_tests.sh starts them; pytest 9.2 with pytest-xdist 3.8.0 spreads them without a word."""
    (tmp_path / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    (tmp_path / "test_grouped.py").write_text(GROUPED, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-v", "-n", "2", "--dist", "loadgroup", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    workers = re.findall(r"^\[(gw\d)\].* PASSED ", done.stdout, re.MULTILINE)
    assert len(workers) == 4
    assert len(set(workers)) == 1
