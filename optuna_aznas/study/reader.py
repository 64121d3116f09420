"""TrialReader: reads from a study what is new in it."""

from __future__ import annotations

from optuna.study import Study
from optuna.trial import FrozenTrial

from optuna_aznas import _optuna

_FEW = 32  # up to this many trials are read from the storage one by one; more are read together
_SMALL = 1000  # in a study of up to this many trials two are read together: a database reads one in seven statements


class TrialReader:
    """Reads each trial of one study until it has finished, and then no more: a finished trial never changes.

    ``Study.get_trials`` builds a list of all trials, which some storages sort each time, so its cost grows with the
    study. In a large study, new trials are therefore read from the storage one by one after the first reading.
    """

    def __init__(self) -> None:
        self._next = 0  # all trials with smaller numbers have been read
        self._unfinished: dict[int, int] = {}  # those of them that wait or run: number -> id in the storage

    def read(self, study: Study, own: FrozenTrial | None = None) -> tuple[list[FrozenTrial], list[FrozenTrial]]:
        """Return the trials that finished since the last reading, and all that wait or run.

        Args:
            study: The study, the same each time.
            own: The caller's own running trial, which is then not read from the storage.
        """
        n_others = len(self._unfinished) - (own is not None and own.number in self._unfinished)
        one_by_one = self._next > 0 and n_others <= (_FEW if self._next > _SMALL else 1)
        trials = self._one_by_one(study, own) if one_by_one else None
        if trials is None:
            all_trials = study.get_trials(deepcopy=False)
            trials = [all_trials[number] for number in self._unfinished] + all_trials[self._next :]
        self._next = max([self._next, *(trial.number + 1 for trial in trials)])
        unfinished = [trial for trial in trials if not trial.state.is_finished()]
        self._unfinished = {trial.number: _optuna.trial_id(trial) for trial in unfinished}
        return [trial for trial in trials if trial.state.is_finished()], unfinished

    def has_returned(self, trial: FrozenTrial) -> bool:
        """Whether :meth:`read` has returned this trial as finished."""
        return trial.number < self._next and trial.number not in self._unfinished

    def _one_by_one(self, study: Study, own: FrozenTrial | None) -> list[FrozenTrial] | None:
        """Return the trials that were unfinished and those that are new; ``None`` if more than ``_FEW`` are new."""
        ids = list(self._unfinished.values())
        try:
            for number in range(self._next, self._next + _FEW):
                ids.append(_optuna.trial_id_of_number(study, number))
        except KeyError:  # no trial has this number yet
            return [own if own and _optuna.trial_id(own) == i else _optuna.get_trial(study, i) for i in ids]
        return None
