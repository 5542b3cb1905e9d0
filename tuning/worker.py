"""A worker: claims trials one after the other, and runs the program of each by run_train.sh."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import psutil

from parallel.preemption import REQUESTS
from system.start import ROOT
from tuning.trials import BEAT_S, LOG, PREEMPTED, STATE, Claim, Ended, claim_next

LOOK_S = 0.5
TAIL_LINES = 12
CLOSED = "closed"  # a file in the study's folder: no more trials will come


@dataclass
class Worker:
    """One worker; it runs one trial at a time.

    Attributes:
        study: folder of the study.
        program: to run, a path.
        ranks: of the program.
        parent: process with which this worker ends; None: it lives by itself.
        folder: in which the program runs; None: that of this process.
    """

    study: Path
    program: Path
    ranks: int
    parent: int | None = None
    folder: Path | None = None
    asked: bool = False

    def work(self) -> int:
        """Run trials until the study is closed, or the worker is asked to end; returns the exit code."""
        before = {number: signal.signal(number, self._request) for number in REQUESTS}
        try:
            while not self._ending():
                claim = claim_next(self.study / "trials")
                if claim is not None:
                    self._attempt(claim)
                elif (self.study / CLOSED).exists():
                    return 0
                else:
                    time.sleep(LOOK_S)
            return PREEMPTED
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002  # of the signal module
        self.asked = True

    def _ending(self) -> bool:
        return self.asked or (self.parent is not None and os.getppid() != self.parent)

    def _attempt(self, claim: Claim) -> None:
        """Run the program of a trial to its end."""
        started = time.monotonic()
        beats = threading.Thread(target=self._beat, args=(claim, done := threading.Event()), daemon=True)
        beats.start()
        try:
            code = self._run(claim)
        finally:
            done.set()
            beats.join()
        claim.end(Ended(code, round(time.monotonic() - started, 3), _tail(claim.trial.path / LOG)))
        claim.close()

    @staticmethod
    def _beat(claim: Claim, done: threading.Event) -> None:
        while not done.wait(BEAT_S):
            with suppress(OSError):
                claim.beat()

    def _run(self, claim: Claim) -> int:
        """The exit code of the program, which is asked to stop when it, or this worker, is to stop."""
        trial = claim.trial
        # The run of a worker that was killed writes a checkpoint before it ends.
        while trial.still_running():
            if self._ending():
                return PREEMPTED
            time.sleep(LOOK_S)
        folder = ["--log_dir", str(trial.run.resolve()), "--resume", "auto"]
        # The script ends, and its ranks, when this worker is killed.
        command = [
            sys.executable, str(ROOT / "launch" / "die_with_parent.py"), "bash", str(ROOT / "run_train.sh"),
            *trial.request()["arguments"], *folder,
        ]  # fmt: skip
        settings = {"SCRIPT": str(self.program.resolve()), "NP": str(self.ranks), "REQUEUE": "0"}
        with (trial.path / LOG).open("ab") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                env=os.environ | settings, cwd=self.folder, start_new_session=True,
            )  # fmt: skip
        with suppress(psutil.NoSuchProcess):
            claim.started(process.pid)
        told = killed = False
        looked = 0.0
        while process.poll() is None:
            time.sleep(0.1)
            if not told and (self._ending() or trial.asked_to_stop):
                told = True
                process.terminate()
            if not killed and time.monotonic() - looked > BEAT_S:
                looked = time.monotonic()
                if not claim.held() or (trial.path / STATE).exists():
                    # The trial went to another worker: this one was taken for lost.
                    killed = True
                    with suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
        # Ended before the script could set its traps: there was nothing to save.
        at_once = told and process.returncode in (-signal.SIGTERM, 128 + signal.SIGTERM)
        return PREEMPTED if at_once else process.returncode


def _tail(path: Path) -> str:
    """Last lines of a log, bars left out."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 16384))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    lines = [line.rsplit("\r", 1)[-1].rstrip() for line in text.split("\n")]
    return "\n".join([line for line in lines if line][-TAIL_LINES:])
