"""Options as fields of frozen dataclasses: one definition gives the flag, its check, its help and its typed value.

    @dataclass(frozen=True, kw_only=True)
    class Search(Group):
        "Tissue search."

        bb_downsample: int = option(7, parse=whole(0), help="pyramid level of the search")

A program is a dataclass of such groups. `read` makes its flags, a section of `--help` per group, parses a command line
and returns the program's object; `as_json` gives the values under the names of their flags.
"""

from __future__ import annotations

import argparse
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from options.parser import Parser, not_empty

_KEY = "option"


@dataclass(frozen=True)
class _Flag:
    """What the command line needs to know of a field; see `option`."""

    default: Any
    help: str
    parse: Callable[[str], Any] | None
    choices: Sequence[str] | None
    unit: str | None
    metavar: str | tuple[str, ...] | None
    nargs: int | str | None
    const: Any
    name: str | None
    required: bool


@dataclass(frozen=True)
class _Marks:
    """What holds for a value besides its type; see `option`."""

    flag: _Flag | None
    stream: bool
    free: bool


def option(  # noqa: PLR0913  # keywords, few at a time
    default: Any = None,
    *,
    help: str,  # noqa: A002  # as argparse calls it
    parse: Callable[[str], Any] | None = None,
    choices: Sequence[str] | None = None,
    unit: str | None = None,
    metavar: str | tuple[str, ...] | None = None,
    nargs: int | str | None = None,
    const: Any = None,
    flag: str | None = None,
    required: bool = False,
    stream: bool = False,
    free: bool = False,
) -> Any:
    """A field that is an option of the command line, `--NAME` by the name of the field.

    What is not given follows from the field's type: `Path`, `int`, `float` and `str` parse themselves, `bool` is a
    switch (with `--no-NAME` where the default is True), a `Literal` gives the choices, a tuple takes several values.

    Args:
        default: value where the flag is missing; None also where `Group.settle` finds it from other options. The field
            itself has no default: objects come from `read`, or name every value.
        help: one line; the default is added to it.
        parse: turns one argument into a value; raises ValueError or argparse.ArgumentTypeError.
        choices: allowed values, where the type does not name them.
        unit: of the value, e.g. px; shown for a value.
        metavar: shown for a value, if not the unit.
        nargs: as of argparse.
        const: value of a flag without argument, with `nargs="?"`.
        flag: its name where that is not the field's.
        required: the flag must be given.
        stream: decides which patch an index is: a resumed run must agree on it.
        free: changes nothing of what is learned: a resumed run need not mention it.
    """
    described = _Flag(default, help, parse, choices, unit, metavar, nargs, const, flag, required)
    return field(metadata={_KEY: _Marks(described, stream, free)})


def derived(*, free: bool = False) -> Any:
    """A field without a flag, which `Group.settle` fills from other options; it is stored with them."""
    return field(metadata={_KEY: _Marks(None, False, free)})


class Group:
    """A group of options: a frozen dataclass of `option` fields, whose docstring heads its section of `--help`.

    `__post_init__` refuses values that contradict each other (ValueError).
    """

    @classmethod
    def settle(cls, given: argparse.Namespace) -> None:
        """Replace what was not given by what follows from other options; called before the object is made.

        Args:
            given: parsed values of all flags of the program, to be changed.

        Raises:
            ValueError: an option was given that has no meaning with the others.
        """


P = TypeVar("P", bound=Group)


def add_options(parser: argparse.ArgumentParser, group: type[Group]) -> None:
    """Add the flags of a group as a section of `--help`."""
    title, _, description = (group.__doc__ or "").partition("\n\n")
    title = title.strip().rstrip(".")
    section = parser.add_argument_group(title[:1].lower() + title[1:], description.strip() or None)
    hints = get_type_hints(group)
    for entry in fields(group):  # type: ignore[arg-type]  # every group is a dataclass
        flag = _marks(entry).flag
        if flag is not None:
            section.add_argument(flag.name or f"--{entry.name}", dest=entry.name, **_argument(flag, hints[entry.name]))


def _argument(flag: _Flag, hint: Any) -> dict[str, Any]:
    """Arguments of `add_argument`."""
    kind, many = _kind(hint)
    common: dict[str, Any] = {"help": flag.help, "default": flag.default, "required": flag.required}
    if kind is bool and flag.parse is None:
        return common | {"action": argparse.BooleanOptionalAction if flag.default else "store_true"}
    choices = flag.choices or (get_args(kind) if get_origin(kind) is Literal else None)
    common |= {"nargs": flag.nargs or ("+" if many else None), "const": flag.const}
    if choices:
        return common | {"choices": choices, "metavar": flag.metavar}
    names: dict[Any, str] = {Path: "PATH", int: "N", float: "NUMBER"}
    metavar = flag.metavar or (flag.unit and flag.unit.upper()) or names.get(kind)
    return common | {
        "type": flag.parse or (kind if kind in (int, float) else _path if kind is Path else not_empty),
        "metavar": metavar,
    }


def _path(text: str) -> Path:
    """`--log_dir "$UNSET"` would otherwise be the working directory."""
    return Path(not_empty(text))


def _kind(hint: Any) -> tuple[Any, bool]:
    """The type of one value, and whether there are several."""
    if get_origin(hint) in (Union, types.UnionType):
        hint = next(arg for arg in get_args(hint) if arg is not type(None))
    if get_origin(hint) is tuple:
        return get_args(hint)[0], True
    return hint, False


def collect(group: type[P], given: argparse.Namespace) -> P:
    """The object of a group, or of a program and its groups, from settled values.

    Raises:
        ValueError: values contradict each other.
    """
    hints = get_type_hints(group)
    return group(**{entry.name: _value(hints[entry.name], entry.name, given) for entry in fields(group)})  # type: ignore[arg-type]


def _value(hint: Any, name: str, given: argparse.Namespace) -> Any:
    if _is_group(hint):
        return collect(hint, given)
    value = getattr(given, name)
    return tuple(value) if isinstance(value, list) else value


def _is_group(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, Group)


def groups_of(program: type[Group]) -> list[type[Group]]:
    """The groups of a program, in their order."""
    return [hint for hint in get_type_hints(program).values() if _is_group(hint)]


def read(program: type[P], parser: Parser, argv: Sequence[str] | None = None) -> P:
    """Add the flags of a program's groups to its parser, parse and check a command line.

    Args:
        program: dataclass of groups.
        parser: ends the program, or raises `OptionError`, where the command line is wrong.
        argv: arguments; None for those of this process.
    """
    options = read_all([program], parser, argv)[0]
    assert isinstance(options, program)
    return options


def read_all(programs: Sequence[type[Group]], parser: Parser, argv: Sequence[str] | None = None) -> list[Group]:
    """As `read`, for several programs on one command line; a group that several of them have gives its flags once."""
    groups = list(dict.fromkeys(group for program in programs for group in groups_of(program)))
    for group in groups:
        add_options(parser, group)
    given = parser.parse_args(argv)
    try:
        for settled in (*programs, *groups):
            settled.settle(given)
        return [collect(program, given) for program in programs]
    except ValueError as error:
        parser.error(str(error))


# --------------------------------------------------------------------------------------------------- as they are stored


def as_json(options: Group) -> dict[str, Any]:
    """The values of a group, or of all groups of a program, as JSON types by the names of their flags."""
    return {name: _plain(value) for name, value, _ in _values(options)}


def stream_options(options: Group) -> dict[str, Any]:
    """Options that decide which patch an index is, as JSON types: a resumed run must agree on them."""
    return {name: _plain(value) for name, value, marks in _values(options) if marks.stream}


def free_options(options: Group) -> frozenset[str]:
    """Names of the options that change nothing of what is learned."""
    return frozenset(name for name, _, marks in _values(options) if marks.free)


def switches_of(program: type[Group]) -> dict[str, bool]:
    """Options of a program that take no value, with what holds without them."""
    found: dict[str, bool] = {}
    for group in groups_of(program):
        hints = get_type_hints(group)
        for entry in fields(group):  # type: ignore[arg-type]  # every group is a dataclass
            flag = _marks(entry).flag
            if flag is not None and flag.parse is None and _kind(hints[entry.name])[0] is bool:
                found[entry.name] = bool(flag.default)
    return found


def _values(options: Group) -> Iterator[tuple[str, Any, _Marks]]:
    for entry in fields(options):  # type: ignore[arg-type]  # every group is a dataclass
        value = getattr(options, entry.name)
        if is_dataclass(value):
            yield from _values(value)  # type: ignore[arg-type]
        else:
            yield entry.name, value, _marks(entry)


def _marks(entry: Any) -> _Marks:
    marks: _Marks = entry.metadata[_KEY]
    return marks


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(inner) for inner in value]
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(value)
