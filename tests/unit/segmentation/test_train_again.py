"""train.main several times in one process, as tests and notebooks call it."""

import json
import os
import signal
import threading
from pathlib import Path

import pytest

import models
import train
from tests.integration.small_train import small
from tests.support.tiny import TinySet

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


def test_runs_in_one_process_do_not_know_of_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three runs of one seed, one of them in a thread; between them one that fails."""
    data = TinySet(tmp_path / "data")
    monkeypatch.setattr(models, "build", small)
    environment, handlers = dict(os.environ), [signal.getsignal(number) for number in SIGNALS]
    codes: list[int] = []

    def run(name: str, *more: str) -> None:
        codes.append(train.main(data.arguments("--log_every", "4", *more, log_dir=tmp_path / name, num_steps="16")))

    run("first")
    threads = threading.active_count()
    run("wrong", "--class_weights", "1", "2", "3")
    run("second")
    thread = threading.Thread(target=run, args=("third",))
    thread.start()
    thread.join()
    assert codes == [0, 2, 0, 0]
    assert dict(os.environ) == environment
    assert [signal.getsignal(number) for number in SIGNALS] == handlers
    assert threading.active_count() <= threads
    first, second, third = (losses(tmp_path / name) for name in ("first", "second", "third"))
    assert len(first) == 5
    assert first == second == third


def losses(log_dir: Path) -> list[tuple[str, int, float]]:
    rows = [json.loads(line) for line in (log_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [(row["kind"], row["images"], row["loss"]) for row in rows]


def test_a_request_before_the_first_step_leaves_without_building_its_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = TinySet(tmp_path / "data")
    monkeypatch.setattr(models, "build", small)
    build = train.Run.build_model

    def signaled(run: train.Run) -> None:
        signal.raise_signal(signal.SIGUSR1)
        build(run)

    monkeypatch.setattr(train.Run, "build_model", signaled)
    assert train.main(data.arguments()) == 75
    assert capsys.readouterr().out.endswith("preempted   SIGUSR1 before the first step: nothing was to be saved\n")
    assert not (data.log_dir / "checkpoints").exists()
