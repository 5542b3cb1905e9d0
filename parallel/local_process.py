"""What the operating system says of another rank's process on this host: whether its silence is the end of it."""

from __future__ import annotations

import socket
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
    process = psutil.Process()
    return [socket.gethostname(), process.pid, process.create_time()]


@dataclass
class LocalProcess:
    """The process of another rank.

    Attributes:
        description: what its `describe_this` returned, or nothing.
        cpu_s: CPU time that it had used when it was last looked at, s.
    """

    description: list[Any]
    cpu_s: float = 0.0

    def look(self) -> str:
        """What it has been doing since the last look: one of the constants above; UNKNOWN on another host."""
        try:
            host, pid, started = self.description
            if host != socket.gethostname():
                return UNKNOWN
            process = psutil.Process(pid)
            # In another container the id may be that of any process.
            if abs(process.create_time() - started) > SAME_START_S:
                return UNKNOWN
            status, times = process.status(), process.cpu_times()
        except (psutil.Error, ValueError, TypeError):
            return UNKNOWN
        before, self.cpu_s = self.cpu_s, times.user + times.system
        if status in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP):
            return STOPPED
        return AT_WORK if self.cpu_s > before or status == psutil.STATUS_DISK_SLEEP else IDLE
