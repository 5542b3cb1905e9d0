"""The command line of preprocessing: runs steps over the slides that the options name, from arguments to exit code.

Steps pass themselves to `main` as `StepProgram`; this module imports none of them.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from types import FrameType
from typing import Any, Generic, NoReturn, TypeVar

from tqdm import tqdm

from cohorts.pairing import Case
from cohorts.sets import Slides, Source, all_in_folders, all_of_camelyon, paired_only
from cohorts.spacings import with_spacings
from options.classes import LabelMap
from options.fields import Group, add_options, read_all
from options.parser import Parser
from options.preprocess import PreparedSlides, Work
from parallel.launchers import is_first_rank
from preprocessing import store
from preprocessing.executors import Executor, on_all_ranks
from preprocessing.runner import FAILED, Outcome, Step, failures, reserve, run_step, summary
from preprocessing.store import marked
from slides.truth.mask_values import count_all
from slides.truth.reading import Reading
from system.csv_tables import counted
from system.folder_lock import FolderLock

Options = TypeVar("Options", bound=Group)
FULL_RUN = "run_prepro.sh"
_EPILOG = "Options can be kept in a file: @FILE. Finished slides are skipped; the same command resumes a stopped run."


def all_slides(_options: Any, slides: Slides) -> Slides:
    """For `StepProgram.select`: the step uses every slide."""
    return slides


@dataclass(frozen=True)
class StepProgram(Generic[Options]):
    """A step as a program.

    Attributes:
        name: name of the step and of its module.
        description: docstring of the module, for --help.
        options: dataclass of the groups of options that the step has.
        step: the step with its options; raises ValueError if options and slides do not fit each other.
        select: slides that the run uses, for all of its steps; raises ValueError as `step`.
        reads_labels: the step opens labels, so the values of all masks must have a class. A run of steps that do not
            needs no labels, whatever the slides are called.
        reports_faults: the step reports files that do not pair; if it runs alone, they do not end the run.
    """

    name: str
    description: str
    options: type[Options]
    step: Callable[[Options, Reading, Slides], Step]
    select: Callable[[Options, Slides], Slides] = all_slides
    reads_labels: bool = True
    reports_faults: bool = False


@dataclass(frozen=True, kw_only=True)
class _Common(Group):
    """Options of every step."""

    slides: PreparedSlides
    labels: LabelMap
    work: Work


@dataclass(frozen=True)
class _Run:
    """A run from its parsed options on.

    Attributes:
        prog: name of the program, for messages.
        common: options of every step.
        programs: the steps, with their options.
    """

    prog: str
    common: _Common
    programs: Sequence[tuple[StepProgram[Any], Group]]

    def slides(self) -> Slides:
        """The slides that the options name; see `find_slides` for errors."""
        labeled = any(program.reads_labels for program, _ in self.programs)
        slides = find_slides(self.common.slides, self._lenient, labeled)
        for program, options in self.programs:
            slides = program.select(options, slides)
        return slides

    def steps(self, slides: Slides) -> tuple[list[Step], Slides]:
        """The steps, ready to run, and the slides with notes and faults of their masks.

        Raises:
            ValueError: options contradict each other, or do not fit the slides; the values of masks have no class.
        """
        given = self.common.labels.reading(self.common.slides.mpp)
        settled = given
        if any(program.reads_labels for program, _ in self.programs):
            # Slides whose masks cannot be read fail one by one.
            threads = self.common.work.num_processes or len(os.sched_getaffinity(0))
            count = partial(count_all, threads=threads, lenient=True)
            try:
                settled, lines = given.settled([case.label_path for case in slides.cases], count)
            except ValueError as error:
                if not self._lenient:
                    raise
                slides = replace(slides, faults=(*slides.faults, str(error)))
            else:
                masks = [line for line in lines if line.startswith("masks: ")]
                slides = replace(slides, notes=[*slides.notes, *masks])
        readings = (settled if program.reads_labels else given for program, _ in self.programs)
        steps = [
            program.step(options, reading, slides)
            for (program, options), reading in zip(self.programs, readings, strict=True)
        ]
        return [replace(step, strict=self.common.work.strict) for step in steps], slides

    @property
    def _lenient(self) -> bool:
        """Whether every step reports files that do not pair."""
        return all(program.reports_faults for program, _ in self.programs)


@dataclass
class _Interrupted(BaseException):
    """A signal asked the run to stop."""

    signal: int


# The signals received.
_signals: list[int] = []


def main_or_one_file(program: StepProgram[Any], option: str, one_file: Callable[[], int]) -> int:
    """Run a step, or its conversion of a single file if the command line names one; returns the exit code.

    Args:
        program: the step.
        option: the option that names the single file.
        one_file: converts it; reads the command line itself.
    """
    parser = Parser(f"python -m preprocessing.{program.name}", "", add_help=False)
    parser.add_argument(option, dest="file")
    return main([program]) if parser.parse_known_args()[0].file is None else one_file()


def main(
    programs: Sequence[StepProgram[Any]],
    argv: Sequence[str] | None = None,
    prog: str | None = None,
    more: Sequence[type[Group]] = (),
) -> int:
    """Run steps.

    Args:
        programs: the steps, in their order.
        argv: arguments; None for those of this process.
        prog: name of the program; None for that of the only step, or of the full run.
        more: further groups of options, which the caller reads.

    Returns:
        Exit code. 0: all slides are finished. 1: some slides failed. 2: wrong options, folders or files, or a full
        disk; one line says which. 128 + N: signal N ended the run; finished slides stay finished.
    """
    names = [program.name for program in programs]
    parser = Parser(
        prog or (f"python -m preprocessing.{names[0]}" if len(names) == 1 else FULL_RUN),
        programs[0].description if len(names) == 1 else f"Prepare a data set: {', '.join(names)}.",
        _EPILOG,
        prose=True,
    )
    for group in more:
        add_options(parser, group)
    common, *own = read_all([_Common, *(program.options for program in programs)], parser, argv)
    assert isinstance(common, _Common)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal without ö must not end the run
    run = _Run(parser.prog, common, list(zip(programs, own, strict=True)))
    with _signals_raise():
        try:
            code = on_all_ranks(lambda executor: _execute(run, executor), common.work.num_processes)
            # A library may have swallowed the exception: a SIGINT once ended with code 1.
            return 128 + _signals[0] if _signals else code
        except ValueError as error:
            if is_first_rank():
                print(f"{parser.prog}: error: {error}", file=sys.stderr)
            return 2
        except _Interrupted as interrupted:
            return 128 + interrupted.signal


def _execute(run: _Run, executor: Executor) -> int:
    """The whole run, on rank 0; returns the exit code."""
    out = run.common.work.out
    try:
        slides = run.slides()
        steps, slides = run.steps(slides)
        with FolderLock(out) as lock:
            log(f"{counted(len(slides.cases), 'slide')}, on {executor.description}, into {out}")
            for note in [*slides.notes, *lock.notes]:
                log(f"note    {note}")
            return _run_steps(out, slides, steps, executor)
    except (ValueError, OSError) as error:
        log(f"{run.prog}: error: {error}", error=True)
        return 2
    except _Interrupted as interrupted:
        name = signal.Signals(interrupted.signal).name
        log(f"{run.prog}: stopped by {name}; finished slides stay, the same command resumes the run", error=True)
        return 128 + interrupted.signal


def _run_steps(out: Path, slides: Slides, steps: Sequence[Step], executor: Executor) -> int:
    """Run the steps, each without the slides that failed before; returns the exit code."""
    cases = slides.cases
    failed = [("pairing", Outcome("all", FAILED, error=fault)) for fault in slides.faults]
    reserve(steps, cases, out)
    for number, step in enumerate(steps):
        if not cases:
            step.finish(out, [], [])  # tables of earlier runs would still list slides that have failed now
            continue
        outcomes = run_step(step, cases, out, executor, log)
        for line in step.finish(out, cases, outcomes):
            log(line)
        log(summary(step, outcomes, marked(out, step.name)))
        failed += [(step.name, outcome) for outcome in outcomes if outcome.state == FAILED]
        for case, outcome in zip(cases, outcomes, strict=True):
            if outcome.state == FAILED:
                _forget_stale(steps[number + 1 :], case, out)
        # Later steps would fail at these slides too.
        cases = [case for case, outcome in zip(cases, outcomes, strict=True) if outcome.state != FAILED]
    for line in failures(failed):
        log(line)
    return int(bool(failed))


def _forget_stale(steps: Sequence[Step], case: Case, out: Path) -> None:
    """Remove what steps wrote for a slide that has changed; keep it for the same file, which may only be unreadable."""
    for step in steps:
        if store.read_mark(out, step.name, case.slide_id, step.fingerprint(case, out)) is None:
            store.forget(out, step.name, case.slide_id)


def find_slides(files: PreparedSlides, lenient: bool = False, labeled: bool = True) -> Slides:
    """Find the slides that the options name, with their spacings in --mpp_table.

    Args:
        files: the options.
        lenient: report files that do not pair in `Slides.faults` instead of raising an error.
        labeled: labels are needed; else they are paired only if they are given.

    Raises:
        ValueError: files do not pair, or the table cannot be used; see `pairing.pair`, `camelyon.camelyon` and
            `cohorts.spacings`.
    """
    slides = _paired(files, lenient, labeled)
    return replace(slides, cases=with_spacings(files.mpp_table, slides.cases)[0])


def _paired(files: PreparedSlides, lenient: bool, labeled: bool) -> Slides:
    """See `find_slides`; without the spacings of --mpp_table."""
    if files.dataset and files.data_root:
        formats = (files.slide_format, files.label_format)
        return all_of_camelyon(files.dataset, files.data_root, formats, files.proc_center)
    assert files.slide_path is not None
    more = (files.slide_format, files.label_format, files.recursive)
    train = Source(files.slide_path, files.label_path, *more)
    val = None
    if files.valid_slide_path is not None:
        val = Source(files.valid_slide_path, files.valid_label_path, *more)
    try:
        return all_in_folders(train, val, files.proc_center, labeled or files.label_path is not None)
    except ValueError as error:
        if not lenient:
            raise
        return paired_only([train] if val is None else [train, val], str(error))


def log(line: str, error: bool = False) -> None:
    """Print a line, on a terminal above the progress bar."""
    file = sys.stderr if error else sys.stdout
    if file is None:  # closed by the parent process
        return
    if sys.stderr is not None and sys.stderr.isatty():
        tqdm.write(line, file=file)
    else:
        print(line, file=file)
    file.flush()


@contextmanager
def _signals_raise() -> Iterator[None]:
    """SIGINT, SIGTERM, SIGUSR1 and SIGHUP raise `_Interrupted`; the handlers are restored at the end."""
    _signals.clear()
    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        # Not under nohup.
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, _interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, _: FrameType | None) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)  # a second signal must not interrupt the clean-up
    _signals.append(number)
    raise _Interrupted(number)
