"""StudyHistory against the plain formula: rank scores, the best trials, what the pruner asks, and what is counted."""

from __future__ import annotations

import gc
import math
import pickle
import weakref
from collections import Counter

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial

import optuna_aznas as az
from optuna_aznas.study import history as module
from optuna_aznas.study.history import StudyHistory
from optuna_aznas.study.per_study import PerStudy
from optuna_aznas.study.reader import TrialReader
from tests import reference

numbers = st.one_of(st.integers(0, 4).map(float), st.floats(0, 1), st.sampled_from([-math.inf, math.inf]))

#: Batches of trials: two proxy scores each, and whether the trial is feasible.
batches = st.lists(
    st.lists(st.tuples(numbers, numbers, st.booleans()), min_size=1, max_size=6), min_size=1, max_size=10
)


def add(study, rows):
    """Add scored trials; infeasible ones have a positive constraint."""
    for a, b, feasible in rows:
        trial = study.ask()
        az.record(trial, {"a": a, "b": b})
        study.tell(trial, 0.0)
        if not feasible:
            infeasible.add(trial.number)


infeasible: set[int] = set()


@pytest.fixture(autouse=True)
def constraints(monkeypatch):
    """Feasibility by trial number, as the storage format of constraints differs between versions of Optuna."""
    infeasible.clear()
    monkeypatch.setattr(module, "is_feasible", lambda trial: trial.number not in infeasible)


def expected_best(rows, n):
    s = reference.aggregate([row[:2] for row in rows])
    some_feasible = any(feasible for *_, feasible in rows)
    allowed = [i for i, (*_, feasible) in enumerate(rows) if feasible or not some_feasible]
    return sorted(allowed, key=lambda i: (-round(float(s[i]), 9), i))[:n]


def assert_best(history, rows, n):
    """The n trials are those with the highest S; trials whose S differs by rounding errors only may change places."""
    best = [trial.number for trial in history.best(n)]
    s = reference.aggregate([row[:2] for row in rows])
    wanted = expected_best(rows, n)
    assert [s[i] for i in best] == pytest.approx([s[i] for i in wanted], abs=1e-9)
    assert len(set(best)) == len(best)
    assert (infeasible & set(best) == set()) or infeasible == set(range(len(rows)))


@settings(max_examples=40)
@given(batches, st.integers(1, 4))
def test_best_of_a_growing_study(rows_in_batches, n):
    infeasible.clear()
    study, history, rows = optuna.create_study(), StudyHistory(), []
    for batch in rows_in_batches:
        add(study, batch)
        rows += batch
        history.update(study)
        assert_best(history, rows, n)


def test_best_ties_by_number_and_prefers_feasible_trials():
    study = optuna.create_study()
    history = StudyHistory()
    add(study, [(1.0, 1.0, False), (1.0, 1.0, False), (0.0, 0.0, False)])
    history.update(study)
    assert [trial.number for trial in history.best(5)] == [0, 1, 2]
    add(study, [(0.5, 0.5, True)])
    history.update(study)
    assert [trial.number for trial in history.best(5)] == [3]


def test_a_large_study_is_ranked_again_when_it_has_grown(monkeypatch):
    monkeypatch.setattr(module, "_ALWAYS_RANKED", 50)
    monkeypatch.setattr(module, "_TOLERATED_GROWTH", 0.1)
    rankings = []
    rank_scores = StudyHistory.rank_scores
    monkeypatch.setattr(StudyHistory, "rank_scores", lambda self: rankings.append(len(self)) or rank_scores(self))
    rng = np.random.default_rng(0)
    study, history, rows = optuna.create_study(), StudyHistory(), []
    for i in range(150):
        batch = [(float(rng.normal() + 0.02 * i), float(rng.normal()), i % 3 > 0)]
        add(study, batch)
        rows += batch
        history.update(study)
        best = [trial.number for trial in history.best(5)]
        ranked = rankings[-1]
        assert len(rows) - ranked <= (0.1 * len(rows) if len(rows) > 50 else 0)
        assert best == expected_best(rows[:ranked], 5)
    assert rankings[:50] == list(range(1, 51))  # each time, up to 50
    assert len(rankings) < 70


def test_the_first_feasible_trial_is_a_parent_at_once(monkeypatch):
    monkeypatch.setattr(module, "_ALWAYS_RANKED", 10)
    monkeypatch.setattr(module, "_TOLERATED_GROWTH", 0.5)
    study, history = optuna.create_study(), StudyHistory()
    add(study, [(float(i), 1.0, False) for i in range(20)])
    history.update(study)
    assert history.best(1)[0].number == 19
    add(study, [(0.0, 0.0, True)])
    history.update(study)
    assert [trial.number for trial in history.best(3)] == [20]


def test_what_a_history_says_of_a_study():
    study = optuna.create_study()
    assert StudyHistory.of(study).rank_scores().shape == (0,)
    add(study, [(1.0, math.nan, True), (2.0, 3.0, False)])
    study.tell(study.ask(), 0.0)
    study.tell(study.ask(), state=TrialState.FAIL)
    study.ask()
    history = StudyHistory.of(study)
    assert history.names == ("a", "b")
    assert [trial.number for trial in history.trials] == [0, 1]
    assert history.proxy_scores.tolist() == [[1.0, -math.inf], [2.0, 3.0]]
    assert history.feasible == [True, False]
    assert history.rank_scores() == pytest.approx(reference.aggregate([[1.0, -math.inf], [2.0, 3.0]]))
    assert history.unscored == Counter({TrialState.COMPLETE: 1, TrialState.FAIL: 1, TrialState.RUNNING: 1})
    with pytest.raises(ValueError, match="read-only"):
        history.proxy_scores[0, 0] = 9.0


def test_reading_in_steps_counts_unscored_trials_as_reading_at_once():
    study, history = optuna.create_study(), StudyHistory()
    rng = np.random.default_rng(0)
    running = []
    for _ in range(60):
        if rng.random() < 0.5 or not running:
            running.append(study.ask())
        else:
            trial = running.pop(int(rng.integers(len(running))))
            if rng.random() < 0.5:
                az.record(trial, {"a": float(rng.random())})
            study.tell(trial, 0.0)
        history.update(study)
        fresh = StudyHistory.of(study)
        assert history.unscored == fresh.unscored
        assert [trial.number for trial in fresh.trials] == sorted(trial.number for trial in history.trials)


def test_a_table_of_many_rows():
    """Beyond the capacity that was reserved at first."""
    study = optuna.create_study()
    study.add_trials(
        create_trial(
            value=0.0,
            params={"x": i / 300},
            distributions={"x": FloatDistribution(0, 1)},
            user_attrs={"aznas:scores": {"a": float(i), "b": float(-i)}},
        )
        for i in range(300)
    )
    history = StudyHistory.of(study)
    before = history.proxy_scores
    add(study, [(1000.0, 5.0, True)])
    history.update(study)
    assert history.proxy_scores.tolist() == [*([float(i), float(-i)] for i in range(300)), [1000.0, 5.0]]
    assert before.shape == (300, 2)


def test_per_study_lets_studies_go_and_pickles_empty():
    cache, made = PerStudy(), []
    study = optuna.create_study()
    assert cache.get(study, lambda whole: made.append(whole.study_name) or [1]) == [1]
    assert cache.get(study, lambda whole: made.append(2)) == [1]
    assert made == [study.study_name]
    assert list(cache) == [[1]]
    assert list(pickle.loads(pickle.dumps(cache))) == []
    gone = weakref.ref(study)
    del study
    gc.collect()
    assert gone() is None
    assert list(cache) == []


def test_a_sampler_and_a_pruner_let_studies_go():
    study = optuna.create_study(direction="maximize", sampler=az.AZNASSampler(seed=0), pruner=az.AZNASPruner())
    sampler, pruner = study.sampler, study.pruner

    def objective(trial):
        az.record(trial, {"a": trial.suggest_float("x", 0, 1), "b": 1.0})
        trial.should_prune()
        return 1.0

    study.optimize(objective, n_trials=10)
    gone = weakref.ref(study)
    del study, objective
    gc.collect()
    assert gone() is None
    assert list(sampler._sessions) == list(pruner._sessions) == []


def retry(study, number):
    """What Optuna adds for a worker that has died: the class was renamed in 4.9."""
    new = getattr(optuna.storages, "RetryHeartbeatStaleTrialCallback", None)
    (new or optuna.storages.RetryFailedTrialCallback)()(study, study.trials[number])
    return study.trials[-1]


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_dead_trial_and_its_retry_count_once():
    study, history = optuna.create_study(), StudyHistory()
    add(study, [(1.0, 1.0, True), (2.0, 2.0, True)])
    for attempt in range(3):  # trial 2 dies, and so does its retry 3
        trial = study.ask()
        assert trial.number == 2 + attempt
        az.record(trial, {"a": 3.0, "b": 3.0})
        if attempt < 2:
            study.tell(trial, state=TrialState.FAIL)
            history.update(study)
            assert [t.number for t in history.best(9)] == [2 + attempt, 1, 0]
            assert retry(study, trial.number).state == TrialState.WAITING
    add(study, [(0.0, 0.0, False)])
    study.tell(trial, 0.0)
    history.update(study)
    fresh = StudyHistory.of(study)
    for counted in (history, fresh):
        assert sorted(t.number for t in counted.trials) == [0, 1, 4, 5]
        assert [t.number for t in counted.best(9)] == [4, 1, 0]
        assert len(counted.proxy_scores) == len(counted.feasible) == len(counted.rank_scores()) == 4
        assert counted.unscored == Counter()
    assert az.rank_scores(study).keys() == {0, 1, 4}


def test_best_breaks_ties_by_number_not_by_the_order_of_finishing():
    study, history = optuna.create_study(), StudyHistory()
    trials = [study.ask() for _ in range(4)]
    for trial in trials:
        az.record(trial, {"a": 1.0, "b": 1.0})
    for i in (2, 0, 3, 1):
        study.tell(trials[i], 0.0)
        history.update(study)
    assert [trial.number for trial in history.best(4)] == [0, 1, 2, 3]
    assert [trial.number for trial in az.best_trials(study, 4)] == [0, 1, 2, 3]


def test_a_trial_that_finishes_while_the_study_is_read_again_is_taken_once(monkeypatch):
    """At the first recorded proxy scores all trials are read again; another worker may finish one at that moment."""
    study = optuna.create_study()
    late, first = study.ask(), study.ask()
    for trial in (late, first):
        az.record(trial, {"a": float(trial.number), "b": 1.0})
    study.tell(first, 1.0)
    real, calls = study.get_trials, []

    def get_trials(**arguments):
        calls.append(arguments)
        if len(calls) == 2:
            study.tell(late, 2.0)
        return real(**arguments)

    monkeypatch.setattr(study, "get_trials", get_trials)
    history = StudyHistory()
    history.update(study)
    history.update(study)
    assert len(calls) >= 2
    assert sorted(trial.number for trial in history.trials) == [0, 1]


@pytest.mark.parametrize(("n_others", "small", "read_together"), [(1, 1000, False), (2, 1000, True), (2, 1, False)])
def test_which_trials_are_read_together(monkeypatch, n_others, small, read_together):
    """Two other running trials are, in a small study; the caller's own trial is not read and does not count."""
    from optuna_aznas.study import reader as reading

    monkeypatch.setattr(reading, "_SMALL", small)
    study = optuna.create_study()
    trials = [study.ask() for _ in range(n_others + 1)]
    own = study.trials[0]
    reader = TrialReader()
    reader.read(study, own)
    calls = []
    whole = study.get_trials
    monkeypatch.setattr(study, "get_trials", lambda **named: calls.append(1) or whole(**named))
    study.tell(trials[1], 1.0)
    finished, unfinished = reader.read(study, own)
    assert bool(calls) == read_together
    assert [trial.number for trial in finished] == [1]
    assert [trial.number for trial in unfinished] == [0, *range(2, n_others + 1)]


def test_a_storage_that_counts_its_trials_is_not_asked_for_others():
    """Dask's logs a traceback for each number that no trial has."""

    class Counting(optuna.storages.InMemoryStorage):
        def get_n_trials(self, study_id, state=None):
            return super().get_n_trials(study_id, state)

        def get_trial_id_from_study_id_trial_number(self, study_id, trial_number):
            assert trial_number < self.get_n_trials(study_id)
            return super().get_trial_id_from_study_id_trial_number(study_id, trial_number)

    study = optuna.create_study(storage=Counting())
    reader, read = TrialReader(), []
    for n_new in (1, 0, 3, 40):
        for _ in range(n_new):
            study.tell(study.ask(), 1.0)
        finished, unfinished = reader.read(study)
        read += [trial.number for trial in finished]
        assert (len(finished), unfinished) == (n_new, [])
    assert read == list(range(44))
