"""The options of tune.py."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from options.choices import SearchPruner, SearchSampler
from options.fields import Group, option, read
from options.parser import Parser, positive, whole


@dataclass(frozen=True, kw_only=True)
class StudyRules(Group):
    """The study."""

    space: Path | None = option(metavar="FILE", help="options that are searched, one per line (docs/search.md)")
    trials: int = option(parse=whole(1), metavar="N", help="number of trials, with those that were there before")
    objective: str = option("miou", metavar="SCORE", help="score of the rows of metrics.jsonl; its best value counts")
    minimize: bool = option(False, help="small values are good, e.g. of --objective loss")
    sampler: SearchSampler = option("tpe", help="how values are chosen; gp needs PyTorch, which widefov does not have")
    pruner: SearchPruner = option("median", help="which trials are ended early")
    prune_after: int = option(0, parse=whole(0), unit="images", help="length before which no trial is pruned")
    seed: int = option(0, parse=whole(0, 2**32 - 1), help="of the choice of values; --seed of the program is its own")
    hours: float | None = option(parse=positive, metavar="H", help="offer no trial after this time")
    retry: int = option(2, parse=whole(0), metavar="N", help="times that a trial is resumed after a crash")


@dataclass(frozen=True, kw_only=True)
class Workers(Group):
    """Workers."""

    parallel: int = option(1, parse=whole(1), metavar="K", help="trials at a time")
    ranks: int = option(1, parse=whole(1), metavar="K", help="MPI ranks of a trial")
    local_workers: bool = option(
        True, help="start the workers here; otherwise tasks of a batch job call tune.py STUDY --worker"
    )


@dataclass(frozen=True, kw_only=True)
class Command(Group):
    """Instead of a search."""

    status: bool = option(False, help="print how far the study is")
    best: bool = option(False, help="print the best trial, and write its command line to STUDY/best.args")
    retrain: int | None = option(
        parse=whole(0), metavar="TRIAL", nargs="?", const=-1, help="run a trial again, the best without a number"
    )
    report: bool = option(False, help="write STUDY/report.html; a search that ends writes it, too")
    worker: bool = option(False, help="run trials of the study until there are no more")


@dataclass(frozen=True, kw_only=True)
class TuneOptions(Group):
    """All options of tune.py."""

    study: StudyRules
    workers: Workers
    command: Command

    @classmethod
    def settle(cls, given: argparse.Namespace) -> None:
        """A new search needs a number of trials."""
        commands = [name for name in ("status", "best", "report", "worker") if getattr(given, name)]
        commands += ["retrain"] if given.retrain is not None else []
        if len(commands) > 1:
            raise ValueError(f"--{commands[0]} and --{commands[1]} exclude each other")
        if not commands and given.trials is None:
            raise ValueError("how many trials? give --trials N, or --status, --best, --retrain, --report or --worker")
        given.trials = given.trials or 0


@dataclass(frozen=True)
class TuneCommand:
    """A command line of tune.py.

    Attributes:
        folder: of the study.
        options: see `TuneOptions`.
        program: what a trial runs, a path; None where it is not given.
        arguments: of the program.
    """

    folder: Path
    options: TuneOptions
    program: Path | None
    arguments: tuple[str, ...]


def tune_options(argv: Sequence[str] | None = None) -> TuneCommand:
    """Parse and check tune.py's command line; exits with code 2 and one line where it is wrong."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    at = arguments.index("--") if "--" in arguments else len(arguments)
    ours, program = arguments[:at], arguments[at + 1 :]
    parser = Parser(
        prog="tune.py STUDY",
        description="Search options of a program: every trial is a run of it, in a folder of its own below STUDY.",
        epilog="tune.py STUDY --space FILE --trials N -- train.py ARGUMENTS: what follows -- is the command line of "
        "every trial, without the options that are searched, --log_dir and --resume.",
    )
    if not ours or (ours[0].startswith("-") and not {"-h", "--help", "--version"} & set(ours)):
        parser.error("the folder of the study comes first: tune.py STUDY --space FILE --trials N -- train.py ...")
    options = read(TuneOptions, parser, ours if ours[0].startswith("-") else ours[1:])
    return TuneCommand(Path(ours[0]), options, Path(program[0]) if program else None, tuple(program[1:]))
