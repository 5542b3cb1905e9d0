"""The journal of a study: one file of Optuna's, with one writer, that survives kills and full disks."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import BaseJournalFileLock


class _NoLock(BaseJournalFileLock):
    """The controller holds a lock on the whole folder: a second one, left by a killed process, would stall it."""

    def acquire(self) -> bool:
        """See the class."""
        return True

    def release(self) -> None:
        """See the class."""


class Journal(JournalFileBackend):
    """Optuna's file, which a write that fails leaves as it was."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), _NoLock())
        self._path = path

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """See Optuna.

        Raises:
            OSError: no space; nothing was written.
        """
        size = self._path.stat().st_size
        try:
            super().append_logs(logs)
        except OSError:
            # Half a line, and any line behind it, would make the file unreadable.
            os.truncate(self._path, size)
            raise


def open_journal(path: Path) -> tuple[JournalStorage, str]:
    """The storage of a study, and what was repaired in it, for the log.

    Raises:
        ValueError: a line in the middle is damaged.
    """
    note = repair(path)
    return JournalStorage(Journal(path)), note


def repair(path: Path) -> str:
    """Cut a last line that was not written to its end, as a power cut leaves; the file as found is kept beside it.

    Returns:
        What was done, or nothing.

    Raises:
        ValueError: another line is damaged.
    """
    if not path.exists():
        return ""
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    good = sum(len(line) for line in _readable(whole, path))
    if good == len(data):
        return ""
    kept = path.with_name(f"{path.name}.cut-{len(list(path.parent.glob(path.name + '.cut-*'))) + 1}")
    kept.write_bytes(data)
    os.truncate(path, good)
    return f"{path.name}: its last line was cut short; {len(data) - good} bytes were set aside as {kept.name}"


def _readable(data: bytes, path: Path) -> Iterator[bytes]:
    """The lines up to a damaged last one."""
    lines = data.splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        try:
            json.loads(line)
        except ValueError as error:
            if number == len(lines):
                return
            raise ValueError(
                f"{path}, line {number}: damaged, and not the last; restore the file from a copy"
            ) from error
        yield line
