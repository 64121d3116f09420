"""AZNASPruner: prunes trials of poor architectures before they are trained; should_prune: the same for studies with
several objectives.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
from optuna.pruners import BasePruner, NopPruner
from optuna.study import Study
from optuna.trial import BaseTrial, FrozenTrial

from optuna_aznas._arguments import check_callable, check_count
from optuna_aznas._optuna import retried_numbers, set_trial_system_attr, whole_study
from optuna_aznas.study.attributes import architecture_key, recorded_scores
from optuna_aznas.study.history import Aggregation, StudyHistory
from optuna_aznas.study.per_study import PerStudy

#: System attribute of a trial: what AZNASPruner decided about it, ``{"pruned": bool, "keep_fraction": float or None}``.
#: The fraction is the one in force, ``None`` where the trial could not be ranked.
DECISION_KEY = "aznas:pruner"

_WINDOW = 40  # number of scored trials, the last that finished, that a trial is compared with
_GAIN = 0.25  # by how much the fraction that is kept rises for each training that is owed
_ROUNDING = 1e-9  # sums of fractions in another order differ by less


class AZNASPruner(BasePruner):
    """Prunes a trial before it is trained if its architecture ranks low among those that the study scored last.

    Store a network's proxy scores with :func:`~optuna_aznas.record`, then ask ``trial.should_prune()``; in a
    multi-objective study, where Optuna's method raises, ask :func:`~optuna_aznas.should_prune`. The first such question
    about a trial is decided by its proxy scores. All later ones, and all about trials without proxy scores, are left to
    ``training_pruner``; only a trial that was pruned remains pruned until it reports an intermediate value.

    A trial is kept if its rank score S is within the best fraction q of the 40 scored trials that finished last and
    itself, ties counting half. The fraction q is ``keep_fraction``, raised or lowered by 0.25 for each training that
    the trials before are behind or ahead. So ``keep_fraction`` of the trials is trained under any sampler: one that
    improves, one that proposes the best architectures first, one that is random. This is the rule of adaptive conformal
    inference (Gibbs and Candès, NeurIPS 2021). An architecture that was kept before, and is proposed again with other
    hyperparameters, is kept again without being ranked. Of n trials that were ranked, whatever their order, the number
    kept is

    - at least ``keep_fraction * n - 4 * (1 - keep_fraction) - keep_fraction * w`` and
    - at most ``keep_fraction * n + 4 * keep_fraction + (1 - keep_fraction) * w``,

    where w is the number of workers that decide at the same moment: 1 in a single process. For a fraction of 0.25 and
    one worker that is between n / 4 - 3.25 and n / 4 + 1.75.

    There is no state outside the study: each decision is stored as an attribute of its trial. A retry of a dead trial
    inherits it.

    Each decision ranks all scored trials: about 0.3 ms for 1,000 of them, 5 ms for 10,000.

    Args:
        keep_fraction: Fraction of the trials that is trained, above 0 and at most 1.
        n_startup_trials: Number of scored trials before the first is pruned, at least 1.
        training_pruner: Decides once the trial is being trained. By default nothing more is pruned.
        aggregation: As in :class:`~optuna_aznas.AZNASSampler`.

    Raises:
        ValueError: An argument is out of range.

    Example:
        >>> import optuna
        >>> import optuna_aznas as az
        >>> def objective(trial):
        ...     x = trial.suggest_int("x", 0, 999)
        ...     az.record(trial, {"size": x})
        ...     if trial.should_prune():
        ...         raise optuna.TrialPruned
        ...     return x
        >>> study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0), pruner=AZNASPruner())
        >>> study.optimize(objective, n_trials=100)
        >>> len(study.get_trials(states=[optuna.trial.TrialState.COMPLETE]))
        30
    """

    def __init__(
        self,
        *,
        keep_fraction: float = 0.25,
        n_startup_trials: int = 5,
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
        self._sessions: PerStudy[_Session] = PerStudy()
        self._lock = threading.Lock()

    def prune(self, study: Study, trial: FrozenTrial, **options: Any) -> bool:
        """Decide whether a trial is pruned; ``options`` are passed on to ``training_pruner``."""
        decision = _decision(trial)
        if not trial.intermediate_values:
            if decision is None and recorded_scores(trial) is not None:
                return self._decide(whole_study(study), trial)
            if decision is not None and decision["pruned"]:
                return True
        return self._training_pruner.prune(study, trial, **options)

    def _decide(self, study: Study, trial: FrozenTrial) -> bool:
        """Decide about a trial by its proxy scores, and store the decision."""
        with self._lock:
            session = self._sessions.get(study, lambda _: _Session(self._aggregation))
            owed = session.update(study, trial)
            is_ranked = len(session.history) >= self._n_startup_trials and not session.was_kept(trial)
            share = session.share_above(trial) if is_ranked else None
            pruned = share is not None and share > self._keep_fraction + _GAIN * owed + _ROUNDING
            fraction = None if share is None else self._keep_fraction
            set_trial_system_attr(study, trial, DECISION_KEY, {"pruned": pruned, "keep_fraction": fraction})
            return pruned

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()


class _Session:
    """What the pruner has read of one study: a cache.

    Args:
        aggregation: As in :class:`~optuna_aznas.AZNASSampler`.

    Attributes:
        history: The scored trials.
    """

    def __init__(self, aggregation: Aggregation | None) -> None:
        self.history = StudyHistory(aggregation)
        self._owed = 0.0  # by the trials that have finished
        self._kept: set[frozenset[tuple[str, str]]] = set()  # architectures of those that were kept

    def update(self, study: Study, own: FrozenTrial) -> float:
        """Read what is new, on behalf of the trial ``own``; return the number of trainings that are owed.

        That is the number that should have been kept, less the number that was; negative if more were kept.
        """
        finished, unfinished = self.history.update(study, own)
        self._owed += sum(map(_owed_for, finished))
        for trial in finished:
            decision = _decision(trial)
            if decision is not None and not decision["pruned"]:
                self._kept.add(architecture_key(trial))
        return self._owed + sum(map(_owed_for, unfinished))

    def was_kept(self, trial: FrozenTrial) -> bool:
        """Whether a finished trial with the same architecture was kept."""
        architecture = architecture_key(trial)
        return bool(architecture) and architecture in self._kept

    def share_above(self, trial: FrozenTrial) -> float | None:
        """Return the share of the last scored trials and ``trial`` whose S is higher than that of ``trial``; those that
        are equal to it, itself included, count half. ``None`` if its proxy scores are not of this study's proxies, or
        were computed with other settings than the study's.
        """
        proxy_scores, names = recorded_scores(trial), self.history.names
        if proxy_scores is None or set(proxy_scores) != set(names) or not self.history.measures(trial):
            return None
        table = np.vstack([self.history.proxy_scores, [proxy_scores[name] for name in names]])
        s = self.history.aggregate(table)[-_WINDOW - 1 :]
        return float(np.mean(s > s[-1]) + np.mean(s == s[-1]) / 2)


def should_prune(trial: BaseTrial, **options: Any) -> bool:
    """Ask the study's pruner about a trial, in multi-objective studies too.

    In a single-objective study this is :meth:`optuna.trial.Trial.should_prune`. In a multi-objective study, where that
    method raises, the study's :class:`AZNASPruner` decides: at first by the recorded proxy scores, later by its
    ``training_pruner``, which must then be one for several objectives, such as OptunaHub's ``MultiMetricPruner``.

    Args:
        trial: The trial, or an object that forwards to it, such as OptunaHub's ``MultiMetricPrunerTrial``.
        options: Passed on to the training pruner, such as ``metric_name="loss"`` to ``MultiMetricPruner``.

    Raises:
        ValueError: The study is multi-objective, or there are options, and its pruner is not an :class:`AZNASPruner`.
    """
    study = getattr(trial, "study", None)  # a FixedTrial has none
    if study is None or (len(study.directions) == 1 and not options):
        return trial.should_prune()
    if not isinstance(study.pruner, AZNASPruner):
        kind = "multi-objective study" if len(study.directions) > 1 else "study"
        raise ValueError(
            f"The pruner of this {kind} is a {type(study.pruner).__name__}, which cannot decide there. Create or load "
            "the study with pruner=AZNASPruner(...)."
        )
    return study.pruner.prune(study, study.get_trials(deepcopy=False)[trial.number], **options)


def _decision(trial: FrozenTrial) -> Mapping[str, Any] | None:
    """Return what was decided about a trial; ``None`` if nothing was, or it cannot be read."""
    decision = trial.system_attrs.get(DECISION_KEY)
    if not isinstance(decision, Mapping) or not isinstance(decision.get("pruned"), bool):
        return None
    return decision


def _owed_for(trial: FrozenTrial) -> float:
    """Return what one decision adds to the trainings that are owed. That of a dead trial counts once, not for each of
    its retries, which inherit it.
    """
    decision = _decision(trial)
    fraction = None if decision is None else decision.get("keep_fraction")
    if decision is None or not isinstance(fraction, int | float) or retried_numbers(trial):
        return 0.0
    return float(fraction) - (not decision["pruned"])
