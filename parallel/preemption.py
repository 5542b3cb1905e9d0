"""Preemption: signals that ask a run to write a checkpoint and end, as schedulers send before they take a node.

Python runs a handler between two of its own instructions, so a request is noticed when the step that is being computed
is done. All ranks learn of it in the next step (`training.step`), whichever of them was asked.
"""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any

# SIGHUP: the terminal was closed.
REQUESTS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
# Ends the run if it is not the first request; the others may come again and again.
URGENT = (signal.SIGTERM, signal.SIGINT)
# A terminal sends Ctrl-C to all processes of a job, and a launcher passes it on to them: that is one request.
ECHO_S = 1.0
# Elastic jobs: why ranks stop, to reconnect.
HOSTS_CHANGED = "hosts changed"
EXIT_CODE = 75  # see `system.start`; run_train.sh puts a SLURM job back into its queue


class StopError(Exception):
    """Raised by a program in the midst of work that it drops, because it was asked to stop."""


class Preemption:
    """Whether this process was asked to stop.

    Attributes:
        requested: name of the first signal, such as `SIGTERM`, or `HOSTS_CHANGED`; empty before.
    """

    def __init__(self) -> None:
        self.requested = ""
        self._at = 0.0
        self._before: dict[signal.Signals, Any] = {}
        self._closed = False

    def listen(self) -> None:
        """Take requests from now on. Only the main thread can: in another one nothing happens."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in REQUESTS:
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                # nohup
                continue
            before = signal.signal(number, self._request)
            self._before.setdefault(number, before)

    def hosts_changed(self) -> None:
        """Take a change of hosts for a request, unless there is one."""
        self.requested = self.requested or HOSTS_CHANGED

    def reconnected(self) -> None:
        """Ranks have reconnected: a change of hosts is no longer a reason to stop."""
        if self.requested == HOSTS_CHANGED:
            self.requested = ""

    def __enter__(self) -> Preemption:
        return self

    def __exit__(self, *_: object) -> None:
        """Signals do again what they did before `listen`; echoes of a request are still ignored."""
        self._closed = True
        if self.requested in ("", HOSTS_CHANGED):
            self._restore()

    def _restore(self) -> None:
        for number, before in self._before.items():
            if signal.getsignal(number) == self._request:
                # None: installed by C code, which Python cannot restore.
                signal.signal(number, signal.SIG_DFL if before is None else before)
        self._before.clear()

    def _request(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002  # of the signal module
        now = time.monotonic()
        first = self.requested in ("", HOSTS_CHANGED)
        if not first and now - self._at <= ECHO_S:
            return
        if self._closed:
            self._restore()
            signal.raise_signal(number)
        elif first:
            self.requested, self._at = signal.Signals(number).name, now
        elif number in URGENT:
            # The second request: end at once, by the signal's default action.
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
