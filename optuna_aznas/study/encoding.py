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
from optuna_aznas.aggregation.networks import Hyperparameters
from optuna_aznas.study.attributes import architecture_names
from optuna_aznas.study.values import index_of, nearest

_Floats = npt.NDArray[np.float64]

_Space = Mapping[str, BaseDistribution]

_MAX_COLUMNS = 64  # most columns of one categorical parameter, beside the one that marks it as absent
_MAX_GRID = 64  # most values of a numerical hyperparameter that are told apart when it is drawn or varied
_STEPS = (0.01, 0.3)  # range of the standard deviation of a step of a numerical hyperparameter
_ABSENT = object()  # stands for the value of a parameter that a network does not have


def trained_values(trials: Sequence[FrozenTrial], direction: StudyDirection) -> _Floats:
    """Return the trials' trained values as places, 0 for the lowest, shape (n,); NaN for trials that were not trained.

    Bigger is better, and equal ones share a place. The order is that of Optuna's TPE: completed trials by their value;
    below them those that were pruned during training, by the last step they reported, then by the value at that step.
    A value of NaN is the lowest.
    """
    sign = 1.0 if direction == StudyDirection.MAXIMIZE else -1.0
    keys: dict[int, tuple[float, float, float]] = {}  # by the trial's position
    for i, trial in enumerate(trials):
        if trial.state == TrialState.COMPLETE:
            if trial.values is not None:
                keys[i] = (1.0, 0.0, _sortable(sign * trial.values[0]))
        elif trial.state == TrialState.PRUNED and trial.intermediate_values:
            step, value = max(trial.intermediate_values.items())
            keys[i] = (0.0, float(step), _sortable(sign * value))
    places = {key: place for place, key in enumerate(sorted(set(keys.values())))}
    found = np.full(len(trials), math.nan)
    found[list(keys)] = [places[key] for key in keys.values()]
    return found


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
        kinds = {name: kind for kind, group in enumerate(groups.values()) for name in group}
        self._single_kinds = tuple(kinds[name] for name, d in self.space.items() for _ in range(_width(d)))
        self._pooled_kinds = tuple(
            kinds[group[0]] for group in self._groups for _ in range(_width(self.space[group[0]]))
        )

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
        together = np.hstack(pooled) if pooled else np.zeros((len(params), 0))
        return Parameters(single, together, self._single_kinds, self._pooled_kinds)


class HyperparameterSpace:
    """Hyperparameters of configurations as positions, a column each, which can be drawn and varied as arrays.

    The position of a categorical value is its index; that of a numerical one lies between 0 and 1, its bounds on its
    distribution's own scale. Where a distribution has few values, positions are those of its values alone.

    Args:
        space: The hyperparameters and their distributions.
    """

    def __init__(self, space: _Space) -> None:
        self.space = {name: distribution for name, distribution in space.items() if not distribution.single()}
        self._grids = [_grid(distribution) for distribution in self.space.values()]

    def __len__(self) -> int:
        return len(self.space)

    def positions(self, params: Sequence[Mapping[str, Any]]) -> _Floats:
        """Return the positions of configurations that have all of the hyperparameters, shape (n, h)."""
        found = np.zeros((len(params), len(self)))
        for column, (name, distribution) in zip(found.T, self.space.items(), strict=True):
            column[:] = _column(distribution, [values[name] for values in params])
        return found

    def params(self, position: _Floats) -> dict[str, Any]:
        """Return the values at one position, shape (h,)."""
        return {
            name: _value(distribution, number)
            for (name, distribution), number in zip(self.space.items(), position.tolist(), strict=True)
        }

    def with_values(self, positions: _Floats, values: Mapping[str, Any]) -> _Floats:
        """Return a copy of positions, shape (n, h), in which some hyperparameters have the given values."""
        fixed = {k: name for k, name in enumerate(self.space) if name in values}
        copy = positions.copy()
        for k, name in fixed.items():
            copy[:, k] = _position(self.space[name], values[name])
        return copy

    def random(self, n: int, rng: np.random.Generator) -> _Floats:
        """Draw positions uniformly, shape (n, h)."""
        drawn = rng.random((n, len(self)))
        for column, grid in zip(drawn.T, self._grids, strict=True):
            if grid is not None:
                column[:] = grid[(column * len(grid)).astype(int)]
        return drawn

    def varied(self, positions: _Floats, rng: np.random.Generator) -> _Floats:
        """Return a copy in which one hyperparameter of each row, and others with probability 1 / h, are changed.

        A categorical value becomes another one. A numerical one moves by a normal step whose standard deviation is
        drawn between 0.01 and 0.3 of the range, reflected at its bounds, and to another value where there are few.
        """
        n, h = positions.shape
        chosen = (rng.random((n, h)) < 1.0 / h) | (np.arange(h) == rng.integers(h, size=(n, 1)))
        size = np.exp(rng.uniform(math.log(_STEPS[0]), math.log(_STEPS[1]), size=(n, h)))
        moved = (positions + size * rng.standard_normal((n, h))) % 2.0  # reflected: 1.2 becomes 0.8, -0.2 becomes 0.2
        moved = np.minimum(moved, 2.0 - moved)
        for k, (grid, distribution) in enumerate(zip(self._grids, self.space.values(), strict=True)):
            if grid is None:
                continue
            places = np.searchsorted(grid, positions[:, k] - 1e-9)
            if isinstance(distribution, CategoricalDistribution):
                others = (places + rng.integers(1, len(grid), size=n)) % len(grid)
            else:
                others = np.abs(grid - moved[:, k, np.newaxis]).argmin(axis=1)
                step = np.where(rng.random(n) < 0.5, 1, -1)
                step = np.where((places + step < 0) | (places + step >= len(grid)), -step, step)
                others = np.where(others == places, places + step, others)
            moved[:, k] = grid[others]
        return np.where(chosen, moved, positions)

    def columns(self, positions: _Floats) -> Hyperparameters:
        """Return positions as columns of numbers for the learned ranking."""
        blocks, names = [], []
        for k, distribution in enumerate(self.space.values()):
            if isinstance(distribution, CategoricalDistribution):
                n_choices = len(distribution.choices)
                one_hot = _choice_columns(n_choices, positions[:, k].astype(np.intp))
                blocks.append(one_hot * math.sqrt(2.0 * n_choices / (n_choices - 1)))
            else:
                blocks.append(math.sqrt(12.0) * positions[:, [k]])
            names += [k] * blocks[-1].shape[1]
        return Hyperparameters(np.hstack(blocks) if blocks else np.zeros((len(positions), 0)), tuple(names))


def hyperparameter_space(trials: Sequence[FrozenTrial]) -> dict[str, BaseDistribution]:
    """Return the hyperparameters that all of some trials have, by their distributions in the last of them."""
    if not trials:
        return {}
    architecture = set(architecture_names(trials[-1]))
    space = {name: d for name, d in trials[-1].distributions.items() if name not in architecture}
    for trial in trials:
        space = {name: d for name, d in space.items() if name in trial.params}
    return space


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


def _grid(distribution: BaseDistribution) -> _Floats | None:
    """Return the positions of a distribution's values, ascending; ``None`` where there are many."""
    if isinstance(distribution, CategoricalDistribution):
        return np.arange(float(len(distribution.choices)))
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    if distribution.step is None or (distribution.high - distribution.low) / distribution.step >= _MAX_GRID:
        return None
    n = round((distribution.high - distribution.low) / distribution.step)
    values = [distribution.low + k * distribution.step for k in range(n + 1)]
    return np.array([_position(distribution, value) for value in values])


def _position(distribution: BaseDistribution, value: Any) -> float:
    return float(_column(distribution, [value])[0])


def _column(distribution: BaseDistribution, values: Sequence[Any]) -> _Floats:
    """Return the positions of one hyperparameter's values."""
    if isinstance(distribution, CategoricalDistribution):
        return np.array([max(_choice(distribution, value), 0) for value in values], dtype=np.float64)
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    return _positions(distribution, np.array(values, dtype=np.float64))


def _value(distribution: BaseDistribution, position: float) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[int(position)]
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    low, high = _bounds(distribution)
    value = low + position * (high - low)
    return nearest(distribution, math.exp(value) if distribution.log else value)


def _positions(distribution: FloatDistribution | IntDistribution, values: _Floats) -> _Floats:
    """Return where values lie between the bounds, 0 to 1, on the distribution's own scale; NaN for NaN."""
    low, high = _bounds(distribution)
    scaled = np.log(np.maximum(values, 1e-300)) if distribution.log else values
    return np.clip((scaled - low) / (high - low), 0.0, 1.0)


def _bounds(distribution: FloatDistribution | IntDistribution) -> tuple[float, float]:
    low, high = float(distribution.low), float(distribution.high)
    return (math.log(low), math.log(high)) if distribution.log else (low, high)


def _choice_columns(n_choices: int, chosen: npt.NDArray[np.intp]) -> _Floats:
    """Return choices as rows whose squared distance is 1, or about 1 where there are more choices than columns."""
    columns = np.zeros((len(chosen), min(n_choices, _MAX_COLUMNS)))
    if n_choices > _MAX_COLUMNS:
        for row, choice in zip(columns, chosen, strict=True):
            direction = np.random.default_rng(choice).standard_normal(_MAX_COLUMNS)
            row[:] = math.sqrt(0.5) * direction / np.linalg.norm(direction)
    else:
        columns[np.arange(len(chosen)), chosen] = math.sqrt(0.5)
    return columns


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
        columns[rows, :-1] = _choice_columns(len(distribution.choices), choices[rows])
    else:
        assert isinstance(distribution, IntDistribution | FloatDistribution)
        numbers = np.array([math.nan if value is _ABSENT else value for value in values], dtype=np.float64)
        is_absent = np.isnan(numbers)
        columns[:, 0] = np.where(is_absent, 0.0, _positions(distribution, numbers))
    columns[is_absent, -1] = math.sqrt(0.5)


def _choice(distribution: CategoricalDistribution, value: Any) -> int:
    """Return the position of a choice; -1 where the parameter is absent, or the choice no longer exists."""
    try:
        return -1 if value is _ABSENT else index_of(distribution, value)
    except ValueError:
        return -1


def _sortable(value: float) -> float:
    return -math.inf if math.isnan(value) else value
