"""What a rank computes on: its GPU, or its share of the node's cores."""

from __future__ import annotations

from parallel.comm import Comm
from system.placement import describe, faults, placement, threads_per_rank
from system.stderr import quiet_stderr

with quiet_stderr():
    import tensorflow as tf


def use_devices(comm: Comm) -> str:
    """Give this rank one GPU, or its share of the cores. Call before any TensorFlow operation.

    Threads: `placement.threads_per_rank`.

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


def pinning(comm: Comm) -> list[str]:
    """Which CPUs every rank may use, and what is wrong with that, in lines for the start of a run.

    Call on every rank, after `use_devices`.
    """
    everybody = comm.gather(placement(comm.rank, comm.local_size))
    return [f"pinning     {describe(everybody)}", *(f"WARNING     {fault}" for fault in faults(everybody))]


def gpu_count() -> int:
    """GPUs that TensorFlow can use on this node."""
    return len(tf.config.list_physical_devices("GPU"))
