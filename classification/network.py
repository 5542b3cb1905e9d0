"""A classifier of whole images in three parts: early layers up to a cut, late layers, and a head.

The early part makes the map that feature archives hold; it can be frozen. Early and late part are streamed
(`classification.stream`), the head sees the whole last map. All three and `Classifier.model` share their weights.

Shapes: B images, H rows, W columns, C channels, K outputs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import models
from models import efficientnet, resnet
from models.weights import LoadReport, load_weights
from options.choices import CLASSIFIERS, PRECISIONS

POOLING = "pool"  # name of the layer behind the last map

# The end of the stage with stride 16: what follows is a quarter of the multiplications of resnet34.
CUTS = {"resnet18": "layer3_1", "resnet34": "layer3_5", "resnet50": "layer3_5", "efficientnetb0": "block5c_add"}

# Maps that are kept between segments of the early part: a window of the image for two stages overlaps less than one for
# three. That of resnet50 would have 32 bytes per px of the image.
KEPT = {"resnet18": ("layer2_1",), "resnet34": ("layer2_3",), "resnet50": (), "efficientnetb0": ()}


@dataclass(frozen=True, eq=False)
class Classifier:
    """A network from image_BHWC, float32 RGB in [-1, 1], to logits_BK, float32, and its parts.

    Attributes:
        name: one of `CLASSIFIERS`.
        model: all of it.
        early: from the image to the map of the cut.
        late: from that to the last map.
        head: from the last map to the logits: pooling over the whole map, and a linear layer.
        cut: name of the layer at the end of the early part.
        pool: "max" or "average".
        precision: of maps and arithmetic; weights and logits are float32.
    """

    name: str
    model: keras.Model
    early: keras.Model
    late: keras.Model
    head: keras.Model
    cut: str
    pool: str
    precision: str

    @property
    def outputs(self) -> int:
        """K."""
        return int(self.model.output_shape[-1])

    def train(self, early: bool, norm: bool) -> None:
        """Choose what is trained; late part and head always are. Before a stream or an optimizer is made.

        Statistics of batch normalization are frozen in any case: an image is a batch of one.

        Args:
            early: the early part.
            norm: gamma and beta of batch normalization in the parts that are trained.
        """
        before = {layer.name for layer in self.early.layers}
        for layer in self.model.layers:
            is_norm = isinstance(layer, keras.layers.BatchNormalization)
            layer.trainable = (early or layer.name not in before) and (norm or not is_norm)

    @property
    def trains_early(self) -> bool:
        """Whether the early part is trained."""
        return bool(self.early.trainable_variables)

    @property
    def trained(self) -> list[Any]:
        """Variables that are trained, each once: of the early part, of the late part, of the head."""
        return [variable for part in (self.early, self.late, self.head) for variable in part.trainable_variables]

    def hash(self) -> str:
        """SHA-256 of the early part's weights and statistics, hexadecimal: its map follows from them and the image."""
        found = hashlib.sha256()
        for layer, number, array in _weights(self.early):
            found.update(f"{layer} {number} {array.shape} {array.dtype}\n".encode())
            found.update(np.ascontiguousarray(array).tobytes())
        return found.hexdigest()


def build(
    name: str,
    outputs: int,
    pool: str = "max",
    cut: str | None = None,
    precision: str = "float32",
    weights_path: str | Path | None = None,
    width: int | None = None,
) -> tuple[Classifier, LoadReport | None]:
    """A classifier; everything is trained but the statistics of batch normalization (`Classifier.train`).

    Args:
        name: one of `CLASSIFIERS`.
        outputs: K.
        pool: "max" or "average", over the whole last map. "max" finds what fills a small part of an image.
        cut: name of the layer at the end of the early part; None: `CUTS`.
        precision: one of `PRECISIONS`.
        weights_path: file of weights to start from, see `models.weights.load_weights`; None: random ones, with which
            the blocks of a ResNet start as identities.
        width: filters of the stem of a ResNet, for tests; None: as in the paper.

    Returns:
        The classifier, and what the weight file gave.

    Raises:
        ValueError: an unknown name, pool, precision or cut, or weights that do not fit.
    """
    if name not in CLASSIFIERS:
        raise ValueError(f"network {name!r} is unknown; choose one of {', '.join(CLASSIFIERS)}")
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r} is unknown; choose one of {', '.join(PRECISIONS)}")
    with models.policy(precision):
        if name in resnet.VARIANTS:
            model = resnet.build(name, outputs, pool, width=width or resnet.STEM_FILTERS)
            if weights_path is None:
                _start_blocks_as_identity(model)
        else:
            model = efficientnet.build("b0", outputs, pool)
        found = split(model, name, cut or CUTS[name], pool, precision)
    return found, None if weights_path is None else load_weights(model, weights_path)


def _start_blocks_as_identity(model: keras.Model) -> None:
    """Sets the last scale of every residual block to 0.

    With frozen statistics nothing normalizes random maps: those of every block would add up, and the logits of an
    untrained network would be in the tens. Paper: Goyal et al., https://arxiv.org/abs/1706.02677, section 5.1.
    """
    last = {int(layer.name[-1]) for layer in model.layers if "_bn" in layer.name}
    for layer in model.layers:
        if layer.name.endswith(f"_bn{max(last)}"):
            layer.gamma.assign(tf.zeros_like(layer.gamma))


def split(model: keras.Model, name: str, cut: str, pool: str, precision: str) -> Classifier:
    """The parts of a classifier whose pooling layer is called "pool".

    Raises:
        ValueError: there is no such layer to cut at, or others pass it by.
    """
    names = [layer.name for layer in model.layers]
    places = names[1 : names.index(POOLING) - 1]
    if cut not in places:
        blocks = [name for name in CUTS.values() if name in places]
        raise ValueError(
            f"cut {cut!r}: {model.name} has no such layer before its last map; give the end of a block, such as "
            f"{blocks[0] if blocks else places[-1]}"
        )
    image, logits = model.inputs[0], model.outputs[0]
    middle, last = model.get_layer(cut).output, model.get_layer(POOLING).input
    try:
        late = keras.Model(middle, last, name=f"{model.name}_late")
    except ValueError as error:
        raise ValueError(
            f"cut {cut!r}: layers behind it also look at maps before it; cut at the end of a block"
        ) from error
    return Classifier(
        name,
        model,
        keras.Model(image, middle, name=f"{model.name}_early"),
        late,
        keras.Model(last, logits, name=f"{model.name}_head"),
        cut,
        pool,
        precision,
    )


def _weights(model: keras.Model) -> Iterator[tuple[str, int, Any]]:
    """Name of the layer, number and values of every array, in the order of layers' names."""
    for layer in sorted(model.layers, key=lambda one: one.name):
        for number, array in enumerate(layer.get_weights()):
            yield layer.name, number, array
