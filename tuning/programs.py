"""Programs that a study can run: their options are checked before the first trial."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from options.fields import Group, switches_of
from options.parser import OptionError
from options.train import TrainOptions, train_options
from options.train_classifier import ClassifierOptions, classifier_options
from system.start import ROOT
from tuning.space import Space, SpaceError

GIVEN_BY_US = ("log_dir", "resume", "plan")  # a trial has a folder of its own, and is resumed by itself


@dataclass(frozen=True)
class Program:
    """A program whose options are known.

    Attributes:
        options: its groups of options.
        read: parses a command line; raises OptionError with `raises`.
    """

    options: type[Group]
    read: Callable[..., Any]


PROGRAMS: Mapping[str, Program] = {
    "train.py": Program(TrainOptions, train_options),
    "train_classifier.py": Program(ClassifierOptions, classifier_options),
}


def find(path: Path) -> Path:
    """The program: as given, or beside tune.py.

    Raises:
        ValueError: there is no such file.
    """
    found = next((place for place in (path, ROOT / path) if place.is_file()), None)
    if found is None:
        raise ValueError(f"program {path}: no such file; give one of {', '.join(PROGRAMS)}, or the path of another")
    return found.resolve()


def known(path: Path) -> Program | None:
    """The program, if it is one of ours."""
    return PROGRAMS.get(path.name) if path.resolve().parent == ROOT else None


def switches(path: Path) -> dict[str, bool]:
    """Options of a program that take no value; of unknown programs none."""
    program = known(path)
    return switches_of(program.options) if program else {}


def check(path: Path, arguments: Sequence[str], space: Space) -> str:
    """Check that the program takes every trial.

    Args:
        path: of the program.
        arguments: in front of those that are searched.
        space: what is searched.

    Returns:
        A note for the log, or nothing.

    Raises:
        SpaceError: an option is unknown, given twice, or refused by the program at an end of its range.
    """
    given = _names(arguments)
    for name in GIVEN_BY_US:
        if name in given or any(parameter.name == name for parameter in space.parameters):
            raise SpaceError(f"--{name}: tune.py gives every trial its own; omit it")
    twice = next((parameter.name for parameter in space.parameters if parameter.name in given), None)
    if twice is not None:
        raise SpaceError(f"--{twice} is searched, and also given behind --; omit one of the two")
    program = known(path)
    if program is None:
        return f"{path.name} is not a program of widefov: its options are not checked before the trials"
    own = ["--log_dir", "STUDY", "--resume", "auto"]
    for values in space.corners():
        found = space.arguments(values)
        try:
            program.read([*arguments, *found, *own], raises=True)
        except OptionError as error:
            raise SpaceError(f"{path.name} refuses {shlex.join(found)}: {error}") from error
    return ""


def _names(arguments: Sequence[str]) -> set[str]:
    """Names of options on a command line, with those of its @files."""
    found = set()
    for argument in arguments:
        if argument.startswith("--"):
            found.add(argument[2:].split("=")[0])
        elif argument.startswith("@"):
            try:
                text = Path(argument[1:]).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):
                continue  # the program's parser has a message for it
            found |= _names([word for line in text.splitlines() for word in shlex.split(line, comments=True)])
    return found
