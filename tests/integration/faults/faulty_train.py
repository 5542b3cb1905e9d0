"""small_train.py with one fault, at one place, on one rank, once an image counter is reached.

FAULT=KIND:RANK:IMAGE FAULT_MARK=FILE python tests/integration/faults/faulty_train.py OPTIONS. The file gets the time at
which the fault came. `{rank}` in an option becomes the rank, so that ranks can have files of their own.

Kinds: `step`, `allreduce`, `validation`, `checkpoint` (SIGKILL there), `stop` (SIGSTOP in the allreduce, while the
others wait), `launcher` (SIGKILL to it), `full` (the disk of --log_dir), `readonly` (its folder of checkpoints),
`slide` (this rank's slides are cut short). Two are no faults: `usr1` (SIGUSR1 to this rank, as SLURM's steps get
it), `term` (SIGTERM to run_train.sh).
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

# As train.py does before TensorFlow is imported, which here comes first.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import psutil

import models
import train
from artifacts import checkpoints
from parallel import job
from parallel.comm import Comm
from parallel.launchers import launched_rank
from segmentation import validation
from tests.integration.small_train import small

KIND, RANK, IMAGE = os.environ.get("FAULT", "none:0:0").split(":")
PLACES = {"stop": "allreduce", "launcher": "allreduce", "full": "allreduce", "readonly": "allreduce"}
PLACES |= {"slide": "allreduce", "usr1": "allreduce", "term": "allreduce"}


class Fault:
    """When and what.

    Attributes:
        run: the run, once it is made.
    """

    def __init__(self) -> None:
        self.run: train.Run | None = None
        self.done = launched_rank() != int(RANK)

    def due(self, place: str) -> bool:
        """Whether it comes when something goes past this place now."""
        here = not self.done and PLACES.get(KIND, KIND) == place
        return here and self.run is not None and self.run.images >= int(IMAGE)

    def at(self, place: str) -> None:
        """Something went past this place; here the fault comes, if it is due."""
        if not self.due(place):
            return
        self.done = True
        if KIND in ("allreduce", "stop"):
            time.sleep(1)  # the others are waiting for this rank by now
        Path(os.environ["FAULT_MARK"]).write_text(str(time.time()), encoding="ascii")
        self.happen(self.run.opts)

    @staticmethod
    def happen(opts) -> None:
        """The fault itself."""
        if KIND == "launcher":
            os.kill(os.getppid(), signal.SIGKILL)
        elif KIND == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif KIND == "usr1":
            os.kill(os.getpid(), signal.SIGUSR1)
        elif KIND == "term":
            # bash runs the script; launchers and their daemons stand between.
            parents = psutil.Process().parents()
            script = next(p for p in parents if any(word.endswith("run_train.sh") for word in p.cmdline()[:3]))
            script.terminate()
        elif KIND == "full":
            fill(opts.run.log_dir / "filler")
        elif KIND == "readonly":
            # A mount of its own over it: what has open files cannot be made read-only.
            target = str(opts.run.log_dir / "checkpoints")
            subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", target], check=True)
        elif KIND == "slide":
            for path in opts.slides.slide_path.iterdir():
                os.truncate(path, 1000)
        else:
            os.kill(os.getpid(), signal.SIGKILL)


def fill(path: Path) -> None:
    """Write until the disk is full."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


fault = Fault()


class FaultyComm:
    """A communicator whose sums and means go past the fault."""

    def __init__(self, comm: Comm) -> None:
        self._comm = comm

    def __getattr__(self, name: str):
        return getattr(self._comm, name)

    def sum(self, tensors):
        """See `Comm.sum`."""
        return self._comm.sum(past("step", tensors))

    def mean(self, tensors, fp16: bool = False):
        """See `Comm.mean`."""
        return self._comm.mean(past("allreduce", tensors), fp16)


def past(place: str, tensors):
    """The same tensors, after the fault had its chance."""
    import tensorflow as tf

    with tf.control_dependencies([tf.py_function(lambda: fault.at(place), [], [])]):
        return [tf.identity(tensor) for tensor in tensors]


def faulty_connect(horovod: bool, real: Callable = job.connect):
    return FaultyComm(real(horovod))


class FaultyRun(train.Run):
    """A run that the fault knows of."""

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        fault.run = self


def faulty_write(path: Path, write, real: Callable = checkpoints.write_atomically) -> None:
    """Half of a checkpoints, then the fault."""

    def half(file) -> None:
        if fault.due("checkpoint"):
            file.write(b"PK" * 1000)
            file.flush()
        fault.at("checkpoint")
        write(file)

    real(path, half)


def faulty_keep(*arguments, real: Callable = validation._keep) -> None:
    fault.at("validation")
    real(*arguments)


if __name__ == "__main__":
    models.build = small
    job.connect = faulty_connect
    train.Run = FaultyRun
    checkpoints.write_atomically = faulty_write
    validation._keep = faulty_keep
    sys.exit(train.main([word.replace("{rank}", str(launched_rank())) for word in sys.argv[1:]]))
