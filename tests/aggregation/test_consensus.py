"""Consensus weights: full where proxies agree or are unrelated, none where one contradicts the others."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata

from optuna_aznas.aggregation import aggregate, aggregate_aznas, consensus_weights


def study(n: int, seed: int, signs: list[float]) -> np.ndarray:
    """Proxies that share a hidden quality, each with noise of its own and a sign."""
    rng = np.random.default_rng(seed)
    quality = rng.standard_normal(n)
    return np.column_stack([sign * quality + rng.standard_normal(n) for sign in signs])


@pytest.mark.parametrize("seed", range(5))
def test_agreement_and_unrelated_proxies_keep_their_weight(seed):
    assert consensus_weights(study(300, seed, [1, 1, 1, 1])).tolist() == [1, 1, 1, 1]
    assert consensus_weights(study(300, seed, [1, 1, 1, 0])).min() > 0.4


@pytest.mark.parametrize("seed", range(5))
def test_a_contradicting_proxy_is_left_out(seed):
    table = study(300, seed, [1, 1, -1, 1])
    assert consensus_weights(table).tolist() == [1, 1, 0, 1]
    np.testing.assert_array_equal(aggregate(table), aggregate(table, [1, 1, 0, 1]))
    quality = table[:, [0, 1, 3]].sum(axis=1)
    assert np.corrcoef(aggregate(table), quality)[0, 1] > np.corrcoef(aggregate_aznas(table), quality)[0, 1]


def test_one_weight_by_the_definition():
    """At the fixed point each weight follows from the correlation with the others' weighted log ranks."""
    table = study(400, 3, [1, 1, -0.2, 1])
    weights = consensus_weights(table)
    assert 0 < weights[2] < 1
    ranks = rankdata(table, axis=0)
    for k in range(4):
        others = sum(weights[j] * np.log(ranks[:, j] / 400) for j in range(4) if j != k)
        r = np.corrcoef(ranks[:, k], others)[0, 1]
        assert weights[k] == pytest.approx(min(1.0, max(0.0, 1 + (r + 0.05) / 0.15)), abs=0.02)


def test_few_networks_or_proxies_count_alike():
    assert consensus_weights(study(9, 0, [1, 1, -1])).tolist() == [1, 1, 1]
    assert consensus_weights(study(100, 0, [1, -1])).tolist() == [1, 1]


def test_a_small_study_needs_more_evidence():
    """The same correlation of -0.2 leaves a proxy out among 400 networks, and not among 25."""

    def weight(n):
        return np.mean([consensus_weights(study(n, seed, [1, 1, -0.25, 1]))[2] for seed in range(40)])

    assert weight(400) < 0.35 < weight(25)


@given(st.integers(0, 10**6), st.integers(10, 60), st.integers(3, 6))
@settings(deadline=None, max_examples=40)
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
