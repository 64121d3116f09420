"""proxy_importance: how much each proxy counts in a study's learned ranking."""

from __future__ import annotations

from optuna.study import Study

from optuna_aznas.aggregation.importance import ProxyImportance, shares
from optuna_aznas.study.encoding import encode_hyperparameters, trained_values
from optuna_aznas.study.history import StudyHistory

__all__ = ["ProxyImportance", "proxy_importance"]


def proxy_importance(study: Study, *, seed: int = 0) -> dict[str, ProxyImportance]:
    """Return how much each proxy counts for the trained values of a study, the most important first.

    A proxy's importance is its share in the learned ranking: how much a network's predicted trained value changes when
    its score under that proxy is exchanged for another network's (Sobol's total effect). It starts from equal weights
    of all proxies and departs from them as trained values are added; ``std`` is its remaining uncertainty. Proxies that
    are strongly correlated share their importance. A proxy whose importance stays far below the others' can be dropped.

    Args:
        study: A study with one objective, whose trials recorded proxy scores (:func:`~optuna_aznas.record`) and were
            trained.
        seed: Seed of the random numbers.

    Returns:
        Proxy name -> :class:`ProxyImportance`, a named tuple of ``mean`` and ``std``. The means sum to 1.

    Raises:
        ValueError: The study has several objectives, fewer than 5 trained trials with proxy scores, or all of their
            trained values are equal.

    Example:
        >>> import optuna
        >>> def objective(trial):
        ...     x, y = trial.suggest_float("x", 0, 1), trial.suggest_float("y", 0, 1)
        ...     record(trial, {"relevant": x, "irrelevant": y})
        ...     return x
        >>> from optuna_aznas import record
        >>> study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
        >>> study.optimize(objective, n_trials=40)
        >>> list(proxy_importance(study))
        ['relevant', 'irrelevant']
    """
    if len(study.directions) > 1:
        raise ValueError(
            f"proxy_importance needs a study with one objective, the trained value; study {study.study_name!r} "
            f"has {len(study.directions)}."
        )
    history = StudyHistory.of(study)
    importances = shares(
        history.proxy_scores,
        trained_values(history.trials, study.direction),
        encode_hyperparameters(history.trials),
        seed=seed,
    )
    by_name = zip(history.names, importances, strict=True)
    return dict(sorted(by_name, key=lambda item: -item[1].mean))
