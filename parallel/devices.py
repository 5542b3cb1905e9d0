"""What a rank computes on: its GPU, or its share of the node's cores."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from parallel.comm import Comm
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
        gpus = tf.config.list_physical_devices("GPU")
    _settle_keras()
    described = _use_gpu(gpus, comm) if gpus else _use_cores(comm)
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


def _use_gpu(gpus: Sequence[Any], comm: Comm) -> str:
    # Ranks: one GPU each, by rank within the node
    mine = comm.local_rank % len(gpus)
    try:
        tf.config.set_visible_devices(gpus[mine], "GPU")
        tf.config.experimental.set_memory_growth(gpus[mine], True)
    except RuntimeError:
        kept = [str(gpus.index(gpu)) for gpu in tf.config.get_visible_devices("GPU")]
        return f"GPU {', '.join(kept)} of {len(gpus)} visible here, as TensorFlow was started before"
    return f"GPU {mine} of {len(gpus)} visible here"


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
    return len(tf.config.list_physical_devices("GPU"))
