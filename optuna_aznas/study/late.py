"""Late attributes: user attributes of trials that had finished before they were scored.

A storage refuses to change a trial that has finished. Such attributes are therefore user attributes of the study, one
for each trial, and whoever reads the study's trials sees them as the trials' own. Each is written at once, by a name
that only depends on the trial, so that several writers at a time do no harm.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from optuna_aznas.study.attributes import SCORES_KEY

#: User attribute of a study, followed by a trial's number: the user attributes that the trial would have.
LATE_PREFIX = "aznas:trial:"

_GROWTH = 1.1  # attributes that other processes may have written are looked for when the study has grown by this factor

_n_stored = 0  # attributes that this process has stored, in whatever study


def store_late(study: Study, number: int, attributes: dict[str, Any]) -> None:
    """Store user attributes of a finished trial; plain JSON."""
    global _n_stored
    study.set_user_attr(f"{LATE_PREFIX}{number}", attributes)
    _n_stored += 1


def lacks_scores(trial: FrozenTrial) -> bool:
    """Whether a trial has completed or was pruned, and has no proxy scores."""
    return trial.state in (TrialState.COMPLETE, TrialState.PRUNED) and SCORES_KEY not in trial.user_attrs


class LateAttributes:
    """Reads the late attributes of one study, when it may have new ones."""

    def __init__(self) -> None:
        self._by_number: dict[int, Mapping[str, Any]] = {}
        self._lacking: set[int] = set()  # numbers of trials that were seen without proxy scores
        self._n_seen = 0  # finished trials
        self._n_seen_last = 0  # the same at the last look
        self._n_stored = 0  # as _n_stored at the last look

    def add_to(self, trial: FrozenTrial) -> FrozenTrial:
        """Return a finished trial with its late attributes."""
        late = self._by_number.get(trial.number)
        if late is None or not lacks_scores(trial):
            return trial
        trial = copy.copy(trial)
        trial.user_attrs = {**trial.user_attrs, **late}
        return trial

    def update(self, study: Study, finished: list[FrozenTrial]) -> tuple[list[FrozenTrial], list[FrozenTrial]]:
        """Return finished trials with their late attributes, and trials of earlier calls that have got some since.

        Args:
            study: The study, the same each time.
            finished: Trials that have finished since the last call.
        """
        self._n_seen += len(finished)
        self._lacking.update(trial.number for trial in finished if lacks_scores(trial))
        if not self._lacking or (self._n_seen < _GROWTH * self._n_seen_last and self._n_stored == _n_stored):
            return finished, []
        self._n_seen_last, self._n_stored = self._n_seen, _n_stored
        self._by_number = _read(study)
        now, before = self._lacking & self._by_number.keys(), {trial.number for trial in finished}
        self._lacking -= now
        earlier = study.get_trials(deepcopy=False) if now - before else []
        return [self.add_to(t) for t in finished], [self.add_to(t) for t in earlier if t.number in now - before]


def _read(study: Study) -> dict[int, Mapping[str, Any]]:
    found = {}
    for key, value in study.user_attrs.items():
        number = key.removeprefix(LATE_PREFIX)
        if number != key and number.isdecimal() and isinstance(value, Mapping):
            found[int(number)] = value
    return found
