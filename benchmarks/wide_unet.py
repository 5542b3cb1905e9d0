"""train.py with a U-Net that sees far and costs little: for studies of the field of view.

python benchmarks/wide_unet.py OPTIONS of train.py. Everything but the network is that of train.py.

The stem brings the image to an eighth of its side, the U-Net works at strides 8 to 128. One logit sees 736 px or more
to every side, so that no field of view up to 1024 px is cut short by the network.
"""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import models
import train
from benchmarks.small_unet import unet

STEM = (16, 24, 32)
FILTERS = (32, 48, 64, 96, 128)

if __name__ == "__main__":
    models.build = partial(unet, filters=FILTERS, stem=STEM)
    sys.exit(train.main())
