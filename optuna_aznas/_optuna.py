"""Private names of Optuna that this package uses, one small function each. No other file uses any."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import PartialFixedSampler
from optuna.samplers._base import _process_constraints_after_trial
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import BaseTrial, FrozenTrial, Trial, TrialState

#: What storages raise where a finished trial is changed: in early versions of Optuna 4 a plain RuntimeError.
UpdateFinishedTrialError: type[RuntimeError] = getattr(optuna.exceptions, "UpdateFinishedTrialError", RuntimeError)

if TYPE_CHECKING:
    from optuna.storages import GrpcStorageProxy as GrpcStorageProxy
else:  # early versions of Optuna 4 have none
    GrpcStorageProxy = getattr(optuna.storages, "GrpcStorageProxy", object)

_FIXED_PARAMS_KEY = "fixed_params"  # system attribute of a trial that enqueue_trial has queued
_CONSTRAINTS_KEY = "constraints"  # system attribute of a trial, up to Optuna 4
_RETRIES_KEY = "retry_history"  # system attribute of a trial: the numbers of the dead trials that it repeats


def whole_study(study: Study) -> Study:
    """Return the study with all of its trials: Hyperband hands samplers and pruners a view of one bracket."""
    return getattr(study, "_study", study)


def storage(study: Study) -> BaseStorage:
    """Return the storage that holds a study."""
    return study._storage


def study_id(study: Study) -> int:
    """Return a study's id in its storage."""
    return study._study_id


def trial_id(trial: FrozenTrial) -> int:
    """Return a trial's id in its storage."""
    return trial._trial_id


def trial_ids_from(study: Study, first: int, limit: int) -> list[int]:
    """Return the ids of the trials with the numbers ``first``, ``first + 1`` and so on, at most ``limit`` of them.

    A storage that can count its trials is asked for their number. Dask's can, and it must not be asked for a trial that
    does not exist: its scheduler logs a traceback each time. Optuna's own would read all trials to count them.
    """
    storage = study._storage
    if type(storage).get_n_trials is not BaseStorage.get_n_trials:
        limit = min(limit, storage.get_n_trials(study._study_id) - first)
    ids = []
    try:
        for number in range(first, first + limit):
            ids.append(storage.get_trial_id_from_study_id_trial_number(study._study_id, number))
    except KeyError:  # no trial has this number yet
        pass
    return ids


def get_trial(study: Study, trial_id: int) -> FrozenTrial:
    """Read one trial by its id."""
    return study._storage.get_trial(trial_id)


def get_study_system_attr(study: Study, key: str, default: Any = None) -> Any:
    """Read a system attribute of a study."""
    return study._storage.get_study_system_attrs(study._study_id).get(key, default)


def set_study_system_attr(study: Study, key: str, value: Any) -> None:
    """Write a system attribute of a study; ``value`` is plain JSON."""
    study._storage.set_study_system_attr(study._study_id, key, value)


def set_trial_system_attr(study: Study, trial: FrozenTrial, key: str, value: Any) -> None:
    """Write a system attribute of an unfinished trial; ``value`` is plain JSON."""
    study._storage.set_trial_system_attr(trial._trial_id, key, value)


def set_trial_user_attr(study: Study, trial: FrozenTrial, key: str, value: Any) -> None:
    """Write a user attribute of an unfinished trial; ``value`` is plain JSON."""
    study._storage.set_trial_user_attr(trial._trial_id, key, value)


def redis_client(backend: Any) -> Any:
    """Return the client of a ``JournalRedisBackend``."""
    return backend._redis


def queued_params(trial: FrozenTrial) -> dict[str, Any]:
    """Return the parameters that ``enqueue_trial`` has given a trial; none where they cannot be read."""
    queued = trial.system_attrs.get(_FIXED_PARAMS_KEY)
    return dict(queued) if isinstance(queued, Mapping) else {}


def fixed_params(study: Study, trial: FrozenTrial) -> dict[str, Any]:
    """Return the parameters that ``enqueue_trial`` or a ``PartialFixedSampler`` has fixed for a trial."""
    sampler = study.sampler
    partly_fixed = sampler._fixed_params if isinstance(sampler, PartialFixedSampler) else {}
    return {**partly_fixed, **queued_params(trial)}


def constraint_values(trial: FrozenTrial) -> list[float] | None:
    """Return a trial's constraint values, at most 0 where it is feasible; empty where it has no constraints, and
    ``None`` where they cannot be read as numbers.
    """
    try:
        if hasattr(trial, "constraints"):  # Optuna 5
            return [float(value) for value in trial.constraints.values()]
        return [float(value) for value in trial.system_attrs.get(_CONSTRAINTS_KEY) or ()]
    except (TypeError, ValueError, OverflowError):
        return None


def retried_numbers(trial: FrozenTrial) -> list[int]:
    """Return the numbers of the dead trials that a trial repeats, as ``RetryFailedTrialCallback`` stores them."""
    numbers = trial.system_attrs.get(_RETRIES_KEY)
    return [number for number in numbers if isinstance(number, int)] if isinstance(numbers, list) else []


def has_reported(trial: BaseTrial) -> bool:
    """Whether a running trial has reported intermediate values."""
    return isinstance(trial, Trial) and bool(trial._cached_frozen_trial.intermediate_values)


def store_constraints(
    constraints_func: Callable[[FrozenTrial], Sequence[float]], study: Study, trial: FrozenTrial, state: TrialState
) -> None:
    """Call ``constraints_func`` on a trial that is about to finish, and store its values as Optuna's samplers do."""
    _process_constraints_after_trial(constraints_func, study, trial, state)


def contains(distribution: BaseDistribution, value: Any) -> bool:
    """Whether a value is one that a distribution can have."""
    try:
        return distribution._contains(distribution.to_internal_repr(value))
    except (TypeError, ValueError):
        return False
