"""The options of export.py."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from options.choices import EXPORT_FORMATS, ExportFormat
from options.fields import Group, option, read
from options.model import Model
from options.parser import Parser, whole

# What tf2onnx writes and ONNX Runtime reads; 13 is the first whose Softmax takes any axis.
MIN_OPSET, MAX_OPSET, OPSET = 13, 18, 17


@dataclass(frozen=True, kw_only=True)
class Files(Group):
    """Files."""

    out: Path = option(required=True, metavar="DIR", help="a new or empty folder")
    formats: tuple[ExportFormat, ...] = option(("savedmodel", "onnx"), flag="--format", help="what to write")
    opset: int = option(OPSET, parse=whole(MIN_OPSET, MAX_OPSET), help="version of ONNX' operator set")

    @classmethod
    def settle(cls, given: argparse.Namespace) -> None:
        """Each format once."""
        given.formats = tuple(name for name in EXPORT_FORMATS if name in given.formats)


@dataclass(frozen=True, kw_only=True)
class ExportOptions(Group):
    """All options of export.py."""

    model: Model
    files: Files


def export_options(argv: Sequence[str] | None = None) -> ExportOptions:
    """Parse and check export.py's command line; exits with code 2 and one line where it is wrong."""
    parser = Parser(
        prog="export.py",
        description="Write a trained model for use elsewhere: uint8 RGB in, class probabilities out.",
        epilog="Every file written is opened again and compared with the model: exit code 1 where they differ.",
    )
    return read(ExportOptions, parser, argv)
