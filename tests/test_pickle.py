"""What is handed to a study is pickled and copied by Dask, Ray and joblib: sampler, pruner, evaluator, callback."""

from __future__ import annotations

import copy
import pickle

import optuna
import pytest
from torch import nn

import optuna_aznas as az

COPIES = {"pickle": lambda value: pickle.loads(pickle.dumps(value)), "deepcopy": copy.deepcopy}


@pytest.mark.parametrize("make", COPIES.values(), ids=COPIES)
def test_a_search_goes_on_with_a_copy_of_its_sampler(make):
    def objective(trial):
        return trial.suggest_int("x", 0, 99), trial.suggest_int("y", 0, 99)

    studies = []
    for again in (make, lambda value: value):
        study = az.create_study(proxies=["a", "b"], sampler=az.AZNASSampler(n_startup_trials=5, seed=0))
        study.optimize(objective, n_trials=15)
        study.sampler = again(study.sampler)
        study.optimize(objective, n_trials=15)
        studies.append(study)
    assert [trial.params for trial in studies[0].trials] == [trial.params for trial in studies[1].trials]


@pytest.mark.parametrize("make", COPIES.values(), ids=COPIES)
def test_a_study_that_trains_goes_on_as_a_copy(make):
    def objective(trial):
        az.record(trial, {"p": trial.suggest_int("x", 0, 99), "q": trial.suggest_int("y", 0, 99)})
        if trial.should_prune():
            raise optuna.TrialPruned
        return trial.suggest_float("lr", 0.0, 1.0)

    study = optuna.create_study(
        # An architecture comes again with other hyperparameters only where the sampler chooses these, too.
        sampler=az.AZNASSampler(seed=0, n_candidates=20, hyperparameter_sampler=optuna.samplers.RandomSampler(seed=0)),
        pruner=az.AZNASPruner(n_startup_trials=4, training_pruner=optuna.pruners.HyperbandPruner()),
    )
    study.optimize(objective, n_trials=8)
    again = make(study)
    again.optimize(objective, n_trials=8)
    assert len({tuple(trial.params[name] for name in "xy") for trial in again.trials}) == 16


@pytest.mark.parametrize("make", COPIES.values(), ids=COPIES)
def test_an_evaluator_gives_the_same_proxy_scores(make):
    evaluator = az.ProxyEvaluator(input_shape=(3, 8, 8), batch_size=4)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    before = evaluator(model).to_dict()
    assert make(evaluator)(model).to_dict() == before


@pytest.mark.parametrize("make", COPIES.values(), ids=COPIES)
def test_a_callback_does_not_take_its_clock_along(make, monkeypatch):
    published = []
    module = az.dashboard._callback
    monkeypatch.setattr(module, "publish_now", lambda study, **arguments: published.append(study.trials[-1].number))
    study = az.create_study(proxies=["a", "b"])
    callback = az.dashboard.DashboardCallback(every=1)
    callback._not_before = float("inf")  # it has published, and waits

    def optimize(callback):
        study.optimize(lambda trial: (trial.suggest_int("x", 0, 99), 1.0), n_trials=1, callbacks=[callback])

    optimize(callback)
    optimize(make(callback))
    assert published == [1]
