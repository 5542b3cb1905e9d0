"""What the words of a command line may be, and the parser that says so in one line."""

from __future__ import annotations

import argparse
import shlex
import sys
from fractions import Fraction
from typing import NoReturn

from training.comm import launched_rank


class Parser(argparse.ArgumentParser):
    """argparse that reads `@files` like command lines and speaks on rank 0 only."""

    def convert_arg_line_to_args(self, arg_line: str) -> list[str]:
        """One or more words per line, shell quoting, `#` comments."""
        return shlex.split(arg_line, comments=True)

    def error(self, message: str) -> NoReturn:
        """Exit with code 2 and one line: the usage of fifty flags would hide it."""
        # Ranks: all ranks see the same command line and leave; one says why.
        if launched_rank() == 0:
            sys.stderr.write(f"{self.prog}: error: {message}\n{self.prog} --help lists all options\n")
        sys.exit(2)


def whole(least: int, most: float = float("inf")):
    """A whole number within limits, both included."""

    def parse(text: str) -> int:
        value = int(text)
        if not least <= value <= most:
            upper = f" and at most {most:.0f}" if most < float("inf") else ""
            raise argparse.ArgumentTypeError(f"{value} given, at least {least}{upper} needed")
        return value

    parse.__name__ = "whole number"  # argparse names the type in its message
    return parse


def positive(text: str) -> float:
    """A number above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} given, a number above 0 needed")
    return value


def not_negative(text: str) -> float:
    """A number of at least 0."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} given, a number of at least 0 needed")
    return value


def share_below_1(text: str) -> float:
    """A share of at least 0 and below 1."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} given, a share of at least 0 and below 1 needed")
    return value


# argparse names the type in its message where the text is no number at all.
positive.__name__ = not_negative.__name__ = share_below_1.__name__ = "number"


def share(text: str) -> Fraction:
    """A share between 0 and 1, as a number or a fraction, exact to 1/10,000."""
    try:
        value = Fraction(text)
    except (ValueError, ZeroDivisionError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from error
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} given, a share between 0 and 1 needed")
    return value.limit_denominator(10_000)


def pair(text: str) -> tuple[str, int]:
    """NAME:CLASS, the name in small letters."""
    name, colon, number = text.rpartition(":")
    if not (name and colon and number.isdigit() and int(number) <= 255):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME:CLASS, e.g. _0:1")
    return name.strip().lower(), int(number)
