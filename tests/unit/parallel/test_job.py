"""The skeleton of a program: environment, signals, exit codes, and errors before TensorFlow is imported."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from parallel import job
from parallel.comm import AgreedError, MemoryRefusedError, SoloComm
from parallel.launchers import RANK_VARIABLES, SIZE_VARIABLES
from tests.support.paths import ROOT
from tests.support.tiny import TinySet, write_label

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*SIZE_VARIABLES, *RANK_VARIABLES, "SLURM_STEP_NUM_TASKS", "TF_CPP_MIN_LOG_LEVEL", "EXTRA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("VIPS_CONCURRENCY", "3")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")


def raises(error: Exception) -> Callable[[job.Ranks], int]:
    def story(ranks: job.Ranks) -> int:
        raise error

    return story


def test_the_environment_is_set_during_the_story_and_restored() -> None:
    names = ("TF_CPP_MIN_LOG_LEVEL", "VIPS_CONCURRENCY", "EXTRA", "CUDA_VISIBLE_DEVICES")
    seen: list[dict[str, str]] = []
    before = dict(os.environ)

    def story(ranks: job.Ranks) -> int:
        seen.append({name: os.environ[name] for name in names})
        return 7

    assert job.run(story, job.Settings(no_cuda=True, environment={"EXTRA": "x"})) == 7
    # What the user has set stays.
    assert seen == [{"TF_CPP_MIN_LOG_LEVEL": "3", "VIPS_CONCURRENCY": "3", "EXTRA": "x", "CUDA_VISIBLE_DEVICES": "-1"}]
    assert dict(os.environ) == before


def test_signal_handlers_are_restored() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    during: list[object] = []

    def story(ranks: job.Ranks) -> int:
        ranks.preemption.listen()
        during.extend(signal.getsignal(number) for number in SIGNALS)
        return 0

    job.run(story, job.Settings())
    assert not set(during) & set(before)
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_after_a_request_its_echo_is_ignored_and_a_later_signal_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    usr1 = signal.getsignal(signal.SIGUSR1)

    def story(ranks: job.Ranks) -> int:
        ranks.preemption.listen()
        signal.raise_signal(signal.SIGTERM)
        assert ranks.preemption.requested == "SIGTERM"
        return 75

    try:
        assert job.run(story, job.Settings()) == 75
        signal.raise_signal(signal.SIGTERM)
        assert received == []
        monkeypatch.setattr("parallel.preemption.ECHO_S", 0.0)
        signal.raise_signal(signal.SIGTERM)
        assert received == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGUSR1) == usr1
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_thread_may_run_a_job_without_signals() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    codes: list[int] = []

    def story(ranks: job.Ranks) -> int:
        ranks.preemption.listen()
        assert [signal.getsignal(number) for number in SIGNALS] == before
        return 3

    thread = threading.Thread(target=lambda: codes.append(job.run(story, job.Settings())))
    thread.start()
    thread.join()
    assert codes == [3]


@pytest.mark.parametrize(
    ("error", "message", "code"),
    [
        (ValueError("bad slide"), "error: bad slide", 2),
        (OSError("disk full"), "error: disk full", 2),
        (AgreedError("rank 1: bad"), "error: rank 1: bad", 2),
        (MemoryRefusedError("5 GiB"), "error: 5 GiB", 12),
        (MemoryError("no 5 GiB\nmore"), "out of memory: no 5 GiB. take less", 12),
        (MemoryError(), "out of memory: no more. take less", 12),
    ],
)
def test_users_errors_are_one_line_and_a_code(
    error: Exception, message: str, code: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["/a/program.py"])
    assert job.run(raises(error), job.Settings(), out_of_memory=lambda _: "take less") == code
    assert capsys.readouterr().err == f"program.py: {message}\n"


def test_our_own_errors_are_raised() -> None:
    with pytest.raises(KeyError):
        job.run(raises(KeyError("k")), job.Settings())


@pytest.mark.parametrize(
    ("environment", "checked"),
    [
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"}, True),
        ({"HOROVOD_SIZE": "2", "HOROVOD_RANK": "0"}, True),
        # Another rank than 0 is connecting, and is ended by the launcher.
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}, False),
        # hydra and srun would wait for the others, which wait for this one.
        ({"PMI_SIZE": "2", "PMI_RANK": "0"}, False),
        ({"HOROVOD_SIZE": "2", "HOROVOD_RANK": "0", "HOROVOD_ELASTIC": "1"}, False),
        # One rank: the story itself checks.
        ({}, False),
    ],
)
def test_rank_0_checks_before_it_connects_where_the_launcher_ends_the_others(
    environment: dict[str, str], checked: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(job, "connect", lambda _: SoloComm())

    def check() -> None:
        raise ValueError("no such folder")

    code = job.run(lambda _: 0, job.Settings(), check=check)
    assert code == (2 if checked else 0)
    assert ("error: no such folder" in capsys.readouterr().err) == checked


def test_an_elastic_job_reconnects_with_the_same_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    connections: list[SoloComm] = []

    class Elastic(SoloComm):
        def reconnect(self) -> SoloComm:
            connections.append(self)
            return Elastic()

    monkeypatch.setattr(job, "connect", lambda _: Elastic())
    found: list[str] = []

    def story(ranks: job.Ranks) -> int:
        found.append(ranks.preemption.requested)
        ranks.preemption.hosts_changed()
        return job.RECONNECT if len(found) < 3 else 0

    assert job.run(story, job.Settings(elastic=True)) == 0
    assert len(connections) == 2
    assert found == ["", "", ""]


# ------------------------------------------------------------------------------- errors before TensorFlow is imported

PROGRAM = """
import sys
import {program}
code = {program}.main(sys.argv[1:])
print("code", code, "tensorflow" in sys.modules or "horovod" in sys.modules)
"""


def run_program(program: str, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM.format(program=program), *map(str, arguments)],
        cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def test_wrong_training_paths_are_found_before_tensorflow(tmp_path: Path) -> None:
    done = run_program("train", "--slide_path", tmp_path / "none", "--label_path", tmp_path)
    assert f"error: slide_path {tmp_path / 'none'}" in done.stderr
    assert done.stdout.splitlines()[-1] == "code 2 False"


def test_a_wrong_label_is_found_before_tensorflow(tmp_path: Path) -> None:
    tiny = TinySet(tmp_path)
    write_label(tiny.label("tumor_001"), "strange")
    done = run_program("train", *tiny.arguments())
    assert "tumor_001.xml: annotation 'Annotation 0': unknown group 'strange'" in done.stderr
    assert done.stdout.splitlines()[-1] == "code 2 False"


def test_a_launched_rank_0_finds_them_before_horovod(tmp_path: Path) -> None:
    launcher = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"}
    done = run_program("train", "--slide_path", tmp_path / "none", "--label_path", tmp_path, **launcher)
    assert f"error: slide_path {tmp_path / 'none'}" in done.stderr
    assert done.stdout == "code 2 False\n"


@pytest.mark.parametrize(
    ("model", "slides", "message"), [("none", "", "no such file or folder"), ("", "empty", "empty has no .tif")]
)
def test_wrong_prediction_paths_are_found_before_tensorflow(
    model: str, slides: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    done = run_program(
        "predict", "--model", tmp_path / model, "--slide_path", tmp_path / slides, "--out", tmp_path / "out"
    )
    assert message in done.stderr
    assert done.stdout == "code 2 False\n"
