"""Parameter values: one canonical form for each, by its distribution, and one text to compare and store it by.

A value may have been written in several ways: 1 for a float parameter, 0.1 + 0.2 on a grid with step 0.1, True for the
choice 1. Two networks built from them are the same.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

#: An architecture as text: parameter name -> value. Categorical choices need not be hashable, text is.
Description = dict[str, str]

_ON_GRID = 1e-6  # fraction of a step by which a value may miss its grid: rounding errors are smaller
_FEW_CHOICES = 32  # up to this many choices are searched one by one
_MAX_INDICES = 64  # categorical distributions whose choices are kept in a dict

_indices: dict[int, tuple[tuple[Any, ...], dict[Any, int]]] = {}  # by the id of the choices, which are kept alive


def canonical(value: Any, distribution: BaseDistribution | None) -> Any:
    """Return a parameter's value in the form that equal values share.

    Floats with a step are moved onto their grid if they miss it by a rounding error. Numbers have their distribution's
    type. Choices, values without a distribution and those that are no numbers are returned as they are.
    """
    kind = type(distribution)  # compared by identity: isinstance of Optuna's abstract classes is slow
    if kind is IntDistribution:
        return int(value) if isinstance(value, float) and value.is_integer() else value
    if kind is not FloatDistribution or not isinstance(value, (int, float)):  # faster
        return value
    assert isinstance(distribution, FloatDistribution)
    try:
        number = float(value)
    except OverflowError:
        return value
    step = distribution.step
    if step is None or not distribution.low - step <= number <= distribution.high + step:
        return number
    on_grid = nearest_on_grid(number, distribution)
    return on_grid if abs(on_grid - number) <= _ON_GRID * step else number


def nearest(distribution: FloatDistribution | IntDistribution, value: float) -> Any:
    """Return the value of a distribution that is nearest to a number."""
    if isinstance(distribution, IntDistribution):
        steps = round((value - distribution.low) / distribution.step)
        return min(max(distribution.low + steps * distribution.step, distribution.low), distribution.high)
    if distribution.step is not None:
        return nearest_on_grid(value, distribution)
    return float(min(max(value, distribution.low), distribution.high))


def nearest_on_grid(value: float, distribution: FloatDistribution) -> float:
    """Return the value of a float distribution with a step that is nearest to ``value``."""
    low, step = distribution.low, distribution.step
    assert step is not None
    # As a decimal: low + k * step has rounding errors that depend on k, and Optuna's own draws have others.
    exact = round(low + round((value - low) / step) * step, _decimals(low, step))
    return min(max(exact, low), distribution.high)


def describe(params: Mapping[str, Any], space: Mapping[str, BaseDistribution]) -> Description:
    """Return parameters in a form that can be compared, hashed and stored.

    Args:
        params: The parameters.
        space: Distributions, as far as they are known.
    """
    return {
        name: repr(value) if type(value) is str else _text(canonical(value, space.get(name)))
        for name, value in params.items()
    }


def index_of(distribution: CategoricalDistribution, value: Any) -> int:
    """Return the position of a choice, as Optuna does, or raise ``ValueError``; of many choices without a search."""
    choices = distribution.choices
    if len(choices) > _FEW_CHOICES:
        try:
            index = _index(choices).get(value)
        except TypeError:  # not hashable
            index = None
        if index is not None:
            return index
        if value is None or isinstance(value, str):
            raise ValueError(f"{value!r} is not among the choices.")  # Optuna's message has all of them
    else:
        try:
            return choices.index(value)
        except ValueError:  # not there, NaN, or an array, whose comparison has no truth value
            pass
    return int(distribution.to_internal_repr(value))


def _index(choices: tuple[Any, ...]) -> dict[Any, int]:
    kept = _indices.get(id(choices))
    if kept is not None:
        return kept[1]
    index: dict[Any, int] = {}
    for i, choice in enumerate(choices):
        try:
            index.setdefault(choice, i)
        except TypeError:  # not hashable
            continue
    if len(_indices) >= _MAX_INDICES:
        _indices.clear()
    _indices[id(choices)] = choices, index
    return index


def _text(value: Any) -> str:
    """Return a text that is the same for values that Python, and so Optuna, takes for equal: True, 1 and 1.0."""
    if isinstance(value, (int, float)):  # faster
        try:
            number = float(value) + 0.0  # -0.0 becomes 0.0
        except OverflowError:
            return repr(value)
        return repr(number) if number == value or number != number else repr(value)
    return repr(value)


def same_distribution(one: BaseDistribution | None, other: BaseDistribution | None) -> bool:
    """Whether two distributions are equal; faster than ``==``, which compares choices one by one in Python."""
    if isinstance(one, CategoricalDistribution) and isinstance(other, CategoricalDistribution):
        return one is other or one.choices is other.choices or one.choices == other.choices
    return one == other


@functools.lru_cache(maxsize=1024)
def _decimals(low: float, step: float) -> int:
    """Return how many decimals the values of a grid have."""
    exponents = [Decimal(repr(float(number))).as_tuple().exponent for number in (low, step)]
    return max(0, *(-exponent for exponent in exponents if isinstance(exponent, int)))
