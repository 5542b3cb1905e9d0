"""What a rank computes on: its GPU, or its share of the node's cores."""

from __future__ import annotations

import os

from training.comm import Comm
from training.quiet import quiet_stderr

with quiet_stderr():
    import tensorflow as tf


def use_devices(comm: Comm) -> str:
    """Give this rank one GPU, or its share of the cores. Call before any TensorFlow operation.

    Threads: `OMP_NUM_THREADS` where the launcher set it; else the cores this process may run on, divided by the ranks
    of the node unless the launcher has pinned the process already.

    Returns:
        What the rank got, in words.
    """
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        # Ranks: one GPU each, by rank within the node
        mine = gpus[comm.local_rank % len(gpus)]
        tf.config.set_visible_devices(mine, "GPU")
        tf.config.experimental.set_memory_growth(mine, True)
        return f"GPU {comm.local_rank % len(gpus)} of {len(gpus)} visible here"
    threads = threads_per_rank(comm.local_size)
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    # two, so that the allreduce and the input pipeline are never queued behind a long kernel
    tf.config.threading.set_inter_op_parallelism_threads(2)
    return f"{threads} CPU thread{'s' if threads > 1 else ''} per rank"


def threads_per_rank(local_size: int) -> int:
    """CPU threads for one of `local_size` ranks on this node."""
    if os.environ.get("OMP_NUM_THREADS", "").isdigit():
        return max(1, int(os.environ["OMP_NUM_THREADS"]))
    allowed = len(os.sched_getaffinity(0))
    pinned = allowed < (os.cpu_count() or allowed)
    return allowed if pinned else max(1, allowed // local_size)
