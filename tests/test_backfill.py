"""backfill: proxy scores for the finished trials of a study."""

from __future__ import annotations

import json
import math
import threading
import warnings

import optuna
import pytest
from optuna.trial import TrialState

import optuna_aznas as az
from optuna_aznas.study.attributes import ARCHITECTURE_KEY
from optuna_aznas.study.history import StudyHistory
from optuna_aznas.study.late import LATE_PREFIX
from tests import studies

STORAGES = ["memory", "sqlite:///{}/nas.db", "journal:{}/nas.log"]


class Evaluator:
    """Scores a list of widths."""

    device = None

    def __init__(self):
        self.calls = 0

    def __call__(self, widths):
        self.calls += 1
        return {"size": float(sum(widths)), "depth": len(widths), "evenness": -math.inf if 5 in widths else min(widths)}


def build(trial):
    return [trial.suggest_int(f"width{i}", 1, 30) for i in range(trial.suggest_int("depth", 1, 3))]


def objective(trial):
    widths = build(trial)
    return sum(widths) - abs(math.log10(trial.suggest_float("lr", 1e-4, 1.0, log=True)) + 2)


def recording(trial):
    az.record(trial, Evaluator()(build(trial)))
    return objective(trial)


def old_study(storage=None, n=30):
    """A study that another sampler has made, with pruned and failed trials and one that runs."""
    sampler = optuna.samplers.RandomSampler(seed=0)
    study = optuna.create_study(study_name="old", direction="maximize", sampler=sampler)
    study.optimize(objective, n_trials=n)
    pruned, failed = study.ask(), study.ask()
    build(pruned)
    study.tell(pruned, state=TrialState.PRUNED)
    study.tell(failed, state=TrialState.FAIL)
    study.ask()
    return studies.stored(study, storage)


def backfilled(study, evaluator=None, **arguments):
    arguments = {"n_workers": 1, "show_progress_bar": False, **arguments}
    return az.backfill(study, build, evaluator or Evaluator(), **arguments)


@pytest.fixture(params=STORAGES, ids=["memory", "sqlite", "journal"])
def study(request, tmp_path):
    url = request.param.format(tmp_path)
    return old_study(None if url == "memory" else az.open_storage(url))


def test_thirty_old_trials_are_scored_and_the_study_goes_on(study):
    assert backfilled(study) == 31
    history = StudyHistory.of(study)
    assert len(history) == 31
    assert history.names == ("size", "depth", "evenness")
    for trial, row in zip(history.trials, history.proxy_scores, strict=True):
        widths = build(optuna.trial.FixedTrial(trial.params))
        assert dict(zip(history.names, row, strict=True)) == Evaluator()(widths)
        assert set(trial.user_attrs[ARCHITECTURE_KEY]) == set(trial.params) - {"lr"}
    assert len(az.best_trials(study, n=100)) == 30
    assert json.loads(json.dumps(study.user_attrs, allow_nan=False)) == study.user_attrs
    # A sampler that proposes hyperparameters too would train some of the architectures again.
    study.sampler = az.AZNASSampler(seed=0, hyperparameter_sampler=optuna.samplers.RandomSampler(seed=0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # of Optuna 4.0's storage
        study.optimize(recording, n_trials=8)
    assert len(StudyHistory.of(study)) == 39
    architectures = [
        frozenset((n, v) for n, v in t.params.items() if n != "lr") for t in study.trials if t.state.name == "COMPLETE"
    ]
    assert len(set(architectures[30:]) - set(architectures[:30])) == 8
    assert max(t.value for t in study.trials[33:]) > max(t.value for t in study.trials[:30])


def test_nothing_is_done_twice():
    study, evaluator = old_study(), Evaluator()
    backfilled(study, evaluator)
    attributes = study.user_attrs
    assert backfilled(study, evaluator) == 0
    assert evaluator.calls == 31
    assert study.user_attrs == attributes
    study.sampler = az.AZNASSampler(seed=0)
    study.optimize(recording, n_trials=2)
    study.optimize(objective, n_trials=1)
    assert backfilled(study, evaluator) == 1


@pytest.mark.parametrize("at", [1, 12, 31])
def test_an_interrupted_call_goes_on_where_it_was(at):
    study, evaluator = old_study(), Evaluator()

    def interrupted(model):
        if evaluator.calls + 1 == at:
            raise KeyboardInterrupt
        return evaluator(model)

    interrupted.device = None
    with pytest.raises(KeyboardInterrupt):
        backfilled(study, interrupted)
    assert len(StudyHistory.of(study)) == evaluator.calls == at - 1
    assert backfilled(study, evaluator) == 32 - at
    assert evaluator.calls == 31


def test_several_at_once_do_no_harm(study):
    threads = [threading.Thread(target=backfilled, args=(study,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    alone = old_study()
    backfilled(alone)
    assert study.user_attrs == alone.user_attrs
    assert len(study.user_attrs) == 31


def test_worker_processes():
    study = old_study()
    assert backfilled(study, n_workers=2) == 31
    alone = old_study()
    backfilled(alone)
    assert study.user_attrs == alone.user_attrs


def test_trials_that_cannot_be_scored_stay_as_they_are():
    study = old_study()

    def picky(trial):
        widths = build(trial)
        if len(widths) == 2:
            raise ArithmeticError("no networks of two layers")
        return widths

    n_failing = sum(trial.params.get("depth") == 2 for trial in study.trials)
    first = next(trial.number for trial in study.trials if trial.params["depth"] == 2)
    message = f"{n_failing} of 31 trials could not be scored .* trial {first}: ArithmeticError: no networks of two"
    with pytest.warns(UserWarning, match=message):
        assert az.backfill(study, picky, Evaluator(), n_workers=1, show_progress_bar=False) == 31 - n_failing
    assert len(StudyHistory.of(study)) == 31 - n_failing
    assert backfilled(study) == n_failing


def test_one_message_where_a_study_is_switched_without_it():
    study = old_study()
    study.sampler = az.AZNASSampler(seed=0)
    message = (
        r"31 of 31 finished trials of study 'old' have no proxy scores and are ignored; "
        r"optuna_aznas\.backfill\(study, build, evaluator\) scores them\."
    )
    with pytest.warns(UserWarning, match=message) as warned:
        study.optimize(recording, n_trials=3)
    assert len(warned) == 1
    assert len(StudyHistory.of(study)) == 3


def test_a_sampler_that_runs_sees_them_at_once():
    study = old_study()
    study.sampler = az.AZNASSampler(seed=0)
    with pytest.warns(UserWarning, match="have no proxy scores"):
        study.optimize(recording, n_trials=3)
    backfilled(study)
    history = StudyHistory()
    history.update(study)
    assert len(history) == 34
    study.optimize(recording, n_trials=1)
    (session,) = study.sampler._sessions
    assert len(session.view.history) == 34
    assert session.view.hyperparameter_names == {"lr"}


def test_another_process_sees_them_when_the_study_has_grown():
    study = old_study()
    history = StudyHistory()
    history.update(study)
    for number in range(3):
        study.set_user_attr(f"{LATE_PREFIX}{number}", {"aznas:scores": {"size": 1.0}, "aznas:architecture": []})
    study.optimize(objective, n_trials=1)
    finished, _ = history.update(study)
    assert (len(history), len(finished)) == (0, 1)
    study.optimize(objective, n_trials=4)
    finished, _ = history.update(study)
    assert (len(history), len(finished)) == (3, 4 + 3)
    assert [trial.number for trial in history.trials] == [0, 1, 2]
    assert history.unscored[TrialState.COMPLETE] == 32
    study.optimize(objective, n_trials=20)
    assert len(history.update(study)[0]) == 20


def test_figures_and_notes_know_them():
    pytest.importorskip("plotly", reason="plotly is not installed")
    study = old_study()
    backfilled(study)
    figure = az.visualization.plot_rank_against_value(study)
    assert len(figure.data[0].x) == 30


def test_a_malformed_attribute_is_ignored():
    study = old_study()
    for key, value in (("x", {}), ("0", 3), ("1", {"aznas:scores": "none"})):
        study.set_user_attr(f"{LATE_PREFIX}{key}", value)
    with pytest.warns(UserWarning, match="Trial 1 has 'none' as its user attribute"):
        assert len(StudyHistory.of(study)) == 0


def test_record_names_it_on_a_finished_trial():
    study = old_study()
    with pytest.raises(ValueError, match=r"Trial 0 has finished.*optuna_aznas\.backfill\(study, build, evaluator\)"):
        az.record(study.trials[0], {"size": 1.0})


def test_arguments():
    with pytest.raises(ValueError, match="build must be callable"):
        az.backfill(old_study(), None, Evaluator())
    with pytest.raises(ValueError, match="evaluator must be callable"):
        az.backfill(old_study(), build, 3)
    with pytest.raises(ValueError, match="n_workers must be"):
        backfilled(old_study(), n_workers=-1)
