"""The options of train_classifier.py: groups of flags, what follows from them, and what cannot be."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from options.choices import (
    CLASSIFIERS,
    POOLS,
    RESNETS,
    ColorModel,
    Precision,
    SaliencyMethod,
    TargetKind,
    TissueMethod,
    WholeAugmentation,
)
from options.fields import Group, option, read
from options.groups import Ranks, SlideFiles, Staged, Updates
from options.other_flags import REPLACED
from options.parser import Parser, not_negative, positive, share_below_1, whole

EPOCHS = 50
AVERAGE = 0.99  # decay of --weight_averaging without a number


@dataclass(frozen=True, kw_only=True)
class Labels(Group):
    """Labels."""

    train_csv: Path | None = option(metavar="CSV", help="labels to train on: columns slide_id, label (and patient)")
    val_csv: Path | None = option(metavar="CSV", help="labels to validate on")
    val_split: float = option(
        0.2, parse=share_below_1, metavar="SHARE", stream=True,
        help="share of slides (whole patients, every class) held out where no --val_csv is given",
    )  # fmt: skip
    target_kind: TargetKind | None = option(
        help="what labels are; default: multilabel where they look like 1;0;1, else classes"
    )
    multilabel: bool = option(False, help="the same as --target_kind multilabel: several answers, 1;0;1")
    regression: bool = option(False, help="the same as --target_kind regression: numbers")
    num_classes: int | None = option(
        parse=whole(1), help="outputs of the network; default: as many as the labels show. More: classes 0 to N - 1"
    )
    train_set_size: int | None = option(
        parse=whole(1), unit="images", stream=True, help="train on this many of the slides, drawn by --seed"
    )
    weighted_sampler: bool = option(
        False, stream=True, help="draw every class, or combination of answers, equally often"
    )

    @classmethod
    def settle(cls, given: argparse.Namespace) -> None:
        """Two flags are short for a kind."""
        short: list[TargetKind] = [kind for kind in ("multilabel", "regression") if getattr(given, kind)]
        kinds = {*short, *([given.target_kind] if given.target_kind else [])}
        if len(kinds) > 1:
            raise ValueError(f"labels are of one kind, {' and '.join(sorted(kinds))} are given; omit one")
        given.target_kind = kinds.pop() if kinds else None

    def __post_init__(self) -> None:
        if self.weighted_sampler and self.target_kind == "regression":
            raise ValueError("--weighted_sampler balances classes or answers; numbers have none: omit it")


@dataclass(frozen=True, kw_only=True)
class WholeImages(Staged, SlideFiles):
    """Images."""

    data_dir: Path | None = option(metavar="DIR", help="folder of images: what extract_tissue wrote, or any")
    data_tar: Path | None = option(metavar="TAR", help="images in a tar, read in place; or features")
    slide_path: Path | None = option(metavar="DIR", help="slides, read at --resolution as the network needs them")
    resolution: float | None = option(parse=positive, unit="um/px", stream=True, help="um per px of --slide_path")
    keep_glass: bool = option(
        False, stream=True, help="of --slide_path: whole slides; without, empty rows and columns are cut out"
    )
    tissue_method: TissueMethod = option(
        "hsv", stream=True, help="of --slide_path: tissue by a fixed threshold of saturation, or Otsu's of each slide"
    )
    keep_pen: bool = option(False, stream=True, help="of --slide_path: pen marks count as tissue")
    image_size: int = option(
        16384,
        parse=whole(32),
        unit="px",
        stream=True,
        help="side of what the network sees of an image, cropped or padded",
    )
    variable_input_shapes: bool = option(
        False, stream=True, help="each image in its own size instead of --image_size; nothing is cropped or padded"
    )
    validation_whole_input: bool = option(False, help="validate on whole images, train on crops of --image_size")
    augment: WholeAugmentation = option(
        "standard", stream=True,
        help="flips; crops, rotation, color, elastic distortion too; or more of it with zoom",
    )  # fmt: skip
    color: ColorModel | None = option(
        stream=True, help="how colors change: lightness, chroma and hue, or stains; default: as --augment has it"
    )
    read_ahead: int = option(1, parse=whole(0), metavar="N", free=True, help="images read while the network computes")

    @property
    def sources(self) -> list[str]:
        """The options that name images."""
        named = {"--data_dir": self.data_dir, "--data_tar": self.data_tar, "--slide_path": self.slide_path}
        return [flag for flag, path in named.items() if path is not None]

    def __post_init__(self) -> None:
        if self.slide_path is not None and self.resolution is None:
            raise ValueError("--slide_path needs --resolution, um per px of what the network sees, e.g. 2")
        if self.slide_path is None and self.resolution is not None:
            raise ValueError(
                "--resolution is that of --slide_path; images have the one they were written with: omit it"
            )


@dataclass(frozen=True, kw_only=True)
class Network(Group):
    """Network."""

    model: str = option("resnet34", choices=CLASSIFIERS, help="the network")
    pool: str = option("max", choices=POOLS, help="of the last map, over the whole image, before the linear layer")
    weights_path: Path | None = option(
        metavar="FILE", help="pre-trained weights of torchvision or timm: .safetensors or .pth"
    )
    cut: str | None = option(
        metavar="LAYER", help="last layer of the streaming part; default: the end of the third stage of a ResNet"
    )
    train_streaming_layers: bool = option(
        True, help="train the streaming part too; without, only what follows --cut learns, at less than half the cost"
    )
    tile_size: int = option(
        2048, parse=whole(32), unit="px", help="side of the windows that are computed at once: memory, not results"
    )
    freeze_bn: bool = option(False, help="scales and shifts of batch normalization stay, too; its statistics always do")
    width: int | None = option(
        parse=whole(4), metavar="FILTERS", help="of the stem of a ResNet, for small experiments; default 64"
    )
    mixed_precision: Precision = option(
        "float32", help="precision of computation; weights and statistics stay float32, float16 uses loss scaling"
    )

    def __post_init__(self) -> None:
        if self.width is not None and (self.weights_path is not None or self.model not in RESNETS):
            other = "--weights_path" if self.weights_path is not None else f"--model {self.model}"
            raise ValueError(f"--width makes a thinner ResNet, which {other} is not of: omit one of the two")


@dataclass(frozen=True, kw_only=True)
class Phases(Group):
    """Training in phases.

    Features are maps of the streaming part, computed once: train what follows it on them, then all layers from there.
    """

    extract_features: bool = option(
        False, help="only write features of all images: --epochs augmented copies of those to train on, one of the rest"
    )
    save_path: Path | None = option(metavar="TAR", help="file of --extract_features")
    features_dtype: Literal["float16", "float32"] = option(
        "float16", help="numbers of --extract_features: half the size, or the same logits as from images to the bit"
    )
    train_with_features: bool = option(False, help="train what follows --cut on the features in --data_tar")
    train_from_transfer: Path | None = option(
        metavar="RUN", help="start from the weights of a run (its best checkpoint), or of a checkpoint .npz"
    )
    only_eval: bool = option(
        False, help="only validate: scores, predictions.csv and report.html of --resume or --train_from_transfer"
    )

    def transfer_from(self, resume: str | None, log_dir: Path | None) -> Path | None:
        """The run or checkpoint whose weights are taken at the start; None: no such."""
        if self.only_eval and resume is not None:
            return log_dir if resume == "auto" else Path(resume)
        return self.train_from_transfer

    def __post_init__(self) -> None:
        if self.extract_features != (self.save_path is not None):
            raise ValueError("--extract_features and --save_path FILE.tar must be given together")
        modes = [name for name in ("extract_features", "train_with_features", "only_eval") if getattr(self, name)]
        if len(modes) > 1:
            raise ValueError(f"{' and '.join(f'--{name}' for name in modes)} are runs of their own: choose one")


@dataclass(frozen=True, kw_only=True)
class Training(Updates):
    """Training."""

    batch_size: int = option(
        16,
        parse=whole(1),
        unit="images",
        help="images of an update over all ranks; memory is that of one at any number",
    )
    accumulate_batch: int = option(1, parse=whole(1), help="times --batch_size images of an update")
    epochs: int | None = option(parse=whole(1), help=f"length of training, times all images; default {EPOCHS}")
    num_steps: int | None = option(parse=whole(1), unit="images", help="length of training in images, over all ranks")
    lr: float = option(1e-4, parse=positive, metavar="RATE", help="learning rate")
    optimizer: str = option(
        "sgd", choices=("sgd", "adam", "adamw", "lars", "lamb"), help="how gradients change weights"
    )
    warmup: int = option(0, parse=whole(0), unit="images", help="length of linear warm-up")
    lr_cycle: int | None = option(
        parse=whole(1), unit="images", help="length of a triangle of cyclic; default 10 a run"
    )
    label_smoothing: float = option(
        0.0, parse=share_below_1, metavar="SHARE", help="share of the target spread over all classes"
    )
    class_weights: tuple[float, ...] | None = option(
        parse=not_negative, metavar="WEIGHT", help="weight of the images of every class in the loss"
    )
    weight_averaging: float | None = option(
        parse=share_below_1, nargs="?", const=AVERAGE, metavar="DECAY",
        help=f"moving average of the weights: scored, chosen by, exported; decay in an update, {AVERAGE} if not given",
    )  # fmt: skip
    seed: int = option(0, parse=whole(0, 2**32 - 1), stream=True, help="seed of weights, split, order and augmentation")
    fp16_allreduce: bool = option(False, help="compress gradients to fp16 for the allreduce")

    @classmethod
    def settle(cls, given: argparse.Namespace) -> None:
        """See `Updates.settle`; one length."""
        super().settle(given)
        if given.epochs is not None and given.num_steps is not None:
            raise ValueError("--epochs and --num_steps are both the length of the training: omit one")
        given.epochs = EPOCHS if given.epochs is None and given.num_steps is None else given.epochs

    def __post_init__(self) -> None:
        if self.class_weights and not any(self.class_weights):
            raise ValueError("--class_weights are all 0: nothing would be learned")

    def weights_of(self, outputs: int) -> tuple[float, ...] | None:
        """Weight of every class in the loss.

        Raises:
            ValueError: they are of another number of outputs.
        """
        if self.class_weights is not None and len(self.class_weights) != outputs:
            raise ValueError(f"--class_weights: {len(self.class_weights)} weights given for {outputs} outputs")
        return self.class_weights

    @property
    def joint_batch(self) -> int:
        """Images of an update, over all ranks."""
        return self.batch_size * self.accumulate_batch


@dataclass(frozen=True, kw_only=True)
class Run(Group):
    """Validation, logging and checkpoints."""

    plan: bool = option(
        False, free=True, help="only print what the run would do, the memory of an image, and its multiplications"
    )
    memory_check: bool = option(
        True, free=True, help="refuse to start a run that by the planner cannot fit this machine"
    )
    validation: bool = option(True, help="validate")
    validation_interval: int = option(1, parse=whole(1), unit="epochs", help="epochs between validations")
    validate_every: int | None = option(
        parse=whole(1), unit="images", help="images between validations, in place of --validation_interval"
    )
    saliency: SaliencyMethod | None = option(
        free=True, help="at the end: maps of what speaks for the predicted output, on level 0 of every validated slide"
    )
    log_dir: Path | None = option(
        metavar="DIR",
        free=True,
        help="of the run: TensorBoard events, metrics.jsonl, checkpoints, options, predictions",
    )
    log_every: int = option(16, parse=whole(1), unit="images", free=True, help="images between log lines")
    checkpoint_every: int | None = option(
        parse=whole(1), unit="images", free=True, help="images between checkpoints, besides those of every epoch"
    )
    resume: str | None = option(
        nargs="?", const="auto", metavar="PATH|auto", free=True,
        help="resume from a checkpoint; auto: the newest in --log_dir, if any",
    )  # fmt: skip
    resume_name: Path | None = option(
        metavar="RUN", free=True, help="resume from the newest checkpoint of another run (folder), in --log_dir"
    )
    resume_epoch: int | None = option(
        parse=whole(0), metavar="EPOCH", free=True, help="epoch (from 1) of the checkpoint to resume from"
    )

    @classmethod
    def settle(cls, given: argparse.Namespace) -> None:
        """Name and epoch are a checkpoint."""
        if given.resume is not None and (given.resume_name, given.resume_epoch) != (None, None):
            raise ValueError("--resume names the checkpoint that --resume_name and --resume_epoch name: omit one")
        run = given.resume_name or (given.log_dir if given.resume_epoch is not None else None)
        if given.resume_epoch is not None and run is None:
            raise ValueError("--resume_epoch needs --log_dir or --resume_name, the run that it is an epoch of")
        if run is not None:
            # Another run may lie beside this one.
            beside = given.log_dir.parent / run if given.log_dir is not None else run
            run = beside if not run.exists() and beside.exists() else run
            epoch = f"checkpoints/epoch-{given.resume_epoch:04d}.npz" if given.resume_epoch is not None else ""
            given.resume = str(run / epoch)

    def __post_init__(self) -> None:
        if self.resume == "auto" and self.log_dir is None:
            raise ValueError("--resume auto looks for checkpoints in --log_dir, which is not given")
        if self.saliency is not None and self.log_dir is None:
            raise ValueError("--saliency writes into --log_dir, which is not given")


@dataclass(frozen=True, kw_only=True)
class Machine(Ranks):
    """Ranks and machine."""

    share_slide: bool = option(
        False, help="all ranks work on the tiles of one image, instead of on an image each: the same results"
    )


@dataclass(frozen=True, kw_only=True)
class ClassifierOptions(Group):
    """All options of train_classifier.py."""

    labels: Labels
    images: WholeImages
    network: Network
    phases: Phases
    training: Training
    run: Run
    machine: Machine

    @property
    def trains_early(self) -> bool:
        """Whether the streaming part is trained; features are of one that stays as it is."""
        return self.network.train_streaming_layers and not self.phases.train_with_features

    def __post_init__(self) -> None:
        phases, images, labels = self.phases, self.images, self.labels
        if len(images.sources) != 1:
            given = " and ".join(images.sources) or "none is given"
            raise ValueError(f"images come from one of --data_dir, --data_tar and --slide_path: {given}")
        if phases.train_with_features and images.data_tar is None:
            raise ValueError("--train_with_features reads the features of --extract_features: give --data_tar FILE.tar")
        if labels.train_csv is None and not (phases.only_eval and labels.val_csv):
            raise ValueError("no labels: give --train_csv (and --val_csv, or --val_split of it)")
        if phases.extract_features and (self.training.epochs is None or self.machine.share_slide):
            raise ValueError(
                "--extract_features makes --epochs copies of every slide, each rank those of its slides: omit "
                f"{'--share_slide' if self.machine.share_slide else '--num_steps'}"
            )
        if phases.train_from_transfer is not None and self.network.weights_path is not None:
            raise ValueError("--train_from_transfer and --weights_path are both where weights come from: omit one")
        self._check_evaluation()

    def _check_evaluation(self) -> None:
        """A validation needs a network and slides."""
        phases, run = self.phases, self.run
        if phases.only_eval:
            if not run.resume and phases.train_from_transfer is None:
                raise ValueError(
                    "--only_eval needs a trained network: --resume, --resume_name or --train_from_transfer"
                )
            if not run.validation:
                raise ValueError("--only_eval is a validation: omit --no-validation")
        if run.saliency is not None and phases.train_with_features:
            raise ValueError("--saliency is of images, which features have not: --only_eval --saliency on images")
        if run.saliency is not None and not run.validation:
            raise ValueError("--saliency is of validated slides: omit --no-validation")


def classifier_options(argv: Sequence[str] | None = None, raises: bool = False) -> ClassifierOptions:
    """Parse and check train_classifier.py's command line.

    Args:
        argv: arguments; None for those of this process.
        raises: raise `OptionError` for a wrong one, instead of one line on standard error and exit code 2.
    """
    parser = Parser(
        prog="train_classifier.py",
        description="Train a network on whole slides as single images with single labels, on one or many ranks.",
        epilog="Options can be kept in a file: train_classifier.py @FILE.args. Paths are read on every rank.",
        raises=raises,
        replaced=REPLACED,
    )
    return read(ClassifierOptions, parser, argv)
