"""MLflow and Weights & Biases: Optuna's callbacks log searches in which proxy scores are -inf."""

from __future__ import annotations

import math

import optuna
import pytest

import optuna_aznas as az

PROXIES = ["a", "b"]

pytestmark = pytest.mark.filterwarnings("default")  # those of the trackers are not this package's


def search(callback):
    """Six trials; the first proxy score of the last is -inf."""
    study = az.create_study(study_name="tracked", proxies=PROXIES, seed=0)

    def objective(trial):
        x = trial.suggest_int("x", 0, 9)
        return -math.inf if x == 0 else x, -x

    study.optimize(objective, n_trials=5, callbacks=[callback])
    study.enqueue_trial({"x": 0})
    study.optimize(objective, n_trials=1, callbacks=[callback])
    assert study.trials[5].values == [-math.inf, 0]
    return study


def test_mlflow(tmp_path):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    integration = pytest.importorskip("optuna_integration.mlflow", reason="optuna-integration is not installed")
    url = f"sqlite:///{tmp_path}/mlflow.db"
    study = search(integration.MLflowCallback(tracking_uri=url, metric_name=PROXIES))
    client = mlflow.MlflowClient(url)
    experiment = client.get_experiment_by_name("tracked")
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == 6
    logged = {int(run.data.tags["number"]): run.data.metrics for run in runs}
    for trial in study.trials:
        a, b = trial.values
        # MLflow stores the largest finite number in the place of infinity.
        assert logged[trial.number]["b"] == b
        assert logged[trial.number]["a"] == a or logged[trial.number]["a"] < -1e308


def test_mlflow_with_recorded_proxy_scores(tmp_path):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    integration = pytest.importorskip("optuna_integration.mlflow", reason="optuna-integration is not installed")
    url = f"sqlite:///{tmp_path}/mlflow.db"

    def objective(trial):
        az.record(trial, {"a": -math.inf, "b": trial.suggest_int("x", 0, 9)})
        return 1.0

    study = optuna.create_study(study_name="recorded", sampler=az.AZNASSampler(seed=0))
    study.optimize(objective, n_trials=2, callbacks=[integration.MLflowCallback(tracking_uri=url)])
    client = mlflow.MlflowClient(url)
    runs = client.search_runs([client.get_experiment_by_name("recorded").experiment_id])
    assert len(runs) == 2
    assert all("-inf" in run.data.tags["aznas:scores"] for run in runs)


def test_wandb(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    integration = pytest.importorskip("optuna_integration.wandb", reason="optuna-integration is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    callback = integration.WeightsAndBiasesCallback(
        metric_name=PROXIES, wandb_kwargs={"project": "aznas", "dir": str(tmp_path)}
    )
    try:
        search(callback)
        wandb.log({"end": 1}, step=6)  # a step is in the summary once the next one has begun
        summary = dict(wandb.run.summary)
    finally:
        wandb.finish()
    assert {name: float(summary[name]) for name in ("a", "b", "x")} == {"a": -math.inf, "b": 0, "x": 0}
