"""A lock on an output folder: who holds it, file systems without locks, folders that cannot be written."""

import errno
import fcntl
import os
import socket
import sys
from pathlib import Path

import pytest

from system.folder_lock import FolderLock


def test_a_second_lock_names_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["/path/to/predict.py", "--out", "a b"])
    held_by = rf"process {os.getpid()} on {socket.gethostname()} since \d{{4}}-.* \(predict\.py --out 'a b'\)"
    with FolderLock(tmp_path / "new" / "out") as lock:
        assert lock.notes == []
        with pytest.raises(ValueError, match=rf"^--results .*/new/out is in use by {held_by}: wait for it to end, or"):
            FolderLock(tmp_path / "new" / "out", "--results").__enter__()
    assert (tmp_path / "new" / "out" / ".lock").read_bytes() == b""
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
