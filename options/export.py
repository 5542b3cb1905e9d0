"""Options that name a trained model, for every entry script that opens one, and those of export.py."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from artifacts.metadata import ModelOverrides
from options.parser import Parser, positive, whole

FORMATS = ("savedmodel", "onnx", "keras")
# What tf2onnx writes and ONNX Runtime reads; 13 is the first whose Softmax takes any axis.
MIN_OPSET, MAX_OPSET, OPSET = 13, 18, 17


def model_options(parser: Parser) -> None:
    """The model, and what does not travel with models of others."""
    model = parser.add_argument_group("model")
    model.add_argument(
        "--model",
        type=Path,
        required=True,
        metavar="PATH",
        help="a run (--log_dir of train.py: its best checkpoint), a checkpoint .npz, a .keras file, or a SavedModel",
    )
    model.add_argument(
        "--img_size", type=whole(1), help="side of the square images, px; default: as trained. Any for train.py's runs"
    )
    model.add_argument(
        "--resolution", type=positive, help="um per px of the images; only for models that do not say so themselves"
    )
    model.add_argument(
        "--context_spacing", type=positive, help="um per px of a second view; only for models that do not say so"
    )
    model.add_argument(
        "--input_range",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="what 0 and 255 become before the model takes them, e.g. -1 1; only for models that do not say so",
    )


def given(parser: Parser, opts: argparse.Namespace) -> ModelOverrides:
    """What the command line says of the model; exits with code 2 where that cannot be."""
    if opts.input_range is not None and not -1e6 < opts.input_range[0] < opts.input_range[1] < 1e6:
        parser.error(f"--input_range {opts.input_range[0]:g} {opts.input_range[1]:g}: the smaller number first")
    if None not in (opts.resolution, opts.context_spacing) and opts.context_spacing <= opts.resolution:
        parser.error(
            f"--context_spacing {opts.context_spacing:g}: the second view is coarser than --resolution "
            f"{opts.resolution:g} um/px"
        )
    input_range = None if opts.input_range is None else (opts.input_range[0], opts.input_range[1])
    return ModelOverrides(opts.img_size, opts.resolution, opts.context_spacing, input_range)


def export_options(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and validate export.py's command line; `given` holds what it says of the model."""
    parser = Parser(
        prog="export.py",
        description="Write a trained model for use elsewhere: uint8 RGB in, class probabilities out.",
        epilog="Every file written is opened again and compared with the model: exit code 1 where they differ.",
    )
    model_options(parser)
    files = parser.add_argument_group("files")
    files.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new or empty folder")
    files.add_argument(
        "--format", choices=FORMATS, nargs="+", default=["savedmodel", "onnx"], dest="formats", help="what to write"
    )
    files.add_argument("--opset", type=whole(MIN_OPSET, MAX_OPSET), default=OPSET, help="version of ONNX' operator set")
    opts = parser.parse_args(argv)
    opts.given = given(parser, opts)
    opts.formats = tuple(name for name in FORMATS if name in opts.formats)
    return opts
