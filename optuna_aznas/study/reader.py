"""Reads from a study what is new in it."""

from __future__ import annotations

from optuna.study import Study
from optuna.trial import FrozenTrial

#: Up to so many trials are asked of the storage one by one; more are read together.
_FEW = 32


def whole_study(study: Study) -> Study:
    """Return the study itself where a pruner put a part of it in its place: Hyperband shows samplers one bracket."""
    return getattr(study, "_study", study)


class TrialReader:
    """Reads each trial of one study until it is finished, and then no more: a finished trial never changes.

    ``Study.get_trials`` makes a list of all trials, and some storages sort it each time: its cost grows with the study.
    So once the study was read, what is new is asked of the storage trial by trial.
    """

    def __init__(self) -> None:
        self._next = 0  # all trials with smaller numbers have been read
        self._unfinished: dict[int, int] = {}  # of these, the ones that wait or run: number -> id in the storage

    def read(self, study: Study, own: FrozenTrial | None = None) -> tuple[list[FrozenTrial], list[FrozenTrial]]:
        """Return the trials that finished since the last reading, and all that wait or run.

        Args:
            study: The study, the same each time.
            own: The caller's own running trial as it knows it; it is taken so, not read.
        """
        trials = self._one_by_one(study, own) if self._next and len(self._unfinished) <= _FEW else None
        if trials is None:
            everything = study.get_trials(deepcopy=False)
            trials = [everything[number] for number in self._unfinished] + everything[self._next :]
        self._next = max([self._next, *(trial.number + 1 for trial in trials)])
        unfinished = [trial for trial in trials if not trial.state.is_finished()]
        self._unfinished = {trial.number: trial._trial_id for trial in unfinished}
        return [trial for trial in trials if trial.state.is_finished()], unfinished

    def _one_by_one(self, study: Study, own: FrozenTrial | None) -> list[FrozenTrial] | None:
        """Return what was unfinished and what is new; ``None`` if that is too much."""
        storage, trial_ids = study._storage, list(self._unfinished.values())
        try:
            for number in range(self._next, self._next + _FEW):
                trial_ids.append(storage.get_trial_id_from_study_id_trial_number(study._study_id, number))
        except KeyError:  # the number of no trial yet
            return [own if own and own._trial_id == i else storage.get_trial(i) for i in trial_ids]
        return None
