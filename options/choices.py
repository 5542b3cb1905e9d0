"""What named options may be: each vocabulary once, for the options and for the code that implements it.

Imports nothing, so that any room may import it, and `--help` needs no TensorFlow.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Literal, NamedTuple, get_args

DatasetName = Literal["16", "17"]  # CAMELYON16, CAMELYON17
LabelFormat = Literal["tif", "png", "xml", "geojson"]  # masks, annotations of ASAP and of QuPath

TissueMethod = Literal["hsv", "otsu"]  # a fixed threshold of saturation, Otsu's threshold of each slide
TISSUE_METHODS: tuple[TissueMethod, ...] = get_args(TissueMethod)

SamplerName = Literal["radboud", "surf"]
Augmentation = Literal["none", "flips", "standard", "strong", "stain"]
StainNorm = Literal["none", "reinhard", "macenko", "vahadane"]
STAIN_NORMS: tuple[StainNorm, ...] = get_args(StainNorm)
# Default of --batch_tumor_ratio; None: balanced rounds over all classes.
TUMOR_RATIOS: dict[SamplerName, Fraction | None] = {"radboud": None, "surf": Fraction(1)}
AUGMENTATIONS: tuple[Augmentation, ...] = get_args(Augmentation)

ModelName = Literal["effdetd0", "effdetd4", "deeplab"]
Recomputation = Literal["none", "blocks", "fine"]
Precision = Literal["float32", "bfloat16", "float16"]
MODELS: tuple[ModelName, ...] = get_args(ModelName)
RESNETS = ("resnet18", "resnet34", "resnet50")
ClassifierName = Literal["resnet18", "resnet34", "resnet50", "efficientnetb0"]
CLASSIFIERS: tuple[ClassifierName, ...] = get_args(ClassifierName)
Pool = Literal["max", "average"]  # over the whole last map of a classifier
POOLS: tuple[Pool, ...] = get_args(Pool)
RECOMPUTATIONS: tuple[Recomputation, ...] = get_args(Recomputation)
Norm = Literal["batch", "group"]
NORMS: tuple[Norm, ...] = get_args(Norm)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
# px: the coarsest BiFPN level has stride 128; a multiple of it gives every level of every network a whole number of
# cells.
SIZE_MULTIPLE = 128

TargetKind = Literal["classes", "multilabel", "regression"]  # of the labels of whole slides
TARGET_KINDS: tuple[TargetKind, ...] = get_args(TargetKind)
WholeAugmentation = Literal["none", "flips", "standard", "strong"]
WHOLE_AUGMENTATIONS: tuple[WholeAugmentation, ...] = get_args(WholeAugmentation)
ColorModel = Literal["none", "lch", "hed"]  # lightness, chroma and hue; densities of stains
COLOR_MODELS: tuple[ColorModel, ...] = get_args(ColorModel)
SaliencyMethod = Literal["gradient", "activation"]
SALIENCY_METHODS: tuple[SaliencyMethod, ...] = get_args(SaliencyMethod)

LossName = Literal["ce", "focal", "dice", "ce+dice"]
ScheduleName = Literal["constant", "cosine", "cyclic", "poly"]
LrScaling = Literal["linear", "sqrt", "none"]
LOSSES: tuple[LossName, ...] = get_args(LossName)
SCHEDULES: tuple[ScheduleName, ...] = get_args(ScheduleName)
LR_SCALINGS: tuple[LrScaling, ...] = get_args(LrScaling)


class OptimizerDefaults(NamedTuple):
    """What an optimizer uses unless told otherwise.

    Attributes:
        base_lr: learning rate of one rank.
        weight_decay: of kernels; None: the optimizer has none.
        momentum: whether it has one.
    """

    base_lr: float
    weight_decay: float | None
    momentum: bool = False


OPTIMIZERS = {
    "adam": OptimizerDefaults(0.001, None),
    "adamw": OptimizerDefaults(0.001, 0.01),
    "sgd": OptimizerDefaults(0.01, 0.0, momentum=True),
    "lars": OptimizerDefaults(1.0, 1e-4, momentum=True),
    "lamb": OptimizerDefaults(0.001, 0.01),
}

GeojsonFrame = Literal["qupath", "slide"]  # from the corner of what QuPath shows, or of the whole slide
GEOJSON_FRAMES: tuple[GeojsonFrame, ...] = get_args(GeojsonFrame)

PixelSet = Literal["tissue", "all"]
FrocRule = Literal["double", "organisers"]  # precision of lesions: that of false positives, or theirs (float32)
OverlayStyle = Literal["auto", "color", "outline"]  # auto: outline where the picture shows single cells
ExportFormat = Literal["savedmodel", "onnx", "keras"]
EXPORT_FORMATS: tuple[ExportFormat, ...] = get_args(ExportFormat)
# False positives per slide at which CAMELYON16 reads the sensitivity.
FALSE_PER_SLIDE = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)

SearchSampler = Literal["tpe", "random", "qmc", "grid", "gp"]
SearchPruner = Literal["median", "hyperband", "wilcoxon", "none"]
