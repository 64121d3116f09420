"""Parameter values: on their grid, equal however they were written, and described alike everywhere."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

import optuna_aznas as az
from optuna_aznas.sampler.conditional import ConditionalParameters
from optuna_aznas.sampler.duplicates import EvaluatedArchitectures
from optuna_aznas.sampler.variation import mutate, sample_uniform
from optuna_aznas.study.values import canonical, describe

#: Bounds and steps with a few decimals, as users write them.
decimals = st.builds(lambda n, places: Decimal(n).scaleb(-places), st.integers(1, 40), st.integers(0, 3))


@st.composite
def grids(draw):
    """A grid of decimal numbers: its lowest value, its step, and its number of values."""
    low = draw(decimals) * draw(st.sampled_from([-1, 0, 1]))
    return low, draw(decimals), draw(st.integers(2, 30))


def of_grid(low, step, n):
    return FloatDistribution(float(low), float(low + (n - 1) * step), step=float(step))


@given(grids(), st.integers(0, 2**32 - 1))
def test_mutations_and_draws_stay_on_the_grid(grid, seed):
    low, step, n = grid
    distribution = of_grid(low, step, n)
    values = {float(low + k * step) for k in range(n)}
    rng = np.random.default_rng(seed)
    value = sample_uniform(distribution, rng)
    assert value in values
    for _ in range(10):
        value, before = mutate(value, distribution, rng), value
        assert value in values
        assert value != before


@given(grids(), st.data())
def test_a_value_that_misses_its_grid_by_a_rounding_error_is_put_on_it(grid, data):
    low, step, n = grid
    k = data.draw(st.integers(0, n - 1))
    distribution = of_grid(low, step, n)
    exact = float(low + k * step)
    for near in (float(low) + k * float(step), np.nextafter(exact, np.inf), np.nextafter(exact, -np.inf)):
        assert canonical(near, distribution) == exact


def test_equal_values_are_described_alike():
    space = {"x": FloatDistribution(0.0, 2.0), "n": IntDistribution(0, 9), "s": FloatDistribution(0.0, 1.0, step=0.1)}
    assert describe({"x": 1, "n": 3.0, "s": 0.1 + 0.2}, space) == describe({"x": 1.0, "n": 3, "s": 0.3}, space)
    assert describe({"x": -0.0}, space) == describe({"x": 0.0}, space)
    either = {"c": CategoricalDistribution((True, "1"))}
    assert describe({"c": 1}, either) == describe({"c": True}, either) != describe({"c": "1"}, either)
    assert describe({"n": 2**60}, {}) != describe({"n": 2**60 + 1}, {})


@pytest.mark.parametrize("broken", ["text", None, [1], {"a": 1}, float("nan"), float("inf"), 10**400])
def test_what_is_no_value_is_described_too(broken):
    for distribution in (FloatDistribution(0.0, 1.0, step=0.1), FloatDistribution(0.0, 1.0), IntDistribution(0, 9)):
        assert isinstance(describe({"x": broken}, {"x": distribution})["x"], str)


def test_the_grid_from_the_issue():
    """A mutation by one step used to leave the bounds, and the trial failed."""
    study = optuna.create_study(directions=["maximize"] * 2, sampler=az.AZNASSampler(seed=0, n_startup_trials=5))

    def objective(trial):
        x = trial.suggest_float("x", 0.1, 0.3, step=0.2)
        return x, trial.suggest_float("y", 0.0, 1.0)

    study.optimize(objective, n_trials=60)
    assert {trial.params["x"] for trial in study.trials} == {0.1, 0.3}


@pytest.mark.parametrize("trains", [False, True])
def test_steps_do_not_repeat(trains):
    """The 121 architectures of two grids: each once, whoever drew it."""

    def objective(trial):
        x, y = (trial.suggest_float(name, 0.0, 1.0, step=0.1) for name in "xy")
        if trains:
            az.record(trial, {"a": x, "b": y})
            return x
        return x, y

    study = optuna.create_study(
        directions=["maximize"] * (1 if trains else 2), sampler=az.AZNASSampler(seed=0, n_startup_trials=5)
    )
    study.sampler, sampler = optuna.samplers.RandomSampler(seed=0), study.sampler
    study.optimize(objective, n_trials=10)
    study.sampler = sampler
    before = {(round(10 * t.params["x"]), round(10 * t.params["y"])) for t in study.trials}
    study.optimize(objective, n_trials=40)
    after = [(round(10 * t.params["x"]), round(10 * t.params["y"])) for t in study.trials[10:]]
    assert len(set(after)) == 40
    assert not set(after) & before


def test_an_enqueued_integer_for_a_float():
    """Waiting, and finished: the sampler does not propose the architecture again."""
    study = optuna.create_study(directions=["maximize"] * 2, sampler=az.AZNASSampler(seed=0, n_startup_trials=2))

    def objective(trial):
        return trial.suggest_float("x", 0, 9, step=1), 0.0

    study.optimize(objective, n_trials=3)
    left = sorted(set(range(10)) - {int(trial.params["x"]) for trial in study.trials})
    for value in left[:4]:
        study.enqueue_trial({"x": value})
    for value in left[4:6]:  # others run them already, and have suggested nothing yet
        trial = create_trial(state=TrialState.RUNNING, system_attrs={"fixed_params": {"x": value}})
        study.add_trial(trial)
    direct = [study._storage.create_new_trial(study._study_id) for _ in range(1)]
    assert int(optuna.Trial(study, direct[0]).suggest_float("x", 0, 9, step=1)) == left[6]
    study.optimize(objective, n_trials=4)
    done = [trial.params["x"] for trial in study.trials if trial.params]
    assert len(set(done)) == len(done)


def test_thousands_of_parameters():
    """Neither looking up duplicates nor the rules of conditional parameters recurses."""
    names = [f"x{i}" for i in range(3000)]
    single = IntDistribution(1, 1)
    evaluated = EvaluatedArchitectures()
    evaluated.add(
        create_trial(params=dict.fromkeys(names, 1), distributions=dict.fromkeys(names, single), values=(0.0, 0.0))
    )
    whole = describe(dict.fromkeys(names, 1), {})
    assert whole in evaluated
    assert {} in evaluated  # each parameter that it lacks has one value only
    assert {**whole, "x2999": "2"} not in evaluated
    # Each parameter is present where the one before it is, and has the value 1.
    chain = ConditionalParameters([])
    rule = {1: True, 0: False, repr("absent"): False}
    chain._rules = {f"p{i}": (f"p{i - 1}", rule) for i in range(1, 3000)}
    params = {f"p{i}": int(i != 2000) for i in range(3000)}
    assert chain.present(dict(reversed(params.items()))).keys() == {f"p{i}" for i in range(2001)}


@pytest.mark.filterwarnings("error")
def test_a_study_with_a_thousand_parameters():
    def objective(trial):
        x = [trial.suggest_int(f"x{i}", 0, 1) for i in range(1200)]
        return sum(x), x[0]

    study = optuna.create_study(directions=["maximize"] * 2, sampler=az.AZNASSampler(seed=0, n_startup_trials=2))
    study.optimize(objective, n_trials=6)
    trial = study.trials[0]
    study.enqueue_trial(trial.params)  # the walk goes down to the end
    study.optimize(objective, n_trials=2)
    assert len({tuple(trial.params.values()) for trial in study.trials}) == 7
