"""Runs one function over many slides: in this process, in several processes, or on the ranks of an MPI job.

Each worker gets the next slide when it has finished one, so that large slides do not hold up the rest.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, Protocol

from parallel.launchers import launched_by_mpi

_PR_SET_PDEATHSIG = 1  # of prctl(2)

Task = tuple[Any, ...]
TaskResult = tuple[int, Any]  # position of the task, and its result or the error that prevented it


class Executor(Protocol):
    """Runs tasks.

    Attributes:
        description: the workers, for the user.
    """

    description: str

    def run(self, function: Callable[..., Any], tasks: Sequence[Task]) -> Generator[TaskResult, None, None]:
        """Call `function(*task)` for every task; yields each result when it is ready, in any order."""


class Serial:
    """Runs tasks in this process, one after the other."""

    description = "one process"

    def run(self, function: Callable[..., Any], tasks: Sequence[Task]) -> Generator[TaskResult, None, None]:
        """See `Executor`."""
        for position, task in enumerate(tasks):
            yield position, function(*task)


class Processes:
    """Runs tasks in several processes.

    Processes are spawned, not forked: libvips and OpenCV have threads, which do not survive a fork. A process that dies
    (killed for lack of memory, or by a crash in a decoder) does not affect other slides: the slides in work at that
    time are tried again, each in a process of its own, which shows the one at fault.

    Args:
        count: number of processes.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self.description = f"{count} processes"

    def run(self, function: Callable[..., Any], tasks: Sequence[Task]) -> Generator[TaskResult, None, None]:
        """See `Executor`."""
        left = list(enumerate(tasks))
        while left:
            suspects: list[tuple[int, Task]] = []
            yield from self._until_broken(function, left, suspects)
            for position, task in suspects:
                yield position, _alone(function, task)

    def _until_broken(
        self, function: Callable[..., Any], left: list[tuple[int, Task]], suspects: list[tuple[int, Task]]
    ) -> Generator[TaskResult, None, None]:
        """Take tasks from the front of `left` until it is empty or a process dies; a death fills `suspects`."""
        with _pool(min(self._count, len(left))) as pool:
            running: dict[Future[Any], tuple[int, Task]] = {}
            while left or running:
                # Submit no more tasks than processes, so that few are suspects when one dies.
                while left and len(running) < self._count:
                    position, task = left.pop(0)
                    try:
                        running[pool.submit(function, *task)] = position, task
                    except BrokenProcessPool:
                        suspects += [(position, task), *running.values()]
                        return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    position, task = running.pop(future)
                    try:
                        result = future.result()
                    except BrokenProcessPool:
                        suspects += [(position, task), *running.values()]
                        return
                    yield position, result


class MpiRanks:
    """Runs tasks on the ranks of an MPI job: rank 0 assigns slides, the others work.

    Args:
        pool: pool of mpi4py.futures.
        count: number of ranks.
    """

    def __init__(self, pool: Any, count: int) -> None:
        self._pool = pool
        self.description = f"{count} MPI ranks ({count - 1} work, one assigns slides)"

    def run(self, function: Callable[..., Any], tasks: Sequence[Task]) -> Generator[TaskResult, None, None]:
        """See `Executor`."""
        positions = {self._pool.submit(function, *task): position for position, task in enumerate(tasks)}
        try:
            for future in as_completed(positions):
                yield positions[future], future.result()
        finally:
            for future in positions:
                future.cancel()


def on_all_ranks(run: Callable[[Executor], int], processes: int | None) -> int:
    """Call `run` once, with an executor for the processes or ranks there are; returns its exit code on every rank.

    Ranks: only rank 0 of an MPI job calls `run`; the others work for it until it returns.

    Args:
        run: the whole run; takes an executor and returns the exit code.
        processes: number of processes; None for one per CPU that this process may use. Must be None under MPI.

    Raises:
        ValueError: a number of processes was given under MPI, or no MPI library can be loaded.
    """
    if launched_by_mpi():
        world = _world()
        if world.size > 1:
            return _over_mpi(run, processes, world)
    count = len(os.sched_getaffinity(0)) if processes is None else processes
    return run(Serial() if count == 1 else Processes(count))


def _world() -> Any:
    """All ranks of the job."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise ValueError(
            f"started by an MPI launcher, but mpi4py cannot load an MPI library ({error}): load the module of that "
            "MPI, or start one process without a launcher"
        ) from error
    return MPI.COMM_WORLD


def _over_mpi(run: Callable[[Executor], int], processes: int | None, world: Any) -> int:
    from mpi4py.futures import MPICommExecutor

    if processes is not None:
        raise ValueError(f"--num_processes {processes} under MPI: its {world.size} ranks are the processes; omit it")
    code = 0
    with MPICommExecutor(world, root=0) as pool:
        if pool is not None:
            try:
                code = run(MpiRanks(pool, world.size))
            except BaseException:
                # Ranks: the others would wait for this one forever.
                traceback.print_exc()
                world.Abort(1)
    return int(world.bcast(code, root=0))


def _alone(function: Callable[..., Any], task: Task) -> Any:
    """The result of a task in a process of its own, or an error if the process died."""
    with _pool(1) as pool:
        try:
            return pool.submit(function, *task).result()
        except BrokenProcessPool:
            return RuntimeError("its process died: out of memory (see dmesg), or a damaged file crashed the decoder")


@contextmanager
def _pool(count: int) -> Generator[ProcessPoolExecutor, None, None]:
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_begin, initargs=(os.getpid(),))
    try:
        yield pool
    except BaseException:
        # Interrupted: shutting down the pool would wait for the slides in work.
        for child in multiprocessing.active_children():
            child.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(parent: int) -> None:
    """In a new process: end when the parent ends, even if it is killed; leave other requests to the parent."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
