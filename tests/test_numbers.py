"""Numbers that a trial stores beside its proxy scores, and where they are shown."""

from __future__ import annotations

import json
import math

import optuna
import pytest

import optuna_aznas as az
from optuna_aznas.dashboard._study_note import study_note
from optuna_aznas.dashboard._trial_note import trial_note
from optuna_aznas.measure import Measurement
from optuna_aznas.study.numbers import NUMBER_PREFIX, recorded_numbers
from optuna_aznas.visualization._scored import ScoredTrials


@pytest.fixture
def study():
    """A search whose sampler keeps a limit on the latency; the objective records a number of its own."""

    def build(trial):
        return trial.suggest_int("x", 1, 20)

    def objective(trial):
        x = build(trial)
        az.record_numbers(trial, {"watts": Measurement(2.0 * x, 0.5, 9, "W"), "<b>": math.inf})
        trial.set_user_attr("cost", 3 * x)
        return float(x), float(x % 5)

    limits = az.Limits(build, latency=az.Limit(15.0, lambda x: Measurement(x, 0.25, 7, "ms"), unit="ms"))
    study = az.create_study(proxies=["a", "b"], sampler=az.AZNASSampler(limits=limits, seed=0))
    study.optimize(objective, n_trials=10)
    return study


def test_numbers_are_plain_json_and_come_back(study):
    trial = study.trials[0]
    x = trial.params["x"]
    found = recorded_numbers(trial)
    assert found["latency"].measurement == Measurement(x, 0.25, 7, "ms")
    assert found["latency"].limit == 15.0
    assert found["watts"].limit is None
    assert found["<b>"].measurement.median == math.inf
    json.dumps(trial.user_attrs, allow_nan=False)


def test_a_limit_is_compared_with_median_and_spread(study):
    assert {trial.params["x"] for trial in study.trials} <= set(range(1, 15))  # 15 + 0.25 is above the limit


def test_leaderboard(study):
    board = az.leaderboard(study, n=3)
    assert board.units == {"latency": "ms", "watts": "W", "<b>": ""}
    assert [entry.numbers["latency"].median for entry in board] == [entry.params["x"] for entry in board]
    header = str(board).splitlines()[0]
    assert "latency (ms)" in header
    assert "watts (W)" in header
    row = board.to_dicts()[0]
    assert row["number_latency"] == row["params_x"]


def test_what_is_a_proxy_score_is_shown_once():
    study = az.create_study(proxies=["a", "complexity"], sampler=optuna.samplers.RandomSampler(seed=0))

    def objective(trial):
        az.record_numbers(trial, {"complexity": trial.suggest_int("x", 1, 9)})
        return 1.0, float(trial.params["x"])

    study.optimize(objective, n_trials=3)
    assert str(az.leaderboard(study)).splitlines()[0].split().count("complexity") == 1


def test_trials_without_a_number(study):
    study.sampler = optuna.samplers.RandomSampler(seed=0)
    study.optimize(lambda trial: (99.0, float(trial.suggest_int("x", 1, 20) + 99)), n_trials=1)
    assert az.leaderboard(study, n=1).to_dicts()[0]["place"] == 1
    both = az.leaderboard(study, n=3)
    assert both.to_dicts()[0]["number_latency"] is None
    assert "none" in str(both).splitlines()[1]


def test_notes(study):
    board, scored = az.leaderboard(study, n=3), ScoredTrials.of(study)
    assert "latency \\(ms\\)" in study_note(study, board, scored)
    row = [trial.number for trial in scored.trials].index(board[0].number)
    note = trial_note(scored, row, 1, row, None)
    assert "Its latency is" in note
    assert "the limit 15." in note


def test_figures(study):
    pytest.importorskip("plotly", reason="plotly is not installed")
    figure = az.visualization.plot_complexity(study, proxy="latency")
    assert figure.layout.xaxis.title.text == "latency (ms)"
    assert figure.layout.shapes[0].x0 == 15.0  # the limit
    assert "latency and rank score" in figure.layout.title.text
    assert az.visualization.plot_complexity(study, proxy="cost").layout.xaxis.title.text == "cost"
    assert "No trial has a finite" in az.visualization.plot_complexity(study, proxy="<b>").layout.annotations[0].text
    with pytest.raises(ValueError, match=r"or a number of its trials, \['cost', 'latency', .*got 'speed'"):
        az.visualization.plot_complexity(study, proxy="speed")


def test_dashboard(study):
    pytest.importorskip("optuna_dashboard", reason="optuna-dashboard is not installed")
    assert "aznas-number-0" in az.dashboard.publish(study)


@pytest.mark.parametrize(
    "stored", ["fast", 3, [], {}, {"median": "x"}, {"median": None}, {"median": 1, "n": "many"}, {"median": "nan"}]
)
def test_what_cannot_be_read_is_left_out(stored):
    trial = optuna.create_study().ask()
    trial.set_user_attr(f"{NUMBER_PREFIX}latency", stored)
    assert recorded_numbers(trial.study.trials[0]) == {}


@pytest.mark.parametrize(
    ("numbers", "message"),
    [({"": 1.0}, "names as keys"), ({1: 1.0}, "names as keys"), ({"ms": "fast"}, r"numbers\['ms'\] must be a number")],
)
def test_bad_numbers(numbers, message):
    with pytest.raises(ValueError, match=message):
        az.record_numbers(optuna.create_study().ask(), numbers)
