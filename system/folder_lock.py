"""An output folder that one run at a time works in."""

from __future__ import annotations

import errno
import fcntl
import os
import shlex
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TextIO

_LOCK = ".lock"
# flock(2) on file systems without locks.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)


class FolderLock:
    """A lock on an output folder, held for the length of a `with` block; `.lock` in the folder names the holder.

    The kernel frees the lock when the process ends, however it ends.

    Args:
        root: the folder; created if missing.
        option: the command-line option that named it, for messages.

    Attributes:
        notes: warnings for the user, such as a file system without locks.

    Raises:
        ValueError: on entry: the folder cannot be created or written, or another run holds it.
    """

    def __init__(self, root: Path, option: str = "--out") -> None:
        self.notes: list[str] = []
        self._root = root
        self._option = option
        self._file: TextIO | None = None

    def __enter__(self) -> FolderLock:
        name = f"{self._option} {self._root}"
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            file = (self._root / _LOCK).open("a+", encoding="utf-8")
        except OSError as error:
            raise ValueError(f"{name} cannot be written: {error.strerror}; choose a folder you may write to") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another run"
            file.close()
            raise ValueError(f"{name} is in use by {holder}: wait for it to end, or choose another folder") from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                file.close()
                raise
            self.notes.append(
                f"the file system of {self._root} has no locks: do not start a second run with this {self._option}"
            )
        file.truncate(0)
        script = Path(sys.argv[0])
        name_of = script.parent.name if script.name == "__main__.py" else script.name
        command = shlex.join([name_of, *sys.argv[1:]])
        since = time.strftime("%F %T")
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {since} ({command})\n")
        file.flush()
        self._file = file
        return self

    def __exit__(self, *_: object) -> None:
        assert self._file is not None
        with suppress(OSError):  # a full disk must not hide why the run ended
            self._file.truncate(0)
        self._file.close()
        self._file = None
