"""DashboardCallback: publishes a study while it is optimised."""

from __future__ import annotations

import time
import warnings
from typing import Any

from optuna.study import Study
from optuna.trial import FrozenTrial

from optuna_aznas._arguments import check_count
from optuna_aznas.dashboard._lease import publishing
from optuna_aznas.dashboard._publish import check_arguments, publish_now


class DashboardCallback:
    """Publishes a study to optuna-dashboard while it runs: a callback for ``study.optimize``.

    Any number of workers may use it. After every ``every``-th trial, the worker that finished the trial publishes,
    unless another worker is publishing at that moment. An error while publishing becomes a warning; the study goes on.

    Args:
        every: Number of trials between two publications, at least 1.
        n_best: As in :func:`publish`.
        metric_names: As in :func:`publish`.
        budget: As in :func:`publish`.
        share: The share of a worker's time, above 0 and at most 1, that publishing may take. If trials finish too
            fast for that, some publications are skipped.

    Raises:
        ValueError: An argument is out of range.
        ImportError: optuna-dashboard or plotly is not installed.

    Example:
        >>> import optuna_aznas as az
        >>> study = az.create_study(proxies=["expressivity", "complexity"])
        >>> def objective(trial):
        ...     x = trial.suggest_int("x", 0, 99)
        ...     return x, -x
        >>> study.optimize(objective, n_trials=20, callbacks=[DashboardCallback(every=10)])
    """

    def __init__(
        self,
        every: int = 25,
        *,
        n_best: int = 10,
        metric_names: list[str] | None = None,
        budget: float | None = None,
        share: float = 0.1,
    ) -> None:
        check_count("every", every)
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0.0 < share <= 1.0:
            raise ValueError(f"share must be above 0 and at most 1; got {share!r}.")
        check_arguments(n_best, budget)
        self._every = every
        self._share = float(share)
        self._arguments: dict[str, Any] = {"n_best": n_best, "metric_names": metric_names, "budget": budget}
        self._not_before = 0.0  # on this process's clock

    def __call__(self, study: Study, trial: FrozenTrial) -> None:
        """Publish after every ``every``-th trial."""
        start = time.monotonic()
        if (trial.number + 1) % self._every or start < self._not_before:
            return
        try:
            with publishing(study, wait=False) as allowed:
                if allowed:
                    publish_now(study, **self._arguments)
        except Exception as error:  # an error in publishing must not end the search
            warnings.warn(
                f"Study {study.study_name!r} could not be published to optuna-dashboard at trial {trial.number}; the "
                f"search goes on. {type(error).__name__}: {error}",
                stacklevel=2,
            )
        end = time.monotonic()
        self._not_before = end + (end - start) * (1.0 / self._share - 1.0)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_not_before": 0.0}  # another process has another clock
