"""The options of evaluate.py, in the scheme of `options.py` and `option_groups.py`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from metrics.froc import FALSE_PER_SLIDE
from options.groups import class_options
from options.parser import Parser, positive, whole
from options.train import check_classes

PIXELS = ("tissue", "all")


def evaluate_options(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and validate evaluate.py's command line; exits with code 2 and one clear line where it is wrong."""
    parser = Parser(
        prog="evaluate.py",
        description="Score predictions of whole slides against their truth: pixels, lesions, slides, patients.",
        epilog="evaluate.py --submission FILE --reference FILE compares two CAMELYON17 tables of stages and nothing "
        "else. What each number is: docs/evaluation.md.",
    )
    _data_options(parser)
    _score_options(parser)
    opts = parser.parse_args(argv)
    if (opts.submission is None) != (opts.reference is None):
        parser.error("--submission and --reference go together: two tables of stages to be compared")
    if opts.submission is not None:
        if opts.predictions or opts.label_path or opts.slide_path:
            parser.error("--submission and --reference compare two tables only: leave the other paths out")
        return opts
    missing = [name for name in ("predictions", "label_path", "out") if getattr(opts, name) is None]
    if missing:
        parser.error(f"--{missing[0]} is missing: --predictions, --label_path and --out are needed")
    check_classes(parser, opts)
    if sorted(set(opts.froc_threshold)) != list(opts.froc_threshold):
        parser.error("--froc_threshold: numbers in rising order, each once, are needed")
    return opts


def _data_options(parser: Parser) -> None:
    data = parser.add_argument_group("predictions, labels and slides")
    data.add_argument("--predictions", type=Path, help="what predict.py wrote: a folder with one folder per slide")
    data.add_argument("--label_path", type=Path, help="labels: a folder or one file; slides without one have no tumour")
    data.add_argument(
        "--slide_path", type=Path, help="slides: a folder or one file; without it those that the predictions name"
    )
    data.add_argument("--slide_format", default="tif", metavar="SUFFIX", help="of --slide_path: tif, svs, ndpi ...")
    data.add_argument("--label_format", default="tif", choices=("tif", "xml"), help="tif (mask pyramids) or xml (ASAP)")
    class_options(data)
    data.add_argument(
        "--mpp", type=positive, help="um per px of level 0, in place of what the predictions took it to be"
    )
    data.add_argument("--out", type=Path, help="folder for metrics.json, slides.csv, false_positives.csv, report.html")


def _score_options(parser: Parser) -> None:
    scores = parser.add_argument_group("scores")
    scores.add_argument(
        "--pixels", choices=PIXELS, default="tissue", help="which count: tissue and annotations, or all"
    )
    scores.add_argument(
        "--bootstrap", type=whole(0, 100_000), default=1000, help="resamples of slides for the intervals; 0: none"
    )
    scores.add_argument("--seed", type=whole(0, 2**32 - 1), default=0, help="seed of the resamples")
    scores.add_argument(
        "--froc_threshold",
        type=positive,
        nargs="+",
        default=list(FALSE_PER_SLIDE),
        metavar="FALSE",
        help="false positives per slide at which the sensitivity is read; CAMELYON16's unless given",
    )
    tables = parser.add_argument_group("two tables of CAMELYON17 only")
    tables.add_argument("--submission", type=Path, help="CSV of predicted stages: patient,stage")
    tables.add_argument("--reference", type=Path, help="CSV of true stages")
