"""How a child differs from its parents: mutation and crossover on Optuna's distributions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

#: Standard deviation of a numerical step, as a fraction of the range on the distribution's own (say, logarithmic)
#: scale.
STEP = 0.15


def sample_uniform(distribution: BaseDistribution, rng: np.random.Generator) -> Any:
    """Draw a value uniformly on the distribution's own scale."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[int(rng.integers(len(distribution.choices)))]
    return _from_unit(distribution, float(rng.random()))


def inherit(value: Any, distribution: BaseDistribution, rng: np.random.Generator) -> Any:
    """Return a parent's value, or a random one where the distribution does not, or no longer, hold it."""
    try:
        if distribution._contains(distribution.to_internal_repr(value)):
            return value
    except (TypeError, ValueError):
        pass
    return sample_uniform(distribution, rng)


def mutate(value: Any, distribution: BaseDistribution, rng: np.random.Generator) -> Any:
    """Return a value near ``value`` and different from it (but for a distribution with a single value).

    Categorical: one of the other choices, uniformly. Int and float: a normal step on the distribution's own scale,
    reflected at its bounds; log and step are respected.
    """
    if distribution.single():
        return value
    if isinstance(distribution, CategoricalDistribution):
        current = distribution.to_internal_repr(value)
        others = [choice for i, choice in enumerate(distribution.choices) if i != current]
        return others[int(rng.integers(len(others)))]
    unit = _to_unit(distribution, value)
    for _ in range(8):
        moved = (unit + STEP * float(rng.standard_normal())) % 2.0  # reflected: 1.2 becomes 0.8, -0.2 becomes 0.2
        mutated = _from_unit(distribution, min(moved, 2.0 - moved))
        if mutated != value:
            return mutated
    # The grid is coarser than the steps drawn: go to a neighbour.
    step = getattr(distribution, "step", None) or 1
    neighbours = [value - step, value + step]
    inside = [v for v in neighbours if distribution.low <= v <= distribution.high]  # type: ignore[attr-defined]
    return inside[int(rng.integers(len(inside)))]


def cross(
    mother: Mapping[str, Any],
    father: Mapping[str, Any],
    space: Mapping[str, BaseDistribution],
    father_space: Mapping[str, BaseDistribution],
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Return a child that has each parameter of the mother from either parent, where both know it by the same
    distribution.
    """
    child = dict(mother)
    for name, distribution in space.items():
        if father_space.get(name) == distribution and rng.random() < 0.5:
            child[name] = father[name]
    return child


def _bounds(distribution: FloatDistribution | IntDistribution) -> tuple[float, float]:
    """Bounds of the scale on which steps are taken. Values on a grid own half a step on either side, so all are equally
    likely.
    """
    low, high = float(distribution.low), float(distribution.high)
    if isinstance(distribution, IntDistribution):
        half = 0.5 if distribution.log else distribution.step / 2
    else:
        half = (distribution.step or 0.0) / 2
    low, high = low - half, high + half
    return (float(np.log(low)), float(np.log(high))) if distribution.log else (low, high)


def _to_unit(distribution: BaseDistribution, value: Any) -> float:
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high = _bounds(distribution)
    scaled = float(np.log(value)) if distribution.log else float(value)
    return (scaled - low) / (high - low)


def _from_unit(distribution: BaseDistribution, unit: float) -> Any:
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high = _bounds(distribution)
    value = low + unit * (high - low)
    if distribution.log:
        value = float(np.exp(value))
    if isinstance(distribution, IntDistribution):
        steps = round((value - distribution.low) / distribution.step)
        return int(np.clip(distribution.low + steps * distribution.step, distribution.low, distribution.high))
    if distribution.step is not None:
        steps = round((value - distribution.low) / distribution.step)
        value = distribution.low + steps * distribution.step
    return float(np.clip(value, distribution.low, distribution.high))
