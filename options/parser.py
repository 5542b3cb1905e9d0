"""The parser of every command line, and the value types of its options.

Imports nothing that takes time: `--help` and a wrong option answer at once.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import NoReturn

from parallel.launchers import is_first_rank
from system.version import __version__


class OptionError(ValueError):
    """A command line that cannot be used; the message says what to change."""


class _Defaults(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the default of options that have one, as a user would type it."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False:
            return action.help
        if isinstance(action.default, tuple):
            return f"{action.help} (default: {' '.join(map(str, action.default))})"
        return super()._get_help_string(action)


class _Prose(_Defaults, argparse.RawDescriptionHelpFormatter):
    """The same, and keeps the line breaks of descriptions."""


class Parser(argparse.ArgumentParser):
    """argparse that reads `@FILE` as arguments, takes no abbreviations and reports errors on rank 0 only.

    Args:
        prog: name of the program as users call it.
        description: what it does.
        epilog: text after the options.
        prose: keep the line breaks of description and epilog.
        add_help: add --help and --version.
        raises: raise `OptionError` for a wrong command line instead of ending the program with code 2.
        replaced: flags of programs that users come from -> what to do here instead.
    """

    def __init__(
        self,
        prog: str,
        description: str | None,
        epilog: str | None = None,
        prose: bool = False,
        add_help: bool = True,
        raises: bool = False,
        replaced: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(
            prog, None, description, epilog, fromfile_prefix_chars="@", allow_abbrev=False, add_help=add_help,
            formatter_class=_Prose if prose else _Defaults,
        )  # fmt: skip
        self._raises = raises
        self._replaced = replaced or {}
        if add_help:
            self.add_argument("--version", action="version", version=f"widefov {__version__}")

    def parse_args(  # type: ignore[override]  # no overloads
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """As argparse's; a flag that has another name here is an error that says which."""
        found, unknown = self.parse_known_args(args, namespace)
        for word in unknown:
            flag = word.partition("=")[0]
            if flag in self._replaced:
                self.error(f"{flag}: {self._replaced[flag]}")
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        assert found is not None
        return found

    def convert_arg_line_to_args(self, arg_line: str) -> list[str]:
        """One or more arguments per line, shell quoting, `#` comments."""
        return shlex.split(arg_line, comments=True)

    def error(self, message: str) -> NoReturn:
        """Exit with code 2 and one line: the usage of eighty flags would hide it.

        Raises:
            OptionError: where the parser was made with `raises`.
        """
        if self._raises:
            raise OptionError(message)
        # Ranks: all ranks get the same command line and exit; one reports why.
        if is_first_rank():
            message = f"{self.prog}: error: {message}\n{self.prog} --help lists all options"
            print(message, file=sys.stderr)  # noqa: T201  # on behalf of a program
        sys.exit(2)


# ------------------------------------------------------------------------------------------------------- value types


def whole(least: int, most: float = float("inf")) -> Callable[[str], int]:
    """A whole number within limits, both included."""

    def parse(text: str) -> int:
        value = int(text)
        if not least <= value <= most:
            upper = f" and at most {most:.0f}" if most < float("inf") else ""
            raise argparse.ArgumentTypeError(f"{value} given, must be at least {least}{upper}")
        return value

    parse.__name__ = "whole number"  # argparse names the type in its message
    return parse


def positive(text: str) -> float:
    """A number above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} given, must be above 0")
    return value


def not_negative(text: str) -> float:
    """A number of at least 0."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} given, must be at least 0")
    return value


def share_below_1(text: str) -> float:
    """A share of at least 0 and below 1."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} given, must be at least 0 and below 1")
    return value


# argparse names the type in its message where the text is not a number at all.
positive.__name__ = not_negative.__name__ = share_below_1.__name__ = "number"


def share(text: str) -> Fraction:
    """A share between 0 and 1, as a number or a fraction, exact to 1/10,000."""
    try:
        value = Fraction(text)
    except (ValueError, ZeroDivisionError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from error
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} given, must be between 0 and 1")
    return value.limit_denominator(10_000)


def pair(text: str) -> tuple[str, int]:
    """NAME:CLASS, the name in lower case."""
    name, colon, number = text.rpartition(":")
    if not (name and colon and number.isdecimal() and int(number) <= 255):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME:CLASS, e.g. _0:1")
    return name.strip().lower(), int(number)


def not_empty(text: str) -> str:
    """A value with something in it; an empty one usually is a variable of a script that is not set."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the value is empty; give one, or omit the option")
    return text
