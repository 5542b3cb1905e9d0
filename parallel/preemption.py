"""Requests to leave: signals that ask a run to write a checkpoint and end, as schedulers send before they take a node.

Python runs a handler between two of its own instructions, so a request is noticed when the step that is being computed
is done. All ranks learn of it in the next step (`training.step`), whichever of them was asked.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from types import FrameType

REQUESTS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
# A terminal sends Ctrl-C to all processes of a job, and a launcher hands it on to those: that is one request.
ECHO_S = 1.0
# Elastic jobs: why ranks leave, to come together anew.
HOSTS_CHANGED = "hosts changed"
EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h, "try again later": run_train.sh puts a SLURM job back into its queue


class Leaving:
    """Whether this process was asked to leave.

    Attributes:
        asked: name of the first signal, such as `SIGTERM`, or `HOSTS_CHANGED`; empty before.
    """

    def __init__(self) -> None:
        self.asked = ""
        self._at = 0.0
        self._say: Callable[[str], None] = lambda _: None

    def listen(self, say: Callable[[str], None]) -> None:
        """Take requests from now on; only the main thread may call it.

        Args:
            say: is told of a request, in a handler: it must not take long.
        """
        self._say = say
        for number in REQUESTS:
            signal.signal(number, self._request)

    def hosts_changed(self) -> None:
        """Take a change of hosts for a request, unless there is one."""
        self.asked = self.asked or HOSTS_CHANGED

    def _request(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002  # of the signal module
        now = time.monotonic()
        first = self.asked in ("", HOSTS_CHANGED)
        if not first and now - self._at > ECHO_S:
            # Asked again: at once, by what the signal does of itself.
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        if first:
            self.asked, self._at = signal.Signals(number).name, now
            self._say(f"{self.asked}: a checkpoint will be written after this step; once more ends at once")
