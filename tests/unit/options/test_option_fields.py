"""One definition per option: from a field of a dataclass to flag, help, value and what is stored."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import pytest

from options.evaluate import EvaluateOptions
from options.export import ExportOptions
from options.fields import Group, as_json, derived, free_options, groups_of, option, read, stream_options
from options.parser import OptionError, Parser, pair, share, whole
from options.predict import PredictOptions
from options.train import TrainOptions
from system.version import __version__


@dataclass(frozen=True, kw_only=True)
class Search(Group):
    """Where to look.

    Slowly.
    """

    level: int = option(7, parse=whole(0), unit="px", stream=True, help="level of the search")
    out: Path | None = option(free=True, help="folder")
    keep: bool = option(False, help="keep all")
    check: bool = option(True, help="check all")
    method: Literal["hsv", "otsu"] = option("hsv", stream=True, help="by which rule")
    parts: tuple[Fraction, ...] = option((Fraction(1, 3), Fraction(1)), parse=share, help="parts")
    rate: float = option(help="speed; default --level / 2")
    names: Mapping[str, int] | None = option(parse=pair, nargs="+", help="names")


@dataclass(frozen=True, kw_only=True)
class Sizes(Group):
    """Sizes."""

    sides: tuple[int, int] = option((3, 4), nargs=2, metavar=("W", "H"), flag="--size", help="width and height")
    area: int = derived(free=True)

    @classmethod
    def settle(cls, given: argparse.Namespace) -> None:
        given.area = given.sides[0] * given.sides[1]

    def __post_init__(self) -> None:
        if self.area > 100:
            raise ValueError(f"--size: {self.area} px are more than 100")


@dataclass(frozen=True, kw_only=True)
class Tool(Group):
    """A program."""

    search: Search
    sizes: Sizes

    @classmethod
    def settle(cls, given: argparse.Namespace) -> None:
        given.rate = given.level / 2 if given.rate is None else given.rate
        given.names = dict(given.names) if given.names else None


def parser(**more: bool) -> Parser:
    return Parser("tool", "does things", **more)


def test_a_field_is_an_option_from_command_line_to_storage():
    tool = read(Tool, parser(), [])
    assert tool == Tool(
        search=Search(
            level=7, out=None, keep=False, check=True, method="hsv", parts=(Fraction(1, 3), Fraction(1)), rate=3.5,
            names=None,
        ),
        sizes=Sizes(sides=(3, 4), area=12),
    )  # fmt: skip
    words = "--level 2 --out a/b --keep --no-check --method otsu --parts 1/4 0.5 --rate 9 --names A:1 b:0 --size 5 6"
    tool = read(Tool, parser(), words.split())
    assert tool.search.parts == (Fraction(1, 4), Fraction(1, 2))
    assert tool.search.out == Path("a/b")
    assert as_json(tool) == {
        "level": 2, "out": "a/b", "keep": True, "check": False, "method": "otsu", "parts": ["1/4", "1/2"], "rate": 9.0,
        "names": {"a": 1, "b": 0}, "sides": [5, 6], "area": 30,
    }  # fmt: skip
    assert as_json(tool.sizes) == {"sides": [5, 6], "area": 30}
    assert stream_options(tool) == {"level": 2, "method": "otsu"}
    assert free_options(tool) == {"out", "area"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--size 50 60", "--size: 3000 px are more than 100"),
        ("--method x", "argument --method: invalid choice: 'x' (choose from 'hsv', 'otsu')"),
        ("--level -1", "argument --level: -1 given, must be at least 0"),
        ("--lev 1", "unrecognized arguments: --lev 1"),
        ("--area 1", "unrecognized arguments: --area 1"),
    ],
)
def test_errors_name_the_program_and_the_option(words, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        read(Tool, parser(), words.split())
    assert stopped.value.code == 2
    assert capsys.readouterr().err == f"tool: error: {message}\ntool --help lists all options\n"


def test_help_has_a_section_per_group_with_units_and_defaults(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as stopped:
        read(Tool, parser(), ["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    start = text.index("where to look:\n  Slowly.\n")
    assert start < text.index("  --level PX ") < text.index("\nsizes:\n") < text.index("  --size W H ")
    lines = " ".join(text.split())
    assert "--level PX level of the search (default: 7)" in lines
    assert "--parts PARTS [PARTS ...] parts (default: 1/3 1)" in lines
    assert "--rate NUMBER speed; default --level / 2 --names" in lines
    assert "--keep keep all --check, --no-check" in lines


def test_version(capsys):
    with pytest.raises(SystemExit) as stopped:
        read(Tool, parser(), ["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"widefov {__version__}\n"


# --------------------------------------------------------------------------------------------------- the real programs

PROGRAMS = (TrainOptions, PredictOptions, EvaluateOptions, ExportOptions)
# The name means something else there, and so has a definition of its own.
OTHER_MEANING = {
    "slide_path": "files and folders of predict.py, any number",
    "model": "a network to train, or a trained model",
    "img_size": "of the training, or of a trained model where it is not known",
    "resolution": "of the training, or of a trained model where it is not known",
    "context_spacing": "of the training, or of a trained model where it is not known",
    "batch_size": "patches of a step, or windows of one call",
    "stain_norm": "of the training, or of slides to predict where it is another",
    "stream": "patches of the training, or the tissue of slides to predict",
    "seed": "of training, or of resampled slides",
    "out": "of each program",
}


def test_every_flag_is_defined_once():
    """A flag of several programs is one field of one group, inherited or shared, or of another meaning."""
    defined: dict[str, set[type]] = {}
    for program in PROGRAMS:
        for group in groups_of(program):
            for base in group.__mro__:
                for name in vars(base).get("__annotations__", {}):
                    defined.setdefault(name, set()).add(base)
    assert len(defined) > 80
    twice = {name for name, bases in defined.items() if len(bases) > 1}
    assert twice == set(OTHER_MEANING)


@pytest.mark.parametrize("words", [["--folder", "x"], ["--folder=x"]])
def test_a_flag_under_another_name_is_one_line_that_says_which(words):
    for given, message in ((words, "--folder: --out DIR"), (["--other"], "unrecognized arguments: --other")):
        replaced = Parser("tool", "does things", raises=True, replaced={"--folder": "--out DIR"})
        with pytest.raises(OptionError, match=f"^{message}$"):
            read(Tool, replaced, given)
