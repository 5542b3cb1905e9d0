"""What a rank computes on: its GPU, or its share of the node's cores."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from parallel.comm import Comm
from system import gpus
from system.placement import threads_per_rank
from system.stderr import quiet_stderr

with quiet_stderr():
    import keras
    import tensorflow as tf


def use_devices(comm: Comm) -> str:
    """Give this rank one GPU, or its share of the cores (`placement.threads_per_rank`).

    Call before any TensorFlow operation, and so before any message between ranks. In a process where TensorFlow has
    started before, as after an earlier run, its devices and threads stay as they are.

    Returns:
        A description of what the rank got.
    """
    with quiet_stderr():
        usable = tf.config.list_physical_devices("GPU")
    _settle_keras()
    described = _use_gpu(usable, comm) if usable else _use_cores(comm)
    _start()
    return described


def _settle_keras() -> None:
    """Where Keras was imported before `system.start`, as in a notebook, it may have other settings.

    Raises:
        ValueError: it runs on another backend, which cannot be changed any more.
    """
    if keras.config.backend() != "tensorflow":
        raise ValueError(
            f"Keras runs on {keras.config.backend()} in this process, but TensorFlow is needed: set "
            "KERAS_BACKEND=tensorflow before keras is imported, in a new Python"
        )
    keras.config.set_floatx("float32")
    keras.config.set_image_data_format("channels_last")


def _use_gpu(usable: Sequence[Any], comm: Comm) -> str:
    # Ranks: one GPU each, by rank within the node
    mine = comm.local_rank % len(usable)
    try:
        tf.config.set_visible_devices(usable[mine], "GPU")
        tf.config.experimental.set_memory_growth(usable[mine], True)
    except RuntimeError:
        kept = [str(usable.index(gpu)) for gpu in tf.config.get_visible_devices("GPU")]
        return f"GPU {', '.join(kept)} of {len(usable)} visible here, as TensorFlow was started before"
    return f"GPU {mine} of {len(usable)} visible here"


def _use_cores(comm: Comm) -> str:
    threads = threads_per_rank(comm.local_size)
    threading = tf.config.threading
    try:
        threading.set_intra_op_parallelism_threads(threads)
        # two, so that the allreduce and the input pipeline are never queued behind a long kernel
        threading.set_inter_op_parallelism_threads(2)
    except RuntimeError:
        # 0 is TensorFlow's own choice: this variable, or all cores.
        threads = threading.get_intra_op_parallelism_threads() or int(os.environ.get("TF_NUM_INTRAOP_THREADS", "0"))
        threads = threads or len(os.sched_getaffinity(0))
    return f"{threads} CPU thread{'s' if threads > 1 else ''} per rank"


def _start() -> None:
    """Start TensorFlow and XLA, which describe themselves on stderr, once per process and at any log level."""
    with quiet_stderr():
        tf.function(lambda x: x + 1.0, jit_compile=True)(tf.constant(0.0))


def gpu_count() -> int:
    """GPUs that TensorFlow can use on this node."""
    with quiet_stderr():
        return len(tf.config.list_physical_devices("GPU"))


def own_gpu(comm: Comm) -> gpus.Gpu | None:
    """The GPU that this rank computes on, as the driver lists it; None on the CPU, or where it lists none."""
    return gpus.own(comm.local_rank) if gpu_count() else None


def sharers(comm: Comm) -> int:
    """Ranks of this node that use this rank's GPU, itself included; all of the node on the CPU."""
    usable = gpu_count() or 1
    return len(range(comm.local_rank % usable, comm.local_size, usable))


def unused_gpus(comm: Comm) -> str:
    """Why a GPU of this node is not used although nothing hides it, and what to do; empty if all is well.

    Only on the first rank of a node, for all of it. Takes seconds where TensorFlow is asked for its reason.
    """
    if comm.local_rank or not gpus.wanted():
        return ""
    usable = gpu_count()
    there, problem = gpus.listed()
    if problem and not usable:
        return f"nvidia-smi fails, so the CPU is used ({problem}); repair the driver, or give --no_cuda"
    seen, names = gpus.visible(there), os.environ.get("CUDA_VISIBLE_DEVICES")
    if there and not seen:
        numbers = ", ".join(sorted({str(gpu.index) for gpu in there}, key=int))
        return (
            f"CUDA_VISIBLE_DEVICES={names} names no GPU of this machine, which has {numbers}, so the CPU is used; "
            "correct it, or give --no_cuda"
        )
    if usable >= len(seen):
        return ""
    found = f"TensorFlow can use {usable or 'none'} of {len(seen)} GPU{'s' if len(seen) > 1 else ''}"
    return (
        f"{found}{'' if usable else ', so the CPU is used'} ({_reason()}); set up for GPUs by WIDEFOV_GPU=1 "
        "./setup_env.sh (the driver must know CUDA 12), or give --no_cuda"
    )


# What TensorFlow writes where it cannot use a GPU: libraries or driver that it does not find, a device that it refuses.
_TELLING = re.compile(
    r"could not load dynamic library|cannot dlopen|could not find cuda|failed call to cuinit|ignoring visible gpu|"
    r"kernel version .* does not match|unable to .* cuda",
    re.IGNORECASE,
)
_PREFIX = re.compile(r"^.*?\.(?:cc|h):\d+\] ")


def _reason() -> str:
    """TensorFlow's own reason for not using a GPU, from a process of its own: in this one its messages are off."""
    if not tf.test.is_built_with_cuda():
        return "this TensorFlow is built without CUDA"
    code = "import tensorflow as tf; tf.config.list_physical_devices('GPU')"
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "0"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False, timeout=120
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    told = [_PREFIX.sub("", line).strip() for line in done.stderr.splitlines() if _TELLING.search(line)]
    return "TensorFlow: " + (" | ".join(list(dict.fromkeys(told))[-3:])[:400] or "it gives no reason")
