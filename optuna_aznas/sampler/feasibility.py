"""Feasibility: how likely it is that a candidate keeps the constraints, learned from a study's trials."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Container, Mapping

import numpy as np
import numpy.typing as npt
from optuna.trial import FrozenTrial

from optuna_aznas._optuna import constraint_values
from optuna_aznas.aggregation.feasibility import FeasibilityModel
from optuna_aznas.sampler.conditional import ConditionalParameters
from optuna_aznas.sampler.strategy import Params, Space
from optuna_aznas.sampler.view import StudyView
from optuna_aznas.study.attributes import architecture_params
from optuna_aznas.study.encoding import Encoder
from optuna_aznas.study.numbers import recorded_numbers

_FEWEST = 6  # trials with a constraint before it is learned
_MOST = 256  # newest trials that are learned from: conditioning on n of them takes n^3 steps
_RULES_GROWTH = 1.15  # the rules of conditional parameters are inferred anew at this growth of the number of trials

#: By how much constraints are exceeded, at most 0 where they are kept: by position, or by the name of a number.
Excesses = dict[str | int, float]

_Floats = npt.NDArray[np.float64]


class Feasibility:
    """Learns one study's constraints: those of a ``constraints_func``, and limits that have to be measured.

    It is a cache of what the study says, but for measurements of candidates that were not proposed, which are known in
    this process only.

    Args:
        maxima: The limits on measured numbers, by name.
    """

    def __init__(self, maxima: Mapping[str, float]) -> None:
        self._maxima = maxima
        self._models: dict[str | int, FeasibilityModel] = {}
        self._active: dict[str | int, FeasibilityModel] = {}
        self._measured: list[tuple[Params, Excesses]] = []
        self._measured_space: Space = {}
        self._conditions, self._conditions_from = ConditionalParameters([]), 0
        self._n_learned = 0
        self._space: Space = {}
        self._encoder = Encoder({})

    def add(self, architecture: Params, space: Space, numbers: Mapping[str, float]) -> None:
        """Add the measured numbers of a candidate that is not proposed."""
        self._measured_space |= space
        excesses: Excesses = {name: excess(number, self._maxima[name]) for name, number in numbers.items()}
        self._measured.append((dict(architecture), excesses))

    def has_learned(self, view: StudyView) -> bool:
        """Whether anything is known that can be exceeded."""
        self._learn(view)
        return bool(self._active)

    def present(self, params: Params) -> Params:
        """Return those of a candidate's parameters that its architecture has, as far as the trials tell."""
        return self._conditions.present(params)

    def probability(self, view: StudyView, architecture: Params, known: Container[str]) -> float:
        """Return the probability that a candidate keeps all that is learned; 1 where too little is known.

        Args:
            view: The study.
            architecture: The candidate's own parameters.
            known: Names of numbers that have been measured, which are not estimated.
        """
        self._learn(view)
        models = [model for name, model in self._active.items() if isinstance(name, int) or name not in known]
        if not models:
            return 1.0
        x = self._encode([architecture])
        return math.prod(float(model.probability(x)[0]) for model in models)

    def _learn(self, view: StudyView) -> None:
        n = len(view.constrained) + len(self._measured)
        if n == self._n_learned:
            return
        self._n_learned = n
        space = {**self._measured_space, **view.architecture_space}
        if space != self._space:
            self._space, self._encoder = space, Encoder(space)
        if n >= _RULES_GROWTH * self._conditions_from:
            trials = view.constrained[-_MOST:]
            self._conditions = ConditionalParameters([architecture_params(trial) for trial in trials])
            self._conditions_from = n
        rows = _of_trials(view.constrained[-_MOST:], self._maxima) + self._measured[-_MOST:]
        x = self._encode([params for params, _ in rows]) if rows else np.zeros((0, 0))
        self._active = {}
        for name in dict.fromkeys(name for _, excesses in rows for name in excesses):
            has = np.array([name in excesses for _, excesses in rows])
            y = np.array([excesses[name] for _, excesses in rows if name in excesses])
            if len(y) >= _FEWEST and np.any(y > 0) and x.shape[1]:  # what was never exceeded teaches nothing that helps
                self._active[name] = self._models.setdefault(name, FeasibilityModel())
                self._active[name].fit(x[has], y)

    def _encode(self, architectures: list[Params]) -> _Floats:
        encoded = self._encoder(architectures)
        return np.hstack([encoded.single, encoded.pooled])


def _of_trials(trials: list[FrozenTrial], maxima: Mapping[str, float]) -> list[tuple[Params, Excesses]]:
    """Return architectures, and by how much they exceed each constraint: by position, or by name of a number."""
    found: list[tuple[Params, list[float], Excesses]] = []
    for trial in trials:
        numbers = recorded_numbers(trial)
        enforced = sum(number.limit is not None for number in numbers.values())  # these constraints come last
        values = constraint_values(trial) or []
        excesses: Excesses = {
            name: excess(numbers[name].measurement.upper, maximum)
            for name, maximum in maxima.items()
            if name in numbers
        }
        found.append((architecture_params(trial), values[: len(values) - enforced], excesses))
    n_own = Counter(len(own) for _, own, _ in found).most_common(1)[0][0] if found else 0
    return [(params, {**excesses, **dict(enumerate(own))}) for params, own, excesses in found if len(own) == n_own]


def excess(number: float, maximum: float) -> float:
    """Return the logarithm of a number over its limit: of a cost this is closer to linear than the number itself."""
    return math.inf if math.isnan(number) else math.log(max(number, 1e-300) / maximum)
