"""What the operating system says of another process on this host: whether its silence is the end of it."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psutil

STOPPED = "its process is stopped"
AT_WORK = "its process is at work, or waits for a disk, but lets no other thread of it run"
IDLE = "its process is alive, but does nothing"
UNKNOWN = "stopped, or its host or network is down"
# Two ways to compute the start of a process may differ by a tick of the clock, 0.01 s.
SAME_START_S = 0.1


def describe_this() -> list[Any]:
    """Host, process id and start time of this process: what `LocalProcess` takes."""
    return describe(os.getpid())


def describe(pid: int) -> list[Any]:
    """The same of another process of this host, which must exist."""
    return [_here(), pid, psutil.Process(pid).create_time()]


def _here() -> str:
    """Host, and container: in another one the same process ids are other processes."""
    with suppress(OSError):
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    return socket.gethostname()


@dataclass
class LocalProcess:
    """A process that may be of this host.

    Attributes:
        description: what its `describe_this` returned, or nothing.
        cpu_s: CPU time that it had used when it was last looked at, s.
    """

    description: list[Any]
    cpu_s: float = 0.0

    def look(self) -> str:
        """What it has been doing since the last look: one of the constants above; UNKNOWN on another host."""
        try:
            process = self._process()
            if process is None:
                return UNKNOWN
            status, times = process.status(), process.cpu_times()
        except (psutil.Error, ValueError, TypeError):
            return UNKNOWN
        before, self.cpu_s = self.cpu_s, times.user + times.system
        if status in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP):
            return STOPPED
        return AT_WORK if self.cpu_s > before or status == psutil.STATUS_DISK_SLEEP else IDLE

    def here(self) -> bool:
        """Whether it is, or was, a process of this host."""
        return self.description[:1] == [_here()]

    def gone(self) -> bool:
        """Whether it was a process of this host, and has ended."""
        try:
            return self.here() and self._process() is None
        except psutil.NoSuchProcess:
            return True
        except (psutil.Error, LookupError, ValueError, TypeError):
            return False

    def _process(self) -> psutil.Process | None:
        """The process; None where it is of another host, or its number that of another process by now.

        Raises:
            psutil.Error: there is no such process.
        """
        here, pid, started = self.description
        if here != _here():
            return None
        process = psutil.Process(pid)
        same = abs(process.create_time() - started) <= SAME_START_S and process.status() != psutil.STATUS_ZOMBIE
        return process if same else None
