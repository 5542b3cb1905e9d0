"""Trials on disk: how controller and workers, also on other hosts, share them without locks.

    STUDY/trials/00012/trial.json    what to run; written by the controller, complete from the start
                       claim/        made by the worker that runs it: mkdir succeeds for one only, also on NFS
                       claim/owner.json, claim/alive, claim/ended.json
                       ended-01/     the claim of an attempt that has ended, or whose worker was lost
                       stop          written by the controller: this trial is to be pruned
                       run/          --log_dir of the program; log.txt: what it printed
                       state.json    how the trial ended; written by the controller

A worker keeps its claim open as a folder: once the controller has moved it away, nothing that the worker still writes
can be taken for that of the next one.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from parallel.local_process import LocalProcess, describe, describe_this
from system.atomic_files import write_bytes, written_folder

BEAT_S = 5.0
LOST_S = 120.0  # of silence, after which a worker counts as lost
TRIAL, CLAIM, STATE, STOP, RUN, LOG = "trial.json", "claim", "state.json", "stop", "run", "log.txt"
PREEMPTED = 75  # `parallel.preemption.EXIT_CODE`
BAD_OPTIONS = 2  # wrong options, data, or a loss that is not finite: the same again would end alike
OWNER, ALIVE, ENDED = "owner.json", "alive", "ended.json"


@dataclass(frozen=True)
class Ended:
    """How an attempt ended.

    Attributes:
        code: exit code of the program; below 0: minus the signal that killed it.
        seconds: it took.
        tail: last lines it printed.
    """

    code: int
    seconds: float
    tail: str = ""


class TrialFolder:
    """The folder of one trial.

    Args:
        path: of the folder.

    Attributes:
        path: see above.
        number: of the trial.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.number = int(path.name)
        self._beat: tuple[float, float] | None = None  # time of `alive` as last seen, and when that was first seen

    @classmethod
    def create(cls, trials: Path, number: int, values: Mapping[str, Any], arguments: list[str]) -> TrialFolder:
        """Offer a trial to the workers; nothing happens if it exists.

        Args:
            trials: STUDY/trials.
            number: of the trial.
            values: searched options.
            arguments: all arguments of the program but those of its folder.
        """
        path = trials / f"{number:05d}"
        if not path.exists():
            request = {"values": dict(values), "arguments": arguments}
            with written_folder(path) as part:
                (part / TRIAL).write_text(json.dumps(request, indent=1) + "\n", encoding="utf-8")
        return cls(path)

    def request(self) -> dict[str, Any]:
        """What to run."""
        found: dict[str, Any] = json.loads((self.path / TRIAL).read_text(encoding="utf-8"))
        return found

    @property
    def run(self) -> Path:
        """`--log_dir` of the program."""
        return self.path / RUN

    # -------------------------------------------------------------------------------------------------- of controllers

    def state(self) -> dict[str, Any] | None:
        """How the trial ended; None before."""
        return _json(self.path / STATE)

    def close(self, state: Mapping[str, Any]) -> None:
        """Record how the trial ended."""
        write_bytes(self.path / STATE, (json.dumps(dict(state), indent=1) + "\n").encode())

    def ended(self) -> Ended | None:
        """How the current attempt ended; None before, or without one."""
        found = _json(self.path / CLAIM / ENDED)
        return None if found is None else Ended(**found)

    def reopen(self) -> None:
        """Set the current attempt aside, so that another worker takes the trial."""
        with suppress(FileNotFoundError):
            os.rename(self.path / CLAIM, self.path / f"ended-{self.attempts():02d}")

    def attempts(self) -> int:
        """Number of attempts, with the current one."""
        return len(list(self.path.glob("ended-*"))) + (self.path / CLAIM).exists()

    def failures(self) -> int:
        """Number of attempts that ended by a fault of the program; not those that were preempted or lost."""
        found = [_json(path / ENDED) for path in self.path.glob("ended-*")]
        return sum(1 for ended in found if ended and ended["code"] not in (0, BAD_OPTIONS, PREEMPTED))

    def lost(self, now: float) -> bool:
        """Whether its worker has been silent for too long; to be asked again and again.

        Args:
            now: time.monotonic(). Only this clock counts: those of other hosts may differ.
        """
        try:
            at = os.stat(self.path / CLAIM / ALIVE).st_mtime
        except OSError:
            at = 0.0 if (self.path / CLAIM).exists() else -1.0
        if at < 0:
            self._beat = None
            return False
        owner = _json(self.path / CLAIM / OWNER)
        if owner is not None and LocalProcess(owner["worker"]).gone():
            # It may have published the end of its run before.
            return self.ended() is None
        if self._beat is None or self._beat[0] != at:
            self._beat = (at, now)
        return now - self._beat[1] > LOST_S

    def ask_to_stop(self) -> None:
        """Let the worker end this trial: it is to be pruned."""
        (self.path / STOP).touch()

    @property
    def asked_to_stop(self) -> bool:
        """Whether the trial is to be pruned."""
        return (self.path / STOP).exists()

    def began(self) -> float:
        """When the first attempt began, Unix time, s; 0 before."""
        owners = [_json(path / OWNER) for path in [*sorted(self.path.glob("ended-*")), self.path / CLAIM]]
        return float(next((owner["since"] for owner in owners if owner), 0.0))

    def owner(self) -> str:
        """The worker that runs it, for people; empty without one."""
        found = _json(self.path / CLAIM / OWNER)
        return "process {1} on {0}".format(*found["worker"]) if found else ""

    def still_running(self) -> bool:
        """Whether a program that an earlier worker of this host has started is still running."""
        found = [_json(path / OWNER) for path in self.path.glob("ended-*")]
        programs = [LocalProcess(owner["program"]) for owner in found if owner and owner["program"]]
        return any(not program.gone() for program in programs if program.here())


class Claim:
    """A trial that this worker runs.

    Args:
        trial: its folder.

    Raises:
        FileExistsError: another worker has it.
    """

    def __init__(self, trial: TrialFolder) -> None:
        self.trial = trial
        path = trial.path / CLAIM
        path.mkdir()
        self._folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._token = secrets.token_hex(8)
        self._since = time.time()
        self.started(None)
        self.beat()

    def started(self, pid: int | None) -> None:
        """Publish who runs the trial, and the process of its program."""
        program = [] if pid is None else describe(pid)
        owner = {"worker": describe_this(), "program": program, "token": self._token, "since": self._since}
        self._write(OWNER, owner)

    def beat(self) -> None:
        """Tell that this worker lives."""
        descriptor = os.open(ALIVE, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666, dir_fd=self._folder)
        try:
            os.utime(descriptor)
        finally:
            os.close(descriptor)

    def held(self) -> bool:
        """Whether the controller has not given the trial to another worker."""
        found = _json(self.trial.path / CLAIM / OWNER)
        return found is not None and found["token"] == self._token

    def end(self, ended: Ended) -> None:
        """Publish how the program ended."""
        self._write(ENDED, asdict(ended))

    def close(self) -> None:
        """Close the folder."""
        os.close(self._folder)

    def _write(self, name: str, value: Mapping[str, Any]) -> None:
        part = f".{name}.part"
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666, dir_fd=self._folder)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(value, file)
            file.flush()
            os.fsync(file.fileno())
        os.rename(part, name, src_dir_fd=self._folder, dst_dir_fd=self._folder)


def all_trials(trials: Path) -> list[TrialFolder]:
    """All trials of a study, by number."""
    if not trials.is_dir():
        return []
    return [TrialFolder(path) for path in sorted(trials.iterdir()) if path.name.isdecimal()]


def claim_next(trials: Path) -> Claim | None:
    """Claim the first trial that nobody runs; None where there is none."""
    for trial in all_trials(trials):
        if (trial.path / CLAIM).exists() or (trial.path / STATE).exists():
            continue
        with suppress(FileExistsError):
            claim = Claim(trial)
            if (trial.path / STATE).exists():
                # It was closed between the two looks.
                claim.close()
                continue
            return claim
    return None


def _json(path: Path) -> dict[str, Any] | None:
    """A JSON file that is complete or absent; None where it is absent."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found
