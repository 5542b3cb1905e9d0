"""train.py with a network of two convolutions in place of EfficientDet, which takes a minute to compile.

python -m tests.integration.small_train OPTIONS, from the repository's folder. Everything but the network is real.
"""

import os
import sys

# As train.py does before TensorFlow is imported, which here comes first.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import models
import train
from tests.small import network


def small(name: str, img_size: int, classes: int):
    """Same frame as `models.build`."""
    return network(classes, norm=True, side=img_size)


if __name__ == "__main__":
    models.build = small
    sys.exit(train.main())
