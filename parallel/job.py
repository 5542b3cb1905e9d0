"""What a run says, and how it ends when it does not end well: one message, and an exit code all ranks agree on."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from tqdm import tqdm

from parallel.comm import AgreedError, Comm, abort, broke, connect
from parallel.heartbeat import GRACE_S
from parallel.launchers import is_first_rank, program

COME_TOGETHER = -1  # in place of an exit code: ranks of an elastic job have come or gone


def connected(horovod: bool) -> Comm | None:
    """The ranks of this job; None, after a line that says why, where they cannot work together."""
    try:
        return connect(horovod)
    except ValueError as error:
        # Ranks: nobody is connected yet, so the launcher's word on who is rank 0 must do.
        if is_first_rank():
            print(f"{program()}: error: {error}", file=sys.stderr)  # noqa: T201  # on behalf of an entry script
        return None


def speaker(comm: Comm) -> Callable[..., None]:
    """A function that prints lines on rank 0, above a progress bar."""

    def say(*lines: str) -> None:
        if comm.rank == 0:
            for line in lines:
                tqdm.write(line)
            sys.stdout.flush()

    return say


def guarded(action: Callable[[], int], comm: Comm, out_of_memory: Callable[[], str], elastic: bool = False) -> int:
    """The exit code of `action`, which every rank takes part in; errors end in a line that says what to do.

    In an elastic job `COME_TOGETHER` where another rank has ended.

    Args:
        action: the run.
        comm: the ranks.
        out_of_memory: says what to do where there is too little of it.
        elastic: whether ranks may come and go.
    """
    try:
        return action()
    except (ValueError, OSError) as error:
        # Ranks: an AgreedError is everybody's, so all leave; any other is this rank's alone (a slide went bad in
        # mid-run), and the others must not wait for it in an allreduce.
        if comm.size > 1 and not isinstance(error, AgreedError):
            abort(comm, f"error: {error}", 2)
        if comm.rank == 0:
            tqdm.write(f"{program()}: error: {error}", file=sys.stderr)
        return 2
    except Exception as error:
        if type(error).__name__ in ("ResourceExhaustedError", "MemoryError"):
            abort(comm, f"out of memory: {str(error).splitlines()[0]}. {out_of_memory()}", 2)
        if elastic and broke(error):
            tqdm.write(f"{program()}: rank {comm.rank} of {comm.size}: another rank has ended", file=sys.stderr)
            return COME_TOGETHER
        if comm.size == 1:
            raise
        if broke(error):
            # Another rank's end breaks the connections of all; who is to blame says so first.
            time.sleep(GRACE_S)
        abort(comm, f"{type(error).__name__}: {error}")
