"""A study of Optuna: asks for trials, hears of their values, and says which are to be pruned.

A trial is the same whether the study ran through or was resumed (`tuning/samplers.py`); what is known of the others is
in the storage.

Source: Akiba et al., Optuna, https://arxiv.org/abs/1907.10902.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from options.choices import SearchPruner, SearchSampler
from tuning import samplers
from tuning.space import Space, Value

FIRST_PRUNED = 5  # trials that the median needs
REASON = "reason"

Outcome = Literal["complete", "pruned", "infeasible", "failed"]


@dataclass(frozen=True)
class Search:
    """How trials are chosen.

    Attributes:
        sampler: name of the sampler.
        pruner: name of the pruner.
        minimize: whether small values are good.
        seed: of the study.
        warm_up: images before which nothing is pruned.
    """

    sampler: SearchSampler = "tpe"
    pruner: SearchPruner = "median"
    minimize: bool = False
    seed: int = 0
    warm_up: int = 0


class Study:
    """A study in a storage.

    Args:
        name: of the study in the storage.
        storage: of Optuna.
        space: what is searched.
        search: how.

    Raises:
        SpaceError: the sampler cannot search this space.
    """

    def __init__(self, name: str, storage: Any, space: Space, search: Search) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        # Grid, constraints and fixed seeds of QMC are used as documented.
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        self._space, self._search = space, search
        self._asked: dict[int, Trial] = {}
        self._study = optuna.create_study(
            storage=storage, sampler=self._sampler(0), pruner=_pruner(search), study_name=name,
            direction="minimize" if search.minimize else "maximize", load_if_exists=True,
        )  # fmt: skip

    def _sampler(self, number: int) -> Any:
        """The sampler of a trial."""
        return samplers.build(self._search.sampler, self._search.seed, number, self._space)

    def ask(self, values: Mapping[str, Value] | None = None) -> tuple[int, dict[str, Value]]:
        """A new trial: its number, and the values of its options.

        Args:
            values: those it shall have; None: the sampler chooses.
        """
        self._study.sampler = self._sampler(len(self.trials()))
        if values is not None:
            self._study.enqueue_trial(dict(values))
        trial = self._study.ask()
        self._asked[trial.number] = trial
        return trial.number, self._space.suggest(trial)

    def ask_again(self, number: int) -> dict[str, Value]:
        """The values of a trial that was asked for, perhaps by a process that was killed in the midst of it."""
        self._study.sampler = self._sampler(number)
        trial = self._asked[number] = Trial(self._study, self.trials()[number]._trial_id)
        return self._space.suggest(trial)

    def report(self, number: int, images: int, value: float) -> None:
        """A value of a trial that still runs."""
        if images not in self.trials()[number].intermediate_values:
            self._asked[number].report(value, images)

    def should_prune(self, number: int) -> bool:
        """Whether a trial is not worth its time, by what it has reported."""
        step = self.trials()[number].last_step
        return step is not None and step >= self._search.warm_up and self._asked[number].should_prune()

    def tell(self, number: int, outcome: Outcome, value: float | None, reason: str, facts: Mapping[str, Any]) -> None:
        """How a trial ended; nothing happens if it is known."""
        if self.trials()[number].state.is_finished():
            return
        trial = self._asked.pop(number)
        for name, fact in {**facts, REASON: reason}.items():
            trial.set_user_attr(name, fact)
        # The sampler learns where trials fit into memory.
        trial.set_constraint("memory", 1.0 if outcome == "infeasible" else 0.0)
        # What samplers do at the end of a trial is for Optuna's own loop; a grid would end it.
        self._study.sampler = optuna.samplers.RandomSampler(seed=0)
        if outcome == "complete":
            self._study.tell(trial, value)
        else:
            state = TrialState.FAIL if outcome == "failed" else TrialState.PRUNED
            self._study.tell(trial, state=state)

    def trials(self) -> list[FrozenTrial]:
        """All trials, by number."""
        return list(self._study.get_trials(deepcopy=False))

    def running(self) -> list[int]:
        """Numbers of trials that have not ended."""
        return [trial.number for trial in self.trials() if not trial.state.is_finished()]

    def best(self) -> FrozenTrial | None:
        """The best trial that ran to its end; the first of equals."""
        complete = [trial for trial in self.trials() if trial.state == TrialState.COMPLETE]
        if not complete:
            return None
        sign = 1 if self._search.minimize else -1
        return min(complete, key=lambda trial: (sign * float(trial.value or 0.0), trial.number))

    @property
    def optuna_study(self) -> Any:
        """For reports."""
        return self._study


def _pruner(search: Search) -> Any:
    match search.pruner:
        case "median":
            return optuna.pruners.MedianPruner(FIRST_PRUNED, search.warm_up)
        case "hyperband":
            return optuna.pruners.HyperbandPruner(min_resource=max(1, search.warm_up))
        case "wilcoxon":
            return optuna.pruners.WilcoxonPruner()
        case _:
            return optuna.pruners.NopPruner()
