"""Steps over many slides: resuming, failures, processes that die, two runs on one folder."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from preprocessing import store
from preprocessing.executors import Processes, Serial, on_all_ranks
from preprocessing.runner import DONE, FAILED, UNCHANGED, DiskFullError, Step, failures, run_step, summary
from preprocessing.store import StepResult
from system.folder_lock import FolderLock
from tests.support.paths import ROOT
from tests.support.tiny_step import Options, cases_of, make, step


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    """Three files, largest last; their names are of the kind that breaks quoting."""
    folder = tmp_path / "slides"
    folder.mkdir()
    for name, text in (("a b", "x"), ("c'\"d", "yy"), ("é$(touch p)", "zzz")):
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    return folder


def run(slides: Path, out: Path, executor=None, **options) -> list[str]:
    """`id state` of every slide."""
    results = run_step(step(**options), cases_of(slides), out, executor or Serial(), print)
    return [f"{result.slide_id} {result.state}" for result in results]


def written(out: Path) -> dict[str, bytes]:
    """All files outside the marks."""
    every = (path for path in out.rglob("*") if path.is_file() and ".done" not in path.parts and path.name != ".lock")
    return {str(path.relative_to(out)): path.read_bytes() for path in every}


def test_a_second_run_does_nothing_and_says_so(slides: Path, tmp_path: Path):
    out = tmp_path / "out"
    assert run(slides, out) == ["a b done", "c'\"d done", "é$(touch p) done"]
    assert written(out)["tiny/é$(touch p)/second.txt"] == b"zzz"
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    results = run_step(step(), cases_of(slides), out, Serial(), print)
    assert [result.state for result in results] == [UNCHANGED] * 3
    assert [result.result.values for result in results] == [{"length": 1}, {"length": 2}, {"length": 3}]
    assert summary(step(), results, ["a b", "old"]) == (
        "tiny            nothing to do, finished before: 3 slides; also 1 slide of earlier runs: old"
    )
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == times


def test_other_options_or_other_files_make_a_slide_due_again(slides: Path, tmp_path: Path):
    out = tmp_path / "out"
    run(slides, out)
    assert run(slides, out, shout=True) == ["a b done", "c'\"d done", "é$(touch p) done"]
    assert written(out)["tiny/a b/second.txt"] == b"X"
    (slides / "a b.txt").write_text("new", encoding="utf-8")
    assert run(slides, out, shout=True) == ["a b done", "c'\"d unchanged", "é$(touch p) unchanged"]
    (out / "tiny" / "c'\"d" / "second.txt").unlink()
    assert run(slides, out, shout=True) == ["a b unchanged", "c'\"d done", "é$(touch p) unchanged"]


@pytest.mark.parametrize("executor", [Serial(), Processes(2)], ids=["serial", "processes"])
def test_one_bad_slide_does_not_lose_the_others(slides: Path, tmp_path: Path, executor):
    out = tmp_path / "out"
    (slides / "c'\"d.txt").write_text("bad", encoding="utf-8")
    (slides / "e.txt").write_text("fault", encoding="utf-8")
    said: list[str] = []
    results = run_step(step(), cases_of(slides), out, executor, said.append)
    assert [result.state for result in results] == [DONE, FAILED, FAILED, DONE]
    assert results[1].error == f"{slides}/c'\"d.txt is bad;; repair it"
    assert sorted(said) == [
        f"FAILED  tiny            c'\"d: {results[1].error}",
        "FAILED  tiny            e: of no use",
    ]
    table = failures([("tiny", result) for result in results if result.state == FAILED])
    assert table[0].startswith("2 failed:")
    assert table[2] == "  tiny            e     of no use"
    # A fault is a result: it is known without looking again. An error is not.
    assert run(slides, out) == ["a b unchanged", "c'\"d failed", "e failed", "é$(touch p) unchanged"]
    (slides / "c'\"d.txt").write_text("good", encoding="utf-8")
    assert run(slides, out)[1] == "c'\"d done"


def test_a_process_that_dies_costs_only_its_own_slide(slides: Path, tmp_path: Path):
    (slides / "deadly.txt").write_text("deadly", encoding="utf-8")
    states = run(slides, tmp_path / "out", Processes(2))
    assert states == ["a b done", "c'\"d done", "deadly failed", "é$(touch p) done"]


def start(slides: Path, out: Path, gate: Path, processes: int) -> subprocess.Popen[str]:
    """A process in which a slide waits until `gate` has a file of its name."""
    command = [sys.executable, "-m", "tests.support.tiny_step", str(slides), str(out), str(gate), str(processes)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def until(condition, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def alive(process: psutil.Process) -> bool:
    """Whether it runs; not so if only its entry is left."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("processes", [1, 2])
def test_what_a_killed_run_leaves_is_taken_up_to_the_same_bytes(slides: Path, tmp_path: Path, processes: int):
    run(slides, tmp_path / "whole")
    out, gate = tmp_path / "out", tmp_path / "gate"
    gate.mkdir()
    (gate / "é$(touch p)").touch()  # the largest comes first
    killed = start(slides, out, gate, processes)
    until(lambda: list(out.glob("tiny/.*.part/first.txt")) and list(out.glob(".done/tiny/*.json")))
    workers = psutil.Process(killed.pid).children(recursive=True)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate(timeout=60)
    # Its workers end as well: none may write into the folder of the next run.
    until(lambda: not any(map(alive, workers)))
    assert len(list(out.glob(".done/tiny/*.json"))) == 1
    for slide in cases_of(slides):
        (gate / slide.slide_id).touch()
    again = start(slides, out, gate, processes)
    said, errors = again.communicate(timeout=60)
    assert again.returncode == 0, errors
    assert len(said.split("did ")[1].splitlines()) == 1
    assert not list(out.glob("tiny/.*.part"))
    assert written(out) == written(tmp_path / "whole")
    assert len(list(out.glob(".done/tiny/*.json"))) == 3


def test_two_runs_on_one_folder(slides: Path, tmp_path: Path):
    out, gate = tmp_path / "out", tmp_path / "gate"
    gate.mkdir()
    first = start(slides, out, gate, 1)
    until(lambda: (out / ".lock").is_file() and (out / ".lock").read_text(encoding="utf-8"))
    with pytest.raises(ValueError, match=f"in use by process {first.pid} on .* since .*tiny_step.*: wait for it"):
        FolderLock(out).__enter__()
    for slide in cases_of(slides):
        (gate / slide.slide_id).touch()
    assert first.wait(timeout=60) == 0
    first.communicate()
    with FolderLock(out) as held:
        assert held.notes == []


def full(case, out, options) -> StepResult:
    if case.slide_id == "a b":  # the smallest comes last
        raise OSError(errno.ENOSPC, "No space left on device", str(out))
    return make(case, out, options)


def test_a_full_disk_ends_the_step_with_one_line(slides: Path, tmp_path: Path):
    out = tmp_path / "out"
    with pytest.raises(DiskFullError, match=r"disk of --out .* is full .*; 2 of 3 slides of tiny are finished"):
        run_step(Step("tiny", 1, full, Options()), cases_of(slides), out, Serial(), print)
    assert run(slides, out) == ["a b done", "c'\"d unchanged", "é$(touch p) unchanged"]


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fails(_descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "a.bin").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="No space left"):
        store.write_bytes(tmp_path / "a.bin", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]
    assert (tmp_path / "a.bin").read_bytes() == b"old"


def test_an_edited_mark_removes_nothing_outside_the_folder(tmp_path: Path):
    (tmp_path / "precious").touch()
    store.write_mark(
        tmp_path / "out", "tiny", "a", "f", StepResult(outputs=("../precious", str(tmp_path / "precious")))
    )
    store.forget(tmp_path / "out", "tiny", "a")
    assert (tmp_path / "precious").exists()
    assert store.marked(tmp_path / "out", "tiny") == []


def test_a_damaged_mark_is_no_mark(tmp_path: Path):
    store.write_mark(tmp_path, "tiny", "a", "f", StepResult({"n": 1}))
    assert store.read_mark(tmp_path, "tiny", "a", "f") == StepResult({"n": 1})
    assert store.read_mark(tmp_path, "tiny", "a", "g") is None
    mark = store.mark_path(tmp_path, "tiny", "a")
    mark.write_text(mark.read_text(encoding="utf-8")[:20], encoding="utf-8")
    assert store.read_mark(tmp_path, "tiny", "a", "f") is None


def test_mpi_ranks_share_the_slides_and_the_lock(slides: Path, tmp_path: Path):
    mpirun = Path(sys.executable).with_name("mpirun")
    if not mpirun.exists():
        pytest.skip("no mpirun beside this python")
    (slides / "c'\"d.txt").write_text("bad", encoding="utf-8")
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    environment = os.environ | root | {"OPAL_PREFIX": str(mpirun.parents[1])}
    command = [
        mpirun,
        "--oversubscribe",
        "--bind-to",
        "none",
        "-np",
        "3",
        sys.executable,
        "-m",
        "tests.support.tiny_step",
    ]
    done = subprocess.run(
        [*map(str, command), str(slides), str(tmp_path / "out"), ""],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "on 3 MPI ranks (2 work, one assigns slides)" in done.stdout, done.stderr
    assert done.stdout.count("did a b é$(touch p)") == 1
    assert done.stdout.count("FAILED  tiny            c'\"d: ") == 1
    assert done.returncode == 1
    assert sorted(path.name for path in (tmp_path / "out" / "tiny").iterdir() if path.name[0] != ".") == [
        "a b",
        "é$(touch p)",
    ]


def test_a_launcher_without_an_mpi_library_is_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PMI_RANK", "0")
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(ValueError, match=r"mpi4py cannot load an MPI library .*: load the module"):
        on_all_ranks(lambda executor: len(executor.description), None)
