"""Architecture and hyperparameters proposed together: what is chosen, what is left to others, and what is fixed."""

from __future__ import annotations

import math

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

import optuna_aznas as az
from optuna_aznas.sampler import bayesian
from optuna_aznas.sampler.admission import Admission
from optuna_aznas.sampler.variation import Variation
from optuna_aznas.sampler.view import StudyView
from optuna_aznas.study.encoding import HyperparameterSpace, hyperparameter_space

CHOICES = ("a", "b", "c", "d")


def value_of(params):
    """The optimum is ("d", "d", "d") with a rate of 0.01 and the optimizer "sgd"."""
    quality = sum(CHOICES.index(params[f"x{i}"]) for i in range(3)) / 9
    return quality - abs(math.log10(params["rate"]) + 2) - 0.5 * (params["optimizer"] != "sgd")


def suggest_hyperparameters(trial):
    return {
        "rate": trial.suggest_float("rate", 1e-5, 1e-1, log=True),
        "optimizer": trial.suggest_categorical("optimizer", ["adam", "sgd", "rmsprop"]),
    }


def objective(trial, sign=1.0):
    params = {f"x{i}": trial.suggest_categorical(f"x{i}", CHOICES) for i in range(3)}
    digits = [CHOICES.index(params[f"x{i}"]) for i in range(3)]
    az.record(trial, {"total": sign * sum(digits), "least": sign * (min(digits) + 0.1 * digits[0])})
    return value_of(params | suggest_hyperparameters(trial))


def run(sampler, n=30, function=objective):
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.optimize(function, n_trials=n)
    return study


def distances(trials):
    return [abs(math.log10(trial.params["rate"]) + 2) for trial in trials]


def test_by_default_the_hyperparameters_are_proposed_too():
    for seed in range(2):
        study = run(az.AZNASSampler(seed=seed, n_candidates=30))
        assert np.mean(distances(study.trials[20:])) < 0.4  # at random 1.0 and more
        assert np.mean([trial.params["optimizer"] == "sgd" for trial in study.trials[20:]]) > 0.6  # at random 0.33
        assert study.best_value > 0.6


def test_an_architecture_is_trained_again_with_other_hyperparameters_and_no_configuration_twice():
    def grid(trial):
        x = trial.suggest_int("x", 0, 2)
        az.record(trial, {"a": x, "b": -x})
        return x - abs(trial.suggest_int("y", 0, 9) - 4)

    study = run(az.AZNASSampler(seed=0), 25, grid)
    configurations = [tuple(trial.params.values()) for trial in study.trials]
    assert len(set(configurations[5:])) == len(configurations[5:])
    assert study.best_params == {"x": 2, "y": 4}


def test_a_sampler_of_the_users_own_samples_all_hyperparameters():
    class Constant(optuna.samplers.RandomSampler):
        def sample_independent(self, study, trial, param_name, param_distribution):
            return 1e-4 if param_name == "rate" else "rmsprop"

    study = run(az.AZNASSampler(seed=0, n_candidates=20, hyperparameter_sampler=Constant()), 15)
    assert {(trial.params["rate"], trial.params["optimizer"]) for trial in study.trials} == {(1e-4, "rmsprop")}
    assert len({tuple(trial.params.values()) for trial in study.trials}) == 15


def test_hyperparameters_that_only_some_trials_have_are_left_to_tpe():
    def conditional(trial):
        value = objective(trial)
        return value - trial.suggest_float("momentum", 0, 1) if trial.params["optimizer"] == "sgd" else value

    study = run(az.AZNASSampler(seed=0, n_candidates=20), 30, conditional)
    assert hyperparameter_space(study.trials).keys() == {"rate", "optimizer"}
    assert np.mean(distances(study.trials[20:])) < 0.6


def test_values_that_the_user_has_fixed_are_kept_and_the_others_chosen_for_them():
    sampler = az.AZNASSampler(seed=0, n_candidates=20)
    study = run(sampler, 15)
    study.sampler = optuna.samplers.PartialFixedSampler({"optimizer": "adam"}, sampler)
    study.optimize(objective, n_trials=10)
    study.sampler = sampler
    study.enqueue_trial({"rate": 1e-5})
    study.optimize(objective, n_trials=1)
    assert {trial.params["optimizer"] for trial in study.trials[15:25]} == {"adam"}
    assert np.mean(distances(study.trials[18:25])) < 0.6
    assert study.trials[25].params["rate"] == 1e-5


def test_workers_that_start_together_are_spread():
    """Running trials count as trained: eight trials that are proposed at the same moment are eight configurations."""
    study = run(az.AZNASSampler(seed=0, n_candidates=30), 12)
    trials = [study.ask() for _ in range(8)]
    configurations = []
    for trial in trials:
        params = {f"x{i}": trial.suggest_categorical(f"x{i}", CHOICES) for i in range(3)}
        az.record(trial, {"total": 1.0, "least": 0.0})
        configurations.append(tuple((params | suggest_hyperparameters(trial)).values()))
    assert len(set(configurations)) == 8


@pytest.mark.parametrize("scored", [False, True])
def test_proxies_that_lie_are_found_out(scored):
    """With negated proxies the search ends as high as with true ones."""

    def score(params):
        digits = [CHOICES.index(params[f"x{i}"]) for i in range(3)]
        return {"total": -sum(digits), "least": -(min(digits) + 0.1 * digits[0])}

    sampler = az.AZNASSampler(seed=0, n_candidates=30, candidate_scorer=score if scored else None)
    study = run(sampler, 45, lambda trial: objective(trial, -1.0))
    assert study.best_value > 0.75


SPACES = {
    "choice": CategoricalDistribution(("a", "b", "c")),
    "many": CategoricalDistribution(tuple(range(100))),
    "rate": FloatDistribution(1e-5, 1.0, log=True),
    "share": FloatDistribution(-1.0, 3.0),
    "stepped": FloatDistribution(0.0, 1.0, step=0.1),
    "few": IntDistribution(2, 4),
    "layers": IntDistribution(1, 1000, log=True),
    "width": IntDistribution(16, 4096, step=16),
}


@given(st.sets(st.sampled_from(sorted(SPACES)), min_size=1), st.integers(0, 1000))
@settings(max_examples=40)
def test_positions_are_values_of_their_distributions(names, seed):
    space = HyperparameterSpace({name: SPACES[name] for name in sorted(names)})
    rng = np.random.default_rng(seed)
    drawn = space.random(20, rng)
    for positions in (drawn, space.varied(drawn, rng)):
        params = [space.params(position) for position in positions]
        for values in params:
            for name, value in values.items():
                assert SPACES[name]._contains(SPACES[name].to_internal_repr(value))
        back = space.positions(params)
        assert [space.params(position) for position in back] == [pytest.approx(values) for values in params]
        assert space.columns(positions).values.shape == (20, len(space.columns(positions).names))
    assert np.all(np.any(space.varied(drawn, rng) != drawn, axis=1))


def test_columns_of_uniform_hyperparameters_have_variance_one():
    """Of few values the outer ones count more, and on a logarithmic grid the lower ones: those are left out here."""
    space = HyperparameterSpace({name: d for name, d in SPACES.items() if name not in ("few", "layers")})
    values, names = space.columns(space.random(20_000, np.random.default_rng(0)))
    for k, name in enumerate(space.space):
        assert values[:, np.array(names) == k].var(axis=0).sum() == pytest.approx(1.0, abs=0.3), name


@pytest.mark.parametrize("candidate_filter", [None, lambda params: params["depth"] < 5])
def test_a_trained_architecture_of_a_conditional_space_is_proposed_again(candidate_filter):
    """It lacks the parameters that its network never asked for."""

    def conditional(trial):
        depth = trial.suggest_int("depth", 2, 5)
        widths = [trial.suggest_int(f"width{i}", 1, 2) for i in range(depth)]
        az.record(trial, {"total": sum(widths), "depth": depth})
        return sum(widths) / 10 - abs(math.log10(trial.suggest_float("rate", 1e-5, 1e-1, log=True)) + 2)

    study = run(az.AZNASSampler(seed=0, n_candidates=30, candidate_filter=candidate_filter), 40, conditional)
    assert study.best_value > 0.6
    assert np.mean(distances(study.trials[20:])) < 0.4  # the rate is proposed too: at random 1.0 and more
    architectures = [tuple((n, v) for n, v in trial.params.items() if n != "rate") for trial in study.trials]
    assert len(set(architectures)) < len(architectures)


def test_an_examined_candidate_has_the_parameters_that_it_has():
    study = run(az.AZNASSampler(seed=0), 3)
    admission = Admission(None, None, Variation(1, 0.3, 0))
    space = {"x0": CategoricalDistribution(CHOICES), "x9": CategoricalDistribution(CHOICES)}
    examined = admission.examine(StudyView(study, None), {"x0": "a"}, space, {})
    assert examined.architecture == {"x0": "a"}


@pytest.mark.parametrize(("n_architecture", "n_rates", "expected"), [(3, 0, True), (3, 2, True), (2, 2, False)])
def test_large_effects_are_expected_of_an_architecture_of_most_parameters(
    monkeypatch, n_architecture, n_rates, expected
):
    """Among many hyperparameters they would explain what the hyperparameters did."""
    made = []

    class Spy(bayesian.LearnedAggregation):
        def __init__(self, **arguments):
            super().__init__(**arguments)
            made.append((arguments["exploring"], arguments["prior_correlation"]))

    def trains(trial):
        choices = [trial.suggest_categorical(f"x{i}", CHOICES) for i in range(n_architecture)]
        total = sum(map(CHOICES.index, choices))
        az.record(trial, {"total": total, "first": CHOICES.index(choices[0])})
        return total - sum(trial.suggest_float(f"rate{i}", 0.0, 1.0) for i in range(n_rates))

    monkeypatch.setattr(bayesian, "LearnedAggregation", Spy)
    study = optuna.create_study(direction="maximize", sampler=az.AZNASSampler(seed=0, n_candidates=5))
    study.optimize(trains, n_trials=8)
    assert made[-1] == ((True, 0.5) if expected else (False, 0.35))
