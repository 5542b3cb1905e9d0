"""Run a launcher so that its ranks can stop in good order: python launch/supervise.py LAUNCHER COMMAND ...

A closed terminal, `timeout`, Ctrl-C and `kill -- -PGID` signal a whole process group. A launcher that is in it kills
its ranks within a second or so. So the launcher gets a session of its own, and what run_train.sh receives comes here:

- The first SIGTERM, SIGINT, SIGHUP or SIGUSR1 becomes one SIGUSR1 to the launcher, which forwards it to the ranks.
  horovodrun does not; there the mpirun below it gets it, or the ranks on this host.
- Before the ranks listen there is nothing to save, and the launcher is ended at once.
- A further SIGTERM or SIGINT ends everything, at most KILL_S later; so do ranks that have not ended after LEAVE_S.

Two lines of rank 0, marked by the variable WIDEFOV_MARK, never reach the user: that the ranks listen, and that they
ended because of a request. They exit with code 0 then, as launchers report any other as a failure; the code here is 75.

The launcher writes to pipes: with nobody to read it, mpirun would end the job.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

MARK = "WIDEFOV_MARK"
LEFT = 75  # `parallel.preemption.EXIT_CODE`
REQUESTS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1}
ECHO_S = 1.0  # several signals within this time are one request
PATIENCE_S = 10.0  # until the user reads what is being waited for
KILL_S = 10.0
LEAVE_S = 600.0
PR_SET_PDEATHSIG = 1  # of prctl(2); survives exec
# They would end at once by what systemd sends to every process. They have handlers, but leave these signals blocked.
SHIELDED = ("mpirun", "horovodrun")
FORWARDING = b"mpirun: Forwarding signal "


class Supervisor:
    """A launcher, its output, and what was asked of it.

    Args:
        launcher: name of the launcher; `none`: the command is the only rank.
        command: to run.
        mark: first word of the lines meant for this program; empty: there are none, and the output is not looked at.
    """

    def __init__(self, launcher: str, command: list[str], mark: str) -> None:
        self._name = "the run" if launcher == "none" else launcher
        self._shielded = launcher in SHIELDED
        self._command = command
        self._parent = os.getppid()
        self._mark = mark.encode()
        self._listening = False
        self._left = False
        self._quiet = False
        self._request: signal.Signals | None = None
        self._at = 0.0
        self._told = False
        self._early = False
        self._ending = 0.0
        self._last_term = 0.0
        self._waited = {*REQUESTS, signal.SIGCHLD, signal.SIGTSTP, signal.SIGCONT}
        if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
            # nohup
            self._waited.discard(signal.SIGHUP)

    def run(self) -> int:
        """Run the command; returns the exit code for run_train.sh."""
        signal.pthread_sigmask(signal.SIG_BLOCK, self._waited)
        for number in self._waited:
            # Tells run_train.sh that this process is ready. They are never called: the signals are waited for.
            signal.signal(number, lambda *_: None)
        with suppress(OSError):
            os.setsid()
        # If run_train.sh is killed, the ranks leave as well.
        die_with(self._parent, signal.SIGTERM)
        self._parent = os.getpid()
        pipe = subprocess.PIPE if self._mark else None
        self._child = subprocess.Popen(self._command, stdout=pipe, stderr=pipe, preexec_fn=self._prepare)  # noqa: PLW1509  # no threads yet
        pumps = [
            threading.Thread(target=pump, args=(source.fileno(), to, keep), daemon=True)
            for source, to, keep in ((self._child.stdout, 1, self._output), (self._child.stderr, 2, self._error))
            if source is not None
        ]
        for thread in pumps:
            thread.start()
        while self._child.poll() is None:
            got = signal.sigtimedwait(self._waited, 0.5)
            if got is not None:
                self._handle(signal.Signals(got.si_signo))
            self._look_at_the_clock()
        for thread in pumps:
            # Whatever else still has the pipe open must not hold up the end.
            thread.join(2.0)
        return self._code()

    def _prepare(self) -> None:
        """In the new process, before it becomes the launcher."""
        os.setsid()
        # A shielded launcher would ignore the milder signal.
        die_with(self._parent, signal.SIGKILL if self._shielded else signal.SIGTERM)
        # Background commands of a shell without job control ignore these signals.
        for number in (signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, signal.SIG_DFL)
        shield = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP} if self._shielded else set()
        signal.pthread_sigmask(signal.SIG_SETMASK, shield)

    # ------------------------------------------------------------------------------------------------------- signals

    def _handle(self, number: signal.Signals) -> None:
        now = time.monotonic()
        if number in (signal.SIGTSTP, signal.SIGCONT):
            send(self._tree(), signal.SIGSTOP if number == signal.SIGTSTP else signal.SIGCONT)
        elif number not in REQUESTS:
            return
        elif self._request is None:
            self._request, self._at = number, now
            self._ask()
        elif number in (signal.SIGTERM, signal.SIGINT) and now - self._at > ECHO_S:
            self._ending = self._ending or now

    def _ask(self) -> None:
        assert self._request is not None
        listeners = listeners_below(self._child.pid, children())
        send(listeners, signal.SIGUSR1)
        if not (self._listening if self._mark else listeners):
            self._early = self._quiet = True
            self._ending = self._at
            # SIGUSR1 was enough for some launchers and programs.
            self._last_term = self._at if listeners else 0.0
            say(f"{self._request.name} before the first step: nothing was to be saved")
        elif not listeners:
            # horovodrun forwards nothing, and all ranks are on other hosts: they get SIGTERM, and SIGKILL 5 s later.
            send([self._child.pid], signal.SIGTERM)

    def _look_at_the_clock(self) -> None:
        now = time.monotonic()
        if self._request is None:
            return
        if not self._ending:
            if now > self._at + LEAVE_S:
                say(f"the ranks have not left within {LEAVE_S:.0f} s: they are ended")
                self._ending = now
            elif now > self._at + PATIENCE_S and not (self._told or self._left):
                self._told = True
                say(
                    f"{self._request.name}: waiting for the step and a checkpoint; a second SIGTERM or Ctrl-C ends the "
                    f"run within {KILL_S:.0f} s"
                )
        if not self._ending:
            return
        if now > self._ending + KILL_S:
            send(self._tree(), signal.SIGKILL)
        elif now > self._last_term + 1.0:
            # Again and again: a launcher may be starting ranks just now.
            self._last_term = now
            send(self._tree(), signal.SIGTERM)

    def _tree(self) -> list[int]:
        """The launcher and all below it on this host."""
        below, found = children(), [self._child.pid]
        for pid in found:
            found += below.get(pid, [])
        return found

    # -------------------------------------------------------------------------------------------------------- output

    def _output(self, line: bytes) -> bool:
        """Whether a line of standard output is for the user."""
        _, mark, word = line.partition(self._mark)
        self._listening |= word.strip() == b"listening"
        # A launcher that was killed itself may lose the lines after the ranks' own.
        self._left |= word.strip() == b"left" or (self._request is not None and b"preempted   " in line)
        return not mark and not self._quiet

    def _error(self, line: bytes) -> bool:
        """Whether a line of standard error is for the user."""
        return not self._quiet and not line.startswith(FORWARDING)

    def _code(self) -> int:
        code = self._child.returncode
        if self._left or self._early:
            return LEFT
        if code < 0:
            if not self._ending:
                say(f"{self._name} was killed by {signal.Signals(-code).name}.")
            return 128 - code
        return int(code)


def die_with(parent: int, number: signal.Signals) -> None:
    """Have this process get a signal when its parent ends, however it ends (Linux only)."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        # It ended before the call.
        os.kill(os.getpid(), number)


def say(line: str) -> None:
    """Print a line for the user, if there still is one."""
    with suppress(OSError):
        os.write(2, f"run_train.sh: {line}\n".encode())


def send(pids: list[int], number: signal.Signals) -> None:
    """Send a signal to processes, some of which may be gone."""
    for pid in pids:
        with suppress(OSError):
            os.kill(pid, number)


def children() -> dict[int, list[int]]:
    """Process -> its children, of all processes of this host."""
    found: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parent = int(path.read_text(errors="replace").rpartition(")")[2].split()[1])
            found.setdefault(parent, []).append(int(path.parent.name))
    return found


def catches(pid: int) -> bool:
    """Whether a process has a handler for SIGUSR1, or waits for it as srun does."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    except OSError:
        return False
    masks = (int(line.split()[1], 16) for line in lines if line.startswith(("SigCgt", "SigBlk")))
    return any(mask >> (signal.SIGUSR1 - 1) & 1 for mask in masks)


def listeners_below(pid: int, below: dict[int, list[int]]) -> list[int]:
    """The uppermost processes, from this one downward, that catch SIGUSR1."""
    if catches(pid):
        return [pid]
    return [found for child in below.get(pid, []) for found in listeners_below(child, below)]


def pump(source: int, to: int, keep: Callable[[bytes], bool]) -> None:
    """Copy a stream until its end; nobody to read it, or a full disk, is no reason to stop.

    Args:
        source: file descriptor to read.
        to: file descriptor to write.
        keep: whether a line, with its end, is copied.
    """
    rest, ended = b"", False
    while not ended:
        # What stands without an end of line, as a prompt, is shown after a moment, too.
        if select.select([source], [], [], 0.2 if rest else None)[0]:
            chunk = os.read(source, 65536)
            ended = not chunk
            *lines, rest = (rest + chunk).split(b"\n")
            text = b"".join(line + b"\n" for line in lines if keep(line + b"\n"))
        else:
            text, rest = (b"", rest) if b"widefov" in rest else (rest if keep(rest) else b"", b"")
        if ended and rest and keep(rest):
            text += rest
        write(to, text)


def write(to: int, text: bytes) -> None:
    """Write all of it; after an error nothing more arrives there."""
    while text:
        try:
            text = text[os.write(to, text) :]
        except BlockingIOError:  # noqa: PERF203  # one round is the rule
            select.select([], [to], [])
        except OSError:
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), to)


if __name__ == "__main__":
    sys.exit(Supervisor(sys.argv[1], sys.argv[2:], os.environ.get(MARK, "")).run())
