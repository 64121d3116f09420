"""StudyView: what the strategies read of one study."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.study import Study
from optuna.trial import FrozenTrial

from optuna_aznas._optuna import constraint_values
from optuna_aznas.sampler.claims import expected_architecture
from optuna_aznas.sampler.duplicates import EvaluatedArchitectures
from optuna_aznas.study.attributes import architecture_names, recorded_architecture, recorded_names, recorded_scores
from optuna_aznas.study.history import Aggregation, StudyHistory
from optuna_aznas.study.numbers import recorded_numbers
from optuna_aznas.study.values import Description, describe, same_distribution


class StudyView:
    """A cache of what was read of one study; it can be rebuilt from the study at any time.

    Args:
        study: The study. Only a weak reference is kept.
        aggregation: As in :class:`~optuna_aznas.AZNASSampler`.

    Attributes:
        history: The scored trials.
        architecture_names: Names of the architecture parameters of all trials that recorded proxy scores.
        hyperparameter_names: Names of their other parameters that are in no architecture.
        constrained: The finished trials that have constraints or recorded numbers.
        running: Other trials that run and have recorded proxy scores.
    """

    def __init__(self, study: Study, aggregation: Aggregation | None) -> None:
        self._study = weakref.ref(study)
        self._evaluated = EvaluatedArchitectures()
        self._pending: dict[int, Description] = {}  # architectures of other trials that wait or run, by trial number
        self._recorded: set[int] = set()  # numbers of those of them whose architecture is complete
        self._last: dict[str, BaseDistribution] = {}  # of all parameters, as trials had them last
        self._distributions: dict[str, BaseDistribution] = {}  # of architecture_names, as trials had them last
        self._expected: dict[str, BaseDistribution] = {}  # what trials may suggest, before one has recorded
        self._one_objective: bool | None = None  # read from the storage once
        self.history = StudyHistory(aggregation)
        self.architecture_names: set[str] = set()
        self.hyperparameter_names: set[str] = set()
        self.constrained: list[FrozenTrial] = []
        self.running: list[FrozenTrial] = []

    @property
    def study(self) -> Study:
        study = self._study()
        assert study is not None
        return study

    def update(self, own: FrozenTrial) -> None:
        """Read what is new in the study, on behalf of the running trial ``own``."""
        finished, unfinished = self.history.update(self.study, own)
        for trial in finished:
            self._evaluated.add(trial)
            if constraint_values(trial) or recorded_numbers(trial):
                self.constrained.append(trial)
        others = [trial for trial in unfinished if trial.number != own.number]
        # Trials that are being trained have recorded already: workers that begin together learn from each other's.
        for trial in finished + others:
            names = recorded_architecture(trial)
            if names is not None:
                self.architecture_names.update(names)
                self.hyperparameter_names.update(trial.params)
                self._distributions |= {name: trial.distributions[name] for name in names}
        self.hyperparameter_names -= self.architecture_names
        for trial in finished + unfinished:
            for name, distribution in trial.distributions.items():
                # The same object where it is equal: that is recognised without comparing choices one by one.
                if not same_distribution(self._last.get(name), distribution):
                    self._last[name] = distribution
        self._pending = {trial.number: self.expected_architecture(trial) for trial in others}
        self._recorded = {trial.number for trial in others if recorded_names(trial) is not None}
        self.running = [trial for trial in others if trial.number in self._recorded and recorded_scores(trial)]

    def expect(self, space: Mapping[str, BaseDistribution]) -> None:
        """Take the parameters of architectures for known until a trial has recorded."""
        self._expected = dict(space)

    @property
    def has_one_objective(self) -> bool:
        if self._one_objective is None:
            self._one_objective = len(self.study.directions) == 1
        return self._one_objective

    @property
    def has_scores(self) -> bool:
        """Whether there are scored trials, if only running ones."""
        return len(self.history) > 0 or len(self.running) > 0

    @property
    def is_trained(self) -> bool:
        """Whether the study's one objective is a trained value, and its architectures are known."""
        return self.has_one_objective and (self.has_scores or len(self._expected) > 0)

    @property
    def proxies(self) -> tuple[str, ...]:
        """The names of the study's proxies; none before a trial has recorded."""
        if self.history.names or not self.running:
            return self.history.names
        return tuple(recorded_scores(self.running[0]) or ())

    @property
    def space(self) -> dict[str, BaseDistribution]:
        """All parameters of architectures that recorded proxy scores; not every architecture has all of them. Before
        one has recorded, those that are expected.
        """
        return self._with_last_choices(self._distributions) if self._distributions else dict(self._expected)

    @property
    def architecture_space(self) -> dict[str, BaseDistribution]:
        """As :attr:`space`; all parameters of all trials while no trial has recorded which are its architecture."""
        return self.space if self.architecture_names else dict(self._last)

    def space_of(self, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the distributions of a trial's architecture; categorical ones as trials had them last."""
        return self._with_last_choices({name: trial.distributions[name] for name in architecture_names(trial)})

    def is_evaluated(self, architecture: Description) -> bool:
        """Whether a finished trial has this architecture."""
        return architecture in self._evaluated

    def is_pending(self, architecture: Description) -> bool:
        """Whether another trial that waits or runs has this architecture, or has claimed it."""
        return any(self._has(number, architecture) for number in self._pending)

    def rivals(self, architecture: Description) -> set[int]:
        """Return the numbers of other trials that wait or run and have, or have claimed, all these parameters."""
        items = architecture.items()
        return {n for n, other in self._pending.items() if items <= other.items() or self._has(n, architecture)}

    def has_room(self, architecture: Description) -> bool:
        """Whether more architectures with these parameters are left than other trials that wait or run have them."""
        return self._evaluated.has_more_left(architecture, len(self.rivals(architecture)))

    def is_reserved(self, architecture: Description) -> bool:
        """Whether another trial, whose parameters are suggested one by one, may need this architecture.

        It runs, has some of these parameters and has not recorded yet, and there is no room for more trials with them.
        """
        open_ends = (
            other
            for number, other in self._pending.items()
            if other and number not in self._recorded and other.items() < architecture.items()
        )
        return any(not self.has_room(other) for other in open_ends)

    def _has(self, number: int, architecture: Description) -> bool:
        """Whether a pending trial has this architecture.

        A trial that has recorded fewer parameters has it if their values are equal: its network asked for no more.
        """
        other = self._pending[number]
        recorded = number in self._recorded and len(other) > 0
        return other == architecture or (recorded and other.items() <= architecture.items())

    def holds(self, architecture: Description) -> bool:
        """Whether a trial that has finished, runs or waits has this architecture."""
        return self.is_evaluated(architecture) or self.is_pending(architecture)

    def is_duplicate(self, params: Mapping[str, Any]) -> bool:
        """Whether the study already holds this architecture, in a trial that has finished, runs or waits."""
        return self.holds(self.describe(params))

    def describe(self, params: Mapping[str, Any]) -> Description:
        """Return architecture parameters as text, by their distributions as trials had them last; hyperparameters are
        left out.
        """
        return describe({n: v for n, v in params.items() if n not in self.hyperparameter_names}, self._last)

    def expected_architecture(self, trial: FrozenTrial) -> Description:
        """Return the architecture that an unfinished trial has, or is expected to have, as far as it is known."""
        return expected_architecture(trial, self._last, self.hyperparameter_names)

    def _with_last_choices(self, space: dict[str, BaseDistribution]) -> dict[str, BaseDistribution]:
        return {n: self._last[n] if isinstance(d, CategoricalDistribution) else d for n, d in space.items()}
