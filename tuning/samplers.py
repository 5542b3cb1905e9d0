"""Samplers of trials whose every choice follows from the study's seed, the trial's number and the option's name.

Optuna's own draw from one stream of random numbers, whose state is stored nowhere: a resumed study would repeat its
first trials, and a trial that was asked for by a process that was killed would not be completed as it was begun.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, GridSampler, QMCSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from options.choices import SearchSampler
from tuning.space import Space, SpaceError

STARTUP = 10  # random trials before TPE models what it has seen


def seed_of(*parts: int | str) -> int:
    """A seed made of several numbers or names, the same in every process."""
    digest = hashlib.sha256(" ".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "big")


def build(name: SearchSampler, seed: int, number: int, space: Space) -> BaseSampler:
    """The sampler of one trial.

    Args:
        name: of the sampler.
        seed: of the study.
        number: of the trial.
        space: what is searched.

    Raises:
        SpaceError: the sampler cannot search this space.
    """
    match name:
        case "random":
            return _ByName(lambda own: RandomSampler(seed=own), seed, number)
        case "qmc":
            return _ByName(lambda own: _Sequence(seed, number, own), seed, number)
        case "grid":
            return GridSampler(grid(space), seed=seed)
        case _:
            return _ByName(lambda own: TPESampler(seed=own, n_startup_trials=STARTUP), seed, number)


def grid(space: Space) -> dict[str, Sequence[Any]]:
    """All values of every option.

    Raises:
        SpaceError: a range has no steps, or an option has a condition.
    """
    if any(parameter.only_if for parameter in space.parameters):
        raise SpaceError("--sampler grid: a grid has no conditions (`if`); choose tpe, random or qmc")
    return {parameter.name: parameter.grid() for parameter in space.parameters}


class _ByName(BaseSampler):
    """A sampler that starts again for every option that is drawn by itself."""

    def __init__(self, make: Callable[[int], BaseSampler], seed: int, number: int) -> None:
        self._make, self._seed, self._number = make, seed, number
        self._joint = make(seed_of(seed, number))

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """See Optuna."""
        return self._joint.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """See Optuna."""
        return self._joint.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """See Optuna."""
        sampler = self._make(seed_of(self._seed, self._number, param_name))
        return sampler.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """See Optuna."""
        self._joint.before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """See Optuna."""
        self._joint.after_trial(study, trial, state, values)


class _Sequence(QMCSampler):
    """A scrambled Sobol sequence of which a trial takes the point of its number.

    Optuna counts in the storage how far it has come, which a trial that is asked for twice would move on.
    """

    def __init__(self, seed: int, number: int, own_seed: int) -> None:
        super().__init__(
            scramble=True, seed=seed, independent_sampler=RandomSampler(seed=own_seed),
            warn_asynchronous_seeding=False, warn_independent_sampling=False,
        )  # fmt: skip
        self._number = number

    def _find_sample_id(self, study: Study, search_space: dict[str, BaseDistribution]) -> int:  # noqa: ARG002
        return self._number
