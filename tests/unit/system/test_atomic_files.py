"""Files and folders are complete or absent, whatever ends the writing."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from system.atomic_files import part_of, write_atomically, write_bytes, written_folder, written_whole
from tests.support.paths import ROOT


def no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def held(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_file_has_no_name_while_it_is_written(tmp_path: Path) -> None:
    def write(file):
        file.write(b"new")
        seen.extend(path.name for path in tmp_path.iterdir())

    (tmp_path / "a").write_bytes(b"old")
    seen: list[str] = []
    write_atomically(tmp_path / "a", write)
    assert seen == ["a"]
    assert held(tmp_path) == {"a": b"new"}


def test_where_nameless_files_do_not_exist_the_part_is_removed(tmp_path: Path, monkeypatch) -> None:
    real = os.open
    monkeypatch.setattr(os, "open", lambda path, flags, *more: real(path, flags & ~os.O_TMPFILE, *more))
    seen: list[str] = []
    write_atomically(tmp_path / "a", lambda file: (file.write(b"new"), seen.extend(os.listdir(tmp_path))))
    assert seen == [f".a.{os.getpid()}.part"]
    assert held(tmp_path) == {"a": b"new"}


def by_path(path: Path, data: bytes) -> None:
    with written_whole(path) as part:
        assert part == part_of(path)
        part.write_bytes(data)


@pytest.mark.parametrize("write", [write_bytes, by_path])
def test_what_cannot_be_flushed_leaves_the_old_file(tmp_path: Path, monkeypatch, write) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_space)
        with pytest.raises(OSError, match="No space left"):
            write(tmp_path / "a", b"new")
    assert held(tmp_path) == {"a": b"old"}
    write(tmp_path / "a", b"new")
    assert held(tmp_path) == {"a": b"new"}


def test_a_folder_takes_the_place_of_another(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old").write_bytes(b"1")
    part_of(tmp_path / "a").mkdir()
    (part_of(tmp_path / "a") / "of a killed run").write_bytes(b"2")
    with written_folder(tmp_path / "a") as part:
        (part / "new").write_bytes(b"3")
        assert (tmp_path / "a" / "old").exists()
    assert held(tmp_path) == {"a/new": b"3"}


def test_a_folder_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old").write_bytes(b"1")

    def write() -> None:
        with written_folder(tmp_path / "a") as part:
            (part / "new").write_bytes(b"2")
            no_space()

    with pytest.raises(OSError, match="No space left"):
        write()
    assert held(tmp_path) == {"a/old": b"1"}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_folder_that_may_not_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with written_folder(tmp_path / "a", overwrite=False) as part:
        (part / "first").write_bytes(b"1")
    with pytest.raises(OSError, match="not empty"), written_folder(tmp_path / "a", overwrite=False) as part:
        (part / "second").write_bytes(b"2")
    assert held(tmp_path) == {"a/first": b"1"}


def test_a_killed_process_leaves_nothing(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom system.atomic_files import write_atomically\n"
        "write_atomically(Path(sys.argv[1]), lambda file: (file.write(b'x'), os.kill(os.getpid(), signal.SIGKILL)))"
    )
    run = subprocess.run([sys.executable, "-c", program, str(tmp_path / "a")], check=False, cwd=ROOT)
    assert run.returncode == -9
    assert list(tmp_path.iterdir()) == []
