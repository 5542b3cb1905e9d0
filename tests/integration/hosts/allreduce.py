"""In place of train.py: sums of SIZE float32 numbers over all ranks, ROUNDS times. `allreduce.py SIZE ROUNDS`."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from parallel.comm import connect


def main() -> None:
    import tensorflow as tf

    size, rounds = map(int, sys.argv[1:])
    comm = connect(horovod=True)
    for _ in range(rounds):
        # 1, 2, 4, ... by rank: the sum says that every rank is in it once.
        (total,) = comm.sum([tf.fill([size], float(2**comm.rank))])
    values = sorted(set(total.numpy().tolist()))
    every = comm.gather((os.uname().nodename, comm.local_rank, comm.local_size))
    if comm.rank == 0:
        print(f"sum {values} places {every}", flush=True)


if __name__ == "__main__":
    main()
