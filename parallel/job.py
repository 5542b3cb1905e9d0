"""How a program of one or many ranks starts and ends; the programs share it, each keeps its own story.

    def main(argv=None):
        opts = train_options(argv)
        return job.run(lambda ranks: Run(opts, ranks).go(), job.Settings(opts.machine.horovod, ...))

`run` sets the environment before TensorFlow is imported, connects the ranks, prepares heartbeat and preemption, turns
errors into one message and an exit code that all ranks agree on, and reconnects the ranks of an elastic job. It can be
called several times in one process, and in a thread: signal handlers and environment are restored.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TextIO

from parallel.comm import AgreedError, Comm, MemoryRefusedError, SoloComm, abort, broke, connect, together
from parallel.heartbeat import GRACE_S, Heartbeat
from parallel.launchers import (
    ends_with_first_failure,
    is_first_rank,
    launched_rank,
    launched_size,
    program,
    supervised,
    tell_supervisor,
)
from parallel.preemption import EXIT_CODE, Preemption
from system import gpus
from system.allocator import SYSTEM_ALLOCATOR, give_back_memory
from system.folder_lock import FolderLock
from system.placement import describe, faults, placement

NO_MEMORY = 12  # exit code, ENOMEM of errno.h: with other options the program would run
RECONNECT = -1  # in place of an exit code: ranks of an elastic job have come or gone
ENVIRONMENT = {
    "TF_CPP_MIN_LOG_LEVEL": "3",  # real errors come as exceptions
    "VIPS_CONCURRENCY": "1",  # the samplers are the parallelism; vips would add threads of its own
    **gpus.ORDER,
}


class Log(Protocol):
    """Prints lines on rank 0, above a progress bar."""

    def __call__(self, *lines: str) -> None:
        """Print the lines."""


@dataclass(frozen=True)
class Settings:
    """How a program uses ranks and machine.

    Attributes:
        horovod: join the processes that a launcher started.
        no_cuda: hide the GPUs from TensorFlow.
        stall_timeout: silence after which a rank counts as dead, s; 0: nothing is watched.
        elastic: ranks may come and go.
        give_back_memory: see `system.allocator`.
        environment: further variables for libraries, where the user has not set them.
    """

    horovod: bool = True
    no_cuda: bool = False
    stall_timeout: float = 0.0
    elastic: bool = False
    give_back_memory: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)


class Ranks:
    """What a story gets of its job.

    Attributes:
        comm: the ranks.
        heartbeat: to be started by the story, on every rank.
        preemption: requests to stop, once the story listens to them.
        log: prints lines on rank 0.
    """

    def __init__(self, comm: Comm, heartbeat: Heartbeat, preemption: Preemption) -> None:
        self.comm = comm
        self.heartbeat = heartbeat
        self.preemption = preemption
        self.log = logger(comm)
        # Ranks: Horovod has loaded TensorFlow, and the first message between ranks fixes its devices and threads. A
        # single rank sends no message, and its errors need not wait seconds for TensorFlow.
        self._devices = "" if isinstance(comm, SoloComm) else self._choose()
        self._examined = False

    def listen(self) -> None:
        """Take requests to stop from now on, on every rank; the story must look at them."""
        self.preemption.listen()
        # Ranks: launch/supervise.py passes on a request only when all of them listen.
        self.comm.gather(None)
        if self.comm.rank == 0:
            tell_supervisor("listening")

    @contextmanager
    def holding(self, folder: Path | None, option: str) -> Iterator[None]:
        """Hold the lock on an output folder; every rank must call it.

        Args:
            folder: the folder; None: nothing is locked.
            option: the command-line option that named it.

        Raises:
            AgreedError: another run works in the folder, or it cannot be written.
        """
        with ExitStack() as held:
            # Ranks: one holds the folder for all.
            lock = FolderLock(folder, option) if folder is not None and self.comm.rank == 0 else None
            together(self.comm, lambda: lock and held.enter_context(lock))
            self.log(*(f"note        {note}" for note in (lock.notes if lock else ())))
            yield

    def requests(self) -> str:
        """The signals by which any of the ranks was asked to stop; every rank must call it."""
        return ", ".join(sorted(set(self.comm.gather(self.preemption.requested)) - {""}))

    def requests_at_start(self) -> str:
        """The same before the first step of a training, whose graph takes long to build; logged."""
        requests = self.requests()
        if requests:
            self.log(f"preempted   {requests} before the first step: nothing was to be saved")
        return requests

    def use_devices(self) -> str:
        """Import TensorFlow and give this rank its GPU or its share of the cores; returns a description.

        After everything that can fail without TensorFlow. Every rank must call it: GPUs of any node that are not used
        are logged.
        """
        self._devices = self._devices or self._choose()
        if not self._examined:
            from parallel.devices import unused_gpus

            self._examined = True
            found = self.comm.gather((socket.gethostname(), unused_gpus(self.comm)))
            self.log(*(f"WARNING     {host}: {problem}" for host, problem in found if problem))
        return self._devices

    def gpu(self) -> gpus.Gpu | None:
        """The GPU that this rank computes on; None on the CPU. Imports TensorFlow only where the driver lists a GPU."""
        if gpus.own(self.comm.local_rank) is None:
            return None
        from parallel.devices import own_gpu

        self._devices = self._devices or self._choose()
        return own_gpu(self.comm)

    def _choose(self) -> str:
        from parallel.devices import use_devices

        return use_devices(self.comm)


def run(
    story: Callable[[Ranks], int],
    settings: Settings,
    check: Callable[[], object] = lambda: None,
    out_of_memory: Callable[[Comm], str] = lambda _: "",
) -> int:
    """Run a story on all ranks of this job; returns its exit code, the same on all ranks.

    Args:
        story: every rank takes part in it; raises ValueError or OSError for the user's errors.
        settings: how it uses ranks and machine.
        check: finds the user's errors that need no other rank, before the seconds that connecting takes.
        out_of_memory: advice where there is too little memory.
    """
    with environment(settings), Preemption() as preemption:
        try:
            # Ranks: one checks, and only where the launcher then ends the others, which are connecting. With one rank
            # the story itself is quick.
            if launched_size() > 1 and launched_rank() == 0 and ends_with_first_failure():
                check()
            comm = connect(settings.horovod)
        except (ValueError, OSError) as error:
            # Ranks: nobody is connected yet, so the launcher's environment says who is rank 0.
            if is_first_rank():
                write(f"{program()}: error: {error}", sys.stderr)
            return 2
        while True:
            # Ranks: an elastic job notices missing ranks by itself, and continues without them.
            with Heartbeat(comm, 0 if settings.elastic else settings.stall_timeout) as heartbeat:
                ranks = Ranks(comm, heartbeat, preemption)
                code = exit_code(lambda: story(ranks), comm, lambda: out_of_memory(comm), settings.elastic)  # noqa: B023
            if code == EXIT_CODE and supervised():
                # Launchers report every other code as a failure.
                if comm.rank == 0:
                    tell_supervisor("left")
                return 0
            if code != RECONNECT:
                return code
            comm = comm.reconnect()
            preemption.reconnected()


def memory_of(comm: Comm) -> tuple[int, gpus.Gpu | None]:
    """How many ranks share this rank's memory, and its GPU; None: the machine's memory. Imports TensorFlow."""
    from parallel.devices import own_gpu, sharers

    return sharers(comm), own_gpu(comm)


@contextmanager
def environment(settings: Settings) -> Iterator[None]:
    """Variables that libraries read when they are imported; those that were not set are removed again at the end."""
    before = dict(os.environ)
    if settings.give_back_memory:
        give_back_memory()
    added = {name: value for name, value in {**ENVIRONMENT, **settings.environment}.items() if name not in os.environ}
    os.environ.update(added)
    if settings.no_cuda:
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    try:
        yield
    finally:
        for name in [*added, "CUDA_VISIBLE_DEVICES", SYSTEM_ALLOCATOR]:
            if name in before:
                os.environ[name] = before[name]
            else:
                os.environ.pop(name, None)


def write(line: str, file: TextIO | None = None) -> None:
    """Print a line, above a progress bar where there may be one."""
    # tqdm takes a tenth of a second to import, which an early error need not wait for.
    bars = sys.modules.get("tqdm")
    (bars.tqdm.write if bars else print)(line, file=file)


def logger(comm: Comm) -> Log:
    """A function that prints lines on rank 0, above a progress bar."""

    def log(*lines: str) -> None:
        if comm.rank == 0:
            for line in lines:
                write(line)
            sys.stdout.flush()

    return log


def pinning(comm: Comm) -> list[str]:
    """Which CPUs every rank may use, and what is wrong with that, in lines for the start of a run; on every rank."""
    everybody = comm.gather(placement(comm.rank, comm.local_size))
    return [f"pinning     {describe(everybody)}", *(f"WARNING     {fault}" for fault in faults(everybody))]


def exit_code(action: Callable[[], int], comm: Comm, out_of_memory: Callable[[], str], elastic: bool = False) -> int:
    """The exit code of `action`, which every rank takes part in; errors end in a line that says what to do.

    In an elastic job `RECONNECT` where another rank has ended.

    Args:
        action: the story.
        comm: the ranks.
        out_of_memory: advice where there is too little memory.
        elastic: whether ranks may come and go.
    """
    try:
        return action()
    except (ValueError, OSError) as error:
        # Ranks: an AgreedError is raised on all, so all return; any other is this rank's alone (a slide was damaged
        # during the run), and the others must not wait for it in an allreduce.
        if comm.size > 1 and not isinstance(error, AgreedError):
            abort(comm, f"error: {error}", 2)
        if comm.rank == 0:
            write(f"{program()}: error: {error}", sys.stderr)
        return NO_MEMORY if isinstance(error, MemoryRefusedError) else 2
    except Exception as error:
        if type(error).__name__ in ("ResourceExhaustedError", "MemoryError"):
            message = f"out of memory: {(str(error).splitlines() or ['no more'])[0]}. {out_of_memory()}"
            if comm.size > 1:
                abort(comm, message, NO_MEMORY)
            write(f"{program()}: {message}", sys.stderr)
            return NO_MEMORY
        if elastic and broke(error):
            write(f"{program()}: rank {comm.rank} of {comm.size}: another rank has ended", sys.stderr)
            return RECONNECT
        if comm.size == 1:
            raise
        if broke(error):
            # The end of a rank breaks the connections of all; the rank that caused it reports first.
            time.sleep(GRACE_S)
        abort(comm, f"{type(error).__name__}: {error}")
