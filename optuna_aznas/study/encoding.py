"""Trained values, architectures and hyperparameters of trials as arrays of numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from optuna_aznas.aggregation import Parameters
from optuna_aznas.study.attributes import architecture_names
from optuna_aznas.study.values import index_of

_Floats = npt.NDArray[np.float64]

_Space = Mapping[str, BaseDistribution]

_MAX_COLUMNS = 64  # most columns of one categorical parameter, beside the one that marks it as absent
_ABSENT = object()  # stands for the value of a parameter that a network does not have


def trained_values(trials: Sequence[FrozenTrial], direction: StudyDirection) -> _Floats:
    """Return the trials' trained values as places, 0 for the lowest, shape (n,); NaN for trials that were not trained.

    Bigger is better, and equal ones share a place. The order is that of Optuna's TPE: completed trials by their value;
    below them those that were pruned during training, by the last step they reported, then by the value at that step.
    A value of NaN is the lowest.
    """
    sign = 1.0 if direction == StudyDirection.MAXIMIZE else -1.0
    keys: list[tuple[float, float, float] | None] = []
    for trial in trials:
        if trial.state == TrialState.COMPLETE and trial.values is not None:
            keys.append((1.0, 0.0, _sortable(sign * trial.values[0])))
        elif trial.state == TrialState.PRUNED and trial.intermediate_values:
            step, value = max(trial.intermediate_values.items())
            keys.append((0.0, float(step), _sortable(sign * value)))
        else:
            keys.append(None)
    places = {key: float(place) for place, key in enumerate(sorted({key for key in keys if key is not None}))}
    return np.array([math.nan if key is None else places[key] for key in keys])


class Encoder:
    """Encodes parameters as columns of numbers.

    A categorical parameter has one column for each choice. Beyond 64 choices each has a direction in 64 columns, drawn
    at random, so that any two choices are about as far apart as with a column for each. A numerical parameter has one
    column, its position between its bounds on its distribution's own scale. Each has one more column that marks it as
    absent. Parameters with equal distributions (the operations of several edges, the widths of several layers) are also
    pooled: the sums of their columns, divided by the square root of their number.

    Args:
        space: The parameters and their distributions.
    """

    def __init__(self, space: _Space) -> None:
        self.space = {name: d for name, d in space.items() if not d.single()}
        self._start: dict[str, int] = {}
        width = 0
        for name, distribution in self.space.items():
            self._start[name] = width
            width += _width(distribution)
        self._width = width
        groups: dict[str, list[str]] = {}
        for name, distribution in self.space.items():
            groups.setdefault(repr(distribution), []).append(name)
        self._groups = [group for group in groups.values() if len(group) > 1]

    def __call__(self, params: Sequence[Mapping[str, Any]]) -> Parameters:
        """Return the rows of networks by their parameters; parameters outside the space are ignored."""
        single = np.zeros((len(params), self._width))
        for name, distribution in self.space.items():
            start, width = self._start[name], _width(distribution)
            _write(single[:, start : start + width], distribution, [values.get(name, _ABSENT) for values in params])
        pooled = [
            sum(single[:, self._start[name] : self._start[name] + _width(self.space[name])] for name in group)
            / math.sqrt(len(group))
            for group in self._groups
        ]
        return Parameters(single, np.hstack(pooled) if pooled else np.zeros((len(params), 0)))


def encode_hyperparameters(trials: Sequence[FrozenTrial]) -> _Floats | None:
    """Return the trials' hyperparameters as numbers, shape (n, h); ``None`` where no trial has any.

    A hyperparameter whose distribution changed is encoded by its last distribution.
    """
    space: dict[str, BaseDistribution] = {}
    for trial in trials:
        architecture = architecture_names(trial)
        space |= {name: d for name, d in trial.distributions.items() if name not in architecture}
    encoder = Encoder(space)
    return encoder([trial.params for trial in trials]).single if encoder.space else None


def _width(distribution: BaseDistribution) -> int:
    return 1 + (
        min(len(distribution.choices), _MAX_COLUMNS) if isinstance(distribution, CategoricalDistribution) else 1
    )


def _write(columns: _Floats, distribution: BaseDistribution, values: Sequence[Any]) -> None:
    """Write one parameter's values into its columns, the last of which marks it as absent."""
    if isinstance(distribution, CategoricalDistribution):
        choices = np.array([_choice(distribution, value) for value in values], dtype=np.intp)
        is_absent = choices < 0
        rows = np.flatnonzero(~is_absent)
        if len(distribution.choices) > _MAX_COLUMNS:
            for row in rows:
                direction = np.random.default_rng(choices[row]).standard_normal(_MAX_COLUMNS)
                columns[row, :-1] = math.sqrt(0.5) * direction / np.linalg.norm(direction)
        else:
            columns[rows, choices[rows]] = math.sqrt(0.5)
    else:
        assert isinstance(distribution, IntDistribution | FloatDistribution)
        low, high = float(distribution.low), float(distribution.high)
        numbers = np.array([math.nan if value is _ABSENT else value for value in values], dtype=np.float64)
        is_absent = np.isnan(numbers)
        if distribution.log:
            low, high, numbers = math.log(low), math.log(high), np.log(np.maximum(numbers, 1e-300))
        columns[:, 0] = np.where(is_absent, 0.0, np.clip((numbers - low) / (high - low), 0.0, 1.0))
    columns[is_absent, -1] = math.sqrt(0.5)


def _choice(distribution: CategoricalDistribution, value: Any) -> int:
    """Return the position of a choice; -1 where the parameter is absent, or the choice no longer exists."""
    try:
        return -1 if value is _ABSENT else index_of(distribution, value)
    except ValueError:
        return -1


def _sortable(value: float) -> float:
    return -math.inf if math.isnan(value) else value
