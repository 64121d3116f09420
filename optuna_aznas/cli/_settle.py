"""Agrees on the settings of a search among workers that start at once."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.exceptions import DuplicatedStudyError
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import TrialState

import optuna_aznas as az
from optuna_aznas.study.attributes import BUDGET_KEY

#: User attribute of the study: how its networks are scored. Scores are compared, so this is the same throughout.
SETTINGS_KEY = "aznas:search"

_WAIT = 5.0  # seconds in which the worker that created a study writes its settings, or else has died
_SETTLE = 1.0  # seconds after which settings that several workers wrote at once are the last one's
_POLL = 0.1  # seconds between two looks

_WRITER = "writer"  # key among the settings: which worker wrote them


def stored_settings(storage: BaseStorage, name: str) -> dict[str, Any] | None:
    """Return how the networks of a study are scored.

    Returns:
        The settings; empty where the study has trials but was not made by this command; ``None`` where there is no such
        study, or it has neither settings nor trials that were started.
    """
    if name not in optuna.get_all_study_names(storage):
        return None
    study = optuna.load_study(study_name=name, storage=storage)
    return _settings_of(study) or ({} if _is_started(study) else None)


def settle(
    storage: BaseStorage, name: str, settings: Mapping[str, Any], first: Mapping[str, Any] | None
) -> tuple[dict[str, Any], bool]:
    """Create the study with these settings, or find out those of the worker that has created it.

    A storage creates a study of one name once, so of the workers that start at once exactly one is its creator. It
    enqueues the first network, then writes the settings; the others wait for them. If it dies in between, or the study
    was created otherwise, whoever waits writes the settings, and all take those that were written last.

    Args:
        storage: The storage.
        name: Name of the study.
        settings: How this worker would score networks; JSON, with tuples for lists.
        first: Parameters of the network to score first.

    Returns:
        The settings in the study, and whether this worker created it.

    Raises:
        ValueError: The study exists with other objectives.
    """
    own = {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()}
    own[_WRITER] = uuid.uuid4().hex
    try:
        study = az.create_study(study_name=name, storage=storage, proxies=settings["proxies"])
    except DuplicatedStudyError:
        study = optuna.load_study(study_name=name, storage=storage)
    else:
        _enqueue(study, first)
        _write(study, own)
        return own, True
    stored = _wait_for_settings(study)
    if stored:
        return stored, False
    study = az.create_study(study_name=name, storage=storage, proxies=settings["proxies"], load_if_exists=True)
    _write(study, own)
    time.sleep(_SETTLE)
    stored = _settings_of(study)
    if stored.get(_WRITER) == own[_WRITER] and not study.get_trials(deepcopy=False):
        _enqueue(study, first)
    return stored, False


def _wait_for_settings(study: Study) -> dict[str, Any]:
    end = time.monotonic() + _WAIT
    while not (stored := _settings_of(study)) and not _is_started(study) and time.monotonic() < end:
        time.sleep(_POLL)
    return stored


def _settings_of(study: Study) -> dict[str, Any]:
    stored = study.user_attrs.get(SETTINGS_KEY, {})
    return stored if isinstance(stored, dict) else {}


def _is_started(study: Study) -> bool:
    return any(trial.state != TrialState.WAITING for trial in study.get_trials(deepcopy=False))


def _enqueue(study: Study, first: Mapping[str, Any] | None) -> None:
    if first is not None:
        study.enqueue_trial(dict(first))


def _write(study: Study, settings: dict[str, Any]) -> None:
    if settings["budget"] is not None:
        study.set_user_attr(BUDGET_KEY, settings["budget"])
    study.set_user_attr(SETTINGS_KEY, settings)  # last: the others wait for it
