"""record, create_study, best_trials, leaderboard, rank_scores."""

from __future__ import annotations

import json
import math
import warnings

import numpy as np
import optuna
import pytest
from optuna.study import StudyDirection
from optuna.trial import TrialState
from scipy.stats import rankdata

import optuna_aznas as az
from optuna_aznas import proxies
from optuna_aznas.aggregation import consensus_weights
from tests import reference


def fill(study, n=40, seed=0):
    rng = np.random.default_rng(seed)
    m = len(study.directions)

    def objective(trial):
        trial.suggest_int("x", 0, 10**6)
        return tuple(float(v) for v in rng.integers(0, 12, m))

    study.optimize(objective, n_trials=n)


def test_create_study_is_an_ordinary_study(tmp_path):
    storage = f"sqlite:///{tmp_path}/nas.db"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no experimental warning reaches the user
        study = az.create_study(study_name="nb201", storage=storage, seed=0)
    assert type(study) is optuna.Study
    assert study.directions == [StudyDirection.MAXIMIZE] * 6
    assert study.metric_names == list(proxies.DEFAULT)
    assert isinstance(study.sampler, az.AZNASSampler)
    assert isinstance(study.pruner, az.AZNASPruner)
    fill(study)
    again = az.create_study(study_name="nb201", storage=storage, load_if_exists=True)
    assert len(again.trials) == 40
    assert az.rank_scores(again) == az.rank_scores(study)
    with pytest.raises(optuna.exceptions.DuplicatedStudyError):
        az.create_study(study_name="nb201", storage=storage)
    loaded = optuna.load_study(study_name="nb201", storage=storage, sampler=az.AZNASSampler())
    fill(loaded, 5)
    assert len(az.rank_scores(again)) == 45


def test_create_study_with_what_does_not_fit(tmp_path):
    storage = f"sqlite:///{tmp_path}/nas.db"
    optuna.create_study(study_name="mixed", storage=storage, directions=["maximize", "minimize", *["maximize"] * 4])
    with pytest.raises(
        ValueError, match=r"'mixed' exists with directions \['maximize', 'minimize'.*all of them maximised"
    ):
        az.create_study(study_name="mixed", storage=storage, load_if_exists=True)
    assert optuna.load_study(study_name="mixed", storage=storage).metric_names is None
    az.create_study(study_name="named", storage=storage)
    with pytest.raises(ValueError, match=r"'named' exists with metric names \['expressivity'"):
        az.create_study(
            study_name="named", storage=storage, load_if_exists=True, proxies=["a", "b", "c", "d", "e", "f"]
        )
    for wrong in ("expressivity", ["a"], ["a", "a"], []):
        with pytest.raises(ValueError, match="proxies must be two or more different names"):
            az.create_study(proxies=wrong)
    study = az.create_study(proxies=["a", "b"], sampler=optuna.samplers.RandomSampler())
    assert study.metric_names == ["a", "b"]
    assert isinstance(study.sampler, optuna.samplers.RandomSampler)


def test_default_proxies_are_the_evaluators():
    from optuna_aznas import proxies
    from optuna_aznas.study import create

    assert create.DEFAULT_PROXIES == proxies.DEFAULT


def test_ranking_equals_the_plain_formula():
    study = az.create_study(seed=0)
    fill(study, 60)
    table = [list(t.values) for t in study.trials]
    expected = reference.aggregate(table, consensus_weights(table))
    assert list(az.rank_scores(study).values()) == pytest.approx(expected)
    order = sorted(range(60), key=lambda i: (-round(expected[i], 9), i))
    assert [t.number for t in az.best_trials(study, 7)] == order[:7]
    board = az.leaderboard(study, 7)
    assert [entry.number for entry in board] == order[:7]
    assert [entry.place for entry in board] == [1, 2, 3, 4, 5, 6, 7]
    first = board[0]
    assert first.rank_score == pytest.approx(expected[order[0]])
    assert tuple(first.proxy_scores.values()) == tuple(study.trials[order[0]].values)
    assert first.values == {}  # the values are the proxy scores
    assert list(first.proxy_scores) == study.metric_names
    assert board.to_dicts()[0]["params_x"] == first.params["x"]
    lines = str(board).splitlines()
    assert len(lines) == 8 + bool(board.shared_params) + bool(min(board.weights.values()) < 1)
    assert lines[0].split() == ["place", "trial", "S", *study.metric_names, "params"]
    assert f"x={first.params['x']}" in lines[1]


def test_an_empty_study():
    study = az.create_study()
    assert az.best_trials(study, 3) == []
    assert az.rank_scores(study) == {}
    assert str(az.leaderboard(study)) == "(no scored trial yet)"
    for wrong in (0, -1, 2.0, True):
        with pytest.raises(ValueError, match="n must be an integer of at least 1"):
            az.best_trials(study, wrong)
        with pytest.raises(ValueError, match="n must be an integer of at least 1"):
            az.leaderboard(study, wrong)


def test_infinite_scores_are_ranked_last(tmp_path):
    study = az.create_study(storage=f"sqlite:///{tmp_path}/nas.db", proxies=["a", "b"])
    values = [(1.0, -math.inf), (2.0, 1.0), (-math.inf, -math.inf), (1.5, 0.5)]
    for pair in values:
        study.tell(study.ask(), pair)
    assert [t.number for t in az.best_trials(study, 4)] == [1, 3, 0, 2]


def test_record_is_in_the_storage_at_once(tmp_path):
    storage = f"sqlite:///{tmp_path}/nas.db"
    study = optuna.create_study(study_name="s", storage=storage, direction="maximize")
    trial = study.ask()
    trial.suggest_int("width", 1, 9)
    trial.suggest_categorical("op", ("a", "b"))
    az.record(trial, {"p": 1.5, "q": -math.inf, "r": math.nan, "s": np.float32(2.0), "t": math.inf})
    trial.suggest_float("lr", 0, 1)
    stored = optuna.load_study(study_name="s", storage=storage).trials[0]
    assert stored.state == TrialState.RUNNING
    assert stored.user_attrs["aznas:scores"] == {"p": 1.5, "q": "-inf", "r": "-inf", "s": 2.0, "t": "inf"}
    assert stored.user_attrs["aznas:architecture"] == ["width", "op"]
    text = json.dumps(stored.user_attrs)
    assert "NaN" not in text
    assert "Infinity" not in text
    with pytest.warns(UserWarning, match="other proxy scores"):
        az.record(trial, {"p": 2.0})
    again = study.trials[0].user_attrs
    assert again["aznas:scores"] == {"p": 2.0}
    assert again["aznas:architecture"] == ["width", "op"]  # not the learning rate


def test_record_takes_proxy_scores():
    scores = az.ProxyScores([1.0, math.nan], names=["a", "b"])
    study = optuna.create_study()
    az.record(study.ask(), scores)
    assert study.trials[0].user_attrs["aznas:scores"] == {"a": 1.0, "b": "-inf"}


@pytest.mark.parametrize(
    ("scores", "error", "message"),
    [
        ({}, ValueError, "proxy_scores is empty"),
        ({"a": "good"}, ValueError, r"proxy_scores\['a'\] must be a number; got 'good'"),
        ({"a": None}, ValueError, r"proxy_scores\['a'\] must be a number"),
        ({1: 2.0}, ValueError, "proxy_scores must have proxy names as keys; got 1"),
        ({"": 2.0}, ValueError, "proxy names as keys"),
        ([1.0, 2.0], TypeError, "proxy_scores must be ProxyScores or a mapping .* got list"),
        (3.0, TypeError, "got float"),
    ],
)
def test_record_bad_input(scores, error, message):
    study = optuna.create_study()
    trial = study.ask()
    with pytest.raises(error, match=message):
        az.record(trial, scores)
    assert study.trials[0].user_attrs == {}


def test_recorded_scores_rank_in_studies_with_objectives_of_their_own():
    study = optuna.create_study(
        directions=["maximize", "minimize"], sampler=az.AZNASSampler(seed=0, n_startup_trials=5)
    )

    def objective(trial):
        x = trial.suggest_int("x", 0, 1000)
        az.record(trial, {"p": x, "q": -abs(x - 500)})
        if x % 7 == 0:
            raise optuna.TrialPruned
        if x % 11 == 0:
            raise RuntimeError
        return -x, x  # accuracy and latency, say

    study.optimize(objective, n_trials=60, catch=RuntimeError)
    scores = az.rank_scores(study)
    assert len(scores) == 60  # failed and pruned trials have scores too
    xs = [t.params["x"] for t in study.trials]
    assert list(scores.values()) == pytest.approx(reference.aggregate([[x, -abs(x - 500)] for x in xs]))
    shown = {t.number for t in az.best_trials(study, 100)}
    assert shown == {t.number for t in study.trials if t.state == TrialState.COMPLETE}
    board = az.leaderboard(study, 1)
    assert list(board[0].values) == ["0", "1"]
    assert board[0].values["0"] < 0
    assert board.to_dicts()[0]["value_0"] == board[0].values["0"]


def test_values_are_no_scores_once_a_trial_has_recorded():
    from optuna_aznas.study.history import StudyHistory

    study = optuna.create_study(directions=["maximize", "maximize"], sampler=az.AZNASSampler(seed=0))
    fill(study, 10)
    history = StudyHistory()
    history.update(study)
    assert len(history) == len(az.rank_scores(study)) == 10

    def objective(trial):
        az.record(trial, {"p": trial.suggest_int("y", 0, 9), "q": 1.0})
        return 0.0, 0.0

    study.optimize(objective, n_trials=5)
    history.update(study)
    assert {t.number for t in history.trials} == set(az.rank_scores(study)) == {10, 11, 12, 13, 14}


def test_trials_that_scored_other_proxies_are_left_out_with_a_warning():
    study = optuna.create_study()
    for scores in ({"a": 1.0, "b": 2.0}, {"a": 1.0}, {"b": 1.0, "a": 3.0}):
        trial = study.ask()
        az.record(trial, scores)
        study.tell(trial, 0.0)
    with pytest.warns(
        UserWarning, match=r"Trial 1 has proxy scores \['a'\], the study's trials before it \['a', 'b'\]"
    ):
        assert set(az.rank_scores(study)) == {0, 2}


def test_scores_written_by_hand_that_are_no_numbers_are_left_out_with_a_warning():
    study = optuna.create_study()
    for value in ({"a": "high"}, "nonsense", {}, {"a": [1]}, {"a": "-inf"}):
        trial = study.ask()
        trial.set_user_attr("aznas:scores", value)
        study.tell(trial, 0.0)
    with pytest.warns(
        UserWarning, match=r"Trial . has .* Put proxy scores on a trial with optuna_aznas.record"
    ) as warned:
        assert set(az.rank_scores(study)) == {4}
    assert len(warned) == 4


def test_reading_bit_by_bit_equals_reading_at_once():
    """The sampler's running view of a study, with trials that finish out of order, against a fresh one."""
    from optuna_aznas.study.history import StudyHistory

    study = az.create_study(proxies=["a", "b"])
    rng = np.random.default_rng(0)
    running, history = [], StudyHistory()
    for _ in range(200):
        if rng.random() < 0.6 or not running:
            running.append(study.ask())
        else:
            trial = running.pop(int(rng.integers(len(running))))
            study.tell(trial, tuple(rng.integers(0, 5, 2).astype(float)))
        _, unfinished = history.update(study)
        assert {t.number for t in unfinished} == {t.number for t in running}
        fresh = az.rank_scores(study)
        assert {t.number: s for t, s in zip(history.trials, history.rank_scores(), strict=True)} == fresh


def test_a_study_is_read_once(monkeypatch):
    """However long it is: afterwards only what is new is asked for."""
    study = az.create_study(proxies=["a", "b"], seed=0)
    fill(study, 50)
    calls = []
    get_trials = optuna.Study.get_trials
    monkeypatch.setattr(
        optuna.Study, "get_trials", lambda self, **kwargs: calls.append(1) or get_trials(self, **kwargs)
    )
    fill(study, 50)
    assert calls == []  # not even once: the sampler had read it
    study.sampler = az.AZNASSampler(seed=1)
    fill(study, 50)
    assert calls == [1]


def test_reading_a_study_filtered_by_hyperband():
    """Hyperband shows samplers the trials of one bracket only, so numbers have gaps."""

    def objective(trial):
        x = trial.suggest_int("x", 0, 500)
        az.record(trial, {"p": x, "q": -x % 7})
        for step in range(9):
            trial.report(x * step, step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return x

    study = optuna.create_study(
        direction="maximize",
        sampler=az.AZNASSampler(seed=0, n_startup_trials=5),
        pruner=optuna.pruners.HyperbandPruner(min_resource=1, max_resource=9, reduction_factor=3),
    )
    study.optimize(objective, n_trials=60)
    assert len(az.rank_scores(study)) == 60
    assert len({trial.params["x"] for trial in study.trials}) == 60  # those of other brackets are known too


def test_no_proxy_overwrites_a_column():
    """A leaderboard has all of its columns, whatever the proxies are called."""
    names = ["place", "number", "rank_score", "params_x", "score", "proxy_place", "value", "value_x"]
    study = optuna.create_study()
    for i in range(3):
        trial = study.ask()
        trial.suggest_int("x", 0, 9)
        az.record(trial, {name: 100.0 * i + k for k, name in enumerate(names)})
        study.tell(trial, 0.0)
    row = az.leaderboard(study).to_dicts()[0]
    assert len(row) == 3 + len(names) + 2
    assert (row["place"], row["number"], row["rank_score"]) == (1, 2, 0.0)
    assert row["params_x"] == study.trials[2].params["x"]
    assert row["score"] == 204.0  # no column has this name
    assert (row["value"], row["proxy_value"], row["proxy_value_x"]) == (0.0, 206.0, 207.0)
    assert row["proxy_place"] == 200.0
    assert row["proxy_params_x"] == 203.0
    assert row["proxy_proxy_place"] == 205.0


@pytest.fixture
def repeated():
    """A study of three architectures, two of them trained twice, whose parameter y is the same in all."""
    study = optuna.create_study(direction="maximize")
    study.set_metric_names(["accuracy"])
    for i, x in enumerate([1, 2, 1, 3, 2]):
        study.enqueue_trial({"x": x, "y": 7, "lr": 0.1 * (i + 1)})
    for i in range(5):
        trial = study.ask()
        x = trial.suggest_int("x", 0, 9)
        trial.suggest_int("y", 0, 9)
        az.record(trial, {"a": x, "b": 10.0 ** (4 + x)})
        trial.suggest_float("lr", 0.0, 1.0)
        study.tell(trial, i / 10)
    return study


def test_a_leaderboard_lists_each_architecture_once(repeated):
    board = az.leaderboard(repeated)
    assert [(entry.place, entry.number, entry.params["x"]) for entry in board] == [(1, 3, 3), (2, 1, 2), (3, 0, 1)]
    assert board[0].values == {"accuracy": 0.3}
    assert board.to_dicts()[0]["value_accuracy"] == 0.3


def test_a_leaderboard_shows_what_differs(repeated, monkeypatch):
    board = az.leaderboard(repeated)
    assert board.shared_params == {"y": 7}
    assert board.differing_params(board[0]) == {"x": 3, "lr": 0.4}
    header, first, *_, shared = str(board).splitlines()
    assert header.split() == ["place", "trial", "S", "accuracy", "a", "b", "params"]
    assert first.split() == ["1", "3", "0.000", "0.3", "3", "10", "M", "x=3,", "lr=0.4"]
    assert shared == "(all: y=7)"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "30")
    assert max(len(line) for line in str(board).splitlines()) == 30


def test_a_leaderboard_in_a_notebook(repeated):
    text = az.leaderboard(repeated)._repr_html_()
    assert text.count("<tr>") == 4
    assert "x=3, lr=0.4" in text
    assert "(all: y=7)" in text
    study = az.create_study(proxies=["<b>", "c"])
    study.add_trial(optuna.trial.create_trial(values=[1.0, 2.0]))
    assert "&lt;b&gt;" in az.leaderboard(study)._repr_html_()
    assert az.leaderboard(optuna.create_study())._repr_html_() == "<p>(no scored trial yet)</p>"


def test_record_on_a_finished_trial():
    study = optuna.create_study()
    trial = study.ask()
    trial.suggest_int("x", 0, 9)
    study.tell(trial, 0.0)
    for finished in (study.trials[0], trial):
        with pytest.raises(
            ValueError, match=r"Trial 0 has finished.*optuna_aznas\.backfill\(study, build, evaluator\)"
        ):
            az.record(finished, {"a": 1.0})
    assert study.trials[0].user_attrs == {}


def test_an_objective_that_records_takes_the_best_trial():
    """Optuna's way to evaluate a finished trial again: the objective is called with it."""

    def objective(trial):
        az.record(trial, {"a": trial.suggest_float("x", 0, 1)})
        return trial.params["x"]

    study = optuna.create_study(direction="maximize")
    study.optimize(objective, n_trials=3)
    assert objective(study.best_trial) == study.best_value
    assert objective(optuna.trial.FixedTrial({"x": 0.5})) == 0.5


def test_record_names_the_architecture():
    random = optuna.samplers.RandomSampler(seed=0)
    sampler = az.AZNASSampler(seed=0, n_candidates=5, hyperparameter_sampler=random)
    study = optuna.create_study(direction="maximize", sampler=sampler)

    def objective(trial):
        lr, x = trial.suggest_float("lr", 0, 1), trial.suggest_int("x", 0, 20)
        az.record(trial, {"a": x, "b": -x}, architecture=["x"])
        return x * lr

    study.optimize(objective, n_trials=15)
    assert all(trial.user_attrs["aznas:architecture"] == ["x"] for trial in study.trials)
    assert len({trial.params["x"] for trial in study.trials}) == 15  # the learning rate makes no other architecture
    trial = study.ask()
    trial.suggest_int("x", 0, 20)
    with pytest.raises(ValueError, match=r"architecture names \['y'\], .* has suggested \['x'\]"):
        az.record(trial, {"a": 1.0, "b": 2.0}, architecture=["x", "y"])
    with pytest.raises(ValueError, match="architecture must be a list of parameter names"):
        az.record(trial, {"a": 1.0, "b": 2.0}, architecture="x")


def test_record_again_with_other_values_and_after_a_report():
    study = optuna.create_study()
    trial = study.ask()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        az.record(trial, {"a": 1.0})
        az.record(trial, {"a": 1})
    with pytest.warns(UserWarning, match=r"Trial 0 has recorded other proxy scores before; the last ones count"):
        az.record(trial, {"a": 2.0})
    assert study.trials[0].user_attrs["aznas:scores"] == {"a": 2.0}
    trial = study.ask()
    trial.report(1.0, 0)
    with pytest.warns(UserWarning, match=r"Trial 1 has reported .* before it recorded .* call .*record.* first"):
        az.record(trial, {"a": 2.0})


def test_record_numbers_beyond_floats():
    with pytest.raises(ValueError, match=r"proxy_scores\['a'\] must be a number"):
        az.record(optuna.create_study().ask(), {"a": 10**400})


def test_a_leaderboard_names_the_proxy_that_counts_less():
    study = az.create_study(proxies=["a", "b", "c"], sampler=optuna.samplers.RandomSampler(seed=0))

    def objective(trial):
        x = trial.suggest_float("x", 0, 1)
        return x, x**2, -x

    study.optimize(objective, n_trials=40)
    board = az.leaderboard(study, 3)
    assert board.weights == {"a": 1.0, "b": 1.0, "c": 0.0}
    assert str(board).splitlines()[-1] == "(c is not counted, as it ranks these networks against the other proxies)"
    study = az.create_study(proxies=["a", "b"])
    study.optimize(lambda trial: (trial.suggest_float("x", 0, 1), 0.0), n_trials=12)
    assert "counted" not in str(az.leaderboard(study))


def test_a_leaderboard_ranks_its_table_once(monkeypatch):
    from optuna_aznas.aggregation import consensus, rank

    study = optuna.create_study(directions=["maximize"] * 3)
    for a in range(12):
        study.add_trial(optuna.trial.create_trial(values=[a, a, -a]))
    calls = []

    def counting(*arguments, **named):
        calls.append(1)
        return rankdata(*arguments, **named)

    monkeypatch.setattr(rank, "rankdata", counting)
    monkeypatch.setattr(consensus, "rankdata", counting)
    board = az.leaderboard(study)
    assert len(calls) == 1
    assert list(board.weights.values()) == [1.0, 1.0, 0.0]
    assert [entry.number for entry in board] == list(range(11, 1, -1))
