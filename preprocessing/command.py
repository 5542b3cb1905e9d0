"""The command line of preprocessing: which slides, which steps, on what; one run from options to exit code."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from types import FrameType
from typing import NoReturn, Protocol, cast

from tqdm import tqdm

from cohorts.pairing import Case
from cohorts.sets import Slides, Source, all_in_folders, all_of_camelyon, paired_only
from options import classes
from options.parser import Parser, pair, positive, whole
from parallel.launchers import is_first_rank
from preprocessing import store
from preprocessing.executors import Executor, on_all_ranks
from preprocessing.runner import FAILED, Outcome, Step, failures, reserve, run_step, summary
from preprocessing.store import marked
from slides.tissue import METHODS
from slides.truth.reading import Reading
from system.csv_tables import counted
from system.folder_lock import FolderLock

# In the order in which they run, whatever the order they are asked for in.
STEPS = (
    "check", "tissue", "xml_to_mask", "mask_to_xml", "extract_patches", "manifest", "trim_tissue", "extract_tissue",
)  # fmt: skip
FULL_RUN = ("check", "tissue", "xml_to_mask", "extract_patches", "manifest")
_PREPRO = "run_prepro.sh"


class StepModule(Protocol):
    """A module `preprocessing.STEP`."""

    __doc__: str

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Add the options of the step."""

    def step(self, opts: argparse.Namespace, reading: Reading, slides: Slides) -> Step:
        """The step with its options; ValueError where they do not fit each other."""


@dataclass
class _Asked(BaseException):
    """A signal asked the run to end."""

    signal: int


# The signals that came.
_signals: list[int] = []


def program(name: str, one_file_option: str, one_file: Callable[[], int]) -> int:
    """Run a step, or what it does to a single file where the command line names one; returns the exit code.

    Args:
        name: the step.
        one_file_option: the option that names the file.
        one_file: what is done then; reads the command line itself.
    """
    parser = Parser(f"python -m preprocessing.{name}", "", add_help=False)
    parser.add_argument(one_file_option, dest="file")
    return main([name]) if parser.parse_known_args()[0].file is None else one_file()


def main(names: Sequence[str] | None = None, argv: Sequence[str] | None = None) -> int:
    """Run steps; returns the exit code.

    0: all slides are finished. 1: some slide failed. 2: bad options, folders or files, or a full disk; one line says
    which. 128 + N: signal N ended the run; what is finished stays.

    Args:
        names: steps, in their order; None: those of --steps.
        argv: words of the command line; default: those of this process.
    """
    asked = _asked_steps(argv) if names is None else names
    parser, modules = _parser(asked, names is None)
    opts = parser.parse_args(argv)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal without ö must not end the run
    _signals.clear()
    before = {number: signal.signal(number, _end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        reading = _check(parser, opts)

        def story(executor: Executor) -> int:
            def steps_of(slides: Slides) -> list[Step]:
                return [module.step(opts, reading, slides) for module in modules]

            return _story(parser.prog, opts, steps_of, executor, only_check=list(asked) == ["check"])

        code = on_all_ranks(story, opts.num_processes)
        # Once a SIGINT ended with 1 here: perhaps a library took the exception for an error of its own.
        return 128 + _signals[0] if _signals else code
    except ValueError as error:
        if is_first_rank():
            print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    except _Asked as asked:
        return 128 + asked.signal
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _story(
    prog: str,
    opts: argparse.Namespace,
    steps_of: Callable[[Slides], Sequence[Step]],
    executor: Executor,
    only_check: bool,
) -> int:
    """The whole run, on one rank."""
    try:
        slides = find(opts, only_check)
        steps = steps_of(slides)
        with FolderLock(opts.out) as held:
            _say(f"{counted(len(slides.cases), 'slide')}, on {executor.description}, into {opts.out}")
            for note in [*slides.notes, *held.notes]:
                _say(f"note    {note}")
            return _run(opts.out, slides, steps, executor)
    except (ValueError, OSError) as error:
        _say(f"{prog}: error: {error}", error=True)
        return 2
    except _Asked as asked:
        name = signal.Signals(asked.signal).name
        _say(f"{prog}: ended by {name}; what is finished stays: the same command goes on", error=True)
        return 128 + asked.signal


def _run(out: Path, slides: Slides, steps: Sequence[Step], executor: Executor) -> int:
    cases = slides.cases
    failed = [("pairing", Outcome("all", FAILED, error=fault)) for fault in slides.faults]
    reserve(steps, cases, out)
    for number, step in enumerate(steps):
        if not cases:
            step.finish(out, [], [])  # tables of earlier runs would still name slides that are bad now
            continue
        outcomes = run_step(step, cases, out, executor, _say)
        for line in step.finish(out, cases, outcomes):
            _say(line)
        _say(summary(step, outcomes, marked(out, step.name)))
        bad = [outcome for outcome in outcomes if outcome.state == FAILED]
        failed += [(step.name, outcome) for outcome in bad]
        # Later steps would fail at these again.
        for case, outcome in zip(cases, outcomes, strict=True):
            if outcome.state == FAILED:
                _forget_stale(steps[number + 1 :], case, out)
        cases = [case for case, outcome in zip(cases, outcomes, strict=True) if outcome.state != FAILED]
    for line in failures(failed):
        _say(line)
    return int(bool(failed))


def _forget_stale(steps: Sequence[Step], case: Case, out: Path) -> None:
    """Remove what steps had made of a slide that is no more; of the same file, which may only be away, it stays."""
    for step in steps:
        if store.read_mark(out, step.name, case.slide_id, step.fingerprint(case, out)) is None:
            store.forget(out, step.name, case.slide_id)


def find(opts: argparse.Namespace, only_check: bool = False) -> Slides:
    """The slides that the options name.

    Args:
        opts: validated options.
        only_check: what does not pair is a finding and no error; the rest can still be looked at.

    Raises:
        ValueError: files do not pair; see `pairing.pair` and `datasets.camelyon`.
    """
    if opts.dataset:
        return all_of_camelyon(opts.dataset, opts.data_root, (opts.slide_format, opts.label_format), opts.proc_center)
    train = Source(opts.slide_path, opts.label_path, opts.slide_format, opts.label_format)
    val = Source(opts.valid_slide_path, opts.valid_label_path, opts.slide_format, opts.label_format)
    given = [train, val] if opts.valid_slide_path else [train]
    try:
        return all_in_folders(train, val if opts.valid_slide_path else None, opts.proc_center)
    except ValueError as error:
        if not only_check:
            raise
        return paired_only(given, str(error))


# ------------------------------------------------------------------------------------------------------------- options


def _asked_steps(argv: Sequence[str] | None) -> list[str]:
    """The steps of --steps, in their order: the options there are depend on them."""
    parser = Parser(_PREPRO, "", add_help=False)
    _add_steps(parser)
    asked = parser.parse_known_args(argv)[0].steps
    return [name for name in STEPS if name in asked]


def _parser(names: Sequence[str], steps: bool) -> tuple[Parser, list[StepModule]]:
    modules = [cast("StepModule", importlib.import_module(f"preprocessing.{name}")) for name in names]
    parser = Parser(
        _PREPRO if len(names) > 1 or steps else f"python -m preprocessing.{names[0]}",
        f"Prepare a data set: {', '.join(names)}." if len(names) > 1 else modules[0].__doc__,
        "Options can be kept in a file: @FILE. Finished slides are not made again; the same command goes on.",
        prose=True,
    )
    if steps:
        _add_steps(parser)
    _data_options(parser)
    if {"check", "extract_patches"}.intersection(names):
        parser.add_argument("--resolution", type=positive, default=0.25, help="um per px of the patches")
    if {"check", "tissue"}.intersection(names):
        parser.add_argument(
            "--tissue_method", choices=METHODS, default="hsv",
            help="tissue by a fixed threshold of saturation, or by Otsu's of each slide",
        )  # fmt: skip
    if {"check", "tissue", "extract_patches"}.intersection(names):
        parser.add_argument("--keep_pen", action="store_true", help="leave pen marks in the tissue and in patches")
    for module in modules:
        module.add_options(parser)
    return parser, modules


def _add_steps(parser: Parser) -> None:
    parser.add_argument(
        "--steps", nargs="+", choices=STEPS, default=list(FULL_RUN), metavar="STEP",
        help=f"which of {', '.join(STEPS)}; each adds its options to --help",
    )  # fmt: skip


def _data_options(parser: argparse.ArgumentParser) -> None:
    data = parser.add_argument_group("slides and labels")
    data.add_argument("--slide_path", type=Path, help="slides: a folder or one file")
    data.add_argument("--label_path", type=Path, help="their labels: a folder or one file; without any all are normal")
    data.add_argument("--valid_slide_path", type=Path, help="slides that are for validation")
    data.add_argument("--valid_label_path", type=Path, help="their labels")
    data.add_argument("--dataset", choices=("16", "17"), help="standard CAMELYON layout under --data_root")
    data.add_argument(
        "--data_root", type=Path, default=os.environ.get("CAMELYON_ROOT"), help="root of --dataset; $CAMELYON_ROOT"
    )
    data.add_argument("--proc_center", type=int, nargs="+", default=[-1], help="CAMELYON17 centers; -1 is all")
    data.add_argument("--slide_format", default="tif", metavar="SUFFIX", help="tif, svs, ndpi, mrxs, scn, bif ...")
    data.add_argument("--label_format", choices=("tif", "xml"), help="default: xml with --dataset, else tif")
    data.add_argument("--label_map", type=pair, nargs="+", metavar="GROUP:CLASS", help="default: CAMELYON's")
    data.add_argument("--ignore_groups", nargs="+", metavar="GROUP", help="annotation groups to skip; default: None")
    data.add_argument("--mask_values", type=pair, nargs="+", metavar="VALUE:CLASS", help="default: non-zero is 1")
    data.add_argument("--mpp", type=positive, help="um per px of level 0, in place of what the slides say")
    run = parser.add_argument_group("the run")
    run.add_argument("--out", type=Path, required=True, help="output folder; every step has a folder in it")
    run.add_argument(
        "--num_processes", type=whole(1), help="default: one per CPU; under mpirun the ranks are the processes"
    )


def _check(parser: Parser, opts: argparse.Namespace) -> Reading:
    """Exactly one way to name the slides; no half of a pair."""
    folders = (opts.slide_path, opts.label_path, opts.valid_slide_path, opts.valid_label_path)
    if opts.dataset:
        if any(folders):
            parser.error("--dataset takes the place of the path options: give one or the other")
        if opts.data_root is None:
            parser.error(f"--dataset {opts.dataset} needs --data_root (or $CAMELYON_ROOT)")
    elif opts.slide_path is None:
        parser.error("no slides: give --slide_path (and --label_path), or --dataset 16 or 17 with --data_root")
    elif opts.valid_label_path is not None and opts.valid_slide_path is None:
        parser.error("--valid_label_path goes with --valid_slide_path")
    opts.label_format = opts.label_format or ("xml" if opts.dataset else "tif")
    groups = classes.label_map(opts.label_map, opts.ignore_groups)
    values = classes.mask_values(opts.mask_values)
    ignored = tuple(group.lower() for group in opts.ignore_groups or ("None",))
    usual = Reading(ignore_groups=ignored, mask_values=tuple(values.items()) if values else None, um_px=opts.mpp)
    return Reading(tuple(groups.items()), usual.ignore_groups, usual.mask_values, usual.um_px) if groups else usual


def _say(line: str, error: bool = False) -> None:
    """Print, on a terminal above the progress bar."""
    file = sys.stderr if error else sys.stdout
    if file is None:  # closed by who started this
        return
    if sys.stderr is not None and sys.stderr.isatty():
        tqdm.write(line, file=file)
    else:
        print(line, file=file)
    file.flush()


def _end(number: int, _: FrameType | None) -> NoReturn:
    # A second one must not interrupt the cleaning up.
    signal.signal(number, signal.SIG_IGN)
    _signals.append(number)
    raise _Asked(number)
