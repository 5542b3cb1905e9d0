"""Runs a step over all slides: finished slides stay, a bad one does not stop the others, files are complete or absent.

A step is a function `make(case, out, options)` for one slide. The runner hands it to an executor (see `executors`),
marks finished slides (see `store`) and reports failures.
"""

from __future__ import annotations

import errno
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2

from cohorts.pairing import Case, named
from cohorts.staging import parts_of
from preprocessing import store
from preprocessing.executors import Executor
from preprocessing.store import StepResult
from system.atomic_files import remove
from system.csv_tables import counted
from system.progress import Progress

DONE, UNCHANGED, FAILED = "done", "unchanged", "failed"
_FULL = (errno.ENOSPC, errno.EDQUOT)


class DiskFullError(ValueError):
    """The disk of the output folder is full: no further slide can be processed."""


@dataclass(frozen=True)
class Outcome:
    """The state of one slide after one step.

    Attributes:
        slide_id: id of the slide.
        state: `DONE`, `UNCHANGED` (finished by an earlier run) or `FAILED`.
        result: what the step made; empty if it raised an error.
        error: why it failed, one line.
        seconds: duration, s.
        full: whether it failed because the disk is full.
    """

    slide_id: str
    state: str
    result: StepResult = field(default_factory=StepResult)
    error: str = ""
    seconds: float = 0.0
    full: bool = False


def no_more(_case: Case, _out: Path) -> list[Path]:
    """For `Step.reads`: the step reads only slide and label."""
    return []


def no_tables(_out: Path, _cases: Sequence[Case], _outcomes: Sequence[Outcome]) -> list[str]:
    """For `Step.finish`: the step writes no tables."""
    return []


@dataclass(frozen=True)
class Step:
    """A step of preprocessing with its options, ready to run.

    Attributes:
        name: name of the step.
        version: raise it when the same options give different files; every slide is then due again.
        make: writes the files of one slide below the output folder. It runs in other processes, so it is a function of
            a module and its options can be pickled.
        options: a frozen dataclass.
        reads: files, besides slide and label, that the files of a slide depend on.
        finish: writes tables over all slides once they are processed, and returns lines for the user. The outcomes
            include failed slides.
        target: folder, or only file, of the step in the output folder; empty: a folder with the name of the step.
        strict: whether damage of a slide is a failure.
    """

    name: str
    version: int
    make: Callable[[Case, Path, Any], StepResult]
    options: Any
    reads: Callable[[Case, Path], list[Path]] = no_more
    finish: Callable[[Path, Sequence[Case], Sequence[Outcome]], list[str]] = no_tables
    target: str = ""
    strict: bool = False

    def place(self, out: Path) -> Path:
        """The folder or file that the step writes."""
        return out / (self.target or self.name)

    def fingerprint(self, case: Case, out: Path) -> str:
        """Fingerprint of a slide's inputs and options, see `store.fingerprint`.

        Field names of the options and the keys below are part of it: renaming one makes every finished slide due again.
        """
        options = {"step": self.name, "version": self.version, "options": asdict(self.options)}
        label = [case.label_path] if case.label_path else []
        who: dict[str, Any] = {
            "slide": case.slide_id,
            "patient": case.patient,
            "centre": case.center,  # old spelling: see above
            "label": bool(label),
        }
        if case.um_px is not None:
            who["mpp"] = list(case.um_px)
        plain = json.loads(json.dumps(options | who, default=str))
        return store.fingerprint(plain, [*parts_of(case.slide_path), *label, *self.reads(case, out)])


def reserve(steps: Sequence[Step], cases: Sequence[Case], out: Path) -> None:
    """Call before the first step of a run; see `store.reserve`."""
    inputs = [path for case in cases for path in (*parts_of(case.slide_path), case.label_path) if path is not None]
    store.reserve(out, {step.name: step.place(out) for step in steps}, inputs)


def run_step(
    step: Step, cases: Sequence[Case], out: Path, executor: Executor, log: Callable[[str], None]
) -> list[Outcome]:
    """Process every unfinished slide, largest first, so that no large slide is left running alone at the end.

    Args:
        step: the step.
        cases: slides.
        out: output folder, locked by this run.
        executor: runs the slides.
        log: prints a line.

    Returns:
        One outcome per slide, in the order of `cases`.

    Raises:
        DiskFullError: the disk of the output folder is full.
    """
    store.remove_leftovers(step.place(out))
    outcomes: dict[str, Outcome] = {}
    todo: list[tuple[int, Case]] = []
    for case in cases:
        result = store.read_mark(out, step.name, case.slide_id, step.fingerprint(case, out))
        # A fault may have passed since, for instance a file system that was not mounted: try again.
        if result is None or result.fault or (step.strict and result.damage):
            todo.append((_bytes(step, case, out), case))
        else:
            outcomes[case.slide_id] = _outcome(case.slide_id, UNCHANGED, result)
    todo.sort(key=lambda sized: (-sized[0], sized[1].slide_id))
    tasks = [(step, case, out) for _, case in todo]
    total = sum(size for size, _ in todo)
    # When this loop is left early, closing the generator ends the processes that are still at work.
    with (
        Progress(total, "B", name=step.name, shown=total > 0) as bar,
        closing(executor.run(attempt, tasks)) as finished,
    ):
        for position, value in finished:
            size, case = todo[position]
            outcome = value if isinstance(value, Outcome) else Outcome(case.slide_id, FAILED, error=str(value))
            outcomes[case.slide_id] = outcome
            bar.update(size)
            if outcome.full:
                raise DiskFullError(
                    f"the disk of --out {out} is full ({outcome.error}): free some space and run the same command "
                    f"again; {len(outcomes) - 1} of {counted(len(cases), 'slide')} of {step.name} are finished and stay"
                )
            if outcome.state == FAILED:
                log(f"FAILED  {step.name:<15} {case.slide_id}: {outcome.error}")
            damage = (outcome.result.damage,) if outcome.result.damage else ()
            for note in (*outcome.result.notes, *damage):
                log(f"note    {step.name:<15} {case.slide_id}: {note}")
    store.remove_leftovers(step.place(out))
    return [outcomes[case.slide_id] for case in cases]


def attempt(step: Step, case: Case, out: Path) -> Outcome:
    """Process one slide; any error becomes part of the outcome. Runs in a process of the executor."""
    cv2.setNumThreads(1)  # slides run in parallel, so a slide gets one thread
    start = time.perf_counter()
    try:
        # Before reading anything: a file that changes meanwhile must make the slide due again.
        name = step.fingerprint(case, out)
        store.forget(out, step.name, case.slide_id)
        result = step.make(case, out, step.options)
        if step.strict and result.damage:
            for output in result.outputs:
                remove(out / output)
            raise ValueError(f"{result.damage}; copy the slide again, or omit --strict")
        store.write_mark(out, step.name, case.slide_id, name, result)
    except Exception as error:
        full = isinstance(error, OSError) and error.errno in _FULL
        known = isinstance(error, (ValueError, OSError)) and not isinstance(error, UnicodeError)
        text = str(error) if known else f"{type(error).__name__}: {error}"
        return Outcome(case.slide_id, FAILED, error=one_line(text), full=full)
    return _outcome(case.slide_id, DONE, result, time.perf_counter() - start)


def one_line(text: str) -> str:
    """Join the lines of a message."""
    return "; ".join(line.strip() for line in text.splitlines() if line.strip())


def summary(step: Step, outcomes: Sequence[Outcome], earlier: Iterable[str]) -> str:
    """One line about a step.

    Args:
        step: the step.
        outcomes: of all slides.
        earlier: ids of slides with a mark, from this run or earlier ones.
    """
    counts = Counter(outcome.state for outcome in outcomes)
    parts = [f"{counts[state]} {state}" for state in (DONE, UNCHANGED, FAILED) if counts[state]]
    if counts[UNCHANGED] == len(outcomes):
        parts = [f"nothing to do, finished before: {counted(len(outcomes), 'slide')}"]
    others = sorted(set(earlier) - {outcome.slide_id for outcome in outcomes})
    if others:
        parts.append(f"also {counted(len(others), 'slide')} of earlier runs: {named(others)}")
    return f"{step.name:<15} {'; '.join(parts)}"


def failures(rows: Sequence[tuple[str, Outcome]]) -> list[str]:
    """A table of failures, as lines.

    Args:
        rows: name of the step and outcome, failed slides only.
    """
    if not rows:
        return []
    wide = max(len("slide"), *(len(outcome.slide_id) for _, outcome in rows))
    head = f"{len(rows)} failed:\n  {'step':<15} {'slide':<{wide}} why"
    return [head, *(f"  {name:<15} {outcome.slide_id:<{wide}} {outcome.error}" for name, outcome in rows)]


def _outcome(slide_id: str, state: str, result: StepResult, seconds: float = 0.0) -> Outcome:
    return Outcome(slide_id, FAILED if result.fault else state, result, result.fault, seconds)


def _bytes(step: Step, case: Case, out: Path) -> int:
    """Bytes of all files the result depends on, without the label: a measure of the work; at least 1."""
    total = 0
    for path in (*parts_of(case.slide_path), *step.reads(case, out)):
        with suppress(OSError):
            total += path.stat().st_size
    return max(1, total)
