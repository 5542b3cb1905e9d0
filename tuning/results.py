"""Results of a study, from the folders of its trials: they are complete at any time, also while the study runs."""

from __future__ import annotations

import os
import shlex
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from system.atomic_files import write_bytes
from system.start import ROOT
from tuning.definition import Definition
from tuning.trials import TrialFolder, all_trials

BEST = "best.args"


def best(folder: Path, minimize: bool) -> tuple[TrialFolder, float]:
    """The best trial that ran to its end, and its value; the first of equals.

    Raises:
        ValueError: none has.
    """
    sign = 1 if minimize else -1
    found = [
        (sign * state["value"], trial.number, trial)
        for trial in all_trials(folder / "trials")
        if (state := trial.state()) and state["outcome"] == "complete"
    ]
    if not found:
        raise ValueError(f"{folder}: no trial has run to its end yet")
    value, _, trial = min(found, key=lambda entry: entry[:2])
    return trial, sign * value


def status(folder: Path, definition: Definition) -> Iterator[str]:
    """Lines that say how far a study is."""
    trials = all_trials(folder / "trials")
    outcomes: Counter[str] = Counter()
    lines = []
    for trial in trials:
        outcome, text = _told(trial, definition.objective)
        outcomes[outcome] += 1
        lines.append(f"trial {trial.number:>5}  {text}")
    yield f"study       {folder}: {definition.program.name}, {definition.objective}, {definition.sampler}"
    yield from lines
    counts = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items())
    yield f"trials      {len(trials)}{': ' if counts else ''}{counts}"
    if outcomes["complete"]:
        trial, value = best(folder, definition.minimize)
        yield f"best        trial {trial.number}: {definition.objective} {value:.4f}"


def _told(trial: TrialFolder, objective: str) -> tuple[str, str]:
    """What became of a trial: in one word, and as text."""
    state = trial.state()
    if state is None:
        owner = trial.owner()
        return ("running", f"runs: {owner}") if owner else ("waiting", "waits for a worker")
    value = "" if state.get("value") is None else f"{objective} {state['value']:.4f}"
    return state["outcome"], "  ".join(part for part in (state["outcome"], value, state["reason"]) if part)


def write_best(folder: Path, definition: Definition) -> list[str]:
    """Write the command line of the best trial to STUDY/best.args; returns lines for the log."""
    trial, value = best(folder, definition.minimize)
    arguments = trial.request()["arguments"]
    path = folder / BEST
    head = f"# Trial {trial.number} of {folder}: {definition.objective} {value!r}"
    place = f"# Paths are relative to {definition.cwd}"
    write_bytes(path, "\n".join([head, place, *_one_option_a_line(arguments), ""]).encode())
    return [
        f"best        trial {trial.number}: {definition.objective} {value:.4f}, run in {trial.run}",
        f"command     {definition.program.name} {shlex.join(arguments)}",
        f"again       {definition.program.name} @{path} --log_dir NEW_FOLDER",
    ]


def _one_option_a_line(arguments: list[str]) -> Iterator[str]:
    line: list[str] = []
    for argument in arguments:
        if line and argument.startswith("--"):
            yield shlex.join(line)
            line = []
        if argument.startswith("@"):
            # Files of arguments do not nest.
            yield from Path(argument[1:]).read_text(encoding="utf-8").splitlines()
        else:
            line.append(argument)
    if line:
        yield shlex.join(line)


def retrain(folder: Path, definition: Definition, number: int) -> NoReturn:
    """Become the program of a trial, in a new folder below the study; a second call continues it.

    Args:
        folder: of the study.
        definition: of the study.
        number: of the trial; -1: the best.

    Raises:
        ValueError: there is no such trial.
    """
    found = {trial.number: trial for trial in all_trials(folder / "trials")}
    trial = best(folder, definition.minimize)[0] if number < 0 else found.get(number)
    if trial is None:
        raise ValueError(f"{folder} has no trial {number}; it has {len(found)}")
    run = (folder / "retrained" / trial.path.name).resolve()
    arguments = [*trial.request()["arguments"], "--log_dir", str(run), "--resume", "auto"]
    os.environ |= {"SCRIPT": str(definition.program), "NP": str(definition.ranks)}
    os.chdir(definition.cwd)
    sys.stdout.flush()
    script = str(ROOT / "run_train.sh")
    os.execvp("bash", ["bash", script, *arguments])  # noqa: S606, S607  # the program in place of this one
