"""One step over all slides: what is finished stays, one bad slide does not stop the others, and nothing is half done.

A step is a function `make(case, out, options)` for one slide. The runner gives it out (see `executors`), keeps marks of
what is finished (see `store`) and tells what failed.
"""

from __future__ import annotations

import errno
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2
from tqdm import tqdm

from cohorts.pairing import Case
from cohorts.staging import parts_of
from preprocessing import store
from preprocessing.executors import Executor
from preprocessing.store import Made
from system.csv_tables import counted

DONE, UNCHANGED, FAILED = "done", "unchanged", "failed"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_NAMED = 10


class DiskFullError(ValueError):
    """The output folder's disk is full: no further slide can be made."""


@dataclass(frozen=True)
class Result:
    """What became of one slide in one step.

    Attributes:
        slide_id: id of the slide.
        state: `DONE`, `UNCHANGED` (finished before) or `FAILED`.
        made: what was made; empty when it failed with an error.
        error: why it failed, one line.
        seconds: time it took.
        full: whether it failed because the disk is full.
    """

    slide_id: str
    state: str
    made: Made = field(default_factory=Made)
    error: str = ""
    seconds: float = 0.0
    full: bool = False


def no_more(_case: Case, _out: Path) -> list[Path]:
    """A step that reads nothing but slide and label."""
    return []


def no_tables(_out: Path, _cases: Sequence[Case], _results: Sequence[Result]) -> list[str]:
    """A step that leaves nothing but what it makes of each slide."""
    return []


@dataclass(frozen=True)
class Step:
    """A step of preprocessing.

    Attributes:
        name: what it is called.
        version: to be raised when the same options give other files.
        make: makes one slide's files below the output folder; a function of a module, with options that pickle.
        options: a frozen dataclass.
        reads: further files a slide's result depends on.
        finish: writes tables over all slides, after them; returns lines for the user. Failed slides are among the
            results.
        target: the folder of its files, or its only file, in the output folder; empty: a folder called like the step.
    """

    name: str
    version: int
    make: Callable[[Case, Path, Any], Made]
    options: Any
    reads: Callable[[Case, Path], list[Path]] = no_more
    finish: Callable[[Path, Sequence[Case], Sequence[Result]], list[str]] = no_tables
    target: str = ""

    def place(self, out: Path) -> Path:
        """Where it writes."""
        return out / (self.target or self.name)

    def fingerprint(self, case: Case, out: Path) -> str:
        """See `store.fingerprint`."""
        options = {"step": self.name, "version": self.version, "options": asdict(self.options)}
        label = [case.label_path] if case.label_path else []
        who = {"slide": case.slide_id, "patient": case.patient, "centre": case.centre, "label": bool(label)}
        plain = json.loads(json.dumps(options | who, default=str))
        return store.fingerprint(plain, [*parts_of(case.slide_path), *label, *self.reads(case, out)])


def claim(steps: Sequence[Step], cases: Sequence[Case], out: Path) -> None:
    """See `store.claim`; before the first step of a run."""
    inputs = [path for case in cases for path in (*parts_of(case.slide_path), case.label_path) if path is not None]
    store.claim(out, {step.name: step.place(out) for step in steps}, inputs)


def run_step(
    step: Step, cases: Sequence[Case], out: Path, executor: Executor, say: Callable[[str], None]
) -> list[Result]:
    """Make every slide that is not finished; largest first, so that the last ones to end are small.

    Args:
        step: the step.
        cases: slides.
        out: output folder, held by this run.
        executor: who works.
        say: prints a line.

    Returns:
        One result per slide, in the order of `cases`.

    Raises:
        DiskFullError: when the disk is full.
    """
    store.remove_leftovers(step.place(out))
    results: dict[str, Result] = {}
    todo: list[tuple[int, Case]] = []
    for case in cases:
        made = store.read_mark(out, step.name, case.slide_id, step.fingerprint(case, out))
        # What stood against a slide may have gone meanwhile: a file system that was away, say.
        if made is None or made.fault:
            todo.append((_bytes(step, case, out), case))
        else:
            results[case.slide_id] = _result(case.slide_id, UNCHANGED, made)
    todo.sort(key=lambda sized: (-sized[0], sized[1].slide_id))
    tasks = [(step, case, out) for _, case in todo]
    total = sum(size for size, _ in todo)
    # Closing ends whoever is still in the middle of a slide when this loop is left.
    with _bar(step.name, total) as bar, closing(executor.run(attempt, tasks)) as outcomes:
        for position, outcome in outcomes:
            size, case = todo[position]
            result = outcome if isinstance(outcome, Result) else Result(case.slide_id, FAILED, error=str(outcome))
            results[case.slide_id] = result
            bar.update(size)
            if result.full:
                raise DiskFullError(
                    f"the disk of --out {out} is full ({result.error}): make room and run the same command again; "
                    f"what is finished stays ({len(results) - 1} of {counted(len(cases), 'slide')} of {step.name})"
                )
            if result.state == FAILED:
                say(f"FAILED  {step.name:<15} {case.slide_id}: {result.error}")
            for note in result.made.notes:
                say(f"note    {step.name:<15} {case.slide_id}: {note}")
    store.remove_leftovers(step.place(out))
    return [results[case.slide_id] for case in cases]


def attempt(step: Step, case: Case, out: Path) -> Result:
    """Make one slide; whatever goes wrong is in the result. Runs where the executor has it run."""
    cv2.setNumThreads(1)  # the slides are the parallelism
    start = time.perf_counter()
    try:
        # First: files changed in the meantime must make the slide due again, not be taken for these.
        name = step.fingerprint(case, out)
        store.forget(out, step.name, case.slide_id)
        made = step.make(case, out, step.options)
        store.write_mark(out, step.name, case.slide_id, name, made)
    except Exception as error:
        full = isinstance(error, OSError) and error.errno in _FULL
        known = isinstance(error, (ValueError, OSError)) and not isinstance(error, UnicodeError)
        text = str(error) if known else f"{type(error).__name__}: {error}"
        return Result(case.slide_id, FAILED, error=one_line(text), full=full)
    result = _result(case.slide_id, DONE, made)
    return Result(**{**vars(result), "seconds": time.perf_counter() - start})


def one_line(text: str) -> str:
    """The lines of a message as one."""
    return "; ".join(line.strip() for line in text.splitlines() if line.strip())


def summary(step: Step, results: Sequence[Result], earlier: Iterable[str]) -> str:
    """One line on a step.

    Args:
        step: the step.
        results: of all slides.
        earlier: ids with a mark, of this run or earlier ones.
    """
    counts = Counter(result.state for result in results)
    words = [f"{counts[state]} {state}" for state in (DONE, UNCHANGED, FAILED) if counts[state]]
    if counts[UNCHANGED] == len(results):
        words = [f"nothing to do, finished before: {counted(len(results), 'slide')}"]
    others = sorted(set(earlier) - {result.slide_id for result in results})
    if others:
        more = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
        words.append(f"of earlier runs {counted(len(others), 'slide')}, too: {', '.join(others[:_NAMED])}{more}")
    return f"{step.name:<15} {'; '.join(words)}"


def failures(rows: Sequence[tuple[str, Result]]) -> list[str]:
    """A table of what failed.

    Args:
        rows: name of the step and its result, failed ones only.
    """
    if not rows:
        return []
    wide = max(len("slide"), *(len(result.slide_id) for _, result in rows))
    head = f"{len(rows)} failed:\n  {'step':<15} {'slide':<{wide}} why"
    return [head, *(f"  {name:<15} {result.slide_id:<{wide}} {result.error}" for name, result in rows)]


def _result(slide_id: str, state: str, made: Made) -> Result:
    return Result(slide_id, FAILED if made.fault else state, made, made.fault)


def _bytes(step: Step, case: Case, out: Path) -> int:
    """Of all files that the result depends on, but the label: a measure of the work; at least 1."""
    total = 0
    for path in (*parts_of(case.slide_path), *step.reads(case, out)):
        with suppress(OSError):
            total += path.stat().st_size
    return max(1, total)


def _bar(name: str, total: int) -> Any:
    """A progress bar over bytes of slides; in a log a line every half minute."""
    closed = sys.stderr is None
    seconds = 0.5 if not closed and sys.stderr.isatty() else 30.0
    return tqdm(
        total=total, desc=name, unit="B", unit_scale=True, mininterval=seconds, file=sys.stderr,
        disable=closed or not total,
        bar_format="{desc}: {percentage:3.0f}%|{bar:20}| {n_fmt} of {total_fmt}, {elapsed} gone, {remaining} left",
    )  # fmt: skip
