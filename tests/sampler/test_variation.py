"""Mutation, crossover and uniform sampling on every kind of distribution."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from optuna_aznas.sampler.variation import cross, mutate, sample_uniform

DISTRIBUTIONS = [
    CategoricalDistribution(("a", "b", None, 1.5, True)),
    CategoricalDistribution((0, 1)),
    IntDistribution(0, 10),
    IntDistribution(-5, 20, step=5),
    IntDistribution(1, 1000, log=True),
    IntDistribution(3, 4),
    FloatDistribution(0.0, 10.0),
    FloatDistribution(-1.0, 1.0, step=0.25),
    FloatDistribution(0.0, 0.3, step=0.1),
    FloatDistribution(1e-7, 10.0, log=True),
]
SINGLE = [
    CategoricalDistribution(("only",)),
    IntDistribution(4, 4),
    FloatDistribution(2.0, 2.0),
    IntDistribution(1, 1, step=9),
]


def contains(distribution, value):
    return distribution._contains(distribution.to_internal_repr(value))


@given(st.sampled_from(DISTRIBUTIONS), st.integers(0, 2**32 - 1))
def test_a_mutation_is_another_valid_value(distribution, seed):
    rng = np.random.default_rng(seed)
    value = sample_uniform(distribution, rng)
    assert contains(distribution, value)
    for _ in range(5):
        mutated = mutate(value, distribution, rng)
        assert contains(distribution, mutated)
        assert mutated != value
        assert type(mutated) is type(value) or isinstance(distribution, CategoricalDistribution)
        value = mutated


@pytest.mark.parametrize("distribution", SINGLE)
def test_a_single_value_stays(distribution):
    rng = np.random.default_rng(0)
    value = sample_uniform(distribution, rng)
    assert mutate(value, distribution, rng) == value


def test_nan_as_a_categorical_choice():
    distribution = CategoricalDistribution((float("nan"), 1.0))
    assert mutate(float("nan"), distribution, np.random.default_rng(0)) == 1.0


def on_an_even_grid(distribution):
    return isinstance(distribution, CategoricalDistribution) or bool(distribution.step and not distribution.log)


@pytest.mark.parametrize("distribution", [d for d in DISTRIBUTIONS if on_an_even_grid(d)])
def test_uniform_sampling_is_uniform_on_a_grid(distribution):
    rng = np.random.default_rng(0)
    counts = Counter(sample_uniform(distribution, rng) for _ in range(20_000))
    expected = 20_000 / len(counts)
    assert all(abs(count - expected) < 6 * math.sqrt(expected) for count in counts.values())


def test_steps_are_local_on_the_distributions_own_scale():
    rng = np.random.default_rng(0)
    log = FloatDistribution(1e-6, 1.0, log=True)
    moves = [math.log10(mutate(1e-3, log, rng)) + 3 for _ in range(2000)]
    assert abs(np.mean(moves)) < 0.1  # symmetric around 1e-3 on the logarithmic scale
    assert np.std(moves) == pytest.approx(0.15 * 6, rel=0.1)
    linear = [mutate(50, IntDistribution(0, 100), rng) - 50 for _ in range(2000)]
    assert np.std(linear) == pytest.approx(15, rel=0.1)
    assert abs(np.mean(linear)) < 1.5


def test_crossover_takes_each_parameter_from_either_parent():
    rng = np.random.default_rng(0)
    space = {name: IntDistribution(0, 9) for name in "abc"} | {"d": IntDistribution(0, 3)}
    father_space = {name: IntDistribution(0, 9) for name in "ab"} | {"d": IntDistribution(0, 4)}
    mother, father = dict.fromkeys("abcd", 1), dict.fromkeys("abd", 2)
    children = Counter(tuple(cross(mother, father, space, father_space, rng).items()) for _ in range(400))
    # c is unknown to the father, d is another distribution there: both stay the mother's.
    assert set(children) == {(("a", a), ("b", b), ("c", 1), ("d", 1)) for a in (1, 2) for b in (1, 2)}
    assert min(children.values()) > 60
