"""The options of train.py: groups of flags, what follows from them, and what cannot be."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from options.choices import (
    MODELS,
    OPTIMIZERS,
    SIZE_MULTIPLE,
    TUMOR_RATIOS,
    Augmentation,
    LabelFormat,
    LossName,
    LrScaling,
    ModelName,
    Norm,
    Precision,
    Recomputation,
    SamplerName,
    StainNorm,
)
from options.classes import Classes
from options.fields import Group, derived, option, read
from options.groups import (
    CENTERS,
    SUFFIXES,
    TRUTHS,
    Cohort,
    Machine,
    SlideFiles,
    Staged,
    TissueSearch,
    Updates,
)
from options.parser import Parser, not_negative, positive, share, share_below_1, whole
from parallel.launchers import is_elastic


@dataclass(frozen=True, kw_only=True)
class TrainSlides(Staged, SlideFiles, Cohort):
    """Slides and labels."""

    manifest: Path | None = option(help="table of run_prepro.sh with slides, labels and split, instead of folders")
    slide_root: Path | None = option(help="folder of the manifest's files, if they were moved")
    valid_slide_format: str = option(metavar="SUFFIX", help=f"{SUFFIXES}; default: --slide_format")
    valid_label_format: LabelFormat = option(help=f"{TRUTHS}; default: --label_format")
    train_centers: tuple[int, ...] = option((-1,), metavar="CENTER", help=CENTERS)
    val_centers: tuple[int, ...] = option((-1,), metavar="CENTER", help=CENTERS)
    val_split: float = option(
        0.15, metavar="SHARE", help="share of slides (patients) held out where no validation slides are given"
    )

    @classmethod
    def settle(cls, given: argparse.Namespace) -> None:
        """Validation data looks like training data unless stated otherwise."""
        super().settle(given)
        given.valid_label_format = given.valid_label_format or given.label_format
        given.valid_slide_format = given.valid_slide_format or given.slide_format

    def __post_init__(self) -> None:
        if not 0 < self.val_split < 1:
            raise ValueError(f"--val_split {self.val_split:g}: must be above 0 and below 1")

    def require_source(self) -> None:
        """Check that the data are named in exactly one way, and no half of a pair.

        Raises:
            ValueError: they are not.
        """
        if self.slide_root is not None and self.manifest is None:
            raise ValueError("--slide_root is the folder of a manifest's files: also give --manifest")
        if self.recursive and not any(self.folders):
            raise ValueError("--recursive searches the folders of --slide_path: omit it with --manifest or --dataset")
        if self.manifest:
            if any(self.folders) or self.dataset:
                raise ValueError("--manifest replaces the four path options and --dataset: use one or the other")
        elif self.dataset:
            if any(self.folders):
                raise ValueError("--dataset replaces the four path options: use one or the other")
            if self.data_root is None:
                raise ValueError(f"--dataset {self.dataset} needs --data_root (or $CAMELYON_ROOT)")
        elif self.slide_path is None or self.label_path is None:
            raise ValueError(
                "no training data: give --slide_path and --label_path, or --dataset 16 or 17 with --data_root, or a "
                "--manifest"
            )
        elif (self.valid_slide_path is None) != (self.valid_label_path is None):
            raise ValueError("--valid_slide_path and --valid_label_path must be given together")


@dataclass(frozen=True, kw_only=True)
class Sampling(Group):
    """Sampling."""

    img_size: int = option(1024, unit="px", stream=True, help="side of the square field of view, output px")
    resolution: float = option(0.25, parse=positive, unit="um/px", stream=True, help="um per px of the patch")
    resolution_tolerance: float = option(
        0.0, parse=share_below_1, metavar="SHARE", stream=True,
        help="take a level of the slide as it is where its spacing is within this share of --resolution, e.g. 0.05",
    )  # fmt: skip
    data_sampler: SamplerName = option("radboud", stream=True, help="where to look")
    batch_tumor_ratio: Fraction | None = option(
        parse=share, metavar="SHARE", stream=True,
        help="share of tumor patches in a batch, exact over time; default 1 for surf, balanced rounds for radboud",
    )  # fmt: skip
    hard_mining: bool = option(False, stream=True, help="draw part of each batch from places the network gets wrong")
    hard_fraction: Fraction = option(
        Fraction(1, 4), parse=share, metavar="SHARE", stream=True, help="share of draws from the hard pool"
    )
    hard_pool: int = option(256, parse=whole(1), stream=True, help="places in the hard pool")
    mine_from: Path | None = option(metavar="DIR", help="--out of evaluate.py: its false positives begin the hard pool")
    qc: bool = option(
        True, stream=True,
        help="draw again where a patch shows pen marks or is out of focus; places inside annotations are kept",
    )  # fmt: skip
    augment: Augmentation = option(
        "none",
        stream=True,
        help="flips and rotations; color, zoom, blur; more of it; or flips and hues of other stains",
    )
    stain_norm: StainNorm = option(
        "none", help="give all slides the stain of the median training slide; the model keeps it for predict.py"
    )
    context_spacing: float | None = option(
        parse=positive, unit="um/px", stream=True,
        help="um per px of a second, coarser view around each patch, 3 more channels",
    )  # fmt: skip
    max_unreadable: Fraction = option(
        Fraction(1, 100), parse=share, metavar="SHARE", help="share of draws that may fail to be read"
    )
    val_patches: int = option(256, parse=whole(0), help="validation patches over all slides and ranks; 0 is all")

    def __post_init__(self) -> None:
        size = self.img_size
        if size < SIZE_MULTIPLE or size % SIZE_MULTIPLE:
            below = max(SIZE_MULTIPLE, size // SIZE_MULTIPLE * SIZE_MULTIPLE)
            raise ValueError(
                f"--img_size {size}: must be a multiple of {SIZE_MULTIPLE}, e.g. {below} or {below + SIZE_MULTIPLE}"
            )
        if self.context_spacing is not None and self.context_spacing <= self.resolution:
            raise ValueError(
                f"--context_spacing {self.context_spacing:g}: the second view must be coarser than --resolution "
                f"{self.resolution:g} um/px"
            )
        if self.mine_from:
            self._check_mining()

    def _check_mining(self) -> None:
        """Places without tumor are of use only where such places are drawn."""
        if not self.hard_mining:
            raise ValueError("--mine_from needs --hard_mining: it fills the pool at the start")
        usual = TUMOR_RATIOS[self.data_sampler]
        if (usual if self.batch_tumor_ratio is None else self.batch_tumor_ratio) == 1:
            raise ValueError(
                "--mine_from has places without tumor, and --batch_tumor_ratio 1 (the default of surf) draws none of "
                "these: choose a smaller ratio"
            )

    @property
    def channels(self) -> int:
        """Channels C of a patch: RGB of each view."""
        return 3 if self.context_spacing is None else 6

    @property
    def patch_um(self) -> float:
        """Side of a patch, um."""
        return self.img_size * self.resolution


@dataclass(frozen=True, kw_only=True)
class Network(Group):
    """Network.

    `networks` are the names that --model allows; without it, weights tell which network they are of.
    """

    model: ModelName | None = option(help="default effdetd0, or the one that --weights_path was made for")
    weights_path: Path | None = option(
        help="pre-trained weights: file or folder with .h5, .keras, or an EfficientDet checkpoint (PREFIX or .index)"
    )
    norm: Norm = option("batch", help="normalization: over the batch, or over groups of channels of each image")
    sync_bn: bool = option(False, help="batch normalization over the batches of all ranks together")
    freeze_bn: bool = option(False, help="batch normalization keeps its weights and moving statistics")
    freeze_backbone: bool = option(False, help="train only what comes after the backbone")
    recompute: Recomputation = option(
        "none", help="what the backward pass recomputes to save memory: the inside of blocks, or of parts of them"
    )
    stream: int | None = option(
        parse=whole(1), metavar="TILE", unit="px",
        help="stream patches in tiles of this side, exactly, for an --img_size of 8192 and more; best with --freeze_bn",
    )  # fmt: skip
    mixed_precision: Precision = option(
        "float32", help="precision of computation; weights and statistics stay float32, float16 uses loss scaling"
    )
    networks: tuple[ModelName, ...] = derived(free=True)

    @classmethod
    def settle(cls, given: argparse.Namespace) -> None:
        """See the class."""
        given.networks = MODELS if given.weights_path and not given.model else (given.model or MODELS[0],)

    def __post_init__(self) -> None:
        if self.norm != "batch" and (self.freeze_bn or self.sync_bn):
            flag = "--freeze_bn" if self.freeze_bn else "--sync_bn"
            raise ValueError(f"{flag}: --norm {self.norm} has no batch statistics; omit one of the two")
        if self.freeze_bn and self.sync_bn:
            raise ValueError("--freeze_bn and --sync_bn: frozen statistics are not taken from any batch; omit one")
        if self.stream is not None:
            self._check_stream()

    def _check_stream(self) -> None:
        """What a streamed network cannot be."""
        if self.norm != "batch":
            raise ValueError(f"--stream: --norm {self.norm} needs all px of a patch at once; use --norm batch")
        if self.sync_bn:
            raise ValueError("--stream and --sync_bn: statistics are those of a rank's own patches; omit one")
        if self.recompute != "none":
            raise ValueError(f"--stream computes all tiles again by itself; omit --recompute {self.recompute}")


@dataclass(frozen=True, kw_only=True)
class Training(Group):
    """Training."""

    batch_size: int = option(2, parse=whole(1), free=True, help="patches per rank")
    accumulate_batch: int = option(
        1, parse=whole(1), free=True,
        help="passes of --batch_size patches per rank whose gradients are summed for one update",
    )  # fmt: skip
    num_steps: int = option(50000, parse=whole(1), unit="images", help="length of training, IMAGES over all ranks")
    loss: LossName = option("ce", help="cross-entropy, focal, soft Dice, or a sum")
    label_smoothing: float = option(
        0.0, parse=share_below_1, metavar="SHARE", help="share of the target spread over all classes"
    )
    focal_gamma: float = option(parse=not_negative, metavar="GAMMA", help="gamma of --loss focal; default 2")
    pos_pixel_weight: float = option(
        1.0, parse=not_negative, metavar="WEIGHT", help="weight of tumor pixels in the loss"
    )
    neg_pixel_weight: float = option(
        1.0, parse=not_negative, metavar="WEIGHT", help="weight of normal pixels in the loss"
    )
    class_weights: tuple[float, ...] | None = option(
        parse=not_negative, metavar="WEIGHT",
        help="weight of every class's pixels in the loss, instead of the two above",
    )  # fmt: skip
    seed: int = option(0, parse=whole(0, 2**32 - 1), stream=True, help="seed of weights, split and sample stream")
    fp16_allreduce: bool = option(False, help="compress gradients to fp16 for the allreduce")

    @classmethod
    def settle(cls, given: argparse.Namespace) -> None:
        """Gamma is for one loss only."""
        if given.focal_gamma is not None and given.loss != "focal":
            raise ValueError(f"--focal_gamma applies to --loss focal; --loss {given.loss} has none")
        given.focal_gamma = 2.0 if given.focal_gamma is None else given.focal_gamma

    def __post_init__(self) -> None:
        if self.class_weights and not any(self.class_weights):
            raise ValueError("--class_weights are all 0: nothing would be learned")
        if not self.class_weights and self.pos_pixel_weight == self.neg_pixel_weight == 0:
            raise ValueError("--pos_pixel_weight and --neg_pixel_weight are both 0: nothing would be learned")
        if self.label_smoothing and self.loss == "dice":
            raise ValueError("--label_smoothing applies to ce and focal; --loss dice has no target to smooth")

    def weights_of(self, classes: int) -> tuple[float, ...]:
        """Weights (K,) in the loss of the pixels of each of K classes."""
        return self.class_weights or (self.neg_pixel_weight, *[self.pos_pixel_weight] * (classes - 1))


@dataclass(frozen=True, kw_only=True)
class Optimization(Updates):
    """Optimizer and learning rate."""

    base_lr: float = option(
        parse=positive, metavar="RATE", help="learning rate of one rank; default 0.001, of sgd 0.01, of lars 1"
    )
    lr_scaling: LrScaling = option(
        "linear", help="of --base_lr with ranks x --accumulate_batch: times it, times its root, or not at all"
    )
    warmup: int = option(parse=whole(0), unit="images", help="length of linear warm-up; default 5%% of --num_steps")
    lr_cycle: int = option(
        parse=whole(1), unit="images", help="length of a triangle of cyclic; default --num_steps / 10"
    )

    @classmethod
    def settle(cls, given: argparse.Namespace) -> None:
        """See `Updates.settle`; and defaults that depend on the length of the training."""
        super().settle(given)
        given.base_lr = given.base_lr or OPTIMIZERS[given.optimizer].base_lr
        given.warmup = given.num_steps // 20 if given.warmup is None else given.warmup
        given.lr_cycle = given.lr_cycle or max(1, given.num_steps // 10)


@dataclass(frozen=True, kw_only=True)
class Run(Group):
    """Planning, logging and checkpoints."""

    plan: bool = option(
        False, free=True,
        help="only print memory and time of a step and the largest --img_size that fits this machine; needs no data",
    )  # fmt: skip
    memory_check: bool = option(
        True, free=True, help="refuse to start a run that by the planner cannot fit this machine"
    )
    log_dir: Path | None = option(
        metavar="DIR", free=True, help="TensorBoard events, metrics.jsonl, checkpoints, options, sampling maps"
    )
    log_every: int = option(128, parse=whole(1), unit="images", free=True, help="images between log lines")
    validate_every: int = option(2048, parse=whole(1), unit="images", help="images between validations")
    checkpoint_every: int = option(
        parse=whole(1), unit="images", free=True, help="images between checkpoints; default --validate_every"
    )
    resume: str | None = option(
        nargs="?", const="auto", metavar="PATH|auto", free=True,
        help="resume from a checkpoint; auto: the newest in --log_dir, if any",
    )  # fmt: skip
    elastic: bool = option(
        False, free=True,
        help="ranks may join and leave: under horovodrun --gloo --min-np ...; implies --resume auto, needs --log_dir",
    )  # fmt: skip
    debug: bool = option(False, help="a short run on at most 100 images")

    @classmethod
    def settle(cls, given: argparse.Namespace) -> None:
        """Ranks that come later start from the newest checkpoint."""
        given.checkpoint_every = given.checkpoint_every or given.validate_every
        if given.elastic and not is_elastic():
            raise ValueError(
                "--elastic needs an elastic launcher: horovodrun --gloo -np 2 --min-np 1 --max-np "
                "4 --host-discovery-script FILE ... (docs/distributed.md)"
            )
        if given.elastic:
            given.resume = given.resume or "auto"

    def __post_init__(self) -> None:
        if self.elastic and self.log_dir is None:
            raise ValueError("--elastic needs --log_dir, which all ranks see: new ranks resume from its checkpoints")
        if self.resume == "auto" and self.log_dir is None:
            raise ValueError("--resume auto looks for checkpoints in --log_dir, which is not given")


@dataclass(frozen=True, kw_only=True)
class TrainOptions(Group):
    """All options of train.py."""

    slides: TrainSlides
    labels: Classes
    tissue: TissueSearch
    sampling: Sampling
    network: Network
    training: Training
    optimization: Optimization
    run: Run
    machine: Machine

    @classmethod
    def settle(cls, given: argparse.Namespace) -> None:
        """A short run with --debug."""
        if given.debug:
            given.num_steps = min(given.num_steps, 100)
            given.log_every = min(given.log_every, 20)
            given.validate_every = min(given.validate_every, 50)
            given.val_patches = min(given.val_patches or 8, 8)

    def __post_init__(self) -> None:
        if not self.run.plan:
            self.slides.require_source()
        frozen = self.network.freeze_bn or self.network.freeze_backbone
        if frozen and not (self.network.weights_path or self.run.resume):
            raise ValueError("--freeze_bn and --freeze_backbone need trained weights: give --weights_path or --resume")


def train_options(argv: Sequence[str] | None = None, raises: bool = False) -> TrainOptions:
    """Parse and check train.py's command line.

    Args:
        argv: arguments; None for those of this process.
        raises: raise `OptionError` for a wrong one, instead of one line on standard error and exit code 2.
    """
    parser = Parser(
        prog="train.py",
        description="Train a segmentation network on large fields of view of whole-slide images, on one or many ranks.",
        epilog="Options can be kept in a file: train.py @experiments/demo.args. Paths are read on every rank.",
        raises=raises,
    )
    return read(TrainOptions, parser, argv)
