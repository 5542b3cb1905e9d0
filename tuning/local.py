"""Workers on this machine, each with a share of its CPUs and GPUs; one that is killed is started again."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from system.start import ROOT
from tuning.trials import PREEMPTED

QUICK_S = 5.0  # a worker that ends sooner than that, again and again, will not work
MOST_QUICK = 5
END_S = 630.0  # a run may take 600 s to write its checkpoint (launch/supervise.py)
SHARE = "WIDEFOV_TUNE_CPUS"


def shares(cpus: Sequence[int], count: int) -> list[list[int]]:
    """CPUs of each of `count` workers; all of them where there are fewer CPUs than workers."""
    if len(cpus) < count:
        return [list(cpus)] * count
    return [list(cpus[len(cpus) * i // count : len(cpus) * (i + 1) // count]) for i in range(count)]


class LocalWorkers:
    """Workers as child processes.

    Args:
        study: folder of the study.
        count: number of workers.
        gpus: ids for CUDA_VISIBLE_DEVICES that are shared out; empty: the variable is left alone.
    """

    def __init__(self, study: Path, count: int, gpus: Sequence[str] = ()) -> None:
        self._study, self._gpus = study, list(gpus)
        self._cpus = shares(sorted(os.sched_getaffinity(0)), count)
        self._processes: list[subprocess.Popen[bytes] | None] = [None] * count
        self._started = [0.0] * count
        self._quick = 0

    def keep_up(self) -> None:
        """Start the workers that do not run.

        Raises:
            ValueError: workers end at once, again and again.
        """
        for index, process in enumerate(self._processes):
            code = None if process is None else process.poll()
            if process is not None and code is None:
                continue
            if process is not None and code not in (0, PREEMPTED):
                self._quick = self._quick + 1 if time.monotonic() - self._started[index] < QUICK_S else 0
                if self._quick >= MOST_QUICK:
                    raise ValueError(
                        f"workers end as soon as they start (exit code {code}); see {self._study}/workers.log"
                    )
            self._start(index)

    def _start(self, index: int) -> None:
        environment = os.environ | {SHARE: ",".join(map(str, self._cpus[index]))}
        if self._gpus:
            own = self._gpus[index :: len(self._processes)] or [self._gpus[index % len(self._gpus)]]
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(own)
        command = [sys.executable, str(ROOT / "tune.py"), str(self._study), "--worker"]
        with (self._study / "workers.log").open("ab") as log:
            # Not in the session of the terminal: Ctrl-C reaches the controller, which asks its workers to end.
            self._processes[index] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        self._started[index] = time.monotonic()

    def end(self) -> None:
        """Ask all workers to end, and wait until their runs have written their checkpoints."""
        running = [process for process in self._processes if process is not None and process.poll() is None]
        for process in running:
            process.terminate()
        until = time.monotonic() + END_S
        for process in running:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, until - time.monotonic()))


def take_share() -> int | None:
    """Keep to the CPUs that `LocalWorkers` gave this worker; its process id, or None without one."""
    share = os.environ.pop(SHARE, None)
    if share is None:
        return None
    os.sched_setaffinity(0, {int(cpu) for cpu in share.split(",")})
    return os.getppid()
