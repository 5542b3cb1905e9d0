"""The space of a search: which options are searched, and within which limits.

A space file is written like `@file.args`: shell quoting, `#` comments, one option per line.

    --base_lr log 1e-5 1e-2                        a number, uniform in its logarithm
    --momentum 0 0.99                              a number; whole where both limits are written as whole numbers
    --img_size 256 1024 step 128                   multiples of the step, from the lower limit
    --optimizer in adam adamw sgd                  one of these
    --hard_mining in on off                        a switch, given or not
    --focal_gamma 0.5 5 if --loss focal            only where an option further up has one of these values
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

Value = float | int | str

_OPTION = re.compile(r"--[A-Za-z][A-Za-z0-9_-]*")
_WHOLE = re.compile(r"[+-]?\d+")
ON, OFF = "on", "off"
FORMS = "LOW HIGH [step STEP], log LOW HIGH, or in VALUE VALUE ..."


class SpaceError(ValueError):
    """A space that cannot be searched; the message says what to change."""


class Suggests(Protocol):
    """What a trial of Optuna offers."""

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """A number."""
        ...

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """A whole number."""
        ...

    def suggest_categorical(self, name: str, choices: Sequence[str]) -> Any:
        """One of several."""
        ...


@dataclass(frozen=True)
class Parameter:
    """An option that is searched.

    Attributes:
        name: of the option, without dashes.
        kind: of its values.
        choices: of a "choice".
        low: smallest number.
        high: largest number, included.
        step: between numbers; None: any.
        log: uniform in the logarithm.
        only_if: option and values under which it is searched; None: always.
    """

    name: str
    kind: Literal["float", "int", "choice"]
    choices: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    step: float | None = None
    log: bool = False
    only_if: tuple[str, tuple[str, ...]] | None = None

    def active(self, values: Mapping[str, Value]) -> bool:
        """Whether it is searched, given the options further up."""
        return self.only_if is None or str(values.get(self.only_if[0])) in self.only_if[1]

    def suggest(self, trial: Suggests) -> Value:
        """Let a trial choose a value."""
        if self.kind == "choice":
            return str(trial.suggest_categorical(self.name, self.choices))
        if self.kind == "int":
            return trial.suggest_int(self.name, int(self.low), int(self.high), step=int(self.step or 1), log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, step=self.step, log=self.log)

    def ends(self) -> list[Value]:
        """Values that a program must accept for it to accept all."""
        if self.kind == "choice":
            return list(self.choices)
        limits = [self.low, self.high]
        return [int(limit) for limit in limits] if self.kind == "int" else list(limits)

    def grid(self) -> list[Value]:
        """All its values.

        Raises:
            SpaceError: there are too many to list.
        """
        if self.kind == "choice":
            return list(self.choices)
        step = self.step or (1.0 if self.kind == "int" and not self.log else None)
        if step is None:
            raise SpaceError(f"--{self.name}: a grid needs `in`, whole numbers or a `step`; this range has no steps")
        count = math.floor((self.high - self.low) / step + 1e-9) + 1
        values = [self.low + step * i for i in range(count)]
        return [int(value) for value in values] if self.kind == "int" else list(values)


@dataclass(frozen=True)
class Space:
    """The options that are searched, in the order of the file.

    Attributes:
        parameters: see `Parameter`.
        switches: those that are given or not, by name, with what the program does without them.
    """

    parameters: tuple[Parameter, ...]
    switches: Mapping[str, bool]

    def suggest(self, trial: Suggests) -> dict[str, Value]:
        """Values of one trial, of active parameters only."""
        values: dict[str, Value] = {}
        for parameter in self.parameters:
            if parameter.active(values):
                values[parameter.name] = parameter.suggest(trial)
        return values

    def arguments(self, values: Mapping[str, Value]) -> list[str]:
        """Values as arguments of the program."""
        found: list[str] = []
        for name, value in values.items():
            if name not in self.switches:
                found += [f"--{name}", repr(value) if isinstance(value, float) else str(value)]
            elif value == ON:
                found.append(f"--{name}")
            elif self.switches[name]:
                found.append(f"--no-{name}")
        return found

    def corners(self) -> Iterator[dict[str, Value]]:
        """Trials in which every end of every parameter occurs, the others at their first values."""
        for parameter in self.parameters:
            for end in parameter.ends():
                yield self._with(parameter, end)

    def cells(self) -> int:
        """Number of combinations of a space of finite options.

        Raises:
            SpaceError: an option has a range without steps.
        """
        return math.prod(len(parameter.grid()) for parameter in self.parameters)

    def _with(self, wanted: Parameter, end: Value) -> dict[str, Value]:
        """A trial in which one parameter has a value, with what it depends on."""
        forced: dict[str, Value] = {wanted.name: end}
        by_name = {parameter.name: parameter for parameter in self.parameters}
        needs = wanted.only_if
        while needs is not None:
            forced[needs[0]] = needs[1][0]
            needs = by_name[needs[0]].only_if
        values: dict[str, Value] = {}
        for parameter in self.parameters:
            if parameter.active(values):
                values[parameter.name] = forced.get(parameter.name, parameter.ends()[0])
        return values


def parse(text: str, switches: Mapping[str, bool]) -> Space:
    """Read a space file.

    Args:
        text: of the file.
        switches: options of the program that take no value, with what it does without them.

    Raises:
        SpaceError: a line is wrong; named by its number.
    """
    found: dict[str, Parameter] = {}
    for number, line in enumerate(text.splitlines(), 1):
        _take(number, line, found, switches)
    if not found:
        raise SpaceError(f"line 1: no option is searched; write one per line, e.g. --base_lr log 1e-5 1e-2 ({FORMS})")
    return Space(tuple(found.values()), {name: on for name, on in switches.items() if name in found})


def _take(number: int, line: str, found: dict[str, Parameter], switches: Mapping[str, bool]) -> None:
    """Add the option of a line to those above it."""
    try:
        words = shlex.split(line, comments=True)
        if not words:
            return
        parameter = _parameter(words, found, switches)
        if parameter.name in found:
            raise SpaceError(f"--{parameter.name} is given twice")
        found[parameter.name] = parameter
    except ValueError as error:
        raise SpaceError(f"line {number}: {error}") from error


def _parameter(words: Sequence[str], above: Mapping[str, Parameter], switches: Mapping[str, bool]) -> Parameter:
    flag, *rest = words
    if not _OPTION.fullmatch(flag):
        raise SpaceError(f"{flag!r} is not an option; a line begins with one, e.g. --base_lr")
    name = flag[2:]
    only_if = None
    if "if" in rest:
        at = rest.index("if")
        only_if = _condition(rest[at + 1 :], above)
        rest = rest[:at]
    if rest[:1] == ["in"]:
        return _choice(name, rest[1:], only_if, switches)
    if name in switches:
        raise SpaceError(f"{flag} takes no value; search it by: {flag} in {ON} {OFF}")
    return _range(name, rest, only_if)


def _condition(words: Sequence[str], above: Mapping[str, Parameter]) -> tuple[str, tuple[str, ...]]:
    if len(words) < 2 or not _OPTION.fullmatch(words[0]):
        raise SpaceError("after `if` come an option and its values, e.g. if --loss focal")
    name, values = words[0][2:], tuple(words[1:])
    if name not in above:
        raise SpaceError(f"if {words[0]}: it is not searched further up; a condition needs an option that is")
    on = above[name]
    if on.kind != "choice":
        raise SpaceError(f"if {words[0]}: its values are a range; a condition needs an option with `in`")
    unknown = [value for value in values if value not in on.choices]
    if unknown:
        raise SpaceError(f"if {words[0]} {unknown[0]}: it has only the values {', '.join(on.choices)}")
    return name, values


def _choice(
    name: str, values: Sequence[str], only_if: tuple[str, tuple[str, ...]] | None, switches: Mapping[str, bool]
) -> Parameter:
    if not values:
        raise SpaceError(f"--{name} in: no values")
    twice = next((value for value in values if values.count(value) > 1), None)
    if twice is not None:
        raise SpaceError(f"--{name} in: {twice} is given twice")
    if name in switches and not set(values) <= {ON, OFF}:
        raise SpaceError(f"--{name} takes no value; search it by: --{name} in {ON} {OFF}")
    return Parameter(name, "choice", tuple(values), only_if=only_if)


def _range(name: str, words: Sequence[str], only_if: tuple[str, tuple[str, ...]] | None) -> Parameter:
    log = words[:1] == ["log"]
    numbers = list(words[log:])
    step_text = None
    if len(numbers) == 4 and numbers[2] == "step":
        step_text = numbers[3]
        del numbers[2:]
    if len(numbers) != 2:
        raise SpaceError(f"--{name} {' '.join(words)}: give {FORMS}")
    if log and step_text:
        raise SpaceError(f"--{name}: log and step exclude each other")
    texts = [*numbers, *([step_text] if step_text else [])]
    try:
        low, high, *steps = (float(text) for text in texts)
    except ValueError as error:
        raise SpaceError(f"--{name} {' '.join(words)}: give {FORMS}") from error
    whole = all(_WHOLE.fullmatch(text) for text in texts)
    if not all(math.isfinite(value) for value in (low, high, *steps)) or low >= high:
        raise SpaceError(f"--{name} {' '.join(numbers)}: the range is empty; the lower limit comes first")
    if log and low <= 0:
        raise SpaceError(f"--{name} log {' '.join(numbers)}: a logarithm needs limits above 0")
    step = steps[0] if steps else None
    if step is not None and not 0 < step <= high - low:
        raise SpaceError(f"--{name} step {step_text}: it must be above 0 and at most {high - low:g}")
    return Parameter(name, "int" if whole else "float", (), low, high, step, log, only_if)
