"""How a trial's scores lie in its user attributes, and how they are read back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.study import StudyDirection
from optuna.trial import BaseTrial, FrozenTrial

#: User attribute: proxy name -> score. Plain JSON: a score that is not finite is a string such as ``"-inf"``.
SCORES_KEY = "aznas:scores"

#: User attribute: names of the parameters that had been suggested when the scores were recorded.
ARCHITECTURE_KEY = "aznas:architecture"

#: User attribute of a study: the multiply-accumulates that its networks may take.
BUDGET_KEY = "aznas:budget"


def record(trial: BaseTrial, scores: Mapping[str, float] | Any) -> None:
    """Put a network's scores on a trial.

    The scores are in the storage when this returns. Parameters suggested before are the architecture's; what is
    suggested afterwards is a hyperparameter. Recorded again, scores are replaced; what counts as the architecture stays
    as it was at first.

    Args:
        trial: The running trial.
        scores: A :class:`~optuna_aznas.ProxyScores`, or any mapping from proxy name to float. Bigger is better. NaN
            counts as ``-inf``.

    Raises:
        TypeError: ``scores`` is neither.
        ValueError: ``scores`` is empty, a name is no non-empty string, or a score is no number.
    """
    encoded: dict[str, float | str] = {}
    for name, number in as_numbers(scores).items():
        encoded[name] = number if math.isfinite(number) else "inf" if number > 0 else "-inf"
    if ARCHITECTURE_KEY not in trial.user_attrs:
        trial.set_user_attr(ARCHITECTURE_KEY, list(trial.params))
    trial.set_user_attr(SCORES_KEY, encoded)


def as_numbers(scores: Any) -> dict[str, float]:
    """Return scores by proxy name, in whatever form :func:`record` takes them; it raises the same errors."""
    to_dict = getattr(scores, "to_dict", None)
    if to_dict is not None:
        scores = to_dict()
    if not isinstance(scores, Mapping):
        raise TypeError(
            f"scores must be ProxyScores or a mapping from proxy name to float; got {type(scores).__name__}."
        )
    if not scores:
        raise ValueError("scores is empty: there is nothing to record.")
    numbers: dict[str, float] = {}
    for name, value in scores.items():
        if not isinstance(name, str) or not name:
            raise ValueError(f"scores must have proxy names as keys; got {name!r}.")
        try:
            numbers[name] = float(value)
        except (TypeError, ValueError):
            raise ValueError(f"scores[{name!r}] must be a number; got {value!r}.") from None
    return numbers


def recorded_scores(trial: FrozenTrial) -> dict[str, float] | None:
    """Return the scores that :func:`record` put on a trial; ``None`` if there are none, or they are not readable as
    numbers.
    """
    encoded = trial.user_attrs.get(SCORES_KEY)
    if not isinstance(encoded, Mapping) or not encoded:
        return None
    try:
        return {str(name): float(value) for name, value in encoded.items()}
    except (TypeError, ValueError):
        return None


def architecture_names(trial: FrozenTrial) -> list[str]:
    """Return the names of a trial's architecture parameters: those suggested before its scores were recorded, or
    all.
    """
    names = trial.user_attrs.get(ARCHITECTURE_KEY)
    if not isinstance(names, list):
        return list(trial.params)
    return [name for name in names if name in trial.params]


def values_are_scores(directions: Sequence[StudyDirection]) -> bool:
    """Whether a study's objective values can be proxies: several, all maximised."""
    return len(directions) > 1 and all(direction == StudyDirection.MAXIMIZE for direction in directions)


def is_feasible(trial: FrozenTrial) -> bool:
    """Whether a trial satisfies all of its constraints (Optuna's convention: none above 0)."""
    if hasattr(trial, "constraints"):  # Optuna 5
        return all(value <= 0.0 for value in trial.constraints.values())
    values = trial.system_attrs.get("constraints")
    return values is None or all(value <= 0.0 for value in values)
