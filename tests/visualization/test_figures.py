"""The figures show what the study holds, whatever has become of its trials."""

from __future__ import annotations

import json
import math
import re
import sys

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState, create_trial
from scipy import stats

import optuna_aznas as az
from optuna_aznas import visualization
from optuna_aznas._text import for_plotly
from optuna_aznas.aggregation import consensus_weights
from tests import reference, studies

pytest.importorskip("plotly", reason="plotly is not installed (extra 'visualization')")

AZNAS = ["expressivity", "progressivity", "trainability", "complexity"]

OF_A_STUDY = [
    visualization.plot_rank_history,
    visualization.plot_proxy_pairs,
    visualization.plot_parallel_coordinate,
    visualization.plot_complexity,
]


@pytest.fixture(scope="module")
def search():
    return studies.four_objectives()


@pytest.fixture(scope="module")
def trained():
    return studies.trained()


def large(n, m=4, seed=0):
    rng = np.random.default_rng(seed)
    study = az.create_study(proxies=[f"p{i}" for i in range(m - 1)] + ["complexity"])
    table = rng.normal(size=(n, m)) + rng.normal(size=(n, 1))
    table[:, -1] = np.exp(table[:, -1])
    study.add_trials([create_trial(values=row.tolist()) for row in table])
    return study


def trace(figure, name):
    (found,) = [trace for trace in figure.data if trace.name == name]
    return found


def ranked(study):
    """S of the completed trials by number, from the plain implementation."""
    complete = [trial for trial in study.trials if trial.state == TrialState.COMPLETE]
    return dict(zip([t.number for t in complete], plain_s([t.values for t in complete]), strict=True))


def plain_s(table):
    return reference.aggregate(table, consensus_weights(table))


def everything_in(figure):
    return json.loads(figure.to_json())


def test_history_shows_each_scored_trial_and_the_best_so_far(search):
    figure = visualization.plot_rank_history(search)
    s = ranked(search)
    complete = trace(figure, "complete")
    assert list(complete.x) == list(s)
    assert list(complete.y) == pytest.approx(list(s.values()), rel=1e-6)
    best = trace(figure, "best so far")
    expected = dict(zip(s, np.maximum.accumulate(list(s.values())), strict=True))
    for number, value in zip(best.x, best.y, strict=True):
        assert value == pytest.approx(expected[int(number)], rel=1e-6)
    assert best.y[-1] == pytest.approx(max(s.values()), rel=1e-6)
    text = figure.layout.title.text
    assert "48 scored trials" in text
    assert "6 failed, 6 pruned, 1 running" in text.replace("6 pruned, 6 failed", "6 failed, 6 pruned")


def test_history_tells_states_apart(trained):
    figure = visualization.plot_rank_history(trained)
    drawn = {t.name: len(t.x) for t in figure.data}
    states = [trial.state for trial in trained.trials if "aznas:scores" in trial.user_attrs]
    assert drawn["pruned"] == states.count(TrialState.PRUNED)
    assert drawn["failed"] == states.count(TrialState.FAIL)
    assert drawn["complete"] == states.count(TrialState.COMPLETE)
    infeasible = az.create_study(
        proxies=["a", "b"], sampler=az.AZNASSampler(constraints_func=lambda trial: (trial.params["x"] - 50,), seed=0)
    )
    infeasible.optimize(lambda trial: (trial.suggest_int("x", 0, 99), trial.number), n_trials=20)
    figure = visualization.plot_rank_history(infeasible)
    over = [trial.number for trial in infeasible.trials if trial.params["x"] > 50]
    assert list(trace(figure, "not feasible").x) == over
    assert set(trace(figure, "best so far").x[:-1]).isdisjoint(over)


def test_pairs_show_scores_and_their_rank_correlation(search):
    figure = visualization.plot_proxy_pairs(search)
    table = np.array([t.values for t in search.trials if t.state == TrialState.COMPLETE])
    expected = [
        stats.spearmanr(table[:, i], table[:, j]).statistic for i, j in [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    ]
    shown = [float(a.text.split("=")[1].split("<")[0]) for a in figure.layout.annotations]
    assert shown == pytest.approx(expected, abs=0.006)
    drawn = np.concatenate([t.customdata for t in figure.data if t.xaxis == "x"])
    assert sorted(drawn) == [t.number for t in search.trials if t.state == TrialState.COMPLETE]
    for t in figure.data:  # -inf is on the border, not lost and not drawn at infinity
        assert np.isfinite(t.x).all()
        assert np.isfinite(t.y).all()
    assert "6 with a score off the axes" in figure.layout.title.text


def test_pairs_of_many_proxies_are_a_table():
    study = large(50, m=7)
    figure = visualization.plot_proxy_pairs(study)
    table = np.array([t.values for t in study.trials])
    assert figure.data[0].z == pytest.approx(stats.spearmanr(table).statistic, abs=1e-6)
    chosen = visualization.plot_proxy_pairs(study, proxies=["p3", "complexity"])
    assert len(chosen.layout.annotations) == 1
    with pytest.raises(ValueError, match="proxies must be two or more of"):
        visualization.plot_proxy_pairs(study, proxies=["p3", "p9"])


@pytest.mark.parametrize("m", [4, 6])  # panels, and a table of correlations
def test_pairs_name_a_proxy_that_counts_less(m):
    names = [f"p{i}" for i in range(m - 1)] + ["<c>"]
    study = az.create_study(proxies=names)
    study.add_trials([create_trial(values=[float(i)] * (m - 1) + [-float(i)]) for i in range(20)])
    title = visualization.plot_proxy_pairs(study).layout.title.text
    words = "&lt;c&gt; is not counted, as it ranks these networks against the other proxies"
    assert words in re.sub(r"<br><span[^>]*>|</span>", " ", title).replace("  ", " ")
    assert "counted" not in visualization.plot_proxy_pairs(study, proxies=names[:2]).layout.title.text


def test_a_constant_proxy_has_no_correlation():
    study = az.create_study(proxies=["a", "b"])
    study.add_trials([create_trial(values=[float(i), 1.0]) for i in range(5)])
    assert visualization.plot_proxy_pairs(study).layout.annotations[0].text == "<b>ρ = nan</b>"


def test_parallel_coordinates_are_ranks(search):
    figure = visualization.plot_parallel_coordinate(search)
    table = np.array([t.values for t in search.trials if t.state == TrialState.COMPLETE])
    (lines,) = figure.data
    order = np.argsort(list(ranked(search).values()), kind="stable")
    for k, name in enumerate(search.metric_names):
        assert lines.dimensions[k].label == name
        assert lines.dimensions[k]["values"] == pytest.approx(stats.rankdata(table[:, k])[order])
    assert lines.dimensions[-1].label == "S"


def test_complexity_with_the_budget(search):
    figure = visualization.plot_complexity(search, budget=1e7)
    costs = {t.number: t.values[3] for t in search.trials if t.state == TrialState.COMPLETE}
    complete = trace(figure, "complete")
    assert complete.x == pytest.approx([costs[int(n)] for n in complete.customdata], rel=1e-6)
    assert figure.layout.shapes[0].x0 == 1e7
    assert f"{sum(cost > 1e7 for cost in costs.values())} above the budget" in figure.layout.title.text
    s = ranked(search)
    best = trace(figure, "best up to here")
    for x, y in zip(best.x, best.y, strict=True):
        assert y == pytest.approx(max(s[n] for n, cost in costs.items() if cost <= x * (1 + 1e-6)), rel=1e-6)


def test_trained_value_against_rank(trained):
    figure = visualization.plot_rank_against_value(trained)
    scored = [t for t in trained.trials if "aznas:scores" in t.user_attrs]
    s = plain_s([[float(v) for v in t.user_attrs["aznas:scores"].values()] for t in scored])
    kept = {
        t.number: (x, t.value)
        for t, x in zip(scored, s, strict=True)
        if t.state == TrialState.COMPLETE and math.isfinite(t.value)
    }
    points = trace(figure, "trained")
    assert sorted(points.customdata) == sorted(kept)
    for number, x, y in zip(points.customdata, points.x, points.y, strict=True):
        assert (x, y) == pytest.approx(kept[int(number)], rel=1e-6)
    tau = stats.kendalltau(*np.array(list(kept.values())).T).statistic
    assert f"Kendall's τ {tau:.2f}" in figure.layout.title.text
    assert "1 values not finite, left out" in figure.layout.title.text
    number = max(kept, key=lambda number: kept[number][1])
    best = trace(figure, f"trial {number}: best value")
    assert best.y[0] == kept[number][1]


def test_which_way_a_trained_value_is_better():
    study = studies.trained(direction="minimize", n=20)
    shown = [t for t in study.trials if t.state == TrialState.COMPLETE and "aznas:scores" in t.user_attrs]
    lowest = min(shown, key=lambda t: t.value)
    best = trace(visualization.plot_rank_against_value(study), f"trial {lowest.number}: best value")
    assert best.y[0] == lowest.value


def test_the_history_marks_the_trial_to_take(search):
    best = az.best_trials(search, 1)[0]
    star = trace(visualization.plot_rank_history(search), f"trial {best.number}: highest S")
    assert list(star.x) == [best.number]
    assert star.y[0] == pytest.approx(az.rank_scores(search)[best.number], rel=1e-6)


def test_a_target_as_in_optuna(search):
    with pytest.raises(ValueError, match="target must say which value"):
        visualization.plot_rank_against_value(search)
    figure = visualization.plot_rank_against_value(search, target=lambda t: -t.values[3], target_name="minus cost")
    assert figure.layout.yaxis.title.text == "minus cost"
    assert len(trace(figure, "trained").x) == 48


def test_importance_is_what_proxy_importance_says(trained):
    figure = visualization.plot_proxy_importance(trained)
    expected = az.proxy_importance(trained)
    assert list(figure.data[0].y) == [for_plotly(name) for name in expected]
    assert list(figure.data[0].x) == pytest.approx([entry.mean for entry in expected.values()])
    with pytest.raises(ValueError, match="trained"):
        visualization.plot_proxy_importance(optuna.create_study())


def test_thousands_of_trials_stay_small():
    study = large(4_000)
    for plot in OF_A_STUDY:
        figure = plot(study)
        assert len(figure.to_json()) < 120_000
        assert "4,000 scored trials" in figure.layout.title.text
    history = visualization.plot_rank_history(study, max_points=500)
    drawn = trace(history, "complete")
    s = np.array(list(ranked(study).values()))
    assert len(drawn.x) == 500  # the best, and no others
    assert min(drawn.y) >= np.sort(s)[-500] - 1e-6
    assert "3,500 of them as grey density" in history.layout.title.text
    assert np.asarray(trace(history, "density").z).max() == 255
    lines = visualization.plot_parallel_coordinate(study).data[0].dimensions[-1]["values"]
    assert len(lines) == 400
    assert sorted(lines)[-200:] == pytest.approx(np.sort(s)[-200:], rel=1e-5)


@pytest.mark.parametrize("plot", [*OF_A_STUDY, visualization.plot_rank_against_value])
def test_nothing_to_show_yet(plot, caplog):
    study = optuna.create_study()
    study.ask()
    figure = plot(study)
    assert not figure.data
    assert figure.layout.annotations[0].text.startswith("No scored trial")


@pytest.mark.parametrize("plot", OF_A_STUDY)
def test_one_trial(plot):
    study = az.create_study(proxies=AZNAS)
    study.add_trial(create_trial(values=[1.0, 2.0, -math.inf, 4.0]))
    text = json.dumps(everything_in(plot(study)), allow_nan=False)
    assert "Infinity" not in text


def test_nothing_but_dead_networks():
    study = az.create_study(proxies=AZNAS)
    study.add_trials([create_trial(values=[-math.inf] * 4) for _ in range(5)])
    for plot in OF_A_STUDY:
        json.dumps(everything_in(plot(study)), allow_nan=False)
    assert "No trial has a finite complexity" in visualization.plot_complexity(study).layout.annotations[0].text


def test_text_of_the_user_is_escaped(trained):
    for plot in (visualization.plot_proxy_pairs, visualization.plot_parallel_coordinate):
        assert "<i>own" not in plot(trained).to_json()
    name = "<a href='x'>$y$</a> %{x}"
    figure = visualization.plot_rank_against_value(trained, target=lambda t: t.value, target_name=name)
    shown = figure.layout.yaxis.title.text
    assert "<" not in shown
    assert "$" not in shown
    assert "{" not in shown
    assert "&lt;a href=" in shown


@pytest.mark.parametrize("plot", OF_A_STUDY)
def test_without_plotly(plot, monkeypatch, search):
    monkeypatch.setitem(sys.modules, "plotly", None)
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    with pytest.raises(ImportError, match=r"pip install 'optuna-aznas\[visualization\]'"):
        plot(search)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: visualization.plot_rank_history(s, max_points=0), "max_points must be an integer of at least 1"),
        (lambda s: visualization.plot_parallel_coordinate(s, max_lines=0), "max_lines must be"),
        (lambda s: visualization.plot_complexity(s, budget=-1), "budget must be a number above 0"),
        (lambda s: visualization.plot_complexity(s, proxy="flops"), "proxy must be one of the study's proxies"),
        (lambda s: visualization.plot_rank_against_value(s, target=1), "target must be callable"),
    ],
)
def test_arguments_out_of_range(call, message, search):
    with pytest.raises(ValueError, match=message):
        call(search)
