"""tune.py with real workers and processes, on a program without a network."""

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.paths import ROOT
from tests.support.tiny import environment

TOY = ROOT / "tests" / "support" / "toy_program.py"
SPACE = "--x 0 1.0\n--kind in a b\n--y 0 2.0 if --kind b\n"


class Searched:
    """A study in a folder."""

    def __init__(self, folder: Path, space: str = SPACE) -> None:
        self.folder = folder / "study"
        self._space = folder / "space.txt"
        self._space.write_text(space)

    def command(self, *options: str, program: tuple[str, ...] = ("--n", "3")) -> list[str]:
        """Arguments of a search."""
        own = [sys.executable, str(ROOT / "tune.py"), str(self.folder), "--space", str(self._space), *options]
        return [*own, "--", str(TOY), *program]

    def run(self, *options: str, program: tuple[str, ...] = ("--n", "3")) -> subprocess.CompletedProcess[str]:
        """Search."""
        return self.call(self.command(*options, program=program))

    def ask(self, *options: str) -> subprocess.CompletedProcess[str]:
        """Another command on the study."""
        return self.call([sys.executable, str(ROOT / "tune.py"), str(self.folder), *options])

    @staticmethod
    def call(command: list[str]) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300, check=False)

    def states(self) -> list[dict[str, Any]]:
        """How trials ended, by number."""
        return [json.loads(path.read_text()) for path in sorted(self.folder.glob("trials/*/state.json"))]

    def values(self) -> list[dict[str, Any]]:
        """What trials searched, by number."""
        return [json.loads(path.read_text())["values"] for path in sorted(self.folder.glob("trials/*/trial.json"))]

    def processes(self, but: int = 0) -> list[psutil.Process]:
        """All processes of the study."""
        found = []
        for process in psutil.process_iter(["cmdline", "status"]):
            arguments = " ".join(process.info["cmdline"] or [])
            if str(self.folder) in arguments and process.pid != but and process.info["status"] != "zombie":
                found.append(process)
        return found


@pytest.fixture
def searched(tmp_path: Path) -> Iterator[Searched]:
    made = Searched(tmp_path)
    yield made
    for process in made.processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def test_a_search_from_its_first_trial_to_its_best(searched: Searched) -> None:
    done = searched.run("--trials", "6", "--parallel", "2", "--pruner", "none")
    assert done.returncode == 0, done.stderr
    states, values = searched.states(), searched.values()
    assert [state["outcome"] for state in states] == ["complete"] * 6
    for state, value in zip(states, values, strict=True):
        assert state["value"] == pytest.approx(0.03 - (value["x"] - 0.3) ** 2 - (value.get("y", 0.0) - 1) ** 2)
    scores = [state["value"] for state in states]
    best = scores.index(max(scores))
    assert f"best        trial {best}: miou {max(scores):.4f}" in done.stdout
    assert searched.processes() == []
    # The best again: its command line gives the same value, to the digit.
    assert searched.ask("--best").returncode == 0
    again = searched.ask("--retrain")
    assert again.returncode == 0, again.stderr
    rows = (searched.folder / "retrained" / f"{best:05d}" / "metrics.jsonl").read_text().splitlines()
    assert max(json.loads(row)["miou"] for row in rows) == max(scores)
    status = searched.ask("--status").stdout
    assert "trials      6: 6 complete" in status
    # Asked for no more than there are: nothing runs again.
    assert searched.run("--trials", "6", "--parallel", "2", "--pruner", "none").returncode == 0
    assert len(searched.states()) == 6


def test_a_study_goes_on_after_signals_and_kills(searched: Searched) -> None:
    options = ("--trials", "24", "--parallel", "3", "--retry", "9")
    command = searched.command(*options, program=("--n", "4", "--pause", "0.1"))
    rng = random.Random(0)

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    controller = start()
    time.sleep(6)
    for round_ in range(3):
        others = searched.processes(but=controller.pid)
        if others:
            with contextlib.suppress(psutil.NoSuchProcess):
                rng.choice(others).kill()
        time.sleep(2)
        controller.kill() if round_ != 1 else controller.terminate()
        assert controller.wait(60) == (-9 if round_ != 1 else 75)
        if round_ == 0:
            journal = searched.folder / "journal.log"
            os.truncate(journal, journal.stat().st_size - 7)
        controller = start()
        time.sleep(2)
    assert controller.wait(240) == 0
    outcomes = Counter(state["outcome"] for state in searched.states())
    assert outcomes.keys() <= {"complete", "pruned"}
    assert sum(outcomes.values()) == 24
    values = [json.dumps(value, sort_keys=True) for value in searched.values()]
    assert len(set(values)) == 24
    time.sleep(2)
    assert searched.processes() == []


def test_what_becomes_of_a_program(searched: Searched) -> None:
    crash = searched.run("--trials", "1", program=("--n", "3", "--crash", "2"))
    assert "exit code 1, to be resumed" in crash.stdout
    assert [(state["outcome"], state["attempts"]) for state in searched.states()] == [("complete", 2)]


@pytest.mark.parametrize(
    ("program", "objective", "outcome", "reason"),
    [
        (("--code", "2"), "miou", "failed", "toy_program.py: error: as requested"),
        (("--code", "12"), "miou", "infeasible", "toy_program.py: error: as requested"),
        (("--n", "2"), "auc", "failed", "no auc in metrics.jsonl; scores there: miou"),
    ],
)
def test_trials_without_a_value(
    program: tuple[str, ...], objective: str, outcome: str, reason: str, searched: Searched
) -> None:
    done = searched.run("--trials", "1", "--objective", objective, program=program)
    assert done.returncode == 0
    (state,) = searched.states()
    assert (state["outcome"], state["reason"], state["attempts"]) == (outcome, reason, 1)


def test_one_controller_and_one_definition(searched: Searched) -> None:
    with subprocess.Popen(
        searched.command("--trials", "1", program=("--n", "200", "--pause", "0.1")), env=environment(),
        stdout=subprocess.DEVNULL,
    ) as controller:  # fmt: skip
        until = time.monotonic() + 60
        while not list(searched.folder.glob("trials/*/run/metrics.jsonl")) and time.monotonic() < until:
            time.sleep(0.1)
        second = searched.run("--trials", "1", program=("--n", "200", "--pause", "0.1"))
        assert second.returncode == 2
        assert "is in use by process" in second.stderr
        controller.terminate()
        assert controller.wait(60) == 75
    other = searched.run("--trials", "1", program=("--n", "7"))
    assert other.returncode == 2
    assert "is a study that began with other arguments: --n 200 --pause 0.1, not --n 7; choose" in other.stderr
    assert searched.processes() == []
