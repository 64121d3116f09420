"""What is published lies in the study, once, and leaves alone what is not ours."""

from __future__ import annotations

import json
import math
import re
import sys
import time
import warnings

import optuna
import pytest
from optuna.trial import TrialState, create_trial

import optuna_aznas as az
from optuna_aznas.dashboard import DashboardCallback, _callback, _lease, _publish, publish
from tests import studies

optuna_dashboard = pytest.importorskip(
    "optuna_dashboard", reason="optuna-dashboard is not installed (extra 'dashboard')"
)
pytest.importorskip("plotly", reason="plotly is not installed (extra 'visualization')")


@pytest.fixture(autouse=True)
def quick_lease(monkeypatch):
    monkeypatch.setattr(_lease, "_SETTLES", 0.005)


@pytest.fixture(params=["memory", "sqlite"])
def storage(request, tmp_path):
    return None if request.param == "memory" else f"sqlite:///{tmp_path}/nas.db"


def figures(study):
    """What optuna-dashboard would draw."""
    attrs = study._storage.get_study_system_attrs(study._study_id)
    keys = {tuple(key.split(":")[1:3]) for key in attrs if key.startswith("dashboard:plot_data:")}
    found = {}
    for _, name in keys:
        prefix = f"dashboard:plot_data:{name}:"
        parts = [attrs[f"{prefix}{i}"] for i in range(sum(key.startswith(prefix) for key in attrs))]
        found[name] = json.loads("".join(parts))
    return found


def note_of(study, number=None):
    if number is None:
        return optuna_dashboard.get_note(study)
    return optuna_dashboard.get_note(_publish._with_note(study, study.trials[number]))


def test_publishing(storage):
    study = studies.four_objectives(storage, n=30)
    ids = publish(study, n_best=3)
    assert ids == ("aznas-history", "aznas-pairs", "aznas-ranks", "aznas-complexity")
    drawn = figures(study)
    assert sorted(drawn) == sorted(ids)
    assert all(figure["data"] for figure in drawn.values())
    board = az.leaderboard(study, 3)
    note = note_of(study)
    for entry in board:
        assert f"| {entry.place} | {entry.number}\N{NO-BREAK SPACE}[↗](" in note
    assert f"**Take trial {board[0].number}" in note
    assert "the first of 24 scored trials" in note
    assert "Pareto front" in note
    assert "<img" not in note.replace("\\<img", "")
    for entry in board:
        own = note_of(study, entry.number)
        assert f"Place {entry.place} by rank score: S = −{abs(entry.rank_score):.3f}" in own
        for name in study.metric_names:
            assert name in own
    assert sum(bool(note_of(study, trial.number)) for trial in study.trials) == 3


def test_publishing_again_replaces(storage):
    study = studies.four_objectives(storage, n=20)
    publish(study, n_best=4)
    before = {entry.number for entry in az.leaderboard(study, 4)}
    study.add_trials([create_trial(values=[1e3 + i, 1e3 + i, 0.0, 1e9 + i]) for i in range(3)])
    publish(study, n_best=4)
    publish(study, n_best=4)
    best = [entry.number for entry in az.leaderboard(study, 4)]
    assert not before <= set(best)
    assert len(figures(study)) == 4
    assert note_of(study).count("the best by rank score") == 1
    noted = {trial.number for trial in study.trials if note_of(study, trial.number)}
    assert noted == set(best)


def test_notes_of_the_user_stay(storage):
    study = studies.four_objectives(storage, n=20)
    best = [entry.number for entry in az.leaderboard(study, 2)]
    other = next(t.number for t in study.trials if t.number not in best)
    optuna_dashboard.save_note(study, "# My study\n\nDo not lose this.")
    for number in (best[0], other):
        optuna_dashboard.save_note(_publish._with_note(study, study.trials[number]), f"my thoughts on {number}")
    publish(study, n_best=2)
    publish(study, n_best=2)
    assert note_of(study).startswith("# My study\n\nDo not lose this.")
    assert note_of(study).count("the best by rank score") == 1
    assert note_of(study, other) == f"my thoughts on {other}"
    assert note_of(study, best[0]).startswith(f"my thoughts on {best[0]}\n")
    # What falls off the leaderboard loses our part, and keeps the user's.
    study.add_trials([create_trial(values=[1e3 + i, 1e3 + i, 0.0, 1e9 + i]) for i in range(2)])
    publish(study, n_best=2)
    assert note_of(study, best[0]).rstrip() == f"my thoughts on {best[0]}"
    assert note_of(study, best[1]) == ""


def test_a_study_with_trainings():
    study = studies.trained()
    ids = publish(study)
    assert ids == ("aznas-history", "aznas-pairs", "aznas-ranks", "aznas-trained", "aznas-importance")
    board = az.leaderboard(study, 1)
    values = sorted(
        (t.value for t in study.trials if t.state == TrialState.COMPLETE and "aznas:scores" in t.user_attrs),
        reverse=True,
    )
    place = values.index(board[0].values["value"]) + 1
    assert f"**take trial {study.best_trial.number}" in note_of(study)
    assert "Pareto" not in note_of(study)
    assert f"place {place} of {len(values)} trained trials" in note_of(study, board[0].number)
    assert r"\<i\>own\<\/i\>" in note_of(study)


def test_the_parts_of_a_rank_score_add_up_to_it():
    study = az.create_study(study_name="s", proxies=["a", "b", "c"])
    for i in range(40):
        study.add_trial(
            create_trial(values=[float(i), i + 5.0 * (i % 3), -float(i)])
        )  # the third contradicts the others
    publish(study, n_best=5)
    assert "c is not counted, as it ranks these networks against the other proxies" in note_of(study)
    for entry in az.leaderboard(study, 5):
        rows = [line for line in note_of(study, entry.number).splitlines() if re.match(r"\| [abc] \|", line)]
        parts = [float(row.split("|")[4].replace("−", "-")) for row in rows]
        assert len(parts) == 3
        assert sum(parts) == pytest.approx(entry.rank_score, abs=0.002)


def test_all_weights_are_one():
    study = studies.four_objectives(n=5)
    publish(study)
    assert "All weights are 1." in note_of(study)


def test_what_stands_out():
    study = az.create_study(study_name="s", proxies=["a", "b"])
    for i, values in enumerate([(9, 8), (8, 9), (10, -float("inf")), (1, 1), (2, 2), (3, 3)]):
        study.add_trial(
            create_trial(
                values=[float(v) for v in values],
                params={"op": "ab"[i % 2], "x": i // 2},
                distributions={
                    "op": optuna.distributions.CategoricalDistribution(("a", "b")),
                    "x": optuna.distributions.IntDistribution(0, 9),
                },
            )
        )
    publish(study)
    assert "It is the best of all under **b**." in note_of(study, 1)
    assert "Its strong point is **a**: place 2 of 6." in note_of(study, 0)
    assert "| a | 9 | 2 of 6 |" in note_of(study, 0)
    assert "op is b instead of a" in note_of(study, 1)
    assert "**b** is −∞" in note_of(study, 2)
    assert "Its weak point is **b**: place 6 of 6 makes up 100% of what S falls short of 0." in note_of(study, 2)


def test_empty_and_running_studies():
    study = optuna.create_study()
    study.ask()
    assert publish(study) == ("aznas-history",)
    assert "No scored trial has been completed yet." in note_of(study)


def test_metric_names():
    directions = ["maximize", "maximize"]
    study = optuna.create_study(directions=directions)
    for i in range(3):
        trial = study.ask()
        az.record(trial, {"expressivity": i, "complexity": -i})
        study.tell(trial, (i, -i))
    publish(study)
    assert study.metric_names == ["expressivity", "complexity"]
    other = optuna.create_study(directions=directions)
    trial = other.ask()
    az.record(trial, {"expressivity": 1.0, "complexity": 2.0})
    other.tell(trial, (1.0, 99.0))  # the objectives are something else
    publish(other)
    assert other.metric_names is None
    with pytest.raises(ValueError, match="metric_names must name each of the 2 objectives"):
        publish(other, metric_names=["a"])
    publish(other, metric_names=["accuracy", "speed"])
    assert other.metric_names == ["accuracy", "speed"]
    publish(other, metric_names=["x", "y"])
    assert other.metric_names == ["accuracy", "speed"]


def test_budget_of_the_study():
    study = studies.four_objectives(n=20)
    study.set_user_attr("aznas:budget", 1e7)
    publish(study)
    assert figures(study)["aznas-complexity"]["layout"]["shapes"][0]["x0"] == 1e7


def test_who_publishes_holds_the_lease_meanwhile(monkeypatch):
    """Two workers that write one figure at the same time would leave a mixture of both."""
    held_by_another = []

    def figures_while_another_asks(study, budget):
        with _lease.publishing(study, wait=False) as held:
            held_by_another.append(held)
        return {}

    monkeypatch.setattr(_publish, "_figures", figures_while_another_asks)
    monkeypatch.setattr(_lease, "_LASTS", 1e6)
    study = studies.four_objectives(n=10)
    publish(study)
    DashboardCallback(every=1)(study, study.trials[0])
    assert held_by_another == [False, False]
    with _lease.publishing(study, wait=False) as held:
        assert held


def test_one_at_a_time():
    study = optuna.create_study()
    with _lease.publishing(study, wait=False) as first:
        assert first
        with _lease.publishing(study, wait=False) as second:
            assert not second
    with _lease.publishing(study, wait=False) as third:
        assert third


class Clock:
    """Stands in for the module ``time``: its time passes in ``sleep`` only."""

    def __init__(self, during_sleep=lambda: None):
        self.now = 0.0
        self.during_sleep = during_sleep

    def time(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds
        self.during_sleep()


def test_the_lease_of_a_dead_worker_ends(monkeypatch):
    study = optuna.create_study()
    clock = Clock()
    monkeypatch.setattr(_lease, "time", clock)
    assert _lease._try_to_take(study, "dead")
    with _lease.publishing(study, wait=True) as held:
        assert held
    assert clock.now >= _lease._LASTS


@pytest.mark.parametrize(
    "lease",
    [
        {"owner": "other", "until": 1e12},
        {"owner": "other", "until": "soon"},
        {"owner": "other", "until": None},
        {"owner": 3, "until": 30.0},
        {"until": 30.0},
        {},
        "other",
        [1],
        7,
    ],
)
def test_a_malformed_lease_is_no_lease(monkeypatch, lease):
    study = optuna.create_study()
    clock = Clock()
    monkeypatch.setattr(_lease, "time", clock)
    _lease._write(study, lease)
    with _lease.publishing(study, wait=False) as held:
        assert held
    assert clock.now < 1.0


def test_a_lease_in_the_future_is_waited_for_within_bounds(monkeypatch):
    study = optuna.create_study()
    clock = Clock()
    monkeypatch.setattr(_lease, "time", clock)
    _lease._write(study, {"owner": "other", "until": 90.0})  # of a machine whose clock is ahead by half a minute
    with _lease.publishing(study, wait=True) as held:
        assert held
    assert 90.0 <= clock.now < 95.0


@pytest.mark.parametrize("noted", [7, "all", {"0": 1}, [None, True, "1", 2.5, -1, 10**6, "a trial"], None])
def test_a_malformed_list_of_notes(noted):
    study = studies.four_objectives(n=10)
    publish(study, n_best=10)
    last = az.leaderboard(study, 10)[-1].number
    if isinstance(noted, list):
        noted = [last if entry == "a trial" else entry for entry in noted]
    study._storage.set_study_system_attr(study._study_id, _publish.NOTED_KEY, noted)
    with pytest.warns(UserWarning, match="not a list of trial numbers"):
        publish(study, n_best=1)
    best = az.best_trials(study, 1)[0].number
    assert note_of(study, best)
    assert (note_of(study, last) == "") == isinstance(noted, list)  # it is removed if the list names the trial
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        publish(study, n_best=1)


@pytest.mark.parametrize("budget", ["450M", [1], -1, 0, math.inf, True, {}])
def test_a_malformed_budget_of_the_study_is_not_drawn(budget):
    study = studies.four_objectives(n=10)
    study.set_user_attr("aznas:budget", budget)
    publish(study)
    assert not figures(study)["aznas-complexity"]["layout"].get("shapes")


def test_publishing_waits_for_another_worker_to_finish(monkeypatch):
    study = optuna.create_study()
    clock = Clock()
    monkeypatch.setattr(_lease, "time", clock)
    assert _lease._try_to_take(study, "other")
    clock.during_sleep = lambda: clock.now > 5.0 and _lease._owner(study) == "other" and _lease._write(study, None)
    with _lease.publishing(study, wait=True) as held:
        assert held
    assert 5.0 < clock.now < 10.0


def test_of_two_workers_that_ask_at_once_the_last_to_write_has_the_lease(monkeypatch):
    study = optuna.create_study()
    other = {"owner": "other", "until": 30.0}
    monkeypatch.setattr(_lease, "time", Clock(during_sleep=lambda: _lease._write(study, other)))
    assert not _lease._try_to_take(study, "first")
    assert _lease._owner(study) == "other"


def test_callback_publishes_every_so_often(monkeypatch):
    published = []
    monkeypatch.setattr(_callback, "publish_now", lambda study, **_: published.append(len(study.trials)))
    study = optuna.create_study()
    study.optimize(lambda trial: 0.0, n_trials=35, callbacks=[DashboardCallback(every=10, share=1.0)])
    assert published == [10, 20, 30]


def test_callback_leaves_most_of_the_time_to_the_search(monkeypatch):
    published = []

    def slow(study, **_):
        published.append(len(study.trials))
        time.sleep(0.05)

    monkeypatch.setattr(_callback, "publish_now", slow)
    study = optuna.create_study()
    study.optimize(lambda trial: 0.0, n_trials=20, callbacks=[DashboardCallback(every=1, share=1e-6)])
    assert published == [1]


def test_errors_in_the_callback_do_not_stop_the_study(monkeypatch):
    def fails(study, **_):
        raise ConnectionError("the database is gone")

    monkeypatch.setattr(_callback, "publish_now", fails)
    study = optuna.create_study(study_name="s")
    with pytest.warns(UserWarning, match="'s' could not be published .* ConnectionError: the database is gone"):
        study.optimize(lambda trial: 0.0, n_trials=3, callbacks=[DashboardCallback(every=2)])
    assert len(study.trials) == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monkeypatch.setattr(_callback, "publish_now", lambda study, **_: None)
        study.optimize(lambda trial: 0.0, n_trials=3, callbacks=[DashboardCallback(every=2)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every": 0}, "every must be an integer of at least 1"),
        ({"share": 0}, "share must be above 0 and at most 1"),
        ({"n_best": 0}, "n_best must be an integer of at least 1"),
        ({"budget": -1.0}, "budget must be a number above 0"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        DashboardCallback(**arguments)


def test_without_optuna_dashboard(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna_dashboard", None)
    with pytest.raises(ImportError, match=r"pip install 'optuna-aznas\[dashboard\]'"):
        publish(optuna.create_study())
    with pytest.raises(ImportError, match=r"pip install 'optuna-aznas\[dashboard\]'"):
        DashboardCallback()
