"""predict.py for what small_train.py trained. python tests/integration/small_predict.py OPTIONS.

SLOWLY=S: with S seconds more for every window, so that a test can stop it in time.
"""

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import small_train  # beside this file; sets what TensorFlow reads when it is imported

import models
import predict
from inference import predict as runs

read_ahead = runs.read_ahead


def slowly(*arguments):
    """Same frame as `inference.reading.read_ahead`."""
    for one in read_ahead(*arguments):
        time.sleep(float(os.environ["SLOWLY"]))
        yield one


if __name__ == "__main__":
    models.build = small_train.small
    if "SLOWLY" in os.environ:
        runs.read_ahead = slowly
    sys.exit(predict.main())
