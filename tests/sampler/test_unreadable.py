"""Trials that cannot be read, and trials that differ: none of them stops a study."""

from __future__ import annotations

import warnings

import optuna
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

import optuna_aznas as az
from optuna_aznas.study import attributes

anything = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.just(10**400), st.floats(), st.text(max_size=3),
        st.sampled_from(["a", "b", "x", "lr", "-inf", "nan"]),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(["a", "b", "x"]), inner)),
    max_leaves=5,
)  # fmt: skip

USER = ("aznas:scores", "aznas:architecture")
SYSTEM = ("aznas:proposal", "fixed_params", "constraints", "retry_history", "failed_trial")
STATES = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING)


@st.composite
def trials(draw):
    state = draw(st.sampled_from(STATES))
    user = draw(st.dictionaries(st.sampled_from(USER), anything))
    user = {"aznas:scores": {"a": 1.0, "b": 2.0}, "aznas:architecture": ["x"], **user}
    return create_trial(
        state=state,
        value=1.0 if state == TrialState.COMPLETE else None,
        params={"x": draw(st.integers(0, 30)), "lr": 0.5},
        distributions={"x": IntDistribution(0, 30), "lr": FloatDistribution(0.0, 1.0)},
        user_attrs=user,
        system_attrs=draw(st.dictionaries(st.sampled_from(SYSTEM), anything)),
    )


def objective(trial):
    x = trial.suggest_int("x", 0, 30)
    az.record(trial, {"a": x, "b": -x})
    trial.should_prune()
    return x * trial.suggest_float("lr", 0.0, 1.0)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(trials(), min_size=1, max_size=4), st.sampled_from([1, 2]))
def test_no_attribute_stops_a_study(odd, n_objectives):
    sampler = az.AZNASSampler(seed=0, n_startup_trials=2, n_candidates=3, n_startup_trainings=2)
    study = optuna.create_study(
        directions=["maximize"] * n_objectives, sampler=sampler, pruner=az.AZNASPruner(n_startup_trials=1)
    )

    def returns(trial):
        x = trial.suggest_int("x", 0, 30)
        az.record(trial, {"a": x, "b": -x})
        az.should_prune(trial)
        return (x * trial.suggest_float("lr", 0.0, 1.0),) * n_objectives

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study.optimize(returns, n_trials=2)
        for trial in odd:
            values = [1.0] * n_objectives if trial.state == TrialState.COMPLETE else None
            study.add_trial(create_trial(
                state=trial.state, values=values, params=trial.params, distributions=trial.distributions,
                user_attrs=trial.user_attrs, system_attrs=trial.system_attrs,
            ))  # fmt: skip
        # With ten finished trials the hyperparameters of two objectives are Optuna's TPESampler's, which reads
        # constraints itself and stops at those that are no numbers, also without this package.
        study.optimize(returns, n_trials=3)
        scores = az.rank_scores(study)
        assert {trial.number for trial in study.trials[-3:]} <= scores.keys()
        assert len(az.leaderboard(study, 3)) > 0
    assert all(trial.state == TrialState.COMPLETE for trial in study.trials[-3:])


@pytest.mark.parametrize(
    ("user", "system"),
    [
        ({"aznas:scores": {"a": 10**400, "b": 1.0}}, {}),
        ({"aznas:architecture": [["x"]]}, {}),
        ({"aznas:architecture": "x"}, {}),
        ({}, {"constraints": ["low"]}),
        ({}, {"constraints": 3}),
    ],
)
def test_a_trial_that_cannot_be_read_is_left_out_with_one_warning(user, system):
    study = optuna.create_study(direction="maximize", sampler=az.AZNASSampler(seed=0, n_candidates=3))
    study.optimize(objective, n_trials=2)
    good = {"aznas:scores": {"a": 99.0, "b": 99.0}, "aznas:architecture": ["x"]}
    study.add_trial(create_trial(
        value=1.0, params={"x": 3, "lr": 0.5},
        distributions={"x": IntDistribution(0, 30), "lr": FloatDistribution(0.0, 1.0)},
        user_attrs={**good, **user}, system_attrs=system,
    ))  # fmt: skip
    with pytest.warns(UserWarning, match="Trial 2 .*left out") as warned:
        study.optimize(objective, n_trials=4)
    assert len(warned) == 1
    with pytest.warns(UserWarning, match="Trial 2 .*left out"):
        assert set(az.rank_scores(study)) == {0, 1, 3, 4, 5, 6}


def test_what_is_architecture_in_some_trials_and_hyperparameter_in_others():
    def objective(trial):
        x = trial.suggest_int("x", 0, 1000)
        if trial.number % 2:
            trial.suggest_float("lr", 0.0, 1.0)
        az.record(trial, {"a": x, "b": -x})
        return x * trial.suggest_float("lr", 0.0, 1.0)

    sampler = az.AZNASSampler(seed=0, n_candidates=20, n_startup_trainings=2, crossover_prob=1.0)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.optimize(objective, n_trials=25)
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE}
    names = [attributes.architecture_names(trial) for trial in study.trials]
    assert ["x"] in names
    assert ["x", "lr"] in names
