"""train.py with a network of two convolutions in place of EfficientDet, which takes a minute to compile.

python tests/integration/small_train.py OPTIONS. Everything but the network is real.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

# As train.py does before TensorFlow is imported, which here comes first.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import models
import train
from tests.support.network import network


def small(name: str, img_size: int | tuple[int, int], classes: int, channels: int = 3, precision: str = "float32"):
    """Same frame as `models.build`."""
    with models.policy(precision):
        side = img_size if isinstance(img_size, int) else img_size[0]
        return network(classes, norm=True, side=side, channels=channels)


if __name__ == "__main__":
    models.build = small
    sys.exit(train.main())
