"""An output folder that one run at a time works in."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shlex
import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TextIO

_LOCK = ".lock"
# flock(2) on file systems without locks.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)
_HOLDER = re.compile(r"process (\d+) on (\S+) since ")
# A holder touches its lock every BEAT_S; one that was not touched for WATCH_S while somebody watched, or for an hour by
# the clocks of two hosts, is stale.
BEAT_S = 5.0
WATCH_S = 16.0
_OLD_S = 3600.0


class FolderLock:
    """A lock on an output folder, held for the length of a `with` block; `.lock` in the folder names the holder.

    The kernel frees the lock when the process ends, however it ends. Where the file system has no locks, or only those
    of its own host, the holder is known to live by the time of `.lock`, which it renews.

    Args:
        root: the folder; created if missing, and removed at the end if it is empty then.
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
        self._path = root / _LOCK
        self._file: TextIO | None = None
        self._released = threading.Event()
        self._beats: threading.Thread | None = None
        self._made: list[Path] = []

    def __enter__(self) -> FolderLock:
        file, locked = self._opened()
        file.seek(0)
        holder = file.read().strip()
        if holder and self._lives(holder, locked):
            file.close()
            raise self._in_use(holder)
        file.truncate(0)
        script = Path(sys.argv[0])
        name_of = script.parent.name if script.name == "__main__.py" else script.name
        command = shlex.join([name_of, *sys.argv[1:]])
        since = time.strftime("%F %T")
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {since} ({command})\n")
        file.flush()
        self._file = file
        self._released.clear()
        self._beats = threading.Thread(target=self._beat, args=(file.fileno(),), name="folder lock", daemon=True)
        self._beats.start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._file is not None
        assert self._beats is not None
        self._released.set()
        self._beats.join()
        with suppress(OSError):
            # Unlinked while it is locked: who opened it before notices that it is gone.
            if self._is(self._file):
                self._path.unlink()
            # A run that ends with an error before it has written anything leaves nothing.
            for folder in self._made:
                folder.rmdir()
        self._made = []
        self._file.close()
        self._file = None

    def _opened(self) -> tuple[TextIO, bool]:
        """The open lock file, and whether the file system has locked it."""
        while True:
            try:
                missing = [folder for folder in (self._root, *self._root.parents) if not folder.exists()]
                self._root.mkdir(parents=True, exist_ok=True)
                self._made = self._made or missing
                file = self._path.open("a+", encoding="utf-8")
            except OSError as error:
                raise ValueError(
                    f"{self._option} {self._root} cannot be written: {error.strerror}; choose a folder you may write to"
                ) from error
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                holder = file.read().strip()
                file.close()
                raise self._in_use(holder or "another run") from None
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    file.close()
                    raise
                self.notes.append(
                    f"the file system of {self._root} has no locks: do not start a second run with this {self._option}"
                )
                return file, False
            if self._is(file):
                return file, True
            # Its holder has just ended.
            file.close()

    def _is(self, file: TextIO) -> bool:
        """Whether an open file is still the lock file."""
        with suppress(OSError):
            return os.path.samestat(os.fstat(file.fileno()), self._path.stat())
        return False

    def _lives(self, holder: str, locked: bool) -> bool:
        """Whether the holder that a lock file names still runs, though the file could be locked, or never can."""
        found = _HOLDER.match(holder)
        here = found is not None and found[2] == socket.gethostname()
        if here and locked:
            # It was killed.
            return False
        if here and found is not None and Path(f"/proc/{found[1]}").exists():
            return True
        until = time.monotonic() + WATCH_S
        first = self._renewed()
        if time.time() - first > _OLD_S:
            return False
        while time.monotonic() < until:
            time.sleep(min(1.0, WATCH_S / 8))
            if self._renewed() != first:
                return True
        return False

    def _renewed(self) -> float:
        """When the lock file was last touched, s."""
        with suppress(OSError), self._path.open(encoding="utf-8") as file:
            # Opening it makes a network file system look.
            return os.fstat(file.fileno()).st_mtime
        return 0.0

    def _beat(self, descriptor: int) -> None:
        while not self._released.wait(BEAT_S):
            with suppress(OSError):
                os.utime(descriptor)

    def _in_use(self, holder: str) -> ValueError:
        return ValueError(
            f"{self._option} {self._root} is in use by {holder}: wait for it to end, or choose another folder"
        )
