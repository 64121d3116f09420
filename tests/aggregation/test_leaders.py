"""Leaders and BestShare give the answers that ranking everything anew gives."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optuna_aznas.aggregation import BestShare, Leaders, RankHistory, aggregate, leaders
from optuna_aznas.aggregation.leaders import highest_later, lowest_later

cells = st.one_of(st.integers(0, 4).map(float), st.floats(0, 1), st.just(-math.inf))


@st.composite
def growing_tables(draw):
    """Chunks of rows, each row with a mark whether it is eligible."""
    m = draw(st.integers(1, 4))
    row = st.tuples(st.lists(cells, min_size=m, max_size=m), st.booleans())
    return draw(st.lists(st.lists(row, min_size=1, max_size=6), min_size=1, max_size=12))


def expected_best(history, eligible, k):
    s = aggregate(history.table)
    rows = np.flatnonzero(eligible) if any(eligible) else np.arange(len(s))
    last = np.sort(s[rows])[-k] if len(rows) >= k else -np.inf
    return {int(i): float(s[i]) for i in rows if s[i] >= last}


@settings(max_examples=200)
@given(growing_tables(), st.integers(1, 4))
def test_leaders_of_any_growing_table(chunks, k):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leaders, "_CONTENDERS", 1)  # small tables too have networks that are no contenders
        history, eligible = RankHistory(), []
        best = Leaders(history)
        for chunk in chunks:
            history.extend([row for row, _ in chunk])
            best.add([mark for _, mark in chunk])
            eligible += [mark for _, mark in chunk]
            assert dict(best.best(k)) == expected_best(history, eligible, k)


@pytest.mark.parametrize("drift", [0.0, 0.02])  # a search that stands still, and one that gets better
def test_leaders_of_a_long_search_rank_all_only_now_and_then(drift, monkeypatch):
    ranked = []
    monkeypatch.setattr(Leaders, "_rank_all", lambda self, k, all_=Leaders._rank_all: ranked.append(k) or all_(self, k))
    rng = np.random.default_rng(0)
    history, eligible = RankHistory(), []
    best = Leaders(history)
    for i in range(1500):
        history.append(rng.normal(size=4) + i * drift)
        best.add([i % 3 > 0])
        eligible.append(i % 3 > 0)
        found = dict(best.best(5))
        if i % 25 == 0:
            assert found == expected_best(history, eligible, 5)
    assert 2 <= len(ranked) <= 60


@settings(max_examples=200)
@given(growing_tables(), st.sampled_from([0.05, 0.25, 0.5, 1.0]))
def test_best_share_of_any_growing_table(chunks, share):
    history = RankHistory()
    best = BestShare(history)
    for chunk in chunks:
        for row, _ in chunk:
            s = aggregate([*history.table, row])
            assert best.includes(row, share) == (np.mean(s >= s[-1]) <= share)
        history.extend([row for row, _ in chunk])


def test_best_share_of_a_long_search_ranks_all_only_now_and_then(monkeypatch):
    rng = np.random.default_rng(0)
    history = RankHistory()
    best = BestShare(history)
    exact = []
    scores = RankHistory.scores
    monkeypatch.setattr(RankHistory, "scores", lambda self, rows=None: exact.append(1) or scores(self, rows))
    for _ in range(1000):
        row = rng.normal(size=4)
        answer = best.includes(row, 0.25)
        s = aggregate([*history.table, row])
        assert answer == (np.mean(s >= s[-1]) <= 0.25)
        history.append(row)
    assert 2 <= len(exact) <= 250


@settings(max_examples=300)
@given(st.integers(1, 4), st.integers(1, 30), st.integers(0, 30), st.data())
def test_bounds(m, n, more, data):
    """Whatever is added, S stays between the bounds."""
    ranks = np.array(data.draw(st.lists(st.floats(1, n), min_size=m, max_size=m)))
    rises = np.array(data.draw(st.lists(st.floats(0, more), min_size=m, max_size=m)))
    before = float(np.sum(np.log(ranks / n)))
    after = float(np.sum(np.log((ranks + rises) / (n + more))))
    assert lowest_later(before, m, n, n + more) - 1e-9 <= after <= highest_later(before, m, n, n + more) + 1e-9


def test_the_upper_bound_is_reached():
    """A network at the top of all proxies but one."""
    n, later, m, low = 100, 150, 4, 7.0
    before = math.log(low / n)
    assert highest_later(before, m, n, later) == pytest.approx(math.log((low + 50) / later))
