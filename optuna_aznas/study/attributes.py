"""What a trial stores: record writes proxy scores into its user attributes, and the others read them back."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.study import StudyDirection
from optuna.trial import BaseTrial, FrozenTrial

from optuna_aznas._optuna import UpdateFinishedTrialError, constraint_values, has_reported
from optuna_aznas.study.scoring import scoring_attributes, store_scoring
from optuna_aznas.study.values import describe

#: User attribute: proxy name -> proxy score. Plain JSON: a score that is not finite is a string such as ``"-inf"``.
SCORES_KEY = "aznas:scores"

#: User attribute: names of the architecture's parameters. By default those that had been suggested when proxy scores
#: were first recorded.
ARCHITECTURE_KEY = "aznas:architecture"

#: User attribute of a study: the most multiply-accumulates that its networks may take.
BUDGET_KEY = "aznas:budget"


def record(
    trial: BaseTrial, proxy_scores: Mapping[str, float] | Any, *, architecture: Sequence[str] | None = None
) -> None:
    """Store a network's proxy scores on a trial, and how they were made: the evaluator's settings, and how blocks were
    found. Trials that were scored with other settings than the study's first are left out of its ranking, with a
    warning. Where the evaluator found features of the network's graph, they are stored, too.

    The proxy scores are in the storage when this returns. The parameters suggested before are the architecture; those
    suggested afterwards are hyperparameters. Where hyperparameters have to be suggested first, ``architecture`` names
    the architecture's parameters. A second call replaces the proxy scores, with a warning if they differ, and leaves
    the architecture's parameters as they are, unless it names them.

    Call it before the first ``trial.report``, so that a pruner can decide before the training: later calls warn.

    Args:
        trial: The running trial.
        proxy_scores: A :class:`~optuna_aznas.ProxyScores`, or any mapping from proxy name to float. Bigger is better.
            NaN counts as ``-inf``.
        architecture: Names of the architecture's parameters, all of them suggested before; by default all that were.

    Raises:
        TypeError: ``proxy_scores`` is neither.
        ValueError: ``proxy_scores`` is empty, a name is not a non-empty string, or a value is not a number;
            ``architecture`` is no list of parameters of the trial; or the trial has finished without proxy scores, so
            that it can no longer store any.
    """
    encoded = _encoded(proxy_scores)
    names = None if architecture is None else _checked_names(architecture, list(trial.params))
    before = trial.user_attrs.get(SCORES_KEY)
    # A finished trial that has proxy scores is evaluated again, as in objective(study.best_trial): nothing is lost.
    if before is None and isinstance(trial, FrozenTrial) and trial.state.is_finished():
        raise ValueError(_finished_message(trial))
    if before is not None and before != encoded:
        warnings.warn(
            f"Trial {trial.number} has recorded other proxy scores before; the last ones count. Call "
            "optuna_aznas.record once for each trial.",
            stacklevel=2,
        )
    if before is None and has_reported(trial):
        warnings.warn(
            f"Trial {trial.number} has reported intermediate values before it recorded proxy scores, too late for a "
            "pruner that looks at them; call optuna_aznas.record first.",
            stacklevel=2,
        )
    try:
        if names is not None or ARCHITECTURE_KEY not in trial.user_attrs:
            trial.set_user_attr(ARCHITECTURE_KEY, list(trial.params) if names is None else names)
        store_scoring(trial, proxy_scores)
        trial.set_user_attr(SCORES_KEY, encoded)
    except UpdateFinishedTrialError as error:
        raise ValueError(_finished_message(trial)) from error


def as_attributes(proxy_scores: Any, architecture: Sequence[str]) -> dict[str, Any]:
    """Return the user attributes that :func:`record` stores, in the order in which it does."""
    return {
        ARCHITECTURE_KEY: list(architecture),
        **scoring_attributes(proxy_scores),
        SCORES_KEY: _encoded(proxy_scores),
    }


def _encoded(proxy_scores: Any) -> dict[str, float | str]:
    return {
        name: number if math.isfinite(number) else "inf" if number > 0 else "-inf"
        for name, number in as_numbers(proxy_scores).items()
    }


def _checked_names(names: Sequence[str], suggested: list[str]) -> list[str]:
    """Return the names of an architecture's parameters, or raise ``ValueError``."""
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"architecture must be a list of parameter names; got {names!r}.")
    unknown = [name for name in names if name not in suggested]
    if unknown:
        raise ValueError(
            f"architecture names {unknown}, but the trial has suggested {suggested}. Suggest the architecture's "
            "parameters before record."
        )
    return list(names)


def _finished_message(trial: BaseTrial) -> str:
    return (
        f"Trial {trial.number} has finished, and a finished trial cannot store proxy scores. "
        "optuna_aznas.backfill(study, build, evaluator) scores the finished trials of a study that have none. For new "
        "trials call optuna_aznas.record in the objective, while the trial runs."
    )


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
        except (TypeError, ValueError, OverflowError):
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
    except (TypeError, ValueError, OverflowError):
        return None


def recorded_names(trial: FrozenTrial) -> list[str] | None:
    """Return the names of a trial's architecture parameters as :func:`record` stored them; ``None`` if there are none,
    or they cannot be read as names.
    """
    names = trial.user_attrs.get(ARCHITECTURE_KEY)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    return names


def recorded_architecture(trial: FrozenTrial) -> list[str] | None:
    """Return those of a trial's :func:`recorded_names` that it has parameters of; ``None`` if there are no names."""
    names = recorded_names(trial)
    return None if names is None else [name for name in names if name in trial.params]


def architecture_names(trial: FrozenTrial) -> list[str]:
    """Return the names of a trial's architecture parameters: those suggested before its proxy scores were recorded, or
    named then; all of its parameters, if none were recorded.
    """
    names = recorded_architecture(trial)
    return list(trial.params) if names is None else names


def architecture_params(trial: FrozenTrial) -> dict[str, Any]:
    """Return a trial's architecture parameters with their values."""
    return {name: trial.params[name] for name in architecture_names(trial)}


def architecture_key(trial: FrozenTrial) -> frozenset[tuple[str, str]]:
    """Return what two trials have in common if their architectures are equal; empty where none is known."""
    return frozenset(describe(architecture_params(trial), trial.distributions).items())


def values_are_scores(directions: Sequence[StudyDirection]) -> bool:
    """Whether a study's objective values can be proxy scores: two or more objectives, all maximised."""
    return len(directions) > 1 and all(direction == StudyDirection.MAXIMIZE for direction in directions)


def is_feasible(trial: FrozenTrial) -> bool:
    """Whether a trial satisfies its constraints: none of their values is above 0, as Optuna defines it.

    Constraints that are no numbers are not satisfied.
    """
    values = constraint_values(trial)
    return values is not None and all(value <= 0.0 for value in values)


def unreadable(trial: FrozenTrial) -> str:
    """Return what of a trial's attributes cannot be read, as the end of a sentence; empty if all can."""
    if SCORES_KEY in trial.user_attrs and recorded_scores(trial) is None:
        return (
            f"{_short(trial.user_attrs[SCORES_KEY])} as its user attribute {SCORES_KEY!r}, which is no mapping from "
            "proxy names to numbers"
        )
    if ARCHITECTURE_KEY in trial.user_attrs and recorded_architecture(trial) is None:
        return (
            f"{_short(trial.user_attrs[ARCHITECTURE_KEY])} as its user attribute {ARCHITECTURE_KEY!r}, which is no "
            "list of parameter names"
        )
    return "constraints that are no numbers" if constraint_values(trial) is None else ""


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."
