"""The groups of options of the entry scripts: names, defaults, units, one line of help each.

What the values mean together is checked in `options.py`.
"""

from __future__ import annotations

import argparse
import os
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

from options.parser import Parser, not_negative, pair, positive, share, share_below_1, whole

MODELS = ("effdetd0", "effdetd4", "deeplab")
SAMPLERS = ("radboud", "surf")
AUGMENTATIONS = ("none", "flips", "standard", "strong")
SCHEDULES = ("constant", "cosine", "cyclic", "poly")
LR_SCALINGS = ("linear", "sqrt", "none")
LOSSES = ("ce", "focal", "dice", "ce+dice")
RECOMPUTATIONS = ("none", "blocks", "fine")
PRECISIONS = ("float32", "bfloat16", "float16")
SIZE_STEP = 128  # the models' coarsest stride
MOMENTUM = 0.9


class OptimizerDefaults(NamedTuple):
    """What an optimizer gets where nothing else is said; weight decay None: it has none."""

    base_lr: float
    weight_decay: float | None


OPTIMIZERS = {
    "adam": OptimizerDefaults(0.001, None),
    "adamw": OptimizerDefaults(0.001, 0.01),
    "sgd": OptimizerDefaults(0.01, 0.0),
    "lars": OptimizerDefaults(1.0, 1e-4),
    "lamb": OptimizerDefaults(0.001, 0.01),
}


# Options that several scripts have.
COMMON: dict[str, dict[str, Any]] = {
    "--slide_format": {
        "default": "tif",
        "metavar": "SUFFIX",
        "help": "tif, svs, ndpi, mrxs ...: anything OpenSlide reads",
    },
    "--mpp": {"type": positive, "help": "um per px of level 0, in place of what the slides say"},
    "--tile_cache": {
        "type": whole(0),
        "default": 128,
        "help": "MB of decoded tiles kept per rank, shared by its samplers",
    },
    "--bb_downsample": {
        "type": whole(0),
        "default": 7,
        "help": "pyramid level of the tissue and contour search, clamped to what the slide has",
    },
    "--sample_processes": {"type": whole(1), "default": 1, "help": "parallel samplers per rank"},
    "--no_cuda": {"action": "store_true", "help": "CPU even where GPUs are visible"},
    "--horovod": {
        "action": argparse.BooleanOptionalAction,
        "default": True,
        "help": "several ranks under a launcher; one process without a launcher simply runs",
    },
    "--stall_timeout": {
        "type": not_negative,
        "default": 60.0,
        "help": "s of silence after which a rank, and the job, is given up; without a patch 5 times that; 0: never",
    },
}


def common_options(group: argparse._ArgumentGroup, *names: str) -> None:
    """Options of `COMMON`, by their names."""
    for name in names:
        group.add_argument(name, **COMMON[name])


def data_options(parser: Parser) -> None:
    """Slides, labels, and how they are read."""
    data = parser.add_argument_group("slides and labels")
    data.add_argument("--slide_path", type=Path, help="training slides: a folder or one file")
    data.add_argument(
        "--label_path", type=Path, help="their labels: a folder or one file; slides without one are normal"
    )
    data.add_argument("--valid_slide_path", type=Path, help="validation slides; without them slides are held out")
    data.add_argument("--valid_label_path", type=Path, help="validation labels")
    data.add_argument("--dataset", choices=("16", "17"), help="standard CAMELYON layout under --data_root")
    data.add_argument(
        "--data_root", type=Path, default=os.environ.get("CAMELYON_ROOT"), help="root of --dataset; $CAMELYON_ROOT"
    )
    data.add_argument(
        "--manifest", type=Path, help="table of run_prepro.sh with slides, labels and split, in place of folders"
    )
    data.add_argument("--slide_root", type=Path, help="folder of the manifest's files, where they have been moved")
    data.add_argument("--train_centers", type=int, nargs="+", default=[-1], help="CAMELYON17 centres; -1 is all")
    data.add_argument("--val_centers", type=int, nargs="+", default=[-1], help="CAMELYON17 centres; -1 is all")
    data.add_argument(
        "--val_split", type=float, default=0.15, help="share of slides (patients) held out for validation"
    )
    common_options(data, "--slide_format")
    data.add_argument("--valid_slide_format", **COMMON["--slide_format"] | {"default": None})
    truth = {"default": None, "choices": ("tif", "xml"), "help": "tif (mask pyramids) or xml (ASAP)"}
    data.add_argument("--label_format", **truth)
    data.add_argument("--valid_label_format", **truth)
    class_options(data)
    data.add_argument(
        "--stage_dir", type=Path, help="disk of the node, e.g. $TMPDIR: slides and masks are copied there once per node"
    )
    data.add_argument(
        "--stage_gb", type=positive, default=200.0, help="most GB to copy per node; the rest is read in place"
    )
    common_options(data, "--tile_cache", "--mpp")


def class_options(group: argparse._ArgumentGroup) -> None:
    """What of a label is which class."""
    group.add_argument(
        "--label_map",
        type=pair,
        nargs="+",
        metavar="GROUP:CLASS",
        help="annotation group to class, painted in this order; default: CAMELYON's",
    )
    group.add_argument(
        "--ignore_groups", nargs="+", metavar="GROUP", help="annotation groups to skip; without it those called None"
    )
    group.add_argument(
        "--mask_values",
        type=pair,
        nargs="+",
        metavar="VALUE:CLASS",
        help="mask value to class (255: ignore); default: non-zero is 1",
    )
    group.add_argument(
        "--classes", type=whole(2, 255), help="number of classes; default: as many as the labels' map has"
    )


def sampling_options(parser: Parser) -> None:
    """Where to look, and what a patch is."""
    sampling = parser.add_argument_group("sampling")
    sampling.add_argument("--img_size", type=int, default=1024, help="side of the square field of view, output px")
    sampling.add_argument("--resolution", type=positive, default=0.25, help="um per px of the patch")
    sampling.add_argument("--data_sampler", choices=SAMPLERS, default="radboud", help="where to look")
    common_options(sampling, "--bb_downsample")
    sampling.add_argument(
        "--batch_tumor_ratio",
        type=share,
        help="share of tumour patches in a batch, exact over time; default 1 for surf, balanced rounds for radboud",
    )
    common_options(sampling, "--sample_processes")
    sampling.add_argument(
        "--hard_mining", action="store_true", help="draw part of each batch from places the network gets wrong"
    )
    sampling.add_argument(
        "--hard_fraction", type=share, default=Fraction(1, 4), help="share of draws from the hard pool"
    )
    sampling.add_argument("--hard_pool", type=whole(1), default=256, help="places in the hard pool")
    sampling.add_argument(
        "--mine_from", type=Path, metavar="DIR", help="--out of evaluate.py: its false positives begin the hard pool"
    )
    sampling.add_argument(
        "--qc",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="draw again where a patch shows pen marks or is out of focus; places inside annotations are kept",
    )
    sampling.add_argument(
        "--augment", choices=AUGMENTATIONS, default="none", help="flips and rotations; colour, zoom, blur; more of it"
    )
    sampling.add_argument(
        "--context_spacing",
        type=positive,
        help="um per px of a second, coarser view around each patch, 3 more channels",
    )
    sampling.add_argument(
        "--max_unreadable", type=share, default=Fraction(1, 100), help="share of draws that may fail to be read"
    )
    sampling.add_argument(
        "--val_patches", type=whole(0), default=256, help="validation patches over all slides and ranks; 0 is all"
    )


def network_options(parser: Parser) -> None:
    """The network and what it costs."""
    network = parser.add_argument_group("network")
    network.add_argument(
        "--model", choices=MODELS, help="network; default effdetd0, or the one that --weights_path was made for"
    )
    network.add_argument(
        "--weights_path",
        type=Path,
        help="pre-trained weights: file or folder with .h5, .keras, or an EfficientDet checkpoint (PREFIX or .index)",
    )
    network.add_argument(
        "--sync_bn", action="store_true", help="batch normalisation over the batches of all ranks together"
    )
    network.add_argument(
        "--freeze_bn", action="store_true", help="batch normalisation keeps its weights and moving statistics"
    )
    network.add_argument("--freeze_backbone", action="store_true", help="train only what comes after the backbone")
    network.add_argument(
        "--recompute",
        choices=RECOMPUTATIONS,
        default="none",
        help="what the backward pass computes again, to save memory: the inside of blocks, or of parts of them",
    )
    network.add_argument(
        "--mixed_precision",
        choices=PRECISIONS,
        default="float32",
        help="of what is computed; weights and statistics stay float32, float16 comes with loss scaling",
    )


def training_options(parser: Parser) -> None:
    """How it is trained."""
    training = parser.add_argument_group("training")
    training.add_argument("--batch_size", type=whole(1), default=2, help="patches per rank")
    training.add_argument(
        "--accumulate_batch",
        type=whole(1),
        default=1,
        metavar="N",
        help="passes of --batch_size patches per rank whose gradients are added up before one update",
    )
    training.add_argument("--num_steps", type=whole(1), default=50000, help="length of training, IMAGES over all ranks")
    training.add_argument("--loss", choices=LOSSES, default="ce", help="cross-entropy, focal, soft Dice, or a sum")
    training.add_argument(
        "--label_smoothing", type=share_below_1, default=0.0, help="share of the target spread over all classes"
    )
    training.add_argument("--focal_gamma", type=not_negative, help="gamma of --loss focal; default 2")
    training.add_argument(
        "--pos_pixel_weight", type=not_negative, default=1.0, help="weight of tumour pixels in the loss"
    )
    training.add_argument(
        "--neg_pixel_weight", type=not_negative, default=1.0, help="weight of normal pixels in the loss"
    )
    training.add_argument(
        "--class_weights",
        type=not_negative,
        nargs="+",
        metavar="WEIGHT",
        help="weight of every class's pixels in the loss, in place of the two above",
    )
    training.add_argument(
        "--seed", type=whole(0, 2**32 - 1), default=0, help="seed of weights, split and sample stream"
    )
    common_options(training, "--no_cuda", "--horovod")
    training.add_argument("--fp16_allreduce", action="store_true", help="compress gradients to fp16 for the allreduce")


def optimizer_options(parser: Parser) -> None:
    """How gradients change weights, and by how much."""
    optimizer = parser.add_argument_group("optimizer and learning rate")
    optimizer.add_argument("--optimizer", choices=OPTIMIZERS, default="adam", help="how gradients change weights")
    optimizer.add_argument(
        "--base_lr", type=positive, help="learning rate of one rank; default 0.001, of sgd 0.01, of lars 1"
    )
    optimizer.add_argument(
        "--lr_scaling",
        choices=LR_SCALINGS,
        default="linear",
        help="of --base_lr with ranks x --accumulate_batch: times it, times its root, or not at all",
    )
    optimizer.add_argument("--warmup", type=whole(0), help="images of linear warm-up; default 5%% of --num_steps")
    optimizer.add_argument(
        "--lr_schedule",
        choices=SCHEDULES,
        default="constant",
        help="after the warm-up: half a cosine, triangles, or a power of what is left",
    )
    optimizer.add_argument("--lr_cycle", type=whole(1), help="images of a triangle of cyclic; default --num_steps / 10")
    optimizer.add_argument("--momentum", type=share_below_1, help="of sgd and lars; default 0.9")
    optimizer.add_argument(
        "--weight_decay", type=not_negative, help="of kernels; default adamw, lamb 0.01, lars 0.0001, sgd 0"
    )


def run_options(parser: Parser) -> None:
    """Planning, logging, checkpoints."""
    run = parser.add_argument_group("planning, logging and checkpoints")
    run.add_argument(
        "--plan",
        action="store_true",
        help="only print memory and time of a step and the largest --img_size that fits this machine; needs no data",
    )
    run.add_argument(
        "--memory_check",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="refuse to start what by the planner cannot fit this machine",
    )
    run.add_argument(
        "--log_dir", type=Path, help="TensorBoard events, metrics.jsonl, checkpoints, options, sampling maps"
    )
    run.add_argument("--log_every", type=whole(1), default=128, help="images between log lines")
    run.add_argument("--validate_every", type=whole(1), default=2048, help="images between validations")
    run.add_argument("--checkpoint_every", type=whole(1), help="images between checkpoints; default --validate_every")
    run.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="PATH|auto",
        help="go on from a checkpoint; auto: the newest in --log_dir, if any",
    )
    common_options(run, "--stall_timeout")
    run.add_argument(
        "--elastic",
        action="store_true",
        help="ranks may come and go: under horovodrun --gloo --min-np ...; implies --resume auto, needs --log_dir",
    )
    run.add_argument("--debug", action="store_true", help="a short run on at most 100 images")
