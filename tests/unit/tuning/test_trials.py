"""Trials on disk: claims, silence, ends."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from parallel.local_process import describe
from tuning import trials
from tuning.trials import Claim, Ended, TrialFolder, all_trials, claim_next


@pytest.fixture
def trial(tmp_path: Path) -> TrialFolder:
    return TrialFolder.create(tmp_path, 12, {"x": 0.5}, ["--x", "0.5"])


def test_a_request_is_written_once(trial: TrialFolder, tmp_path: Path) -> None:
    again = TrialFolder.create(tmp_path, 12, {"x": 7}, [])
    assert again.request() == {"values": {"x": 0.5}, "arguments": ["--x", "0.5"]}
    assert [found.number for found in all_trials(tmp_path)] == [12]
    assert all_trials(tmp_path / "missing") == []


def test_one_of_many_workers_gets_a_trial(trial: TrialFolder, tmp_path: Path) -> None:
    found: list[Claim | None] = []
    threads = [threading.Thread(target=lambda: found.append(claim_next(tmp_path))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(claim is not None for claim in found) == 1


def test_what_a_lost_worker_still_writes_goes_to_its_own_attempt(trial: TrialFolder, tmp_path: Path) -> None:
    lost = claim_next(tmp_path)
    assert lost is not None
    assert lost.held()
    trial.reopen()
    assert not lost.held()
    second = claim_next(tmp_path)
    assert second is not None
    lost.end(Ended(1, 2.0))
    lost.beat()
    assert trial.ended() is None
    second.end(Ended(0, 3.0, "done"))
    assert trial.ended() == Ended(0, 3.0, "done")
    assert trial.attempts() == 2
    assert trial.failures() == 1


def test_a_closed_trial_is_nobodys(trial: TrialFolder, tmp_path: Path) -> None:
    trial.close({"outcome": "complete"})
    assert claim_next(tmp_path) is None
    assert trial.state() == {"outcome": "complete"}


def test_preempted_attempts_are_no_failures(trial: TrialFolder, tmp_path: Path) -> None:
    for code in (75, 0, 2, 137, -9):
        claim = claim_next(tmp_path)
        assert claim is not None
        claim.end(Ended(code, 1.0))
        trial.reopen()
    assert trial.failures() == 2


def test_a_silent_worker_of_another_host_is_lost(trial: TrialFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not trial.lost(0.0)
    monkeypatch.setattr(trials, "describe_this", lambda: ["elsewhere", 1, 0.0])
    claim = Claim(trial)
    assert trial.owner() == "process 1 on elsewhere"
    assert not trial.lost(1000.0)
    assert not trial.lost(1000.0 + trials.LOST_S)
    # Its clock may be anywhere; it beats.
    os.utime(trial.path / "claim" / "alive", (5.0, 5.0))
    assert not trial.lost(1001.0 + trials.LOST_S)
    assert trial.lost(1002.0 + 2 * trials.LOST_S)
    claim.beat()
    assert not trial.lost(1003.0 + 2 * trials.LOST_S)


def test_a_worker_of_this_host_that_has_ended_is_lost_at_once(
    trial: TrialFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        monkeypatch.setattr(trials, "describe_this", lambda: describe(process.pid))
        claim = Claim(trial)
        claim.started(process.pid)
        assert not trial.lost(0.0)
        trial.reopen()
        assert trial.still_running()
        second = Claim(trial)
        process.kill()
    assert not trial.still_running()
    assert trial.lost(0.0)
    # It had published the end of its run before.
    second.end(Ended(0, 1.0))
    assert not trial.lost(0.0)
