"""Search options of a program: every trial is a run of it, under MPI, in a folder of its own.

The story: options, the folder of the study, the study, then trials until all have ended. `tune.py --help` starts.
"""

from __future__ import annotations

import system.start  # noqa: F401  # first: it says what to do where packages are missing

# isort: split
import sys
from typing import TYPE_CHECKING

from options.tune import TuneCommand, tune_options
from parallel.preemption import EXIT_CODE, Preemption
from system.folder_lock import FolderLock
from tuning import programs, report, results, space
from tuning.definition import Definition

if TYPE_CHECKING:
    from tuning.study import Study


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    command = tune_options(argv)
    try:
        wanted = command.options.command
        if wanted.worker:
            return work(command)
        if not (wanted.status or wanted.best or wanted.report or wanted.retrain is not None):
            return search(command)
        definition = Definition.read(command.folder)
        if wanted.retrain is not None:
            results.retrain(command.folder, definition, wanted.retrain)
        if wanted.report:
            log(f"report      {report.write(command.folder)}")
            return 0
        log(*(results.status if wanted.status else results.write_best)(command.folder, definition))
        return 0
    except (ValueError, OSError) as error:
        print(f"tune.py: error: {error}", file=sys.stderr)  # noqa: T201
        return 2


def log(*lines: str) -> None:
    """Print lines at once, also to a file."""
    for line in lines:
        print(line, flush=True)  # noqa: T201


def search(command: TuneCommand) -> int:
    """Run trials until there are as many as asked for; 75 where this process was asked to end before."""
    from tuning.controller import Controller, Rules
    from tuning.local import LocalWorkers

    rules, workers = command.options.study, command.options.workers
    definition = Definition.of(command)
    switches = programs.switches(definition.program)
    searched = space.parse(definition.space, switches)
    notes = [programs.check(definition.program, definition.arguments, searched)]
    trials = rules.trials
    if rules.sampler == "grid" and (cells := searched.cells()) < trials:
        notes.append(f"the grid has {cells} cells: {cells} trials are run")
        trials = cells
    with FolderLock(command.folder, "study") as lock, Preemption() as preemption:
        preemption.listen()
        definition.agree_with(command.folder)
        study = open_study(command, definition, searched)
        log(*(f"note        {text}" for text in (*notes, *lock.notes) if text))
        local = LocalWorkers(command.folder, workers.parallel) if workers.local_workers else None
        controller = Controller(
            command.folder, study, searched, list(definition.arguments),
            Rules(
                trials, workers.parallel, rules.objective, minimize=rules.minimize,
                hours=rules.hours or float("inf"), retry=rules.retry, prune=rules.pruner != "none",
            ),
            log, lambda: bool(preemption.requested), local.keep_up if local else lambda: None,
        )  # fmt: skip
        try:
            done = controller.run()
        finally:
            if local is not None:
                local.end()
    if not done:
        log(f"preempted   {preemption.requested}; the same command continues")
        return EXIT_CODE
    log(*list(results.status(command.folder, definition))[-2:])
    log(f"report      {report.write(command.folder)}")
    return 0


def open_study(command: TuneCommand, definition: Definition, searched: space.Space) -> Study:
    """The study of Optuna in the folder."""
    from tuning.journal import open_journal
    from tuning.study import Study

    storage, note = open_journal(command.folder / "journal.log")
    if note:
        log(f"note        {note}")
    return Study("study", storage, searched, definition.search())


def work(command: TuneCommand) -> int:
    """Run trials of a study, whose controller runs elsewhere."""
    from tuning.local import take_share
    from tuning.worker import Worker

    definition = Definition.read(command.folder)
    parent = take_share()
    return Worker(command.folder, definition.program, definition.ranks, parent, folder=definition.cwd).work()


if __name__ == "__main__":
    sys.exit(main())
