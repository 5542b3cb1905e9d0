"""The options of the entry scripts, validated here and nowhere else (`option_groups.py` lists them).

`train_options` returns validated, typed values; below the entry scripts nobody sees them as one object.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from options import arguments, groups
from options.groups import MODELS, MOMENTUM, OPTIMIZERS, SIZE_STEP
from options.parser import Parser
from parallel.launchers import is_elastic


def _train_parser() -> Parser:
    parser = Parser(
        prog="train.py",
        description="Train a segmentation network on large fields of view of whole-slide images, on one or many ranks.",
        epilog="Options can be kept in a file: train.py @experiments/demo.args. Paths are read on every rank.",
    )
    groups.data_options(parser)
    groups.sampling_options(parser)
    groups.network_options(parser)
    groups.training_options(parser)
    groups.optimizer_options(parser)
    groups.run_options(parser)
    return parser


def _check_optimizer(parser: Parser, opts: argparse.Namespace) -> None:
    """No option that the optimizer or the schedule has no use for; defaults that depend on them."""
    usual = OPTIMIZERS[opts.optimizer]
    if opts.weight_decay is not None and usual.weight_decay is None:
        parser.error(f"--weight_decay: --optimizer {opts.optimizer} has none; adamw is Adam with weight decay")
    if opts.momentum is not None and opts.optimizer not in ("sgd", "lars"):
        parser.error(f"--momentum is for sgd and lars; --optimizer {opts.optimizer} has none")
    if opts.lr_cycle is not None and opts.lr_schedule != "cyclic":
        parser.error(f"--lr_cycle is for --lr_schedule cyclic; {opts.lr_schedule} has no cycle")
    opts.base_lr = opts.base_lr or usual.base_lr
    opts.weight_decay = usual.weight_decay if opts.weight_decay is None else opts.weight_decay
    opts.momentum = MOMENTUM if opts.momentum is None else opts.momentum


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
    _check_optimizer(parser, opts)
    if opts.context_spacing is not None and opts.context_spacing <= opts.resolution:
        parser.error(
            f"--context_spacing {opts.context_spacing:g}: the second view must be coarser than --resolution "
            f"{opts.resolution:g} um/px"
        )
    if opts.mine_from:
        _check_mining(parser, opts)
    if opts.elastic:
        _check_elastic(parser, opts)
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
    opts.lr_cycle = opts.lr_cycle or max(1, opts.num_steps // 10)
    opts.checkpoint_every = opts.checkpoint_every or opts.validate_every
    return opts


def _check_mining(parser: Parser, opts: argparse.Namespace) -> None:
    """Places without tumour are of use only where such places are drawn."""
    if not opts.hard_mining:
        parser.error("--mine_from is for --hard_mining: it says what its pool begins with")
    ratio = (1 if opts.data_sampler == "surf" else 0) if opts.batch_tumor_ratio is None else opts.batch_tumor_ratio
    if ratio == 1:
        parser.error(
            "--mine_from has places without tumour, of which --batch_tumor_ratio 1 (the default of surf) draws none: "
            "give a smaller one"
        )


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


def _check_elastic(parser: Parser, opts: argparse.Namespace) -> None:
    """Ranks that come later start from the newest checkpoint, so there must be a place for it."""
    if not is_elastic():
        parser.error(
            "--elastic is for ranks that an elastic launcher started: horovodrun --gloo -np 2 --min-np 1 --max-np 4 "
            "--host-discovery-script FILE ... (docs/distributed.md)"
        )
    if opts.log_dir is None:
        parser.error("--elastic needs --log_dir, which all ranks see: who comes later goes on from its checkpoints")
    opts.resume = opts.resume or "auto"


def _check_source(parser: Parser, opts: argparse.Namespace) -> None:
    """Exactly one way to name the data; no half of a pair."""
    folders = (opts.slide_path, opts.label_path, opts.valid_slide_path, opts.valid_label_path)
    if opts.slide_root is not None and opts.manifest is None:
        parser.error("--slide_root says where the files of a --manifest are: give that, too")
    if opts.manifest:
        if any(folders) or opts.dataset:
            parser.error("--manifest takes the place of the four path options and of --dataset: give one or the other")
    elif opts.dataset:
        if any(folders):
            parser.error("--dataset takes the place of the four path options: give one or the other")
        if opts.data_root is None:
            parser.error(f"--dataset {opts.dataset} needs --data_root (or $CAMELYON_ROOT)")
    elif opts.slide_path is None or opts.label_path is None:
        parser.error(
            "no training data: give --slide_path and --label_path, or --dataset 16 or 17 with --data_root, or a "
            "--manifest"
        )
    elif (opts.valid_slide_path is None) != (opts.valid_label_path is None):
        parser.error("--valid_slide_path and --valid_label_path go together")


def _check_data(parser: Parser, opts: argparse.Namespace) -> None:
    """What is read, and how."""
    _check_source(parser, opts)
    if not 0 < opts.val_split < 1:
        parser.error(f"--val_split {opts.val_split:g}: a share between 0 and 1 (both excluded) is needed")
    # CAMELYON comes with XML truth; validation data looks like training data unless said otherwise
    opts.label_format = opts.label_format or ("xml" if opts.dataset else "tif")
    opts.valid_label_format = opts.valid_label_format or opts.label_format
    opts.valid_slide_format = opts.valid_slide_format or opts.slide_format
    check_classes(parser, opts)


def check_classes(parser: Parser, opts: argparse.Namespace) -> None:
    """Options of `class_options` as what they mean: a map, a table, groups in small letters."""
    try:
        opts.label_map = arguments.label_map(opts.label_map, opts.ignore_groups)
        opts.mask_values = arguments.mask_values(opts.mask_values)
    except ValueError as error:
        parser.error(str(error))
    opts.ignore_groups = tuple(group.lower() for group in opts.ignore_groups or ("None",))


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
