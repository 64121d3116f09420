"""AZNASPruner and should_prune."""

from __future__ import annotations

import optuna
import pytest
from optuna.trial import TrialState

import optuna_aznas as az
from tests import reference


def scores_of(x):
    return {"p": x, "q": -abs(x - 700)}


def test_it_prunes_what_ranks_below_keep_fraction():
    pruner = az.AZNASPruner(keep_fraction=0.3, n_startup_trials=10)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0), pruner=pruner)

    def objective(trial):
        az.record(trial, scores_of(trial.suggest_int("x", 0, 1000)))
        if trial.should_prune():
            raise optuna.TrialPruned
        return 0.0

    study.optimize(objective, n_trials=200)
    table = [list(scores_of(t.params["x"]).values()) for t in study.trials]
    for trial in study.trials:
        s = reference.aggregate(table[: trial.number + 1])
        share = sum(value >= s[-1] - 1e-12 for value in s) / len(s)
        expected = TrialState.PRUNED if trial.number >= 10 and share > 0.3 else TrialState.COMPLETE
        assert trial.state == expected, trial.number
    kept = sum(t.state == TrialState.COMPLETE for t in study.trials[10:])
    assert 0.2 < kept / 190 < 0.4


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
