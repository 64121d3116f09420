"""AZNASPruner: stops poor architectures before their training costs anything; should_prune for multi-objective
studies.
"""

from __future__ import annotations

import threading
import weakref

from optuna.pruners import BasePruner, NopPruner
from optuna.study import Study
from optuna.trial import BaseTrial, FrozenTrial, Trial

from optuna_aznas._arguments import check_callable, check_count
from optuna_aznas.study.attributes import recorded_scores
from optuna_aznas.study.history import Aggregation, StudyHistory
from optuna_aznas.study.reader import whole_study


class AZNASPruner(BasePruner):
    """Prunes a trial whose architecture ranks low among all that the study has scored.

    Put a network's scores on the trial with :func:`~optuna_aznas.record`, then ask ``trial.should_prune()``; in a
    multi-objective study, where Optuna's own raises, ask :func:`~optuna_aznas.should_prune`. Once the training reports
    intermediate values, every decision is handed to ``then``.

    A trial survives if its aggregated rank S, taken over the finished scored trials and itself, lies within the best
    ``keep`` share. A trial without scores is not pruned. Under a sampler that improves, as
    :class:`~optuna_aznas.AZNASSampler` does, more than that share of the later trials survives.

    Args:
        keep: The share of architectures that survive, above 0 and at most 1.
        n_startup_trials: Scored trials before the first is pruned, at least 1.
        then: Decides once the trial has reported intermediate values. By default nothing more is pruned.
        aggregation: As in :class:`~optuna_aznas.AZNASSampler`.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        *,
        keep: float = 0.25,
        n_startup_trials: int = 20,
        then: BasePruner | None = None,
        aggregation: Aggregation | None = None,
    ) -> None:
        if isinstance(keep, bool) or not isinstance(keep, int | float) or not 0.0 < keep <= 1.0:
            raise ValueError(f"keep must be a share above 0 and at most 1; got {keep!r}.")
        check_count("n_startup_trials", n_startup_trials)
        if then is not None and not isinstance(then, BasePruner):
            raise ValueError(f"then must be an Optuna pruner; got {then!r}.")
        check_callable("aggregation", aggregation)
        self._keep = float(keep)
        self._n_startup_trials = n_startup_trials
        self._then = NopPruner() if then is None else then
        self._aggregation = aggregation
        self._histories: weakref.WeakKeyDictionary[Study, StudyHistory] = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        if trial.intermediate_values:
            return self._then.prune(study, trial)
        scores = recorded_scores(trial)
        if scores is None:
            return False
        study = whole_study(study)
        with self._lock:
            history = self._histories.setdefault(study, StudyHistory(self._aggregation))
            history.update(study, own=trial)
            return len(history) >= self._n_startup_trials and history.is_among_best(scores, self._keep) is False


def should_prune(trial: BaseTrial) -> bool:
    """Ask the study's pruner about a trial, in multi-objective studies too.

    Where Optuna's own :meth:`optuna.trial.Trial.should_prune` works, in single-objective studies, this is the same. In
    a multi-objective study, where that one raises, the study's :class:`AZNASPruner` decides by the recorded scores.

    Raises:
        ValueError: The study is multi-objective and its pruner is no :class:`AZNASPruner`, the only one that can decide
            there.
    """
    if not isinstance(trial, Trial) or len(trial.study.directions) == 1:
        return trial.should_prune()
    study = trial.study
    if not isinstance(study.pruner, AZNASPruner):
        raise ValueError(
            f"The pruner of this multi-objective study is a {type(study.pruner).__name__}, which cannot decide there. "
            "Create or load the study with pruner=AZNASPruner(...)."
        )
    return study.pruner.prune(study, study.get_trials(deepcopy=False)[trial.number])
