"""The options of predict.py, validated."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from options.export import given, model_options
from options.groups import common_options
from options.parser import Parser, not_negative, positive, share_below_1, whole


def _parser() -> Parser:
    parser = Parser(
        prog="predict.py",
        description="Predict whole slides with a trained network: probability maps, outlines, detections, pictures.",
        epilog="Several ranks: NP=4 SCRIPT=predict.py ./run_train.sh --model ... Options can be kept in a file: @FILE.",
    )
    model_options(parser)
    data = parser.add_argument_group("slides")
    data.add_argument(
        "--slide_path",
        type=Path,
        nargs="+",
        required=True,
        help="slides: files, folders, or .txt files with one of these in a line",
    )
    data.add_argument("--out", type=Path, required=True, help="folder of the results, one folder in it for each slide")
    data.add_argument(
        "--overwrite", action="store_true", help="also predict slides that were predicted with other options"
    )
    common_options(data, "--slide_format", "--mpp", "--tile_cache")
    data.add_argument(
        "--strict", action="store_true", help="stop where a slide cannot be opened or a window not be read whole"
    )
    windows = parser.add_argument_group("windows")
    windows.add_argument(
        "--overlap", type=share_below_1, default=0.25, help="share of a window's side in common with the next"
    )
    windows.add_argument("--batch_size", type=whole(1), default=1, help="windows in one call of the network")
    windows.add_argument(
        "--tissue_only",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="leave out windows without tissue",
    )
    windows.add_argument(
        "--eightfold", action="store_true", help="mean over the 8 orientations of every window; 8 times the work"
    )
    common_options(windows, "--bb_downsample")
    results = parser.add_argument_group("results")
    results.add_argument(
        "--min_probability", type=share_below_1, default=0.1, help="detections below this are left out"
    )
    results.add_argument(
        "--nms_um", type=positive, default=75.0, help="um: of detections closer than this the best stays"
    )
    results.add_argument(
        "--simplify_um", type=not_negative, help="um by which outlines may be moved; default 2 px of the map"
    )
    results.add_argument("--min_area_um2", type=not_negative, default=100.0, help="um2: smaller outlines are left out")
    run = parser.add_argument_group("run")
    common_options(run, "--sample_processes", "--no_cuda", "--horovod", "--stall_timeout")
    return parser


def predict_options(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and validate predict.py's command line; exits with code 2 and one clear line where it is wrong."""
    parser = _parser()
    opts = parser.parse_args(argv)
    opts.given = given(parser, opts)
    if not opts.min_probability:
        parser.error("--min_probability 0: a number above 0 is needed, or every px without tumour would be a candidate")
    missing = [path for path in opts.slide_path if not path.exists()]
    if missing:
        parser.error(f"--slide_path {missing[0]}: no such file or folder")
    if opts.out.exists() and not opts.out.is_dir():
        parser.error(f"--out {opts.out} is a file; a folder is needed")
    return opts
