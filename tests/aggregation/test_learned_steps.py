"""The steps of the learned ranking one by one: what it is fitted to, when, and what it predicts for."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optuna_aznas.aggregation import LearnedAggregation
from optuna_aznas.aggregation.gaussian_process import Process
from optuna_aznas.aggregation.learned import _choose


def test_the_kernels_hyperparameters_are_chosen_anew_at_15_percent_more_values(monkeypatch):
    fitted = []
    monkeypatch.setattr(Process, "fit", lambda self, x, y: fitted.append(len(y)))
    rng = np.random.default_rng(0)
    scores, model, values = rng.normal(size=(70, 2)), LearnedAggregation(), np.full(70, np.nan)
    for i in range(60):
        values[i] = rng.normal()
        model.predict(scores, values)
    assert fitted[0] == 5
    for before, after in itertools.pairwise(fitted):
        assert after - 1 < 1.15 * before <= after
    assert 1.15 * fitted[-1] > 60


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_predictions_are_for_the_hyperparameters_of_the_best_trained_network(sign):
    """The trained values follow the hyperparameter: trained as the best was, every network is above average."""
    rng = np.random.default_rng(0)
    scores, rate = rng.normal(size=(100, 2)), rng.random((100, 1))
    values = np.where(np.arange(100) < 50, sign * 10 * rate[:, 0] + 0.1 * scores[:, 0], np.nan)
    prediction = LearnedAggregation().predict(scores, values, None, rate)
    assert np.mean(prediction.mean) > 0.7


@given(st.permutations(range(60)), st.integers(2, 70))
def test_the_best_half_is_chosen_and_the_others_evenly(values, limit):
    chosen = sorted((values[i] for i in _choose(np.array(values, dtype=float), limit)), reverse=True)
    assert len(chosen) == len(set(chosen)) == min(limit, 60)
    half = min(limit, 60) // 2
    assert chosen[:half] == [59 - i for i in range(half)]
    if 4 <= limit < 60:
        assert chosen[-1] == 0  # the others reach down to the worst
        gaps = -np.diff(chosen[half:])
        assert len(gaps) == 0 or gaps.max() - gaps.min() <= 1
