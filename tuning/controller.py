"""The controller of a study: offers trials, watches them, prunes, and records how they end."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from parallel.job import NO_MEMORY
from tuning.space import Space
from tuning.study import Study
from tuning.trials import BAD_OPTIONS, PREEMPTED, Ended, TrialFolder, all_trials
from tuning.watch import Curve
from tuning.worker import CLOSED

LOOK_S = 1.0
IN_USE = "is in use by"  # another worker's run still holds the folder (system/folder_lock.py)


@dataclass(frozen=True)
class Rules:
    """How long a study goes on, and what its trials are judged by.

    Attributes:
        trials: number of trials of the study.
        parallel: trials at a time.
        objective: score of `metrics.jsonl`.
        kind: of its rows.
        minimize: whether small values are good.
        hours: after which no further trial is offered.
        retry: times that a trial whose program crashed is run again.
        prune: whether trials are pruned.
    """

    trials: int
    parallel: int = 1
    objective: str = "miou"
    kind: str = "val"
    minimize: bool = False
    hours: float = float("inf")
    retry: int = 2
    prune: bool = True


@dataclass
class Watched:
    """A trial that has not ended."""

    folder: TrialFolder
    curve: Curve
    values: Mapping[str, Any] = field(default_factory=dict)
    pruned_at: int | None = None  # image counter


class Controller:
    """See the module.

    Args:
        path: folder of the study, of which this process is the only controller.
        study: of Optuna.
        space: what is searched.
        arguments: of the program, in front of those that are searched.
        rules: see `Rules`.
        log: prints lines.
        stopped: whether this process was asked to end.
        each_look: called between two looks, e.g. to start workers that have ended.
    """

    def __init__(
        self,
        path: Path,
        study: Study,
        space: Space,
        arguments: list[str],
        rules: Rules,
        log: Callable[..., None],
        stopped: Callable[[], bool],
        each_look: Callable[[], None] = lambda: None,
    ) -> None:
        self._trials = path / "trials"
        self._closed = path / CLOSED
        self._study, self._space, self._arguments, self._rules = study, space, arguments, rules
        self._log, self._stopped, self._each_look = log, stopped, each_look
        self._open: dict[int, Watched] = {}
        self._until = time.monotonic() + rules.hours * 3600

    def run(self) -> bool:
        """Go on until all trials have ended; whether they have."""
        self._trials.mkdir(parents=True, exist_ok=True)
        self._closed.unlink(missing_ok=True)
        self._take_up()
        while not self._stopped():
            self._offer()
            if not self._open:
                self._closed.touch()
                return True
            self._each_look()
            for number in list(self._open):
                self._look_at(self._open[number])
            time.sleep(LOOK_S)
        return False

    def _take_up(self) -> None:
        """Trials that have not ended when the study was left, and ends that only one of journal and folders knows."""
        for folder in all_trials(self._trials):
            if folder.number == len(self._study.trials()):
                # The journal lost its last lines.
                self._study.ask(folder.request()["values"])
        known = {trial.number: trial for trial in self._study.trials()}
        for folder in all_trials(self._trials):
            state = folder.state()
            if folder.number in known and state is None and known[folder.number].state.is_finished():
                folder.close(self._facts(folder, known[folder.number].state.name.lower(), "recorded by the journal"))
        for number in self._study.running():
            self._watch(number, self._study.ask_again(number))
        if self._open:
            self._log(f"resumed     {len(self._open)} trials that had not ended")

    def _watch(self, number: int, values: Mapping[str, Any]) -> None:
        arguments = [*self._arguments, *self._space.arguments(values)]
        folder = TrialFolder.create(self._trials, number, values, arguments)
        curve = Curve(folder.run / "metrics.jsonl", self._rules.kind, self._rules.objective)
        self._open[number] = Watched(folder, curve, values)

    def _offer(self) -> None:
        """New trials, as many as may run at a time."""
        while (
            len(self._open) < self._rules.parallel
            and len(self._study.trials()) < self._rules.trials
            and time.monotonic() < self._until
        ):
            number, values = self._study.ask()
            self._watch(number, values)
            self._log(f"trial {number:>5}  " + "  ".join(f"{name} {_short(value)}" for name, value in values.items()))

    def _look_at(self, trial: Watched) -> None:
        folder, number = trial.folder, trial.folder.number
        ended = folder.ended()
        if trial.curve.update():
            self._report(trial)
        if ended is not None:
            self._judge(trial, ended)
        elif folder.lost(time.monotonic()):
            self._log(f"trial {number:>5}  lost: {folder.owner() or 'its worker'} is silent; it goes to another worker")
            folder.reopen()

    def _report(self, trial: Watched) -> None:
        """Report what is new, value by value, up to the first at which the trial is to be pruned.

        Whether it is pruned, and where, thus depends on its values alone, not on when they are looked at.
        """
        for images, value in sorted(trial.curve.points.items()):
            if trial.pruned_at is not None:
                return
            self._study.report(trial.folder.number, images, value)
            if self._rules.prune and self._study.should_prune(trial.folder.number):
                trial.pruned_at = images
                trial.folder.ask_to_stop()

    def _judge(self, trial: Watched, ended: Ended) -> None:
        """What becomes of a trial whose program has ended."""
        folder, rules = trial.folder, self._rules
        points = trial.curve.points
        pruned = trial.pruned_at is not None and (ended.code == PREEMPTED or trial.pruned_at < max(points))
        value = trial.curve.best(rules.minimize, trial.pruned_at if pruned else None)
        why = (ended.tail.splitlines() or ["no message"])[-1]
        if pruned and ended.code in (0, PREEMPTED):
            self._end(trial, "pruned", value, "")
        elif ended.code == 0 and value is None:
            known = ", ".join(sorted(trial.curve.others)) or "none"
            self._end(trial, "failed", None, f"no {rules.objective} in {trial.curve.path.name}; scores there: {known}")
        elif ended.code == 0:
            self._end(trial, "complete", value, "")
        elif ended.code == NO_MEMORY:
            self._end(trial, "infeasible", None, why)
        elif ended.code == BAD_OPTIONS and IN_USE not in ended.tail:
            self._end(trial, "failed", None, why)
        else:
            folder.reopen()
            if ended.code in (PREEMPTED, BAD_OPTIONS):
                return
            if folder.failures() > rules.retry:
                self._end(trial, "failed", None, f"exit code {ended.code}, {folder.failures()} times: {why}")
            else:
                self._log(f"trial {folder.number:>5}  exit code {ended.code}, to be resumed: {why}")

    def _end(self, trial: Watched, outcome: Any, value: float | None, reason: str) -> None:
        folder = trial.folder
        facts = self._facts(folder, outcome, reason) | {"value": value}
        self._study.tell(folder.number, outcome, value, reason, {"images": max(trial.curve.points, default=0)})
        folder.close(facts)
        del self._open[folder.number]
        text = f"{self._rules.objective} {value:.4f}" if value is not None else ""
        self._log("  ".join(part for part in (f"trial {folder.number:>5}", outcome, text, reason) if part))

    @staticmethod
    def _facts(folder: TrialFolder, outcome: str, reason: str) -> dict[str, Any]:
        return {"outcome": outcome, "reason": reason, "attempts": folder.attempts(), "ended": time.time()}


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
