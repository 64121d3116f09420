"""stop_when_flat: the end of a search without training."""

from __future__ import annotations

import pickle
import threading
import warnings

import optuna
import pytest
from optuna.terminator import BestValueStagnationEvaluator, StaticErrorEvaluator, Terminator, TerminatorCallback

import optuna_aznas as az


def search(values, callback, storage=None, name="s"):
    """Run a search whose networks have the given quality; return the number of trials."""
    study = az.create_study(
        proxies=["a", "b"],
        sampler=optuna.samplers.RandomSampler(seed=0),
        storage=storage,
        study_name=name,
        load_if_exists=True,
    )
    study.optimize(
        lambda trial: (float(values[trial.number]), float(values[trial.number])), len(values), callbacks=[callback]
    )
    return len(study.trials)


RISING = [*range(10), *[5] * 90]


@pytest.mark.parametrize("n", [1, 7, 30])
def test_it_ends_after_as_many_trials_without_a_new_best(n):
    assert search(RISING, az.stop_when_flat(n_trials=n)) == 10 + n


def test_it_does_not_end_while_the_search_gets_better():
    assert search(range(60), az.stop_when_flat(n_trials=5)) == 60


def test_a_tie_is_no_new_best():
    assert search([3] * 50, az.stop_when_flat(n_trials=5)) == 6


def test_the_state_is_the_study():
    """Another worker, or the same one started again, counts the trials from before."""
    storage = optuna.storages.InMemoryStorage()
    assert search(RISING[:20], az.stop_when_flat(n_trials=30), storage) == 20
    assert search(RISING, az.stop_when_flat(n_trials=30), storage) == 40
    assert search(RISING, az.stop_when_flat(n_trials=30), storage) == 41  # flat already


def test_each_of_several_workers_ends():
    storage = optuna.storages.InMemoryStorage()
    values = [*range(10), *[5] * 500]
    threads = [
        threading.Thread(target=search, args=(values, az.stop_when_flat(n_trials=40), storage)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 50 <= len(optuna.load_study(study_name="s", storage=storage).trials) <= 50 + 8


def test_infeasible_trials_are_not_the_best():
    def objective(trial):
        quality = trial.suggest_int("x", 0, 10**6) + 1e9 * (trial.number > 5)
        return quality, quality

    sampler = az.AZNASSampler(seed=0, constraints_func=lambda trial: (float(trial.number > 5),))
    study = az.create_study(proxies=["a", "b"], sampler=sampler)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study.optimize(objective, n_trials=60, callbacks=[az.stop_when_flat(n_trials=10)])
    assert len(study.trials) <= 16


def test_a_study_without_proxy_scores_goes_on():
    study = optuna.create_study()
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=5, callbacks=[az.stop_when_flat(n_trials=1)])
    assert len(study.trials) == 5


@pytest.mark.parametrize("first", ["flat", "terminator"])
def test_it_composes_with_the_terminator(first):
    """One value is optimised, and proxy scores are recorded: the search ends with the first that ends it."""

    def objective(trial):
        x = trial.suggest_float("x", 0, 1)
        az.record(trial, {"a": min(trial.number, 5), "b": min(trial.number, 5)})
        return x if trial.number == 0 else 2.0

    patience = 20 if first == "flat" else 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # deprecated since Optuna 4.9
        terminator = TerminatorCallback(
            Terminator(
                improvement_evaluator=BestValueStagnationEvaluator(max_stagnation_trials=patience),
                error_evaluator=StaticErrorEvaluator(constant=0),
                min_n_trials=1,
            )
        )
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(objective, n_trials=60, callbacks=[az.stop_when_flat(n_trials=8), terminator])
    assert len(study.trials) == (14 if first == "flat" else 5)


def test_it_can_be_pickled():
    assert search(RISING, pickle.loads(pickle.dumps(az.stop_when_flat(n_trials=7)))) == 17


@pytest.mark.parametrize("n", [0, -1, 1.5, True, None])
def test_bad_arguments(n):
    with pytest.raises(ValueError, match="n_trials must be an integer of at least 1"):
        az.stop_when_flat(n_trials=n)
