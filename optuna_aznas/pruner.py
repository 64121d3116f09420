"""AZNASPruner: prunes trials of poor architectures before they are trained; should_prune: the same for studies with
several objectives.
"""

from __future__ import annotations

import threading

from optuna.pruners import BasePruner, NopPruner
from optuna.study import Study
from optuna.trial import BaseTrial, FrozenTrial, Trial

from optuna_aznas._arguments import check_callable, check_count
from optuna_aznas._optuna import whole_study
from optuna_aznas.study.attributes import recorded_scores
from optuna_aznas.study.history import Aggregation, StudyHistory
from optuna_aznas.study.per_study import PerStudy


class AZNASPruner(BasePruner):
    """Prunes a trial whose architecture ranks low among all that the study has scored.

    Store a network's proxy scores with :func:`~optuna_aznas.record`, then ask ``trial.should_prune()``; in a
    multi-objective study, where Optuna's method raises, ask :func:`~optuna_aznas.should_prune`. Once the trial has
    reported intermediate values, every decision is left to ``training_pruner``.

    A trial survives if its rank score S, among the finished scored trials and itself, lies within the best
    ``keep_fraction``: if at most this fraction of them, itself included, has an S at least as high. A trial without
    proxy scores is not pruned. Under a sampler that improves, as :class:`~optuna_aznas.AZNASSampler` does, more than
    this fraction of the later trials survives.

    Each decision ranks all scored trials: about 0.3 ms for 1,000 of them, 5 ms for 10,000.

    Args:
        keep_fraction: Fraction of architectures that survive, above 0 and at most 1.
        n_startup_trials: Number of scored trials before the first is pruned, at least 1.
        training_pruner: Decides once the trial has reported intermediate values. By default nothing more is pruned.
        aggregation: As in :class:`~optuna_aznas.AZNASSampler`.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        *,
        keep_fraction: float = 0.25,
        n_startup_trials: int = 20,
        training_pruner: BasePruner | None = None,
        aggregation: Aggregation | None = None,
    ) -> None:
        if isinstance(keep_fraction, bool) or not isinstance(keep_fraction, int | float) or not 0 < keep_fraction <= 1:
            raise ValueError(f"keep_fraction must be above 0 and at most 1; got {keep_fraction!r}.")
        check_count("n_startup_trials", n_startup_trials)
        if training_pruner is not None and not isinstance(training_pruner, BasePruner):
            raise ValueError(f"training_pruner must be an Optuna pruner; got {training_pruner!r}.")
        check_callable("aggregation", aggregation)
        self._keep_fraction = float(keep_fraction)
        self._n_startup_trials = n_startup_trials
        self._training_pruner = NopPruner() if training_pruner is None else training_pruner
        self._aggregation = aggregation
        self._histories: PerStudy[StudyHistory] = PerStudy()
        self._lock = threading.Lock()

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        if trial.intermediate_values:
            return self._training_pruner.prune(study, trial)
        proxy_scores = recorded_scores(trial)
        if proxy_scores is None:
            return False
        study = whole_study(study)
        with self._lock:
            history = self._histories.get(study, lambda _: StudyHistory(self._aggregation))
            history.update(study, own=trial)
            if len(history) < self._n_startup_trials or not history.measures(trial):
                return False
            return history.is_among_best(proxy_scores, self._keep_fraction) is False


def should_prune(trial: BaseTrial) -> bool:
    """Ask the study's pruner about a trial, in multi-objective studies too.

    In a single-objective study this is :meth:`optuna.trial.Trial.should_prune`. In a multi-objective study, where that
    method raises, the study's :class:`AZNASPruner` decides by the recorded proxy scores.

    Raises:
        ValueError: The study is multi-objective and its pruner is not an :class:`AZNASPruner`.
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
