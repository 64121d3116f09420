"""Candidates that may not be proposed: candidate_filter, limits, and constraints that are learned."""

from __future__ import annotations

import copy
import math
import pickle
import random
import threading
import warnings

import numpy as np
import optuna
import pytest
import torch
from optuna.trial import FixedTrial, TrialState

import optuna_aznas as az
from optuna_aznas.sampler.drawing import DrawingTrial
from optuna_aznas.sampler.variation import sample_uniform
from optuna_aznas.study.numbers import recorded_numbers

MOST = 60


def widths(trial):
    """A conditional space: a list of widths."""
    return [trial.suggest_int(f"width{i}", 8, 64, step=8) for i in range(trial.suggest_int("depth", 1, 5))]


def objective(trial):
    chosen = widths(trial)
    return float(sum(chosen)), -float(len(chosen)), float(chosen[0])


def trained(trial):
    scores = objective(trial)
    az.record(trial, dict(zip("abc", scores, strict=True)))
    trial.suggest_float("lr", 1e-4, 1e-1, log=True)
    return sum(scores)


def total(params):
    """The sum of widths; it needs every width that the depth asks for."""
    return sum(params[f"width{i}"] for i in range(params["depth"]))


def fits(params):
    return total(params) <= MOST


def study_of(sampler, *, joint=False):
    if joint:
        return optuna.create_study(direction="maximize", sampler=sampler)
    return az.create_study(proxies=["a", "b", "c"], sampler=sampler)


def limits_on_total(measured=None, maximum=MOST, **settings):
    """A limit on the sum of widths; ``measured`` lists the networks that were measured."""

    def measure(network):
        if measured is not None:
            measured.append(tuple(network))
        return sum(network)

    return az.Limits(widths, total=az.Limit(maximum, measure, **settings))


@pytest.mark.parametrize("joint", [False, True])
def test_a_filter_sees_a_value_for_every_parameter_and_is_kept(joint):
    given = []

    def accept(params):
        given.append(dict(params))
        return fits(params)

    study = study_of(az.AZNASSampler(seed=0, candidate_filter=accept, n_startup_trials=5, n_candidates=20), joint=joint)
    study.enqueue_trial({"depth": 5, "width0": 8, "width1": 8, "width2": 8, "width3": 8, "width4": 8})
    study.optimize(trained if joint else objective, n_trials=40)
    assert all(params.keys() >= {"depth", *(f"width{i}" for i in range(5))} for params in given)
    assert all(fits(trial.params) for trial in study.trials)


def test_a_filter_that_fails_is_survived_and_leaves_the_candidate_out():
    study = study_of(az.AZNASSampler(seed=0, candidate_filter=fits, n_startup_trials=5))
    study.enqueue_trial({"depth": 2, "width0": 8, "width1": 8})  # the filter asks for more than it can be given
    with pytest.warns(UserWarning, match="candidate_filter failed for .*KeyError: 'width.'.*Limits\\(build\\)"):
        study.optimize(objective, n_trials=30)
    assert all(fits(trial.params) for trial in study.trials)


@pytest.mark.parametrize("joint", [False, True])
def test_a_filter_with_a_function_that_builds_holds_for_the_first_trial_and_new_parameters(joint):
    sampler = az.AZNASSampler(
        seed=0, candidate_filter=fits, limits=az.Limits(widths), n_startup_trials=5, n_candidates=20
    )
    study = study_of(sampler, joint=joint)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        study.optimize(trained if joint else objective, n_trials=40)
    assert all(fits(trial.params) for trial in study.trials)
    assert {trial.params["depth"] for trial in study.trials} >= {1, 2, 3}
    architectures = {str({n: v for n, v in trial.params.items() if n != "lr"}) for trial in study.trials}
    # Of 119 that the filter accepts; jointly, good ones are trained again with other hyperparameters.
    assert len(architectures) >= (8 if joint else 38)


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("cheap", [False, True])
def test_limits_are_kept_by_every_trial_and_stored_with_it(cheap, joint):
    measured = []
    sampler = az.AZNASSampler(
        seed=0, limits=limits_on_total(measured, cheap=cheap, unit="channels"), n_startup_trials=5, n_candidates=20
    )
    study = study_of(sampler, joint=joint)
    study.optimize(trained if joint else objective, n_trials=30)
    for trial in study.trials:
        number = recorded_numbers(trial)["total"]
        assert (number.measurement.median, number.measurement.unit, number.limit) == (
            total(trial.params),
            "channels",
            MOST,
        )
        assert number.measurement.median <= MOST
        assert trial.system_attrs["constraints"] == pytest.approx((total(trial.params) / MOST - 1,))
    if not cheap:
        assert len(set(measured)) == len(measured)  # nothing is measured twice


def test_measurements_are_spent_on_candidates_that_probably_keep_the_limit():
    measured = []
    study = study_of(az.AZNASSampler(seed=0, limits=limits_on_total(measured)))
    study.optimize(objective, n_trials=15)
    early = len(measured)
    study.optimize(objective, n_trials=30)
    rng = np.random.default_rng(0)
    drawing = (DrawingTrial({}, {}, lambda space: sample_uniform(space, rng)) for _ in range(1000))
    random_networks = [widths(trial) for trial in drawing]
    share = np.mean([sum(network) <= MOST for network in random_networks])
    assert share < 0.4
    assert 30 / (len(measured) - early) > 0.7  # of those that were measured were proposed


def test_limits_are_learned_from_the_study_by_a_new_sampler():
    study = study_of(az.AZNASSampler(seed=0, limits=limits_on_total()))
    study.optimize(objective, n_trials=20)
    for _ in range(20):  # trials that exceed the limit, so that there is something to learn
        study.enqueue_trial({"depth": 5, **{f"width{i}": 8 * (1 + (i * _) % 8) for i in range(5)}})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study.optimize(objective, n_trials=20)
    measured = []
    study.sampler = az.AZNASSampler(seed=1, limits=limits_on_total(measured))
    study.optimize(objective, n_trials=10)
    assert len(measured) <= 14


def test_constraints_of_a_function_are_learned():
    def constraints(trial):
        return (total(trial.params) / MOST - 1, trial.params["width0"] - 40)

    shares = []
    for seed in range(2):
        study = study_of(az.AZNASSampler(seed=seed, constraints_func=constraints))
        study.optimize(objective, n_trials=60)
        shares.append(np.mean([fits(t.params) and t.params["width0"] <= 40 for t in study.trials[15:]]))
    assert np.mean(shares) > 0.8


def test_trials_that_were_pruned_before_they_were_scored_teach_too():
    """As where a limit is checked in the objective: these trials have no proxy scores, but constraints."""

    def checked(trial):
        chosen = widths(trial)
        trial.set_user_attr("total", sum(chosen))
        if sum(chosen) > MOST:
            raise optuna.TrialPruned
        return float(sum(chosen)), -float(len(chosen)), float(chosen[0])

    study = study_of(az.AZNASSampler(seed=0, constraints_func=lambda trial: (trial.user_attrs["total"] - MOST,)))
    study.optimize(checked, n_trials=60)
    assert np.mean([trial.state == TrialState.COMPLETE for trial in study.trials[15:]]) > 0.7


def test_what_the_user_fixes_wins_with_a_warning_and_is_infeasible():
    study = study_of(az.AZNASSampler(seed=0, limits=limits_on_total(cheap=True), n_startup_trials=5))
    too_large = {"depth": 2, "width0": 64, "width1": 64}
    study.enqueue_trial(too_large)
    with pytest.warns(UserWarning, match=r"fixed or enqueued is run all the same: total is 128, the limit 60"):
        study.optimize(objective, n_trials=1)
    study.optimize(objective, n_trials=10)
    assert study.trials[0].params == too_large
    assert study.trials[0].system_attrs["constraints"] == pytest.approx((128 / MOST - 1,))
    assert 0 not in {trial.number for trial in az.best_trials(study)}


@pytest.mark.parametrize("how", ["sampler", "enqueued"])
def test_the_rest_is_chosen_around_what_is_fixed(how):
    sampler = az.AZNASSampler(seed=0, limits=limits_on_total(cheap=True), n_startup_trials=5)
    study = study_of(sampler)
    fixed = {"depth": 4, "width1": 24}
    if how == "sampler":
        study.sampler = optuna.samplers.PartialFixedSampler(fixed, sampler)
    else:
        for _ in range(10):
            study.enqueue_trial(fixed)
    study.optimize(objective, n_trials=10)
    assert all(fixed.items() <= trial.params.items() and fits(trial.params) for trial in study.trials)


def test_where_nothing_keeps_the_limit_the_closest_is_proposed():
    study = study_of(az.AZNASSampler(seed=0, limits=limits_on_total(maximum=7, cheap=True), n_startup_trials=2))
    with pytest.warns(UserWarning, match="No candidate that is accepted was found; the one that comes closest"):
        study.optimize(objective, n_trials=4)
    assert [total(trial.params) for trial in study.trials] == [8] * 4  # the smallest network of the space


def test_rare_networks_are_found():
    """One network in 3,000 keeps the limit."""
    study = study_of(az.AZNASSampler(seed=0, limits=limits_on_total(maximum=8, cheap=True), n_startup_trials=2))
    study.optimize(objective, n_trials=1)
    assert study.trials[0].params == {"depth": 1, "width0": 8}


def test_workers_at_once_begin_with_different_networks_that_keep_the_limit():
    barrier = threading.Barrier(4)

    def together(trial):
        if trial.number < 4:
            barrier.wait(60)
        return objective(trial)

    study = study_of(az.AZNASSampler(seed=0, limits=limits_on_total(cheap=True), n_startup_trials=5))
    study.optimize(together, n_trials=12, n_jobs=4)
    assert all(fits(trial.params) for trial in study.trials)
    assert len({str(trial.params) for trial in study.trials}) == 12


def test_a_range_that_depends_on_another_parameter():
    """Values are proposed for the distributions that this very architecture has."""

    def build(trial):
        low = trial.suggest_int("low", 0, 50)
        return low, trial.suggest_int("high", low, low + 10)

    limit = az.Limit(20, sum, cheap=True)
    study = study_of(az.AZNASSampler(seed=0, limits=az.Limits(build, sum=limit), n_startup_trials=5))

    def score(trial):
        low, high = build(trial)
        return float(low), float(high), float(high - low)

    study.optimize(score, n_trials=30)
    assert all(sum(trial.params.values()) <= 20 for trial in study.trials)


def test_an_objective_that_suggests_something_else_is_measured_as_it_is():
    limits = az.Limits(lambda trial: [trial.suggest_int("depth", 1, 2)], total=az.Limit(2, sum, cheap=True))
    study = study_of(az.AZNASSampler(seed=0, limits=limits))

    def deeper(trial):
        depth = trial.suggest_int("depth", 3, 9)  # what was proposed is not in this range
        return float(depth), 0.0, 0.0

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study.optimize(deeper, n_trials=5)
    for trial in study.trials:
        assert recorded_numbers(trial)["total"].measurement.median == trial.params["depth"]
        assert trial.system_attrs["constraints"] == pytest.approx((trial.params["depth"] / 2 - 1,))


def test_samplers_with_one_seed_begin_with_different_networks():
    """Not only because the first has claimed its network: the others would draw that one, too, and draw again."""
    built = []

    def build(trial):
        built.append(trial.params)
        return widths(trial)

    study = study_of(az.AZNASSampler(seed=0, limits=az.Limits(build)))
    for _ in range(4):
        study.sampler = az.AZNASSampler(seed=0, limits=az.Limits(build))
        widths(study.ask())
    assert len({str(trial.params) for trial in study.trials}) == 4
    assert len(built) == 4


def test_measurements_that_fail_leave_the_candidate_out():
    def measure(network):
        if len(network) > 2:
            raise RuntimeError("no such kernel on this device")
        return sum(network)

    study = study_of(az.AZNASSampler(seed=0, limits=az.Limits(widths, ms=az.Limit(500, measure)), n_startup_trials=5))
    with pytest.warns(UserWarning, match="could not be built or measured: RuntimeError: no such kernel"):
        study.optimize(objective, n_trials=20)
    assert {trial.params["depth"] for trial in study.trials} == {1, 2}


def test_a_number_that_is_not_a_number_exceeds_its_limit():
    limits = az.Limits(widths, ms=az.Limit(500, lambda network: math.nan if len(network) > 1 else 1.0))
    study = study_of(az.AZNASSampler(seed=0, limits=limits, n_startup_trials=3))
    study.optimize(objective, n_trials=6)
    assert {trial.params["depth"] for trial in study.trials} == {1}


def test_a_space_that_prunes_and_one_that_fails():
    def build(trial):
        chosen = widths(trial)
        if len(chosen) == 3:
            raise optuna.TrialPruned
        if len(chosen) == 4:
            raise ArithmeticError("no such network")
        return chosen

    limits = az.Limits(build, total=az.Limit(400, sum, cheap=True))
    study = study_of(az.AZNASSampler(seed=0, limits=limits, n_startup_trials=5))
    with pytest.warns(UserWarning, match="ArithmeticError: no such network") as warned:
        study.optimize(objective, n_trials=25)
    assert len(warned) == 1
    assert {trial.params["depth"] for trial in study.trials} == {1, 2, 5}


def test_the_same_seed_gives_the_same_study_and_random_states_are_left_alone():
    def build(trial):
        np.random.rand(), random.random(), torch.rand(1)
        return widths(trial)

    def run():
        torch.manual_seed(3), np.random.seed(3), random.seed(3)
        limits = az.Limits(build, total=az.Limit(MOST, sum), layers=az.Limit(4, len, cheap=True))
        study = study_of(az.AZNASSampler(seed=5, limits=limits, n_startup_trials=5))
        study.optimize(objective, n_trials=15)
        return [trial.params for trial in study.trials], float(torch.rand(1)), np.random.rand(), random.random()

    first = run()
    assert run() == first
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    assert (float(torch.rand(1)), np.random.rand(), random.random()) == first[1:]


def test_a_sampler_with_limits_can_be_pickled_and_copied():
    sampler = az.AZNASSampler(seed=0, limits=az.Limits(widths, layers=az.Limit(2, len, cheap=True)))
    study = study_of(sampler)
    study.optimize(objective, n_trials=3)
    for other in (pickle.loads(pickle.dumps(sampler)), copy.deepcopy(sampler)):
        study.sampler = other
        study.optimize(objective, n_trials=3)
    assert all(trial.params["depth"] <= 2 for trial in study.trials)


def test_a_drawing_trial_is_what_an_objective_expects():
    trial = DrawingTrial({"a": 3, "b": 99, "c": "y"}, {"d": 0.25}, lambda distribution: distribution.low)
    assert isinstance(trial, optuna.trial.BaseTrial)
    assert trial.suggest_int("a", 0, 9) == 3
    assert trial.suggest_int("a", 0, 9) == 3
    assert trial.suggest_int("b", 2, 9) == 2  # 99 is out of its range
    assert trial.suggest_categorical("c", ["x", "y"]) == "y"
    assert trial.suggest_float("d", 0.0, 1.0) == 0.25
    assert trial.params == {"a": 3, "b": 2, "c": "y", "d": 0.25}
    assert trial.drawn == {"b"}
    assert FixedTrial(trial.params).suggest_int("b", 2, 9) == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: az.AZNASSampler(limits={"parameters": 3}), "limits must be an optuna_aznas.Limits"),
        (lambda: az.Limits(widths, width=3.0), "There is no limit 'width'; there is parameters, complexity"),
        (lambda: az.Limits(widths, latency=3.0), "input_shape is needed to measure latency"),
        (lambda: az.Limits(widths, parameters=-1), "parameters must be a number above 0"),
        (lambda: az.Limits(3), "build must be callable"),
        (lambda: az.Limits(widths, device="phone"), "device must be a device such as 'cpu'"),
        (lambda: az.Limits(None), "build must be callable"),
        (lambda: az.Limit(0, sum), "maximum must be a number above 0"),
        (lambda: az.Limit(3, None), "measure must be callable"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
