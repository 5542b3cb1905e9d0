"""What a rank computes on: its GPU, or its share of the node's cores."""

from __future__ import annotations

import os

from parallel.comm import Comm
from system.placement import threads_per_rank
from system.stderr import quiet_stderr

with quiet_stderr():
    import tensorflow as tf


def use_devices(comm: Comm) -> str:
    """Give this rank one GPU, or its share of the cores (`placement.threads_per_rank`).

    Call before any TensorFlow operation, and so before any message between ranks. In a process where TensorFlow has
    started before, as after an earlier run, its devices and threads stay as they are.

    Returns:
        A description of what the rank got.
    """
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        # Ranks: one GPU each, by rank within the node
        mine = comm.local_rank % len(gpus)
        try:
            tf.config.set_visible_devices(gpus[mine], "GPU")
            tf.config.experimental.set_memory_growth(gpus[mine], True)
        except RuntimeError:
            kept = [str(gpus.index(gpu)) for gpu in tf.config.get_visible_devices("GPU")]
            return f"GPU {', '.join(kept)} of {len(gpus)} visible here, as TensorFlow was started before"
        return f"GPU {mine} of {len(gpus)} visible here"
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


def gpu_count() -> int:
    """GPUs that TensorFlow can use on this node."""
    return len(tf.config.list_physical_devices("GPU"))
