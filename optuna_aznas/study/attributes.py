"""What a trial stores: record writes proxy scores into its user attributes, and the others read them back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.study import StudyDirection
from optuna.trial import BaseTrial, FrozenTrial

from optuna_aznas._optuna import constraint_values

#: User attribute: proxy name -> proxy score. Plain JSON: a score that is not finite is a string such as ``"-inf"``.
SCORES_KEY = "aznas:scores"

#: User attribute: names of the parameters that had been suggested when proxy scores were first recorded.
ARCHITECTURE_KEY = "aznas:architecture"

#: User attribute of a study: the most multiply-accumulates that its networks may take.
BUDGET_KEY = "aznas:budget"


def record(trial: BaseTrial, proxy_scores: Mapping[str, float] | Any) -> None:
    """Store a network's proxy scores on a trial.

    The proxy scores are in the storage when this returns. The parameters suggested before are the architecture; those
    suggested afterwards are hyperparameters. A second call replaces the proxy scores and leaves the architecture's
    parameters as they are.

    Args:
        trial: The running trial.
        proxy_scores: A :class:`~optuna_aznas.ProxyScores`, or any mapping from proxy name to float. Bigger is better.
            NaN counts as ``-inf``.

    Raises:
        TypeError: ``proxy_scores`` is neither.
        ValueError: ``proxy_scores`` is empty, a name is not a non-empty string, or a value is not a number.
    """
    encoded: dict[str, float | str] = {}
    for name, number in as_numbers(proxy_scores).items():
        encoded[name] = number if math.isfinite(number) else "inf" if number > 0 else "-inf"
    if ARCHITECTURE_KEY not in trial.user_attrs:
        trial.set_user_attr(ARCHITECTURE_KEY, list(trial.params))
    trial.set_user_attr(SCORES_KEY, encoded)


def as_numbers(proxy_scores: Any) -> dict[str, float]:
    """Return proxy scores by proxy name, from any form that :func:`record` takes; it raises the same errors."""
    to_dict = getattr(proxy_scores, "to_dict", None)
    if to_dict is not None:
        proxy_scores = to_dict()
    if not isinstance(proxy_scores, Mapping):
        raise TypeError(
            "proxy_scores must be ProxyScores or a mapping from proxy name to float; "
            f"got {type(proxy_scores).__name__}."
        )
    if not proxy_scores:
        raise ValueError("proxy_scores is empty: there is nothing to record.")
    numbers: dict[str, float] = {}
    for name, value in proxy_scores.items():
        if not isinstance(name, str) or not name:
            raise ValueError(f"proxy_scores must have proxy names as keys; got {name!r}.")
        try:
            numbers[name] = float(value)
        except (TypeError, ValueError):
            raise ValueError(f"proxy_scores[{name!r}] must be a number; got {value!r}.") from None
    return numbers


def recorded_scores(trial: FrozenTrial) -> dict[str, float] | None:
    """Return the proxy scores that :func:`record` stored on a trial; ``None`` if there are none, or they cannot be read
    as numbers.
    """
    encoded = trial.user_attrs.get(SCORES_KEY)
    if not isinstance(encoded, Mapping) or not encoded:
        return None
    try:
        return {str(name): float(value) for name, value in encoded.items()}
    except (TypeError, ValueError):
        return None


def architecture_names(trial: FrozenTrial) -> list[str]:
    """Return the names of a trial's architecture parameters: those suggested before its proxy scores were recorded; all
    of its parameters, if none were.
    """
    names = trial.user_attrs.get(ARCHITECTURE_KEY)
    if not isinstance(names, list):
        return list(trial.params)
    return [name for name in names if name in trial.params]


def architecture_params(trial: FrozenTrial) -> dict[str, Any]:
    """Return a trial's architecture parameters with their values."""
    return {name: trial.params[name] for name in architecture_names(trial)}


def values_are_scores(directions: Sequence[StudyDirection]) -> bool:
    """Whether a study's objective values can be proxy scores: two or more objectives, all maximised."""
    return len(directions) > 1 and all(direction == StudyDirection.MAXIMIZE for direction in directions)


def is_feasible(trial: FrozenTrial) -> bool:
    """Whether a trial satisfies its constraints: none of their values is above 0, as Optuna defines it."""
    return all(value <= 0.0 for value in constraint_values(trial))
