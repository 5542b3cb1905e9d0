"""Processes that a benchmark starts on this machine, each on its own processors, and talks to."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
_ADDRESS, _KEY = "WIDEFOV_BENCHMARK_ADDRESS", "WIDEFOV_BENCHMARK_KEY"
# Starting, compiling and the first step of a large network on a slow machine.
PATIENCE_S = 900.0


def launcher(ranks: int) -> list[str]:
    """The words that start this many ranks here, not bound: the ranks pin themselves.

    Raises:
        ValueError: there is no launcher on PATH.
    """
    if mpirun := shutil.which("mpirun"):
        text = subprocess.run([mpirun, "--version"], capture_output=True, text=True, check=False).stdout
        if any(name in text for name in ("Open MPI", "OpenRTE", "PRRTE")):
            return [mpirun, "--oversubscribe", "--bind-to", "none", "-np", str(ranks)]
    if hydra := shutil.which("mpiexec.hydra"):
        return [hydra, "-np", str(ranks)]
    raise ValueError("neither Open MPI's mpirun nor mpiexec.hydra on PATH: activate the environment first")


def environment(threads: int) -> dict[str, str]:
    """This environment with this number of threads per process; root may start ranks."""
    given = {"OMP_NUM_THREADS": str(threads), "TF_NUM_INTRAOP_THREADS": str(threads), "TF_CPP_MIN_LOG_LEVEL": "3"}
    return os.environ | given | {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}


def pin(place: int, processors: int) -> None:
    """Keep this process to its own processors; call before TensorFlow makes threads.

    Args:
        place: 0, 1 ... among the processes that run at the same time.
        processors: of each.
    """
    allowed = sorted(os.sched_getaffinity(0))
    mine = allowed[place * processors : (place + 1) * processors]
    if len(mine) < processors:
        raise ValueError(f"process {place} wants {processors} processors of its own, but there are {len(allowed)}")
    os.sched_setaffinity(0, mine)


class Group:
    """Processes started by one command, which answer the same requests at the same time.

    Args:
        command: starts them; each calls `serve`.
        size: how many call.
        threads: of each.
    """

    def __init__(self, command: Sequence[str], size: int, threads: int) -> None:
        self._folder = tempfile.TemporaryDirectory()
        address, key = f"{self._folder.name}/socket", secrets.token_bytes(16)
        with Listener(address, "AF_UNIX", backlog=size, authkey=key) as listener:
            given = {_ADDRESS: address, _KEY: key.hex()}
            words = [sys.executable, str(ROOT / "launch" / "die_with_parent.py"), *command]
            self._process = subprocess.Popen(
                words, cwd=ROOT, env=environment(threads) | given, stdin=subprocess.DEVNULL, start_new_session=True
            )
            # A process that ends without calling must not be waited for: its end interrupts the wait.
            previous = signal.signal(signal.SIGCHLD, self._ended)
            try:
                self._connections = [listener.accept() for _ in range(size)]
            finally:
                signal.signal(signal.SIGCHLD, previous)
        self._pids = [connection.recv() for connection in self._connections]

    def _ended(self, *_: Any) -> None:
        if self._process.poll() is not None:
            raise RuntimeError(f"a measured process ended with code {self._process.returncode}")

    def send(self, **request: Any) -> None:
        """Ask all processes for something: `do` is its name, the rest its arguments."""
        for connection in self._connections:
            connection.send(request)

    def answers(self) -> list[Any]:
        """One answer per process to what was sent, in no particular order.

        Raises:
            RuntimeError: a process ended, or does not answer.
        """
        return [_answer(connection) for connection in self._connections]

    def ask(self, **request: Any) -> list[Any]:
        """`send` and wait for the `answers`."""
        self.send(**request)
        return self.answers()

    def pause(self, stopped: bool) -> None:
        """Stop the processes so that they take no time from others, or let them go on."""
        for pid in self._pids:
            os.kill(pid, signal.SIGSTOP if stopped else signal.SIGCONT)

    def end(self) -> None:
        """End the processes, whatever state they are in."""
        with suppress(OSError):
            self.pause(False)
        for connection in self._connections:
            with suppress(OSError):
                connection.send(None)
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._folder.cleanup()


def _answer(connection: Connection) -> Any:
    try:
        if connection.poll(PATIENCE_S):
            return connection.recv()
    except EOFError:
        raise RuntimeError("a measured process ended before it answered") from None
    raise RuntimeError(f"a measured process did not answer within {PATIENCE_S:.0f} s")


def serve(answers: dict[str, Any]) -> None:
    """Answer the requests of `Group.ask` until the group is ended.

    Args:
        answers: name -> function of the request's arguments.
    """
    with Client(os.environ[_ADDRESS], "AF_UNIX", authkey=bytes.fromhex(os.environ[_KEY])) as connection:
        connection.send(os.getpid())
        while (request := connection.recv()) is not None:
            connection.send(answers[request.pop("do")](**request))


def python(module: str, *words: str) -> list[str]:
    """A command that runs a module with this interpreter."""
    return [sys.executable, "-m", module, *words]
