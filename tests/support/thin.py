"""Thin variants of the networks: the same kinds of layers under the same names, but few of them and narrow.

For tests of what is done with a network, not of the network: tracing a step of EfficientDet-D0 takes 15 s of Python,
one of its thin variant 3.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from unittest.mock import patch

from models import deeplab, efficientdet, efficientnet

# Of EfficientNet's seven stages those that begin at a new stride; the second has a second block, which is the kind with
# a sum around it.
STAGES = (1, 2, 3, 4, 6)
REPEATED = 2
FILTERS = 8


@contextmanager
def thin_networks() -> Iterator[None]:
    """Inside, `models.build` gives thin networks: 6 of D0's 16 blocks and 1 of its 3 BiFPN cells; 6 of DeepLab's 21."""
    stages = tuple(
        replace(stage, repeats=2 if number == REPEATED else 1, filters=FILTERS * -(-stage.filters // 64))
        for number, stage in enumerate(efficientnet.STAGES, start=1)
        if number in STAGES
    )
    variants = {name: replace(variant, filters=FILTERS) for name, variant in efficientdet.VARIANTS.items()}
    with (
        patch.object(efficientnet, "STAGES", stages),
        patch.object(efficientdet, "VARIANTS", variants),
        patch.object(efficientdet, "CELLS", 1),
        patch.object(deeplab, "MIDDLE_UNITS", 1),
    ):
        yield
