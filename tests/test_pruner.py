"""AZNASPruner and should_prune."""

from __future__ import annotations

import pickle
from unittest import mock

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState

import optuna_aznas as az
from optuna_aznas import _optuna
from optuna_aznas import pruner as module
from tests import reference


def scores_of(x):
    return {"p": x, "q": -abs(x - 700)}


def test_it_keeps_the_best_of_the_last_scored():
    pruner = az.AZNASPruner(keep_fraction=0.3, n_startup_trials=10)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0), pruner=pruner)

    def objective(trial):
        az.record(trial, scores_of(trial.suggest_int("x", 0, 10**9)))
        if trial.should_prune():
            raise optuna.TrialPruned
        return 0.0

    study.optimize(objective, n_trials=200)
    table = [list(scores_of(t.params["x"]).values()) for t in study.trials]
    owed = 0.0
    for trial in study.trials:
        s = reference.aggregate(table[: trial.number + 1])[-41:]
        share = sum(1.0 if value > s[-1] + 1e-12 else 0.5 * (value > s[-1] - 1e-12) for value in s) / len(s)
        pruned = trial.number >= 10 and share > 0.3 + 0.25 * owed + 1e-9
        assert trial.state == (TrialState.PRUNED if pruned else TrialState.COMPLETE), trial.number
        owed += (0.3 - (not pruned)) if trial.number >= 10 else 0.0


numbers = st.floats(-5.0, 5.0)
rows = st.lists(st.tuples(numbers, numbers), min_size=1, max_size=60)
orders = st.sampled_from([list, sorted, lambda rows: sorted(rows, reverse=True), lambda rows: rows[:1] * len(rows)])
fractions = st.one_of(st.sampled_from([0.25, 0.5, 1.0]), st.floats(0.02, 1.0))


def score(study, row):
    trial = study.ask()
    az.record(trial, {"p": row[0], "q": row[1]})
    return trial


def finish(study, trial, pruned):
    study.tell(trial, **({"state": TrialState.PRUNED} if pruned else {"values": 0.0}))


@settings(max_examples=60)
@given(rows, orders, fractions, st.integers(1, 5), st.integers(1, 8))
def test_whatever_the_order_of_trials_keep_fraction_of_them_is_trained(rows, order, fraction, n_startup, workers):
    pruner = az.AZNASPruner(keep_fraction=fraction, n_startup_trials=n_startup)
    study = optuna.create_study(pruner=pruner)
    for row in rows[:n_startup]:
        trial = score(study, row)
        assert not trial.should_prune()
        finish(study, trial, False)
    n = kept = 0
    rows = order(rows[n_startup:])
    for batch in (rows[i : i + workers] for i in range(0, len(rows), workers)):
        trials = [score(study, row) for row in batch]
        with mock.patch.object(module, "set_trial_system_attr") as store:
            decisions = [trial.should_prune() for trial in trials]  # at one moment: none sees what the others decide
        for call in store.call_args_list:
            _optuna.set_trial_system_attr(*call.args)
        for trial, pruned in zip(trials, decisions, strict=True):
            finish(study, trial, pruned)
        n, kept = n + len(batch), kept + decisions.count(False)
        assert kept >= fraction * n - 4 * (1 - fraction) - fraction * workers - 1e-9
        assert kept <= fraction * n + 4 * fraction + (1 - fraction) * workers + 1e-9


@settings(max_examples=20)
@given(rows, fractions)
def test_no_state_outside_the_study(rows, fraction):
    decisions = []
    for renew in (False, True):
        pruner = az.AZNASPruner(keep_fraction=fraction, n_startup_trials=3)
        study = optuna.create_study(pruner=pruner)
        decisions.append([])
        for row in rows:
            if renew:
                study.pruner = pickle.loads(pickle.dumps(pruner))
            trial = score(study, row)
            decisions[-1].append(trial.should_prune())
            finish(study, trial, decisions[-1][-1])
    assert decisions[0] == decisions[1]


def test_trials_that_run_count():
    study = optuna.create_study(pruner=az.AZNASPruner(keep_fraction=0.25, n_startup_trials=1))
    finish(study, score(study, (0.0, 0.0)), False)
    # Each is better than all before it; not one has finished.
    decisions = [score(study, (i, i)).should_prune() for i in range(1, 81)]
    assert 80 / 4 - 3.25 <= decisions.count(False) <= 80 / 4 + 1.75


def test_retries_of_a_dead_trial_count_once():
    study = optuna.create_study(pruner=az.AZNASPruner(keep_fraction=0.25, n_startup_trials=1))
    finish(study, score(study, (0.0, 0.0)), False)
    new = getattr(optuna.storages, "RetryHeartbeatStaleTrialCallback", None)
    retry = (new or optuna.storages.RetryFailedTrialCallback)()
    trial = score(study, (1.0, 1.0))
    for _ in range(10):
        assert not trial.should_prune()
        study.tell(trial, state=TrialState.FAIL)
        retry(study, study.trials[-1])
        trial = study.ask()
        assert study.trials[-1].system_attrs["retry_history"]
    # One training is ahead, not eleven.
    decisions = [score(study, (i, i)).should_prune() for i in range(2, 42)]
    assert 1 + decisions.count(False) >= 41 / 4 - 3.25


def test_another_keep_fraction_holds_from_then_on():
    study = optuna.create_study()
    for fraction in (0.05, 0.5):
        study.pruner = az.AZNASPruner(keep_fraction=fraction, n_startup_trials=1)
        decisions = []
        for i in range(60):
            trial = score(study, (-i, -i))
            decisions.append(trial.should_prune())
            finish(study, trial, decisions[-1])
    assert decisions[:20].count(False) <= 15


def test_the_same_answer_in_a_multi_objective_study():
    study = optuna.create_study(
        directions=["maximize", "minimize"], pruner=az.AZNASPruner(keep_fraction=0.5, n_startup_trials=4)
    )
    for x in (100, 200, 300, 400):
        trial = study.ask()
        az.record(trial, {"p": x})
        assert not az.should_prune(trial)
        study.tell(trial, (0.0, 0.0))
    good, bad = study.ask(), study.ask()
    az.record(good, {"p": 350})
    az.record(bad, {"p": 150})
    assert not az.should_prune(good)
    assert az.should_prune(bad)
    with pytest.raises(NotImplementedError):
        bad.should_prune()
    single = optuna.create_study(pruner=az.AZNASPruner(keep_fraction=0.5, n_startup_trials=1))
    for x, expected in ((2, False), (1, True), (3, False)):
        trial = single.ask()
        az.record(trial, {"p": x})
        assert az.should_prune(trial) == trial.should_prune() == expected
        single.tell(trial, 0.0)


def test_a_multi_objective_study_with_another_pruner():
    study = optuna.create_study(directions=["maximize", "minimize"])
    trial = study.ask()
    az.record(trial, {"p": 1.0})
    with pytest.raises(ValueError, match=r"multi-objective study is a MedianPruner.*pruner=AZNASPruner"):
        az.should_prune(trial)


def test_fixed_trials():
    assert not az.should_prune(optuna.trial.FixedTrial({}))


def test_then_decides_once_values_are_reported():
    decisions = []

    class Then(optuna.pruners.BasePruner):
        def prune(self, study, trial):
            decisions.append(dict(trial.intermediate_values))
            return trial.last_step == 2

    study = optuna.create_study(pruner=az.AZNASPruner(keep_fraction=0.01, n_startup_trials=1, training_pruner=Then()))
    trial = study.ask()
    az.record(trial, {"p": 1.0})
    study.tell(trial, 0.0)
    trial = study.ask()
    az.record(trial, {"p": 0.0})
    assert trial.should_prune()  # ranks low
    for step, expected in ((0, False), (1, False), (2, True)):
        trial.report(1.0, step)
        assert trial.should_prune() == expected
    assert decisions == [{0: 1.0}, {0: 1.0, 1: 1.0}, {0: 1.0, 1: 1.0, 2: 1.0}]


class UserAttributesPruner(optuna.pruners.BasePruner):
    """Prunes by the last value of a metric, kept in a user attribute: so does MultiMetricPruner of OptunaHub, which
    serves studies with several objectives, where trial.report raises.
    """

    def prune(self, study, trial, *, metric_name="loss"):
        others = [
            t.user_attrs.get(metric_name, []) for t in study.get_trials(deepcopy=False) if t.number != trial.number
        ]
        values = trial.user_attrs.get(metric_name, [])
        same_step = [other[len(values) - 1] for other in others if len(other) >= len(values)]
        return bool(values and same_step) and values[-1] > min(same_step)


class ForwardingTrial:
    """Forwards to a trial, as MultiMetricPrunerTrial does."""

    def __init__(self, trial):
        self._trial = trial

    def __getattr__(self, name):
        return getattr(self._trial, name)

    def report(self, **metrics):
        for name, value in metrics.items():
            self._trial.set_user_attr(name, [*self._trial.user_attrs.get(name, []), value])


@pytest.mark.parametrize("n_objectives", [1, 2])
@pytest.mark.parametrize("storage", [None, "sqlite://"])
def test_a_training_pruner_that_keeps_its_values_in_user_attributes(n_objectives, storage):
    pruner = az.AZNASPruner(keep_fraction=0.5, n_startup_trials=2, training_pruner=UserAttributesPruner())
    study = optuna.create_study(directions=["minimize"] * n_objectives, storage=storage, pruner=pruner)

    def start(proxy_score):
        trial = ForwardingTrial(study.ask())
        az.record(trial, {"p": proxy_score})
        return trial

    for proxy_score, loss in ((1.0, 3.0), (2.0, 2.0)):
        trial = start(proxy_score)
        assert not az.should_prune(trial)
        trial.report(loss=loss, error=loss)
        study.tell(trial.number, [loss] * n_objectives)
    good, bad = start(3.0), start(0.0)
    assert not az.should_prune(good)
    assert az.should_prune(bad)
    assert az.should_prune(bad)  # asked again, without a training in between
    good.report(loss=1.0, error=5.0)
    study.pruner = pickle.loads(pickle.dumps(study.pruner))  # another worker: what was decided is in the study
    assert not az.should_prune(good)
    assert az.should_prune(good, metric_name="error")
    good.report(loss=9.0)
    study.tell(bad.number, state=TrialState.PRUNED)
    other = start(4.0)
    assert not az.should_prune(other)
    other.report(loss=2.5)
    assert az.should_prune(other)


def test_options_are_for_a_training_pruner():
    study = optuna.create_study(pruner=az.AZNASPruner(training_pruner=UserAttributesPruner()))
    assert not az.should_prune(study.ask(), metric_name="loss")
    study.pruner = UserAttributesPruner()
    with pytest.raises(ValueError, match="The pruner of this study is a UserAttributesPruner"):
        az.should_prune(study.ask(), metric_name="loss")


def test_without_scores_or_with_others_nothing_is_pruned():
    study = optuna.create_study(pruner=az.AZNASPruner(keep_fraction=0.1, n_startup_trials=1))
    assert not study.ask().should_prune()
    trial = study.ask()
    az.record(trial, {"p": 1.0})
    study.tell(trial, 0.0)
    trial = study.ask()
    az.record(trial, {"other": 0.0})
    assert not trial.should_prune()


def test_keep_everything():
    study = optuna.create_study(pruner=az.AZNASPruner(keep_fraction=1.0, n_startup_trials=1))
    for x in (3, 2, 1):
        trial = study.ask()
        az.record(trial, {"p": x})
        assert not trial.should_prune()
        study.tell(trial, 0.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keep_fraction": 0.0}, "keep_fraction must be above 0 and at most 1; got 0.0"),
        ({"keep_fraction": 1.5}, "keep_fraction must be"),
        ({"keep_fraction": "half"}, "keep_fraction must be"),
        ({"n_startup_trials": 0}, "n_startup_trials must be an integer of at least 1"),
        ({"training_pruner": "hyperband"}, "training_pruner must be an Optuna pruner"),
        ({"aggregation": 1}, "aggregation must be callable"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        az.AZNASPruner(**arguments)


TRAINING_PRUNERS = {
    "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=2),
    "halving": optuna.pruners.SuccessiveHalvingPruner,
    "hyperband": lambda: optuna.pruners.HyperbandPruner(1, 9),
    "percentile": lambda: optuna.pruners.PercentilePruner(30.0, n_startup_trials=2),
}


def steps(study, *, ask):
    """Train 40 networks and return the step at which each was pruned."""
    stopped = []
    for number in range(40):
        trial = study.ask()
        quality = (7 * number) % 40
        if ask:
            az.record(trial, {"p": quality})
            assert not trial.should_prune()
        for step in range(9):
            trial.report(quality * (step + 1), step)
            if trial.should_prune():
                break
        stopped.append(step)
        study.tell(trial, quality)
    return stopped


@pytest.mark.parametrize("make", TRAINING_PRUNERS.values(), ids=TRAINING_PRUNERS)
def test_a_training_pruner_decides_as_it_does_alone(make):
    alone = optuna.create_study(study_name="s", direction="maximize", pruner=make())
    pruner = az.AZNASPruner(keep_fraction=1.0, training_pruner=make())
    after = optuna.create_study(study_name="s", direction="maximize", pruner=pruner)
    expected = steps(alone, ask=False)
    assert len(set(expected)) > 1
    assert steps(after, ask=True) == expected


@pytest.mark.parametrize("prune_first", [False, True])
def test_sampler_and_pruner_see_the_trials_of_all_brackets(prune_first):
    pruner = optuna.pruners.HyperbandPruner(1, 9)
    sampler = az.AZNASSampler(seed=0, n_candidates=20)
    study = optuna.create_study(
        direction="maximize",
        sampler=sampler,
        pruner=az.AZNASPruner(keep_fraction=1.0, training_pruner=pruner) if prune_first else pruner,
    )
    for number in range(24):
        trial = study.ask()
        x = trial.suggest_int("x", 0, 99)
        az.record(trial, {"p": x, "q": -abs(x - 60)})
        if prune_first:
            assert not trial.should_prune()
        trial.report(x, 0)
        pruned = trial.should_prune()
        study.tell(trial, x, state=TrialState.PRUNED if pruned else TrialState.COMPLETE)
        if number == 11:
            assert len({pruner._get_bracket_id(study, t) for t in study.trials}) > 1
    assert len({trial.params["x"] for trial in study.trials}) == 24  # no duplicate, of whatever bracket
    (session,) = sampler._sessions
    assert len(session.view.history) == 23


def test_an_architecture_that_was_kept_is_kept_again_and_does_not_count():
    """A sampler that proposes it again, with other hyperparameters, has learned that it is worth it."""
    study = optuna.create_study(pruner=az.AZNASPruner(keep_fraction=0.2, n_startup_trials=1))

    def decide(x):
        study.enqueue_trial({"x": x})
        trial = study.ask()
        az.record(trial, scores_of(trial.suggest_int("x", 0, 1000)))
        pruned = trial.should_prune()
        study.tell(trial, None if pruned else 0.0, state=TrialState.PRUNED if pruned else TrialState.COMPLETE)
        return pruned

    assert not decide(1)
    pruned = [x for x in range(100, 140) if decide(x)]
    assert len(pruned) > 20
    assert [decide(x) for x in (1, 1, 1)] == [False] * 3
    assert [decide(x) for x in pruned[:3]].count(True) >= 2  # what was pruned is ranked as any other
