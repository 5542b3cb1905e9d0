"""The communicator: the only import of Horovod, and the same interface with one rank and no Horovod.

`connect` returns a `Comm`; it is passed on as an argument. Every rank must make the same calls in the same order.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from parallel.launchers import is_elastic, launched_size, program
from system.stderr import quiet_stderr


class AgreedError(ValueError):
    """An error that every rank raises, with the same message: all can exit in good order."""


class MemoryRefusedError(AgreedError):
    """What was asked for does not fit into memory."""


Result = TypeVar("Result")
Array = TypeVar("Array", bound=NDArray[Any])

# Names of tensors: gradients, statistics, and with --sync_bn five for each layer; the largest network has some 5000.
CACHED_TENSORS = 16384


class Comm(Protocol):
    """What training needs of the other ranks. Ranks count from 0; `local_*` counts within a node."""

    rank: int
    size: int
    local_rank: int
    local_size: int

    def mean(self, tensors: Sequence[Any], fp16: bool = False) -> list[Any]:
        """Mean of each tensor over ranks, usable inside `tf.function`; fp16 halves the bytes on the wire."""
        ...

    def sum(self, tensors: Sequence[Any]) -> list[Any]:
        """Sum of each tensor over ranks, usable inside `tf.function`."""
        ...

    def sum_array(self, array: Array) -> Array:
        """Sum of a NumPy array over ranks, exact for integers."""
        ...

    def broadcast(self, variables: Sequence[Any]) -> None:
        """Give all ranks rank 0's values of TensorFlow variables."""
        ...

    def gather(self, value: Any) -> list[Any]:
        """One picklable value per rank, in rank order, on every rank."""
        ...

    def on_hosts_changed(self, listener: Callable[[], None]) -> None:
        """Elastic jobs: have the listener called, in a thread, when hosts come or are to go; on rank 0 alone."""
        ...

    def reconnect(self) -> Comm:
        """Elastic jobs: join the ranks there are now."""
        ...


class SoloComm:
    """One rank: every collective is the identity."""

    rank, size, local_rank, local_size = 0, 1, 0, 1

    def mean(self, tensors: Sequence[Any], fp16: bool = False) -> list[Any]:  # noqa: ARG002  # nothing is sent
        """See `Comm.mean`."""
        return list(tensors)

    def sum(self, tensors: Sequence[Any]) -> list[Any]:
        """See `Comm.sum`."""
        return list(tensors)

    def sum_array(self, array: Array) -> Array:
        """See `Comm.sum_array`."""
        return array

    def broadcast(self, variables: Sequence[Any]) -> None:
        """See `Comm.broadcast`."""

    def gather(self, value: Any) -> list[Any]:
        """See `Comm.gather`."""
        return [value]

    def on_hosts_changed(self, listener: Callable[[], None]) -> None:
        """See `Comm.on_hosts_changed`: never."""

    def reconnect(self) -> Comm:
        """See `Comm.reconnect`."""
        return self


class HorovodComm:
    """Ranks joined by Horovod over MPI, Gloo or NCCL."""

    def __init__(self, hvd: Any) -> None:
        self._hvd = hvd
        self.rank: int = hvd.rank()
        self.size: int = hvd.size()
        self.local_rank: int = hvd.local_rank()
        self.local_size: int = hvd.local_size()

    def mean(self, tensors: Sequence[Any], fp16: bool = False) -> list[Any]:
        """See `Comm.mean`."""
        compression = self._hvd.Compression.fp16 if fp16 else self._hvd.Compression.none
        return list(self._hvd.grouped_allreduce(list(tensors), op=self._hvd.Average, compression=compression))

    def sum(self, tensors: Sequence[Any]) -> list[Any]:
        """See `Comm.sum`."""
        return list(self._hvd.grouped_allreduce(list(tensors), op=self._hvd.Sum))

    def sum_array(self, array: Array) -> Array:
        """See `Comm.sum_array`."""
        total: Array = np.asarray(self._hvd.allreduce(array, op=self._hvd.Sum)).astype(array.dtype)  # type: ignore[assignment]
        return total

    def broadcast(self, variables: Sequence[Any]) -> None:
        """See `Comm.broadcast`."""
        self._hvd.broadcast_variables(list(variables), root_rank=0)

    def gather(self, value: Any) -> list[Any]:
        """See `Comm.gather`."""
        return list(self._hvd.allgather_object(value))

    def on_hosts_changed(self, listener: Callable[[], None]) -> None:
        """See `Comm.on_hosts_changed`."""
        from horovod.common.elastic import notification_manager

        notification_manager.init()
        # Horovod itself removes none, and one of an earlier connection would be called again.
        notification_manager._listeners.clear()
        notification_manager.register_listener(_HostListener(listener))

    def reconnect(self) -> HorovodComm:
        """See `Comm.reconnect`; Horovod ends a process here whose host is to go."""
        self._hvd.shutdown()
        self._hvd.init()
        return HorovodComm(self._hvd)


class _HostListener:
    """What Horovod's notification manager calls."""

    def __init__(self, listener: Callable[[], None]) -> None:
        self._listener = listener

    def on_hosts_updated(self, *_: object) -> None:
        self._listener()


def broke(error: Exception) -> bool:
    """Whether the connection between ranks broke: some rank has ended."""
    return type(error).__name__ == "HorovodInternalError" or "Horovod" in str(error)


def connect(horovod: bool) -> Comm:
    """Join the ranks of this job.

    Without a launcher this is one rank, and Horovod is not imported.

    Raises:
        ValueError: several processes were started but cannot work together (Horovod switched off, not installed, or
            built for another MPI than the launcher's). Continuing would train as many models as there are processes.
    """
    launched = launched_size()
    if launched == 1 and not is_elastic():
        return SoloComm()
    if not horovod:
        raise ValueError(
            f"--no-horovod under a launcher that started {launched} processes: start one, or drop the flag"
        )
    try:
        with quiet_stderr():  # it loads TensorFlow
            import horovod.tensorflow as hvd
    except ImportError as error:
        raise ValueError(
            f"{launched} processes were started, but Horovod cannot be imported ({error}). "
            "Run ./setup_env.sh, or load the cluster's Horovod module"
        ) from error
    # Ranks: Horovod remembers this many tensors by name and negotiates the others again in every step; its default of
    # 1024 is less than EfficientDet-D0's with --sync_bn.
    os.environ.setdefault("HOROVOD_CACHE_CAPACITY", str(CACHED_TENSORS))
    # Ranks: Horovod's thread asks the others every millisecond what is ready, and Open MPI waits for them by spinning.
    # A rank pinned to as many cores as it has threads would lose a quarter of them; so waiting threads yield.
    os.environ.setdefault("OMPI_MCA_mpi_yield_when_idle", "1")
    hvd.init()
    # An elastic job may have changed since its launcher counted.
    if hvd.size() != launched and not is_elastic():
        raise ValueError(
            f"the launcher started {launched} processes, but Horovod sees {hvd.size()}: it was built for another MPI. "
            "Use the mpirun or mpiexec.hydra of the MPI that Horovod was built with (./setup_env.sh says which)"
        )
    return HorovodComm(hvd)


def together(comm: Comm, action: Callable[[], Result]) -> Result:
    """Run a step that can fail for user-level reasons on all ranks, and fail on all ranks if any failed.

    Without this, a rank that stops early would leave the others waiting in their next collective call.

    Raises:
        AgreedError: on every rank, with the message of the lowest rank that failed.
    """
    failure: str | None = None
    result: Result | None = None
    try:
        result = action()
    except (ValueError, OSError) as error:
        failure = str(error) or type(error).__name__
    failures = comm.gather(failure)
    # Ranks: all raise the same, so all exit with the same code.
    for rank, message in enumerate(failures):
        if message is not None:
            everywhere = all(other == message for other in failures)
            raise AgreedError(message if everywhere else f"rank {rank}: {message}")
    return result  # type: ignore[return-value]


def abort(comm: Comm, message: str, code: int = 1) -> NoReturn:
    """End this process at once; the launcher then ends the other ranks.

    For errors that only this rank knows of, during a step, while the others wait in an allreduce: an orderly exit would
    wait for them in turn.
    """
    # The launcher may be gone, and the pipes with it.
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        # on a line of its own: rank 0's progress bar may stand on the current one
        print(f"\n{program()}: rank {comm.rank} of {comm.size}: {message}", file=sys.stderr, flush=True)  # noqa: T201
    os._exit(code)
