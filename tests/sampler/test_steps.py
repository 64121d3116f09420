"""The steps of the sampler one by one: what counts as evaluated, how far children go, and where mutations land."""

from __future__ import annotations

import math

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial
from scipy.stats import foldnorm

import optuna_aznas as az
from optuna_aznas.sampler.duplicates import EvaluatedArchitectures
from optuna_aznas.sampler.variation import mutate
from optuna_aznas.study.values import describe

CHOICES = ("a", "b", "c", "d", "e")


@pytest.mark.parametrize(
    ("distribution", "values"),
    [
        (IntDistribution(1, 3), (1, 2, 3)),
        (IntDistribution(0, 12, step=4), (0, 4, 8, 12)),
        (IntDistribution(2, 4, log=True), (2, 3, 4)),
        (IntDistribution(5, 5), (5,)),
        (FloatDistribution(0.0, 0.3, step=0.1), (0.0, 0.1, 0.2, 0.3)),
        (FloatDistribution(0.5, 0.5), (0.5,)),
        (CategoricalDistribution(("a", "b")), ("a", "b")),
    ],
)
def test_a_candidate_that_lacks_a_parameter_is_a_duplicate_once_all_of_its_values_were_evaluated(distribution, values):
    evaluated = EvaluatedArchitectures()
    candidate = describe({"x": 1}, {})
    for value in values:
        assert candidate not in evaluated
        evaluated.add(
            create_trial(
                params={"x": 1, "y": value}, distributions={"x": IntDistribution(0, 9), "y": distribution}, value=0.0
            )
        )
    assert candidate in evaluated


def test_a_continuous_parameter_is_never_exhausted():
    evaluated = EvaluatedArchitectures()
    for value in (0.0, 0.5, 1.0):
        evaluated.add(create_trial(params={"y": value}, distributions={"y": FloatDistribution(0.0, 1.0)}, value=0.0))
    assert {} not in evaluated


@pytest.mark.parametrize("state", [TrialState.FAIL, TrialState.PRUNED])
@pytest.mark.parametrize("recorded", [False, True])
def test_a_trial_that_ended_early_counts_as_a_whole_architecture_if_it_recorded(state, recorded):
    evaluated = EvaluatedArchitectures()
    attrs = {"aznas:scores": {"a": 1.0}, "aznas:architecture": ["x"]} if recorded else {}
    evaluated.add(
        create_trial(state=state, params={"x": 1}, distributions={"x": IntDistribution(0, 9)}, user_attrs=attrs)
    )
    assert describe({"x": 1}, {}) in evaluated
    assert (describe({"x": 1, "y": 2}, {}) in evaluated) == recorded


@pytest.mark.parametrize("seed", range(4))
def test_children_go_further_where_everything_near_the_parent_was_evaluated(seed):
    """One parent and all architectures that differ from it in one parameter: the next differs in two or three."""
    sampler = az.AZNASSampler(seed=seed, population_size=1, n_startup_trials=2, crossover_prob=0.0)
    study = optuna.create_study(directions=["maximize"] * 2, sampler=sampler)
    space = {f"x{i}": CategoricalDistribution(CHOICES) for i in range(6)}
    parent = dict.fromkeys(space, "a")
    study.add_trial(create_trial(params=parent, distributions=space, values=(1.0, 1.0)))
    for name in space:
        for choice in CHOICES[1:]:
            study.add_trial(create_trial(params={**parent, name: choice}, distributions=space, values=(0.0, 0.0)))
    proposed = study.ask().relative_params
    assert 2 <= sum(value != "a" for value in proposed.values()) <= 3


@pytest.mark.parametrize(("start", "to_bound"), [(0.95, lambda x: 1.0 - x), (0.05, lambda x: x)])
def test_a_step_beyond_a_bound_is_reflected(start, to_bound):
    """The distance to the bound is that of a normal step without its sign; no value piles up at the bound."""
    rng = np.random.default_rng(0)
    distances = [to_bound(mutate(start, FloatDistribution(0.0, 1.0), rng)) for _ in range(4000)]
    assert min(distances) > 0.0
    expected = foldnorm(0.05 / 0.15, scale=0.15)
    assert np.mean(distances) == pytest.approx(expected.mean(), abs=5 * expected.std() / math.sqrt(4000))
    assert np.std(distances) == pytest.approx(expected.std(), rel=0.08)


def test_how_many_architectures_are_left_behind_some_values():
    evaluated = EvaluatedArchitectures()
    space = {"x": IntDistribution(0, 2), "y": IntDistribution(0, 2), "z": FloatDistribution(0.0, 1.0)}
    zero = describe({"x": 0}, space)
    assert evaluated.has_more_left(zero, 10**6)  # nothing is known
    for x, y in ((0, 0), (0, 1), (1, 0)):
        params = {"x": x, "y": y}
        evaluated.add(create_trial(params=params, distributions={name: space[name] for name in params}, value=0.0))
    for start, n_left in (({}, 4), ({"x": 0}, 1), ({"x": 1}, 2), ({"x": 2}, 1), ({"y": 0}, 1), ({"x": 0, "y": 0}, 0)):
        description = describe(start, space)
        assert evaluated.has_more_left(description, n_left - 1) or n_left == 0
        assert not evaluated.has_more_left(description, n_left)
    evaluated.add(create_trial(params={"x": 0, "y": 2, "z": 0.5}, distributions=space, value=0.0))
    assert evaluated.has_more_left(zero, 10**6)
