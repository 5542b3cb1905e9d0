"""EfficientDet for semantic segmentation: EfficientNet, a BiFPN over levels 1 to 7, and a head back to full resolution.

Paper: Tan, Pang and Le, EfficientDet: Scalable and Efficient Object Detection, https://arxiv.org/abs/1911.09070,
sections 3 and 5.3. Level l has stride 2**l. The detector starts at level 3; lesion borders need levels 1 and 2 as well.

Shapes: B images, H rows, W columns, C channels, F fused channels (the same on every level), K classes.
"""

from dataclasses import dataclass

import keras
from keras import layers

from models import efficientnet
from models.layers import FastFusion, normalization
from models.recompute import naming

MIN_LEVEL, BACKBONE_LEVEL, MAX_LEVEL = 1, 5, 7
CELLS = 3
# When the network is streamed: the output of level 4 on the way down and up, in every cell of the BiFPN. Its px look at
# each other through level 7, over 2554 px, unless the coarse half of every cell is done by itself.
KEPT_WHEN_STREAMED = r"fpn_cell\d_(td|bu)4_bn"

# What is computed again as one (see models.recompute): the blocks of EfficientNet, the nodes of the BiFPN, the steps of
# the head; and parts of them.
SEGMENTS = (
    naming(
        {
            r"(stem|block\d\w|resample_p6|fpn_cell\d_(?:td|bu)\d)_": r"\1",
            r"head_up1|logits$": "top",
            r"(head_up\d)": r"\1",
        }
    ),
    naming(
        {
            r"block\d\w_expand": "expand",
            r"block\d\w_(dwconv|bn)": "depthwise",
            r"block\d\w_(se|project)": "project",
            r".*_lateral": "lateral",
            r".*_(upsample|maxpool|fuse)": "fuse",
            r"fpn_.*_(conv|bn)": "convolve",
            r"head_up\d_(conv|bn)": "up",
            r"head_up1_concat|logits": "logits",
        }
    ),
)

Levels = dict[int, keras.KerasTensor]


@dataclass(frozen=True)
class Variant:
    """What distinguishes one EfficientDet from another here."""

    backbone: str
    filters: int


VARIANTS = {"effdetd0": Variant("b0", 64), "effdetd4": Variant("b4", 224)}


def build(name: str, hw: tuple[int | None, int | None], classes: int, channels: int = 3) -> keras.Model:
    """Builds EfficientDet-D0 or -D4 for images of `hw` (rows, columns; None: any); see `models.build` for the rest."""
    variant = VARIANTS[name]
    image = keras.Input((*hw, channels), dtype="float32", name="image")
    backbone = dict(enumerate(efficientnet.features(variant.backbone, image), start=MIN_LEVEL))
    levels = _coarser_levels(backbone, variant.filters)
    for cell in range(CELLS):
        levels = _bifpn_cell(levels, variant.filters, f"fpn_cell{cell}")
    logits = _head(levels, variant.filters, classes)
    # Logits stay float32 under a mixed-precision policy: the softmax of the loss needs it.
    logits = layers.Activation("linear", dtype="float32", name="logits_float32")(logits)
    return keras.Model(image, logits, name=name)


def _coarser_levels(backbone: Levels, filters: int) -> Levels:
    """Adds levels 6 and 7: level 5 resampled to the fused channels and pooled, then pooled once more."""
    levels = dict(backbone)
    x = _to_filters(levels[BACKBONE_LEVEL], filters, "resample_p6")
    for level in range(BACKBONE_LEVEL + 1, MAX_LEVEL + 1):
        x = _pooled(x, f"resample_p{level}_maxpool")
        levels[level] = x
    return levels


def _bifpn_cell(levels: Levels, filters: int, prefix: str) -> Levels:
    """One BiFPN cell: a top-down pass, then a bottom-up pass that also sees the cell's inputs (paper, figure 2d).

    Inputs with another number of channels than F (the backbone's, in the first cell) are resampled by a convolution of
    their own each time they are used, as in the authors' code: levels 1-5 top-down, levels 2-5 bottom-up.
    """
    top_down: Levels = {MAX_LEVEL: levels[MAX_LEVEL]}
    for level in range(MAX_LEVEL - 1, MIN_LEVEL - 1, -1):
        name = f"{prefix}_td{level}"
        lateral = _to_filters(levels[level], filters, f"{name}_lateral")
        coarser = layers.UpSampling2D(2, interpolation="nearest", name=f"{name}_upsample")(top_down[level + 1])
        top_down[level] = _fused([lateral, coarser], filters, name)
    output: Levels = {MIN_LEVEL: top_down[MIN_LEVEL]}
    for level in range(MIN_LEVEL + 1, MAX_LEVEL + 1):
        name = f"{prefix}_bu{level}"
        inputs = [_to_filters(levels[level], filters, f"{name}_lateral")]
        if level < MAX_LEVEL:
            inputs.append(top_down[level])
        inputs.append(_pooled(output[level - 1], f"{name}_maxpool"))
        output[level] = _fused(inputs, filters, name)
    return output


def _fused(inputs: list[keras.KerasTensor], filters: int, prefix: str) -> keras.KerasTensor:
    """One node: weighted sum and swish, separable 3x3 convolution, batch normalization."""
    x = FastFusion(name=f"{prefix}_fuse")(inputs)
    x = layers.SeparableConv2D(filters, 3, padding="same", name=f"{prefix}_conv")(x)
    return normalization(name=f"{prefix}_bn")(x)


def _to_filters(x_BHWC: keras.KerasTensor, filters: int, prefix: str) -> keras.KerasTensor:
    """Returns features with F channels: unchanged if they have them, else through a 1x1 convolution and batch norm."""
    if x_BHWC.shape[-1] == filters:
        return x_BHWC
    x = layers.Conv2D(filters, 1, name=f"{prefix}_conv")(x_BHWC)
    return normalization(name=f"{prefix}_bn")(x)


def _pooled(x_BHWF: keras.KerasTensor, name: str) -> keras.KerasTensor:
    return layers.MaxPooling2D(3, strides=2, padding="same", name=name)(x_BHWF)


def _head(levels: Levels, filters: int, classes: int) -> keras.KerasTensor:
    """Climbs from the coarsest level to full resolution; each step doubles the size and joins the next finer level."""
    x = levels[MAX_LEVEL]
    for level in range(MAX_LEVEL - 1, MIN_LEVEL - 1, -1):
        name = f"head_up{level}"
        x = layers.Conv2DTranspose(filters, 2, strides=2, use_bias=False, name=f"{name}_conv")(x)
        x = normalization("swish", name=f"{name}_bn")(x)
        x = layers.Concatenate(name=f"{name}_concat")([x, levels[level]])
    return layers.Conv2DTranspose(classes, 2, strides=2, name="logits")(x)
