"""Consensus weights: full where a proxy agrees with the others, half where it is unrelated, none against them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau, rankdata

from optuna_aznas.aggregation import aggregate, aggregate_aznas, consensus_weights
from optuna_aznas.aggregation.consensus import describe_weights


def study(n: int, seed: int, signs: list[float]) -> np.ndarray:
    """Proxies that share a hidden quality, each with noise of its own and a sign."""
    rng = np.random.default_rng(seed)
    quality = rng.standard_normal(n)
    return np.column_stack([sign * quality + rng.standard_normal(n) for sign in signs])


@pytest.mark.parametrize("seed", range(5))
def test_proxies_that_agree_count_fully_and_an_unrelated_one_half(seed):
    assert consensus_weights(study(300, seed, [1, 1, 1, 1])).tolist() == [1, 1, 1, 1]
    assert consensus_weights(study(20_000, seed, [1, 1, 1, 0]))[3] == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("seed", range(5))
def test_a_contradicting_proxy_is_left_out(seed):
    table = study(300, seed, [1, 1, -1, 1])
    assert consensus_weights(table).tolist() == [1, 1, 0, 1]
    np.testing.assert_array_equal(aggregate(table), aggregate(table, [1, 1, 0, 1]))
    quality = table[:, [0, 1, 3]].sum(axis=1)
    assert np.corrcoef(aggregate(table), quality)[0, 1] > np.corrcoef(aggregate_aznas(table), quality)[0, 1]


def test_weights_by_the_definition():
    table = study(400, 3, [1, 1, -0.05, 1])
    weights = consensus_weights(table)
    assert 0 < weights[2] < 1
    ranks = rankdata(table, axis=0)
    for k in range(4):
        r = np.corrcoef(ranks[:, k], np.delete(ranks, k, axis=1).sum(axis=1))[0, 1]
        assert weights[k] == pytest.approx(np.clip(0.5 + (r + 2 / 20) / 0.4, 0, 1), abs=1e-6)


def test_weights_are_relative_to_the_largest():
    """The third proxy takes all agreement from the first two, which count fully all the same."""
    x = np.random.default_rng(0).random(40)
    assert consensus_weights(np.column_stack([x, x, -x])).tolist() == [1, 1, 0]


def test_of_two_groups_that_disagree_none_is_left_out():
    """Nothing says which of two pairs is right, as two proxies of features and two of gradients may be."""
    weights = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        first, second = rng.standard_normal((2, 200))
        second = -0.5 * first + 0.75**0.5 * second
        table = np.column_stack([first, first, second, second]) + rng.standard_normal((200, 4))
        weights.append(consensus_weights(table).reshape(2, 2).sum(axis=1).min())
    assert np.mean(weights) > 0.8


@pytest.mark.parametrize("seed", range(5))
def test_noise_beside_proxies_that_tell_something_costs_less(seed):
    """Three proxies that hold a quality and three that hold none: S is nearer to it than with equal weights."""
    rng = np.random.default_rng(seed)
    quality = rng.standard_normal(400)
    table = np.column_stack([*(quality + 0.5 * rng.standard_normal((3, 400))), *rng.standard_normal((3, 400))])
    assert kendalltau(aggregate(table), quality)[0] > kendalltau(aggregate_aznas(table), quality)[0]


def test_few_networks_or_proxies_count_alike():
    assert consensus_weights(study(9, 0, [1, 1, -1])).tolist() == [1, 1, 1]
    assert consensus_weights(study(100, 0, [1, -1])).tolist() == [1, 1]


def test_a_small_study_needs_more_evidence():
    """The same correlations lower a weight only where they come from many networks."""
    few = [study(16, seed, [1, 1, 0, 1]) for seed in range(20)]
    many = [np.repeat(table, 100, axis=0) for table in few]  # ties share their ranks: the correlations stay
    less = [(consensus_weights(a)[2], consensus_weights(b)[2]) for a, b in zip(few, many, strict=True)]
    assert all(small >= large for small, large in less)
    assert np.mean([small for small, _ in less]) > 0.9 > 0.7 > np.mean([large for _, large in less])


@given(st.integers(0, 10**6), st.integers(10, 60), st.integers(3, 6))
@settings(max_examples=40)
def test_properties(seed, n, m):
    rng = np.random.default_rng(seed)
    table = rng.integers(0, 8, (n, m)).astype(float)
    table[rng.random((n, m)) < 0.1] = -np.inf
    weights = consensus_weights(table)
    assert weights.shape == (m,)
    assert np.all((weights >= 0) & (weights <= 1))
    order = rng.permutation(n)
    np.testing.assert_allclose(consensus_weights(table[order]), weights, atol=2e-3)
    np.testing.assert_allclose(consensus_weights(np.exp(table)), weights, atol=2e-3)  # only ranks count
    columns = rng.permutation(m)
    np.testing.assert_allclose(consensus_weights(table[:, columns]), weights[columns], atol=2e-3)


def test_a_constant_proxy_contradicts_nothing():
    table = np.column_stack([study(50, 0, [1, 1, 1]), np.zeros(50)])
    assert consensus_weights(table).tolist() == [1, 1, 1, 1]


def test_the_papers_formula_to_the_letter():
    table = study(200, 1, [1, 1, -1, 1])
    ranks = rankdata(table, axis=0)
    np.testing.assert_allclose(aggregate_aznas(table), np.log(ranks / 200).sum(axis=1), rtol=1e-12)


@pytest.mark.parametrize("table", [[1.0, 2.0], 3.0, [[[1.0]]], np.zeros((2, 0))])
def test_what_is_no_table(table):
    with pytest.raises(ValueError, match=r"table of shape \(networks, proxies\); got shape"):
        consensus_weights(table)


def test_the_table_is_not_changed():
    table = np.array([[np.nan, 1.0, 2.0]] * 12)
    assert consensus_weights(table).tolist() == [1, 1, 1]
    assert np.isnan(table[:, 0]).all()


def test_weights_in_words():
    names = ["a", "b", "c", "d"]
    assert describe_weights(names, [1, 1, 1, 1]) == ""
    assert describe_weights(names, [1, 0.5, 1, 0]) == (
        "b counts 50%, as it agrees little with the other proxies on these networks; "
        "d is not counted, as it ranks these networks against the other proxies"
    )
    assert describe_weights(names, [0.25, 0.5, 0, 0]) == (
        "a counts 25%, b counts 50%, as they agree little with the other proxies on these networks; "
        "c, d are not counted, as they rank these networks against the other proxies"
    )
