"""What a sampler knows of one study."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import PartialFixedSampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from optuna_aznas.sampler.duplicates import Description, KnownArchitectures, describe
from optuna_aznas.study.attributes import ARCHITECTURE_KEY, architecture_names
from optuna_aznas.study.history import Aggregation, StudyHistory

#: System attribute: the architecture that was proposed for a trial, for other workers to see before it is suggested.
PROPOSAL_KEY = "aznas:proposal"


class StudyView:
    """A cache of what was read of one study; it can be rebuilt from the study at any time.

    Args:
        study: The study. Only a weak reference is kept.
        aggregation: As in :class:`~optuna_aznas.AZNASSampler`.
        n_startup_trials: As in :class:`~optuna_aznas.AZNASSampler`.
        population_size: As in :class:`~optuna_aznas.AZNASSampler`.
    """

    def __init__(
        self, study: Study, aggregation: Aggregation | None, n_startup_trials: int, population_size: int
    ) -> None:
        self._study = weakref.ref(study)
        self._n_startup_trials = n_startup_trials
        self._population_size = population_size
        self._population: list[FrozenTrial] = []
        self._known = KnownArchitectures()
        self._proposed: list[Description] = []  # in other trials that wait or run
        self._choices: dict[str, CategoricalDistribution] = {}  # as the study's trials had them last
        self.history = StudyHistory(aggregation)
        self.architecture_names: set[str] = set()  # of all trials that recorded scores
        self._distributions: dict[str, BaseDistribution] = {}  # of these names, as they were last
        self.spaces: dict[int, dict[str, BaseDistribution]] = {}  # of trials between infer_ and sample_relative
        self._one_objective: bool | None = None  # asked of the storage once
        self.n_told = 0  # trials that finished under this sampler
        self.warned = False  # that none of them has scores

    @property
    def study(self) -> Study:
        study = self._study()
        assert study is not None
        return study

    def update(self, own: FrozenTrial) -> None:
        """Read what is new in the study, on behalf of a running trial."""
        finished, unfinished = self.history.update(self.study, own)
        self._proposed = [_expected(trial) for trial in unfinished if trial.number != own.number]
        for trial in finished:
            self._known.add(trial)
            if ARCHITECTURE_KEY in trial.user_attrs:
                names = architecture_names(trial)
                self.architecture_names.update(names)
                self._distributions |= {name: trial.distributions[name] for name in names}
            for name, distribution in trial.distributions.items():
                if isinstance(distribution, CategoricalDistribution):
                    self._choices[name] = distribution
        if finished and len(self.history) >= self._n_startup_trials:
            self._population = self.history.best(self._population_size)

    @property
    def is_trained(self) -> bool:
        """Whether the study's one objective is what a training gives, and there are scored trials."""
        if self._one_objective is None:
            self._one_objective = len(self.study.directions) == 1
        return self._one_objective and len(self.history) > 0

    @property
    def space(self) -> dict[str, BaseDistribution]:
        """All parameters of architectures that recorded scores; a single one may not ask for all of them."""
        return self._with_choices(self._distributions)

    def draw_space(self, rng: np.random.Generator) -> dict[str, BaseDistribution]:
        """Return the architecture's distributions of a random parent; before evolution starts, of any scored trial."""
        trials = self._population or self.history.trials
        return self._space_of(trials[int(rng.integers(len(trials)))]) if trials else {}

    def parents(self, space: Mapping[str, BaseDistribution], fixed: Mapping[str, Any]) -> list[FrozenTrial]:
        """Return the trials of the population that have the parameters of ``space`` by the same distributions, and but
        for ``fixed`` ones no others; if there are none, others as well.
        """
        spaces = [(trial, self._space_of(trial)) for trial in self._population]
        candidates = [(trial, s) for trial, s in spaces if space.items() <= s.items()]
        same = [trial for trial, s in candidates if s.keys() <= space.keys() | fixed.keys()]
        return same or [trial for trial, _ in candidates]

    def holds(self, architecture: Mapping[str, Any]) -> bool:
        """Whether the study has this architecture, finished, running or waiting."""
        return self._holds(describe(architecture))

    def completes_known(self, trial: FrozenTrial, name: str, value: Any) -> bool:
        """Whether one more parameter makes a running trial's architecture one that the study has."""
        return self._holds({**_expected(trial), **describe({name: value})})

    def claim(self, trial: FrozenTrial, architecture: Mapping[str, Any]) -> bool:
        """Write into the study that ``trial`` is to have this architecture; whether no other trial is to have it."""
        description = describe(architecture)
        was_known = description in self._known
        self.study._storage.set_trial_system_attr(trial._trial_id, PROPOSAL_KEY, description)
        self.update(trial)
        # The other trial may have been proposed, run and finished since this one's candidate was drawn.
        return description not in self._proposed and (was_known or description not in self._known)

    def _holds(self, description: Description) -> bool:
        return description in self._known or description in self._proposed

    def _space_of(self, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the distributions of a trial's architecture, with choices as they are now."""
        return self._with_choices({name: trial.distributions[name] for name in architecture_names(trial)})

    def _with_choices(self, space: dict[str, BaseDistribution]) -> dict[str, BaseDistribution]:
        return {n: self._choices[n] if isinstance(d, CategoricalDistribution) else d for n, d in space.items()}


def fixed_params(study: Study, trial: FrozenTrial, names: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of a trial's parameters ``names`` that ``enqueue_trial`` or a ``PartialFixedSampler`` has fixed."""
    fixed = dict(trial.system_attrs.get("fixed_params", {}))
    if isinstance(study.sampler, PartialFixedSampler):
        fixed = {**study.sampler._fixed_params, **fixed}
    return {name: value for name, value in fixed.items() if name in names}


def _expected(trial: FrozenTrial) -> Description:
    """Return the architecture that an unfinished trial has, or is to have, as far as it is known."""
    if ARCHITECTURE_KEY in trial.user_attrs:
        return describe({name: trial.params[name] for name in architecture_names(trial)})
    proposed = trial.system_attrs.get(PROPOSAL_KEY, {})
    return {**proposed, **describe(trial.system_attrs.get("fixed_params", {})), **describe(trial.params)}
