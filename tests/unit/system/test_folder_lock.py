"""A lock on an output folder: who holds it, file systems without locks, folders that cannot be written."""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from system import folder_lock
from system.folder_lock import FolderLock
from tests.support.paths import ROOT


def test_a_second_lock_names_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["/path/to/predict.py", "--out", "a b"])
    held_by = rf"process {os.getpid()} on {socket.gethostname()} since \d{{4}}-.* \(predict\.py --out 'a b'\)"
    with FolderLock(tmp_path / "new" / "out") as lock:
        assert lock.notes == []
        with pytest.raises(ValueError, match=rf"^--results .*/new/out is in use by {held_by}: wait for it to end, or"):
            FolderLock(tmp_path / "new" / "out", "--results").__enter__()
    assert not (tmp_path / "new").exists()
    with FolderLock(tmp_path / "new" / "out"):
        pass


def test_a_folder_that_cannot_be_made(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"--out .*file/out cannot be written: Not a directory; choose a folder"):
        FolderLock(tmp_path / "file" / "out").__enter__()


@pytest.mark.parametrize(("number", "noted"), [(errno.ENOLCK, True), (errno.EIO, False)])
def test_a_file_system_without_locks(number: int, noted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fails(file, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", fails)
    if not noted:
        with pytest.raises(OSError, match="Input/output error"):
            FolderLock(tmp_path).__enter__()
        return
    with FolderLock(tmp_path) as lock:
        assert lock.notes == [f"the file system of {tmp_path} has no locks: do not start a second run with this --out"]


KILLED = "process {} on {} since 2026-01-01 00:00:00 (train.py)\n"


def in_another_process(folder: Path) -> subprocess.CompletedProcess[str]:
    code = "import sys; from pathlib import Path; from system.folder_lock import FolderLock\n"
    code += "FolderLock(Path(sys.argv[1])).__enter__(); import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    return subprocess.run(
        [sys.executable, "-c", code, str(folder)], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_the_lock_of_a_killed_process_is_stale(tmp_path: Path):
    assert in_another_process(tmp_path).returncode == -signal.SIGKILL
    assert (tmp_path / ".lock").read_text(encoding="utf-8").startswith("process ")
    with FolderLock(tmp_path):
        assert f"process {os.getpid()} on " in (tmp_path / ".lock").read_text(encoding="utf-8")
        assert in_another_process(tmp_path).returncode == 1


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_lock, "BEAT_S", 0.05)
    monkeypatch.setattr(folder_lock, "WATCH_S", 0.8)


def test_a_holder_on_another_host_lives_as_long_as_it_renews_its_lock(tmp_path: Path, quick: None):
    """flock(2) of some file systems is of this host only: the lock can be had though another host holds it."""
    lock = tmp_path / ".lock"
    lock.write_text(KILLED.format(7, "elsewhere"), encoding="utf-8")
    stop = threading.Event()

    def renew() -> None:
        while not stop.wait(0.05):
            os.utime(lock)

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        with pytest.raises(ValueError, match=r"is in use by process 7 on elsewhere since 2026"):
            FolderLock(tmp_path).__enter__()
    finally:
        stop.set()
        thread.join()
    with FolderLock(tmp_path):
        begun = lock.stat().st_mtime_ns
        until = time.monotonic() + 10
        while lock.stat().st_mtime_ns == begun:
            assert time.monotonic() < until
            time.sleep(0.02)


def test_an_old_lock_of_another_host_is_stale_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / ".lock").write_text(KILLED.format(7, "elsewhere"), encoding="utf-8")
    os.utime(tmp_path / ".lock", (1.7e9, 1.7e9))
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("waited"))
    with FolderLock(tmp_path):
        pass


def test_without_locks_a_living_process_of_this_host_holds_the_folder(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
):
    def fails(file, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", fails)
    lock = tmp_path / ".lock"
    lock.write_text(KILLED.format(os.getpid(), socket.gethostname()), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"in use by process {os.getpid()} on "):
        FolderLock(tmp_path).__enter__()
    lock.write_text(KILLED.format(2**22 + 1, socket.gethostname()), encoding="utf-8")
    with FolderLock(tmp_path):
        pass
