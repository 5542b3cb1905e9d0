"""A study as one HTML file, `report.html` in its folder: history, options against results, importance, time, failures.

It is made from the folders of the trials, and from the journal for the importance of options; the study may be running.
"""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from pages.charts import Axis, chart, nice_axis
from pages.frame import card, named, options, page, table
from system.atomic_files import write_bytes
from tuning import programs, space
from tuning.definition import Definition
from tuning.results import best
from tuning.space import Parameter
from tuning.trials import all_trials
from tuning.watch import Curve

NAME = "report.html"
FEWEST = 4  # complete trials from which the importance of options is estimated
ROWS = 100


@dataclass(frozen=True)
class Trial:
    """A trial as the page shows it.

    Attributes:
        number: of the trial.
        values: of the searched options.
        outcome: `complete`, `pruned`, `infeasible`, `failed`, or `running`.
        value: of the objective; None without one.
        reason: why it ended so.
        images: at which it ended.
        started: Unix time, s; 0 where it has not begun.
        ended: Unix time, s; 0 where it has not ended.
        arguments: of the program.
    """

    number: int
    values: Mapping[str, Any]
    outcome: str
    value: float | None
    reason: str
    images: int
    started: float
    ended: float
    arguments: Sequence[str]


def write(folder: Path) -> Path:
    """Write the page of a study, completely or not at all; returns its path.

    Raises:
        ValueError: the folder has no study.
        OSError: a file cannot be read, or the page cannot be written.
    """
    write_bytes(folder / NAME, html(folder).encode("utf-8", "replace"))
    return folder / NAME


def html(folder: Path) -> str:
    """The page of a study.

    Raises:
        ValueError: the folder has no study.
    """
    definition = Definition.read(folder)
    trials = read(folder, definition)
    searched = space.parse(definition.space, programs.switches(definition.program))
    return page(
        f"Search: {folder.resolve().name}",
        [
            f"<h1>Search: {escape(folder.resolve().name)}</h1>",
            _about(definition, trials),
            f'<div class="numbers">{"".join(_numbers(definition, trials))}</div>',
            _best(folder, definition),
            _history(definition, trials),
            _importance(folder, searched.parameters),
            _slices(definition, searched.parameters, trials),
            _timeline(trials),
            _table(definition, trials),
            _problems(trials),
            "<h2>Study</h2>",
            options("space", {f"--{p.name}": _text(p) for p in searched.parameters}),
            options("arguments of every trial", {definition.program.name: shlex.join(definition.arguments)}),
        ],
    )


def read(folder: Path, definition: Definition) -> list[Trial]:
    """All trials of a study, by number."""
    found = []
    for trial in all_trials(folder / "trials"):
        request, state = trial.request(), trial.state() or {}
        curve = Curve(trial.run / "metrics.jsonl", "val", definition.objective)
        curve.update()
        value = state["value"] if "value" in state else curve.best(definition.minimize)
        found.append(
            Trial(
                trial.number, request["values"], state.get("outcome", "running"), value, state.get("reason", ""),
                max(curve.points, default=0), trial.began(), state.get("ended", 0.0), request["arguments"],
            )
        )  # fmt: skip
    return found


def _about(definition: Definition, trials: Sequence[Trial]) -> str:
    goal = "smallest" if definition.minimize else "largest"
    rows = [
        ("program", f"{definition.program.name}, {definition.ranks} rank{'s' if definition.ranks > 1 else ''} a trial"),
        ("objective", f"{goal} {definition.objective} on the validation data, at its best within a trial"),
        ("sampler, pruner", f"{definition.sampler}, {definition.pruner}; seed {definition.seed}"),
        ("trials", str(len(trials))),
    ]
    return named(rows)


def _numbers(definition: Definition, trials: Sequence[Trial]) -> list[str]:
    counts = Counter(trial.outcome for trial in trials)
    complete = [trial.value for trial in trials if trial.outcome == "complete" and trial.value is not None]
    ended = sum(counts[name] for name in ("complete", "pruned"))
    value = (min if definition.minimize else max)(complete, default=None)
    share = f"{counts['pruned'] / ended:.0%} of those that could run" if ended else ""
    return [
        card(f"best {definition.objective}", "none yet" if value is None else f"{value:.4f}", "", value is not None),
        card("complete", str(counts["complete"]), ""),
        card("pruned", str(counts["pruned"]), share),
        card("failed", str(counts["failed"]), f"{counts['infeasible']} more did not fit into memory"),
    ]


def _best(folder: Path, definition: Definition) -> str:
    try:
        trial, value = best(folder, definition.minimize)
    except ValueError:
        return ""
    command = f"{definition.program.name} {shlex.join(trial.request()['arguments'])}"
    return (
        f"<h2>Best trial</h2><p>Trial {trial.number}: {escape(definition.objective)} {value:.4f}. Its value is the "
        "best of many: score the model on data that the search has not seen. Run it again with "
        f"<code>tune.py {escape(str(folder))} --retrain</code>, or by</p><pre>{escape(command)}</pre>"
    )


def _history(definition: Definition, trials: Sequence[Trial]) -> str:
    """Every value, and the best so far."""
    points = [(float(t.number), t.value) for t in trials if t.outcome == "complete" and t.value is not None]
    if not points:
        return ""
    pick = min if definition.minimize else max
    so_far = [(number, pick(value for _, value in points[: index + 1])) for index, (number, _) in enumerate(points)]
    x = nice_axis("trial", [0.0, float(max(trial.number for trial in trials))], low=0)
    y = nice_axis(definition.objective, [value for _, value in points])
    drawn = chart(so_far, x, y, "best value so far, and the value of every complete trial", marks=points)
    caption = "<figcaption>Complete trials (dots), the best so far (line)</figcaption>"
    return f"<h2>History</h2><figure>{caption}{drawn}</figure>"


def _importance(folder: Path, parameters: Sequence[Parameter]) -> str:
    """How much of the difference between good and bad trials each option accounts for."""
    import optuna

    from tuning.journal import Journal

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path = folder / "journal.log"
    if not path.exists():
        return ""
    study = optuna.load_study(study_name="study", storage=optuna.storages.JournalStorage(Journal(path)))
    complete = [trial for trial in study.trials if trial.state == optuna.trial.TrialState.COMPLETE]
    # Options that every trial has; of others only some trials could tell.
    always = [p.name for p in parameters if all(p.name in trial.params for trial in complete)]
    if len(complete) < FEWEST or not always:
        return ""
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(evaluate_on_local=True)
    try:
        found = optuna.importance.get_param_importances(study, evaluator=evaluator, params=always)
    except (ValueError, RuntimeError):
        # All trials alike.
        return ""
    total = sum(found.values())
    if not math.isfinite(total) or total <= 0:
        return ""
    rows = [(f"--{name}", f"{value / total:.0%}") for name, value in found.items()]
    return (
        "<h2>Importance</h2><p>Share of the options in what sets the better half of the trials apart (PED-ANOVA). Few "
        f"trials make it uncertain; here {len(complete)}.</p>{table(['option', 'share'], rows)}"
    )


def _slices(definition: Definition, parameters: Sequence[Parameter], trials: Sequence[Trial]) -> str:
    """The objective against every option."""
    figures = []
    for parameter in parameters:
        shown = [t for t in trials if parameter.name in t.values and t.value is not None and t.outcome == "complete"]
        if not shown:
            continue
        y = nice_axis(definition.objective, [float(t.value or 0.0) for t in shown])
        if parameter.kind == "choice":
            places = {choice: float(index) for index, choice in enumerate(parameter.choices)}
            legend = ", ".join(f"{index:g} {choice}" for choice, index in places.items())
            x = Axis(f"--{parameter.name}", -0.5, len(places) - 0.5, tuple(places.values()))
            marks = [(places[str(t.values[parameter.name])], float(t.value or 0.0)) for t in shown]
        else:
            legend = ""
            x = nice_axis(f"--{parameter.name}", [parameter.low, parameter.high], log=parameter.log)
            marks = [(float(t.values[parameter.name]), float(t.value or 0.0)) for t in shown]
        drawn = chart([], x, y, f"{definition.objective} against --{parameter.name}", marks=marks)
        caption = f"<code>--{escape(parameter.name)}</code> <small>{escape(legend)}</small>"
        figures.append(f"<figure><figcaption>{caption}</figcaption>{drawn}</figure>")
    return f'<h2>Options</h2><div class="pair">{"".join(figures)}</div>' if figures else ""


def _timeline(trials: Sequence[Trial]) -> str:
    """How long trials took, and how many ran at a time."""
    spans = [(t.started, t.ended) for t in trials if t.started and t.ended]
    if not spans:
        return ""
    first, last = min(start for start, _ in spans), max(end for _, end in spans)
    events = sorted([(start, 1) for start, _ in spans] + [(end, -1) for _, end in spans])
    points, running = [(0.0, 0.0)], 0
    for time_s, change in events:
        points.append(((time_s - first) / 60, float(running)))
        running += change
        points.append(((time_s - first) / 60, float(running)))
    x = nice_axis("time, minutes", [0.0, (last - first) / 60], low=0)
    y = nice_axis("trials at a time", [0.0, max(count for _, count in points)], low=0)
    drawn = chart(points, x, y, "number of trials that ran at a time")
    mean_s = sum(end - start for start, end in spans) / len(spans)
    mean = f"{mean_s:.0f} s" if mean_s < 120 else f"{mean_s / 60:.1f} minutes"
    return (
        f"<h2>Time</h2><figure><figcaption>Trials at a time; a trial took {mean} on average"
        f"</figcaption>{drawn}</figure>"
    )


def _table(definition: Definition, trials: Sequence[Trial]) -> str:
    sign = 1 if definition.minimize else -1
    ranked = sorted(trials, key=lambda t: (t.outcome != "complete", t.value is None, sign * (t.value or 0.0), t.number))
    names = list(dict.fromkeys(name for trial in trials for name in trial.values))
    rows = [
        [
            str(trial.number), trial.outcome, "" if trial.value is None else f"{trial.value:.4f}", str(trial.images),
            *(_short(trial.values.get(name)) for name in names),
        ]
        for trial in ranked[:ROWS]
    ]  # fmt: skip
    left = f"<p>The first {ROWS} of {len(trials)} trials.</p>" if len(trials) > ROWS else ""
    head = ["trial", "outcome", definition.objective, "images", *(f"--{name}" for name in names)]
    return f"<h2>Trials, best first</h2>{left}{table(head, rows)}" if rows else ""


def _problems(trials: Sequence[Trial]) -> str:
    rows = [(str(t.number), t.outcome, t.reason) for t in trials if t.outcome in ("failed", "infeasible")]
    return f"<h2>Trials without a value</h2>{table(['trial', 'outcome', 'reason'], rows[:ROWS])}" if rows else ""


def _text(parameter: Parameter) -> str:
    """A parameter as its line in the space file says it."""
    if parameter.kind == "choice":
        text = f"in {' '.join(parameter.choices)}"
    else:
        text = f"{'log ' if parameter.log else ''}{parameter.low:g} {parameter.high:g}"
        text += "" if parameter.step is None else f" step {parameter.step:g}"
    return text + (f" if --{parameter.only_if[0]} {' '.join(parameter.only_if[1])}" if parameter.only_if else "")


def _short(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
