"""Ways to run one function over many slides: in this process, in several, or on the ranks of an MPI job.

All of them give out one slide after the other to whoever is free, so that large slides do not hold up the rest.
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
TaskResult = tuple[int, Any]  # position of the task, and its result or the error that kept it from giving one


class Executor(Protocol):
    """Runs tasks.

    Attributes:
        words: what it runs on, for the user.
    """

    words: str

    def run(self, function: Callable[..., Any], tasks: Sequence[Task]) -> Generator[TaskResult, None, None]:
        """Call `function(*task)` for every task; yields as they end, in any order."""


class Serial:
    """In this process, one after the other."""

    words = "one process"

    def run(self, function: Callable[..., Any], tasks: Sequence[Task]) -> Generator[TaskResult, None, None]:
        """See `Executor`."""
        for position, task in enumerate(tasks):
            yield position, function(*task)


class Processes:
    """In processes of their own.

    They are started afresh (spawn), not forked: libvips and OpenCV have threads, which a fork would leave behind half
    dead. A process that dies (killed for its memory, or a decoder crashed) costs no other slide: those in work at that
    time are tried again, each alone, which tells whose fault it was.

    Args:
        count: number of processes.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self.words = f"{count} processes"

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
        """Take tasks from the front of `left` until none is left or a process died; then fills `suspects`."""
        with _pool(min(self._count, len(left))) as pool:
            running: dict[Future[Any], tuple[int, Task]] = {}
            while left or running:
                # No more than there are processes, so that few are suspects when one dies.
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
    """On the ranks of an MPI job; rank 0 gives the slides out and the others work.

    Args:
        pool: of mpi4py.futures.
        count: number of ranks.
    """

    def __init__(self, pool: Any, count: int) -> None:
        self._pool = pool
        self.words = f"{count} MPI ranks ({count - 1} work, one gives out slides)"

    def run(self, function: Callable[..., Any], tasks: Sequence[Task]) -> Generator[TaskResult, None, None]:
        """See `Executor`."""
        positions = {self._pool.submit(function, *task): position for position, task in enumerate(tasks)}
        try:
            for future in as_completed(positions):
                yield positions[future], future.result()
        finally:
            for future in positions:
                future.cancel()


def on_all_ranks(story: Callable[[Executor], int], processes: int | None) -> int:
    """Run `story` once, with whatever there is to work with; returns its exit code, on every rank.

    Ranks: only rank 0 of an MPI job runs the story; the others work for it until it ends.

    Args:
        story: takes an executor.
        processes: how many; None for one per CPU this process may use. Without meaning under MPI.

    Raises:
        ValueError: a number of processes was given to an MPI job, or there is no MPI library for one.
    """
    if launched_by_mpi():
        world = _world()
        if world.size > 1:
            return _over_mpi(story, processes, world)
    count = len(os.sched_getaffinity(0)) if processes is None else processes
    return story(Serial() if count == 1 else Processes(count))


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


def _over_mpi(story: Callable[[Executor], int], processes: int | None, world: Any) -> int:
    from mpi4py.futures import MPICommExecutor

    if processes is not None:
        raise ValueError(
            f"--num_processes {processes} under MPI: its {world.size} ranks are the processes; leave it out"
        )
    code = 0
    with MPICommExecutor(world, root=0) as pool:
        if pool is not None:
            try:
                code = story(MpiRanks(pool, world.size))
            except BaseException:
                # Ranks: the others would wait for this one.
                traceback.print_exc()
                world.Abort(1)
    return int(world.bcast(code, root=0))


def _alone(function: Callable[..., Any], task: Task) -> Any:
    """The result of a task in a process of its own, or the error that it died."""
    with _pool(1) as pool:
        try:
            return pool.submit(function, *task).result()
        except BrokenProcessPool:
            return RuntimeError(
                "the process that worked on it died: out of memory (see dmesg), or a damaged file crashed its decoder"
            )


@contextmanager
def _pool(count: int) -> Generator[ProcessPoolExecutor, None, None]:
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_begin, initargs=(os.getpid(),))
    try:
        yield pool
    except BaseException:
        # Interrupted: whoever is in the middle of a slide would be waited for.
        for child in multiprocessing.active_children():
            child.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(parent: int) -> None:
    """In a new process: end with the one that started it, even when that is killed; leave Ctrl-C to it."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
