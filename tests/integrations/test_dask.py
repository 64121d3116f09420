"""Dask: workers of a cluster optimise one study, whose storage is on the scheduler."""

from __future__ import annotations

import logging

import pytest

import optuna_aznas as az

distributed = pytest.importorskip("distributed", reason="dask and distributed are not installed")
integration = pytest.importorskip("optuna_integration", reason="optuna-integration is not installed")

pytestmark = pytest.mark.filterwarnings("default")  # Dask's own are not this package's


def objective(trial):
    x, y = trial.suggest_int("x", 0, 9), trial.suggest_int("y", 0, 9)
    return x, -abs(y - 5)


@pytest.fixture
def errors():
    """What Dask's scheduler logs as an error."""
    logger, messages = logging.getLogger("distributed.core"), []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: messages.append(record.getMessage())
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)


def test_two_workers_share_a_search(errors):
    with distributed.Client(processes=False, n_workers=2, threads_per_worker=1, dashboard_address=None) as client:
        study = az.create_study(
            proxies=["x", "closeness"],
            storage=integration.DaskStorage(),
            sampler=az.AZNASSampler(n_startup_trials=5, seed=0),
        )
        futures = [client.submit(study.optimize, objective, n_trials=12, pure=False) for _ in range(2)]
        client.gather(futures)
        assert len({tuple(trial.params.values()) for trial in study.trials}) == 24
        assert az.rank_scores(study).keys() == set(range(24))
    assert errors == []
