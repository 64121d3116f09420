"""joblib: its processes optimise one study; a study that it has written to a file goes on."""

from __future__ import annotations

import optuna
import pytest

import optuna_aznas as az

joblib = pytest.importorskip("joblib", reason="joblib is not installed")


def objective(trial):
    az.record(trial, {"x": trial.suggest_int("x", 0, 9), "y": trial.suggest_int("y", 0, 9)})
    if trial.should_prune():
        raise optuna.TrialPruned
    return trial.suggest_float("lr", 0.0, 1.0)


def trained_study(storage=None):
    return optuna.create_study(
        storage=storage,
        sampler=az.AZNASSampler(hyperparameter_sampler=optuna.samplers.RandomSampler(seed=0), n_candidates=20, seed=0),
        pruner=az.AZNASPruner(n_startup_trials=2),
    )


def check(study, n_trials):
    assert len({(trial.params["x"], trial.params["y"]) for trial in study.trials}) == n_trials
    assert {trial.state.name for trial in study.trials} == {"COMPLETE", "PRUNED"}
    assert all(("lr" in trial.params) == (trial.state.name == "COMPLETE") for trial in study.trials)


@pytest.mark.parametrize("url", ["sqlite:///{}/nas.db", "journal:{}/nas.log"], ids=["sqlite", "journal"])
def test_two_processes_share_a_study(url, tmp_path):
    study = trained_study(az.open_storage(url.format(tmp_path)))
    with joblib.Parallel(n_jobs=2) as parallel:
        parallel(joblib.delayed(study.optimize)(objective, n_trials=5) for _ in range(2))
    check(study, 10)


def test_a_study_in_a_file_goes_on(tmp_path):
    study = trained_study()
    study.optimize(objective, n_trials=5)
    joblib.dump(study, tmp_path / "study.pkl")
    again = joblib.load(tmp_path / "study.pkl")
    again.optimize(objective, n_trials=5)
    check(again, 10)
