"""Every option of the entry scripts: defined, documented and validated here, nowhere else.

`train_options` returns validated, typed values; below the entry scripts nobody sees them as one object.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from option_types import Parser, not_negative, pair, positive, share, share_below_1, whole

MODELS = ("effdetd0", "effdetd4", "deeplab")
SAMPLERS = ("radboud", "surf")
AUGMENTATIONS = ("none", "flips", "standard", "strong")
SCHEDULES = ("constant", "cosine")
LOSSES = ("ce", "focal", "dice", "ce+dice")
RECOMPUTATIONS = ("none", "blocks", "fine")
PRECISIONS = ("float32", "bfloat16", "float16")
SIZE_STEP = 128  # the models' coarsest stride


def _train_parser() -> Parser:
    parser = Parser(
        prog="train.py",
        description="Train a segmentation network on large fields of view of whole-slide images, on one or many ranks.",
        epilog="Options can be kept in a file: train.py @experiments/demo.args. Paths are read on every rank.",
        fromfile_prefix_chars="@",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    _data_options(parser)
    _sampling_options(parser)
    _network_options(parser)
    _training_options(parser)
    _run_options(parser)
    return parser


def _data_options(parser: Parser) -> None:
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
    data.add_argument("--train_centers", type=int, nargs="+", default=[-1], help="CAMELYON17 centres; -1 is all")
    data.add_argument("--val_centers", type=int, nargs="+", default=[-1], help="CAMELYON17 centres; -1 is all")
    data.add_argument(
        "--val_split", type=float, default=0.15, help="share of slides (patients) held out for validation"
    )
    suffix = {"metavar": "SUFFIX", "help": "tif, svs, ndpi, mrxs ...: anything OpenSlide reads"}
    data.add_argument("--slide_format", default="tif", **suffix)
    data.add_argument("--valid_slide_format", default=None, **suffix)
    truth = {"default": None, "choices": ("tif", "xml"), "help": "tif (mask pyramids) or xml (ASAP)"}
    data.add_argument("--label_format", **truth)
    data.add_argument("--valid_label_format", **truth)
    data.add_argument(
        "--label_map",
        type=pair,
        nargs="+",
        metavar="GROUP:CLASS",
        help="annotation group to class, painted in this order; default: CAMELYON's",
    )
    data.add_argument(
        "--ignore_groups", nargs="+", metavar="GROUP", help="annotation groups to skip; without it those called None"
    )
    data.add_argument(
        "--mask_values",
        type=pair,
        nargs="+",
        metavar="VALUE:CLASS",
        help="mask value to class (255: ignore); default: non-zero is 1",
    )
    data.add_argument(
        "--classes", type=whole(2, 255), help="number of classes; default: as many as the labels' map has"
    )
    data.add_argument(
        "--stage_dir", type=Path, help="disk of the node, e.g. $TMPDIR: slides and masks are copied there once per node"
    )
    data.add_argument(
        "--stage_gb", type=positive, default=200.0, help="most GB to copy per node; the rest is read in place"
    )
    data.add_argument(
        "--tile_cache",
        type=whole(0),
        default=128,
        help="MB of decoded tiles kept per rank, shared by its samplers",
    )
    data.add_argument("--mpp", type=positive, help="um per px of level 0, in place of what the slides say")


def _sampling_options(parser: Parser) -> None:
    sampling = parser.add_argument_group("sampling")
    sampling.add_argument("--img_size", type=int, default=1024, help="side of the square field of view, output px")
    sampling.add_argument("--resolution", type=positive, default=0.25, help="um per px of the patch")
    sampling.add_argument("--data_sampler", choices=SAMPLERS, default="radboud", help="where to look")
    sampling.add_argument(
        "--bb_downsample",
        type=whole(0),
        default=7,
        help="pyramid level of the tissue and contour search, clamped to what the slide has",
    )
    sampling.add_argument(
        "--batch_tumor_ratio",
        type=share,
        help="share of tumour patches in a batch, exact over time; default 1 for surf, balanced rounds for radboud",
    )
    sampling.add_argument("--sample_processes", type=whole(1), default=1, help="parallel samplers per rank")
    sampling.add_argument(
        "--hard_mining", action="store_true", help="draw part of each batch from places the network gets wrong"
    )
    sampling.add_argument(
        "--hard_fraction", type=share, default=Fraction(1, 4), help="share of draws from the hard pool"
    )
    sampling.add_argument("--hard_pool", type=whole(1), default=256, help="places in the hard pool")
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


def _network_options(parser: Parser) -> None:
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


def _training_options(parser: Parser) -> None:
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
    training.add_argument("--base_lr", type=positive, default=0.001, help="Adam's learning rate per rank; used x ranks")
    training.add_argument("--warmup", type=whole(0), help="images of linear warm-up; default 5%% of --num_steps")
    training.add_argument("--lr_schedule", choices=SCHEDULES, default="constant", help="after the warm-up")
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
    training.add_argument("--no_cuda", action="store_true", help="CPU even where GPUs are visible")
    training.add_argument(
        "--horovod",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="distributed training; one process without a launcher simply runs",
    )
    training.add_argument("--fp16_allreduce", action="store_true", help="compress gradients to fp16 for the allreduce")


def _run_options(parser: Parser) -> None:
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
    run.add_argument("--debug", action="store_true", help="a short run on at most 100 images")


def train_options(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and validate train.py's command line; exits with code 2 and one clear line where it is wrong."""
    parser = _train_parser()
    opts = parser.parse_args(argv)
    if not opts.plan:
        _check_data(parser, opts)
    if opts.img_size < SIZE_STEP or opts.img_size % SIZE_STEP:
        below = max(SIZE_STEP, opts.img_size // SIZE_STEP * SIZE_STEP)
        parser.error(
            f"--img_size {opts.img_size}: a multiple of {SIZE_STEP} is needed, e.g. {below} or {below + SIZE_STEP}"
        )
    _check_training(parser, opts)
    if opts.context_spacing is not None and opts.context_spacing <= opts.resolution:
        parser.error(
            f"--context_spacing {opts.context_spacing:g}: the second view must be coarser than --resolution "
            f"{opts.resolution:g} um/px"
        )
    if opts.resume == "auto" and opts.log_dir is None:
        parser.error("--resume auto looks for checkpoints in --log_dir, which is not given")
    # without --model, weights say which network they are of
    opts.networks = MODELS if opts.weights_path and not opts.model else (opts.model or MODELS[0],)
    if opts.debug:
        opts.num_steps = min(opts.num_steps, 100)
        opts.log_every = min(opts.log_every, 20)
        opts.validate_every = min(opts.validate_every, 50)
        opts.val_patches = min(opts.val_patches or 8, 8)
    opts.warmup = opts.num_steps // 20 if opts.warmup is None else opts.warmup
    opts.checkpoint_every = opts.checkpoint_every or opts.validate_every
    return opts


def _check_training(parser: Parser, opts: argparse.Namespace) -> None:
    """A loss that something can be learnt from; no option that would do nothing."""
    if opts.class_weights and not any(opts.class_weights):
        parser.error("--class_weights are all 0: nothing would be learnt")
    if not opts.class_weights and opts.pos_pixel_weight == opts.neg_pixel_weight == 0:
        parser.error("--pos_pixel_weight and --neg_pixel_weight are both 0: nothing would be learnt")
    if opts.label_smoothing and opts.loss == "dice":
        parser.error("--label_smoothing is for ce and focal; --loss dice has no such target")
    if opts.focal_gamma is not None and opts.loss != "focal":
        parser.error(f"--focal_gamma is for --loss focal; --loss {opts.loss} has none")
    opts.focal_gamma = 2.0 if opts.focal_gamma is None else opts.focal_gamma
    if (opts.freeze_bn or opts.freeze_backbone) and not (opts.weights_path or opts.resume):
        parser.error("--freeze_bn and --freeze_backbone keep what was trained before: give --weights_path or --resume")
    if opts.freeze_bn and opts.sync_bn:
        parser.error("--freeze_bn and --sync_bn: frozen statistics are not taken from any batch; give one of the two")


def _check_data(parser: Parser, opts: argparse.Namespace) -> None:
    """Exactly one way to name the data; no half of a pair."""
    folders = (opts.slide_path, opts.label_path, opts.valid_slide_path, opts.valid_label_path)
    if opts.dataset:
        if any(folders):
            parser.error("--dataset takes the place of the four path options: give one or the other")
        if opts.data_root is None:
            parser.error(f"--dataset {opts.dataset} needs --data_root (or $CAMELYON_ROOT)")
    elif opts.slide_path is None or opts.label_path is None:
        parser.error("no training data: give --slide_path and --label_path, or --dataset 16 or 17 with --data_root")
    elif (opts.valid_slide_path is None) != (opts.valid_label_path is None):
        parser.error("--valid_slide_path and --valid_label_path go together")
    if not 0 < opts.val_split < 1:
        parser.error(f"--val_split {opts.val_split:g}: a share between 0 and 1 (both excluded) is needed")
    # CAMELYON comes with XML truth; validation data looks like training data unless said otherwise
    opts.label_format = opts.label_format or ("xml" if opts.dataset else "tif")
    opts.valid_label_format = opts.valid_label_format or opts.label_format
    opts.valid_slide_format = opts.valid_slide_format or opts.slide_format
    opts.label_map = _label_map(parser, opts.label_map, opts.ignore_groups)
    opts.mask_values = _mask_values(parser, opts.mask_values)
    opts.ignore_groups = tuple(group.lower() for group in opts.ignore_groups or ("None",))


def _label_map(
    parser: Parser, pairs: Sequence[tuple[str, int]] | None, ignored: Sequence[str] | None
) -> dict[str, int] | None:
    """Groups to classes as given; None for the default. A group to skip must not be in it, nor in the default."""
    skipped = {group.lower() for group in ignored or ()}
    if pairs is None:
        if not skipped:
            return None
        from slides.annotation import DEFAULT_LABEL_MAP

        return {group: cls for group, cls in DEFAULT_LABEL_MAP.items() if group not in skipped}
    groups = [group for group, _ in pairs]
    for wrong, why in ((skipped, "is in --ignore_groups, too"), ({g for g in groups if groups.count(g) > 1}, "twice")):
        both = [group for group in groups if group in wrong]
        if both:
            parser.error(f"--label_map: group {both[0]!r} {why}; name each group once")
    if not any(0 < cls < 255 for _, cls in pairs):
        parser.error("--label_map: no group has a class from 1 to 254, so there would be nothing to find")
    return dict(pairs)


def _mask_values(parser: Parser, pairs: Sequence[tuple[str, int]] | None) -> dict[int, int] | None:
    if pairs is None:
        return None
    wrong = [name for name, _ in pairs if not (name.isdigit() and int(name) <= 255)]
    if wrong:
        parser.error(f"--mask_values {wrong[0]}: mask values are whole numbers from 0 to 255")
    return {int(name): cls for name, cls in pairs}


def as_json(opts: argparse.Namespace) -> dict[str, Any]:
    """Options as JSON types, for logs and checkpoints."""
    plain = (bool, int, float, str, type(None), list, dict)
    return {
        k: v if isinstance(v, plain) else list(v) if isinstance(v, tuple) else str(v) for k, v in vars(opts).items()
    }


def stream_options(opts: argparse.Namespace) -> dict[str, Any]:
    """Options that decide which patch an index is: a resumed run must agree on them."""
    names = (
        "seed", "data_sampler", "batch_tumor_ratio", "img_size", "resolution", "bb_downsample", "mpp", "label_map",
        "ignore_groups", "mask_values", "hard_mining", "hard_fraction", "hard_pool", "qc", "augment", "context_spacing",
    )  # fmt: skip
    return {name: as_json(opts)[name] for name in names}
