"""Ray Tune: OptunaSearch with AZNASSampler."""

from __future__ import annotations

import math

import optuna
import pytest

import optuna_aznas as az

ray = pytest.importorskip("ray", reason="ray[tune] is not installed")
tune = pytest.importorskip("ray.tune", reason="ray[tune] is not installed")
search = pytest.importorskip("ray.tune.search.optuna", reason="ray[tune] is not installed")

# Ray's own warnings are not this package's, nor are processes and sockets that it leaves to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("default"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

_N_TRIALS = 5


@pytest.fixture(scope="module")
def cluster():
    ray.init(num_cpus=2, include_dashboard=False, configure_logging=False, log_to_driver=False)
    yield
    ray.shutdown()


def fit(trainable, optuna_search, folder):
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=optuna_search, num_samples=_N_TRIALS, max_concurrent_trials=2, reuse_actors=True
        ),
        run_config=tune.RunConfig(storage_path=str(folder), verbose=0),
    )
    results = tuner.fit()
    assert not results.errors


def two_parameters(trial):
    trial.suggest_int("x", 0, 9)
    trial.suggest_int("y", 0, 9)


def with_hyperparameter(trial):
    """Ray pickles a space with the searcher's state, so it is a function of a module."""
    two_parameters(trial)
    az.record(trial, {"a": trial.params["x"], "b": trial.params["y"]})
    trial.suggest_float("lr", 0.0, 1.0)


def test_a_search_whose_proxy_scores_come_from_the_workers(cluster, tmp_path):
    def score(config):
        tune.report({"a": -math.inf if config["x"] == 0 else config["x"], "b": config["y"]})

    storage = optuna.storages.InMemoryStorage()
    sampler = az.AZNASSampler(n_startup_trials=3, seed=0)
    fit(
        score,
        search.OptunaSearch(
            two_parameters, metric=["a", "b"], mode=["max", "max"], sampler=sampler, storage=storage, study_name="s"
        ),
        tmp_path,
    )
    study = optuna.load_study(study_name="s", storage=storage)
    assert az.rank_scores(study).keys() == set(range(_N_TRIALS))
    assert len({tuple(trial.params.values()) for trial in study.trials}) == _N_TRIALS


def test_a_study_that_trains_records_where_it_suggests(cluster, tmp_path):
    def train(config):
        tune.report({"accuracy": config["x"] - config["lr"]})

    storage = optuna.storages.InMemoryStorage()
    sampler = az.AZNASSampler(hyperparameter_sampler=optuna.samplers.RandomSampler(seed=0), n_candidates=20, seed=0)
    fit(
        train,
        search.OptunaSearch(
            with_hyperparameter, metric="accuracy", mode="max", sampler=sampler, storage=storage, study_name="t"
        ),
        tmp_path,
    )
    study = optuna.load_study(study_name="t", storage=storage)
    assert [trial.user_attrs["aznas:architecture"] for trial in study.trials] == [["x", "y"]] * _N_TRIALS
    assert all(trial.value == trial.params["x"] - trial.params["lr"] for trial in study.trials)
    assert len({(trial.params["x"], trial.params["y"]) for trial in study.trials}) == _N_TRIALS


def test_a_searcher_is_saved_and_restored(tmp_path):
    def searcher(sampler):
        return search.OptunaSearch(two_parameters, metric=["a", "b"], mode=["max", "max"], sampler=sampler)

    def run(optuna_search, numbers):
        for number in numbers:
            config = optuna_search.suggest(str(number))
            optuna_search.on_trial_complete(str(number), {"a": config["x"], "b": config["y"]})

    first = searcher(az.AZNASSampler(n_startup_trials=3, seed=0))
    run(first, range(5))
    first.save(str(tmp_path / "searcher.pkl"))
    again = searcher(None)
    again.restore(str(tmp_path / "searcher.pkl"))
    run(again, range(5, 10))
    trials = again._ot_study.trials
    assert len({tuple(trial.params.values()) for trial in trials}) == 10
    assert isinstance(again._ot_study.sampler, az.AZNASSampler)
