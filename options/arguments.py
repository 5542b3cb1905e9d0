"""Words of a command line: what they may be, and a parser that says in one line what is wrong.

Shared by the steps of preprocessing and, through `option_types`, by the entry scripts.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import NoReturn

from parallel.launchers import is_first_rank


class _Defaults(argparse.ArgumentDefaultsHelpFormatter):
    """Says the default of options that have one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


class _Prose(_Defaults, argparse.RawDescriptionHelpFormatter):
    """The same, and descriptions as they are."""


class Parser(argparse.ArgumentParser):
    """argparse that reads `@files` like command lines, takes no abbreviations and speaks on rank 0 only.

    Args:
        prog: what users call the program.
        description: what it does.
        epilog: what to know after the options.
        prose: keep the line breaks of description and epilog.
        add_help: have --help.
    """

    def __init__(
        self, prog: str, description: str, epilog: str | None = None, prose: bool = False, add_help: bool = True
    ) -> None:
        super().__init__(
            prog, None, description, epilog, fromfile_prefix_chars="@", allow_abbrev=False, add_help=add_help,
            formatter_class=_Prose if prose else _Defaults,
        )  # fmt: skip

    def convert_arg_line_to_args(self, arg_line: str) -> list[str]:
        """One or more words per line, shell quoting, `#` comments."""
        return shlex.split(arg_line, comments=True)

    def error(self, message: str) -> NoReturn:
        """Exit with code 2 and one line: the usage of fifty flags would hide it."""
        # Ranks: all ranks see the same command line and leave; one says why.
        if self.may_speak():
            print(f"{self.prog}: error: {message}\n{self.prog} --help lists all options", file=sys.stderr)
        sys.exit(2)

    def may_speak(self) -> bool:
        """Whether this is rank 0, as far as the launcher has said."""
        return is_first_rank()


def whole(least: int, most: float = float("inf")) -> Callable[[str], int]:
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
    if not (name and colon and number.isdecimal() and int(number) <= 255):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME:CLASS, e.g. _0:1")
    return name.strip().lower(), int(number)


def label_map(pairs: Sequence[tuple[str, int]] | None, ignored: Sequence[str] | None) -> dict[str, int] | None:
    """Groups to classes as given; None for the default. A group to skip must not be in it, nor in the default.

    Args:
        pairs: --label_map.
        ignored: --ignore_groups.

    Raises:
        ValueError: a group is named twice or also to be skipped, or no group has a class.
    """
    skipped = {group.lower() for group in ignored or ()}
    if pairs is None:
        from slides.truth.annotation import DEFAULT_LABEL_MAP  # loads geometry libraries; --help must not wait for them

        kept = {group: cls for group, cls in DEFAULT_LABEL_MAP.items() if group not in skipped}
        return kept if skipped else None
    groups = [group for group, _ in pairs]
    for wrong, why in ((skipped, "is in --ignore_groups, too"), ({g for g in groups if groups.count(g) > 1}, "twice")):
        both = [group for group in groups if group in wrong]
        if both:
            raise ValueError(f"--label_map: group {both[0]!r} {why}; name each group once")
    if not any(0 < cls < 255 for _, cls in pairs):
        raise ValueError("--label_map: no group has a class from 1 to 254, so there would be nothing to find")
    return dict(pairs)


def mask_values(pairs: Sequence[tuple[str, int]] | None) -> dict[int, int] | None:
    """--mask_values as given; None for the default.

    Raises:
        ValueError: a value is no whole number from 0 to 255, or is named twice.
    """
    if pairs is None:
        return None
    wrong = [name for name, _ in pairs if not (name.isdecimal() and int(name) <= 255)]
    if wrong:
        raise ValueError(f"--mask_values {wrong[0]}: mask values are whole numbers from 0 to 255")
    classes = {int(name): cls for name, cls in pairs}
    if len(classes) < len(pairs):
        raise ValueError(f"--mask_values {' '.join(f'{name}:{cls}' for name, cls in pairs)}: name each value once")
    return classes
