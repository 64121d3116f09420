"""StudyView: what the strategies read of one study."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.study import Study
from optuna.trial import FrozenTrial

from optuna_aznas.sampler.claims import expected_architecture
from optuna_aznas.sampler.duplicates import Description, EvaluatedArchitectures, describe
from optuna_aznas.study.attributes import ARCHITECTURE_KEY, architecture_names
from optuna_aznas.study.history import Aggregation, StudyHistory


class StudyView:
    """A cache of what was read of one study; it can be rebuilt from the study at any time.

    Args:
        study: The study. Only a weak reference is kept.
        aggregation: As in :class:`~optuna_aznas.AZNASSampler`.

    Attributes:
        history: The scored trials.
        architecture_names: Names of the architecture parameters of all trials that recorded proxy scores.
    """

    def __init__(self, study: Study, aggregation: Aggregation | None) -> None:
        self._study = weakref.ref(study)
        self._evaluated = EvaluatedArchitectures()
        self._pending: list[Description] = []  # architectures of other trials that wait or run
        self._choices: dict[str, CategoricalDistribution] = {}  # categorical distributions, as trials had them last
        self._distributions: dict[str, BaseDistribution] = {}  # of architecture_names, as trials had them last
        self._one_objective: bool | None = None  # read from the storage once
        self.history = StudyHistory(aggregation)
        self.architecture_names: set[str] = set()

    @property
    def study(self) -> Study:
        study = self._study()
        assert study is not None
        return study

    def update(self, own: FrozenTrial) -> None:
        """Read what is new in the study, on behalf of the running trial ``own``."""
        finished, unfinished = self.history.update(self.study, own)
        self._pending = [expected_architecture(trial) for trial in unfinished if trial.number != own.number]
        for trial in finished:
            self._evaluated.add(trial)
            if ARCHITECTURE_KEY in trial.user_attrs:
                names = architecture_names(trial)
                self.architecture_names.update(names)
                self._distributions |= {name: trial.distributions[name] for name in names}
            for name, distribution in trial.distributions.items():
                if isinstance(distribution, CategoricalDistribution):
                    self._choices[name] = distribution

    @property
    def is_trained(self) -> bool:
        """Whether the study's one objective is a trained value, and there are scored trials."""
        if self._one_objective is None:
            self._one_objective = len(self.study.directions) == 1
        return self._one_objective and len(self.history) > 0

    @property
    def space(self) -> dict[str, BaseDistribution]:
        """All parameters of architectures that recorded proxy scores; not every architecture has all of them."""
        return self._with_last_choices(self._distributions)

    def space_of(self, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the distributions of a trial's architecture; categorical ones as trials had them last."""
        return self._with_last_choices({name: trial.distributions[name] for name in architecture_names(trial)})

    def is_evaluated(self, architecture: Description) -> bool:
        """Whether a finished trial has this architecture."""
        return architecture in self._evaluated

    def is_pending(self, architecture: Description) -> bool:
        """Whether another trial that waits or runs has this architecture, or has claimed it."""
        return architecture in self._pending

    def is_duplicate(self, params: Mapping[str, Any]) -> bool:
        """Whether the study already holds this architecture, in a trial that has finished, runs or waits."""
        return self._holds(describe(params))

    def completes_duplicate(self, trial: FrozenTrial, name: str, value: Any) -> bool:
        """Whether a running trial's architecture becomes a duplicate by one more parameter."""
        return self._holds({**expected_architecture(trial), **describe({name: value})})

    def _holds(self, architecture: Description) -> bool:
        return self.is_evaluated(architecture) or self.is_pending(architecture)

    def _with_last_choices(self, space: dict[str, BaseDistribution]) -> dict[str, BaseDistribution]:
        return {n: self._choices[n] if isinstance(d, CategoricalDistribution) else d for n, d in space.items()}
