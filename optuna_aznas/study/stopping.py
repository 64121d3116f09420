"""stop_when_flat: ends a search without training when its best network has stayed the best for long."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from optuna_aznas._arguments import check_count
from optuna_aznas.study.history import StudyHistory
from optuna_aznas.study.per_study import PerStudy


def stop_when_flat(n_trials: int = 100) -> Callable[[Study, FrozenTrial], None]:
    """Return a callback for ``study.optimize`` that ends a search when no newer trial has become the best.

    The best trial is the one with the highest rank score S among those that are completed and feasible, as on the
    leaderboard. The search ends once ``n_trials`` trials with greater numbers have been scored. Everything is read from
    the study, so each of several workers stops on its own, and a worker that joins such a study stops after its first
    trial.

    S is a rank by proxy scores. Where trials are trained, the trained value is what should stop rising: use Optuna's
    ``TerminatorCallback``. Both may be given; the search ends with the first that ends it.

    Args:
        n_trials: Number of scored trials after the best one, at least 1.

    Raises:
        ValueError: ``n_trials`` is not an integer of at least 1.

    Example:
        >>> import optuna_aznas as az
        >>> study = az.create_study(proxies=["a", "b"], seed=0)
        >>> def objective(trial):
        ...     x = trial.suggest_int("x", 0, 9)
        ...     return x, x
        >>> study.optimize(objective, n_trials=1000, callbacks=[stop_when_flat(n_trials=40)])
        >>> len(study.trials) < 60
        True
    """
    check_count("n_trials", n_trials)
    return _StopWhenFlat(n_trials)


class _StopWhenFlat:
    """The callback. It is a class so that it can be pickled."""

    def __init__(self, n_trials: int) -> None:
        self._n_trials = n_trials
        self._states: PerStudy[_State] = PerStudy()

    def __call__(self, study: Study, trial: FrozenTrial) -> None:
        state = self._states.get(study, lambda _: _State())
        state.history.update(study)
        n_scored = len(state.history)
        if n_scored < state.next_look:
            return
        numbers = np.array([scored.number for scored in state.history.trials])
        s = np.where(_may_be_best(state.history), state.history.rank_scores(), -np.inf)
        best = numbers[np.lexsort((numbers, -s))[0]]
        n_after = int(np.count_nonzero(numbers > best))
        if n_after >= self._n_trials:
            study.stop()
        state.next_look = n_scored + max(1, self._n_trials - n_after)


class _State:
    """What is kept of one study: its history, and the number of scored trials from which it may be flat."""

    def __init__(self) -> None:
        self.history = StudyHistory()
        self.next_look = 1


def _may_be_best(history: StudyHistory) -> npt.NDArray[np.bool_]:
    """Return which trials the leaderboard may show; all, while it shows none."""
    states = [trial.state == TrialState.COMPLETE for trial in history.trials]
    shown = np.array(states) & np.array(history.feasible)
    return shown if shown.any() else np.ones(len(history), dtype=bool)
