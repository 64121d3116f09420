"""backfill: scores the finished trials of a study that were not scored while they ran."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

from optuna.study import Study
from optuna.trial import BaseTrial, FixedTrial

from optuna_aznas.study.attributes import as_attributes
from optuna_aznas.study.late import LateAttributes, lacks_scores, store_late
from optuna_aznas.study.scoring import Scoring, declare


def backfill(
    study: Study,
    build: Callable[[BaseTrial], Any],
    evaluator: Any,
    *,
    n_workers: int | None = None,
    show_progress_bar: bool = True,
) -> int:
    """Score the finished trials of a study that have no proxy scores.

    For a study that was begun with another sampler: afterwards :class:`~optuna_aznas.AZNASSampler` continues it with
    what its trials have told. Completed and pruned trials are scored. The parameters that ``build`` suggests are the
    architecture, the others are hyperparameters.

    A finished trial cannot be changed, so its proxy scores are user attributes of the study,
    ``aznas:trial:<number>``; this package reads them as if :func:`~optuna_aznas.record` had stored them. Each is in the
    storage before the next is computed. A call that was interrupted or killed can be made again and goes on; where
    nothing is missing it does nothing; several calls at once do no harm. A study in which workers are running may be
    scored too: they find the proxy scores once it has grown by a tenth.

    Args:
        study: The study, in any storage.
        build: A function that takes a trial and returns a model: the one that the study's objective has called. It is
            called with an :class:`optuna.trial.FixedTrial` of each trial's parameters.
        evaluator: A :class:`~optuna_aznas.ProxyEvaluator`, the one with which the study is continued. Its settings are
            stored in the study, as by :func:`~optuna_aznas.create_study`.
        n_workers: As in :meth:`ProxyEvaluator.map() <optuna_aznas.ProxyEvaluator.map>`.
        show_progress_bar: Show a progress bar on standard error.

    Returns:
        The number of trials that were scored. One warning says how many could not be scored, and why the first could
        not; they stay as they are.

    Raises:
        ValueError: ``build`` or ``evaluator`` is not callable; ``n_workers`` is out of range; or the study's networks
            are scored with other settings than those of ``evaluator``.
        TypeError: ``build`` or ``evaluator`` cannot be sent to worker processes.

    Example:
        >>> import optuna
        >>> import optuna_aznas as az
        >>> def objective(trial):  # with no proxies so far
        ...     az.spaces.nas_bench_201.build(trial)
        ...     return trial.suggest_float("lr", 1e-4, 1.0, log=True)
        >>> study = optuna.create_study(direction="maximize")
        >>> study.optimize(objective, n_trials=2)
        >>> evaluator = az.ProxyEvaluator((3, 32, 32), device="cpu")
        >>> backfill(study, az.spaces.nas_bench_201.build, evaluator, n_workers=1, show_progress_bar=False)
        2
        >>> study.sampler = az.AZNASSampler()
    """
    from optuna_aznas.proxies.many import outcomes_of

    for name, function in (("build", build), ("evaluator", evaluator)):
        if not callable(function):
            raise ValueError(f"{name} must be callable; got {function!r}.")
    if Scoring.of(evaluator) is not None:
        declare(study, evaluator)
    trials, _ = LateAttributes().update(study, study.get_trials(deepcopy=False))
    trials = [trial for trial in trials if lacks_scores(trial)]
    outcomes = outcomes_of(
        _Scoring(build, evaluator),
        [dict(trial.params) for trial in trials],
        n_workers=n_workers,
        device=evaluator.device,
        show_progress_bar=show_progress_bar,
    )
    failures = []
    for trial, outcome in zip(trials, outcomes, strict=True):
        if isinstance(outcome, BaseException):
            failures.append((trial.number, outcome))
            continue
        scores, architecture = outcome
        store_late(study, trial.number, as_attributes(scores, architecture))
    if failures:
        number, error = failures[0]
        warnings.warn(
            f"{len(failures)} of {len(trials)} trials could not be scored and stay without proxy scores. The first is "
            f"trial {number}: {type(error).__name__}: {error}",
            stacklevel=2,
        )
    return len(trials) - len(failures)


class _Scoring:
    """Builds and scores a trial's network: what the workers do."""

    def __init__(self, build: Callable[[BaseTrial], Any], evaluator: Any) -> None:
        self._build = build
        self._evaluator = evaluator

    def __call__(self, params: Mapping[str, Any]) -> tuple[Any, list[str]]:
        """Return proxy scores, and the names of the parameters that ``build`` suggested."""
        trial = FixedTrial(dict(params))
        return self._evaluator(self._build(trial)), list(trial.params)
