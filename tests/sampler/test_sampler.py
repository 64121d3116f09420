"""AZNASSampler in ordinary Optuna studies."""

from __future__ import annotations

import ast
import pickle
from collections import Counter

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

import optuna_aznas as az
from tests import reference

CHOICES = ("a", "b", "c", "d", "e")


def scores_of(params):
    """Three proxies of six categorical parameters, best for 'eeeeee', in partial conflict."""
    digits = [CHOICES.index(params[f"x{i}"]) for i in range(6)]
    return sum(digits), min(digits), sum(d * (i + 1) for i, d in enumerate(digits))


def objective(trial):
    return scores_of({f"x{i}": trial.suggest_categorical(f"x{i}", CHOICES) for i in range(6)})


def new_study(sampler=None, **kwargs):
    return optuna.create_study(directions=["maximize"] * 3, sampler=sampler or az.AZNASSampler(seed=0), **kwargs)


def architectures(study):
    return [tuple(sorted(trial.params.items())) for trial in study.trials]


def test_it_searches_better_than_random():
    ours, random = [], []
    for seed in range(5):
        study = new_study(az.AZNASSampler(seed=seed))
        study.optimize(objective, n_trials=150)
        ours.append(max(sum(t.values) for t in study.trials))
        study = new_study(optuna.samplers.RandomSampler(seed=seed))
        study.optimize(objective, n_trials=150)
        random.append(max(sum(t.values) for t in study.trials))
    assert np.mean(ours) > np.mean(random) + 5
    assert min(ours) >= max(random)


def test_parents_come_from_the_top_by_aggregated_rank():
    """After the start, each trial differs in at most two parameters from the population that the plain formula
    gives."""
    study = new_study(az.AZNASSampler(seed=1, population_size=4, n_startup_trials=15, crossover_prob=0.0))
    study.optimize(objective, n_trials=60)
    trials = study.trials
    for trial in trials[15:]:
        before = trials[: trial.number]
        s = reference.aggregate([list(t.values) for t in before])
        population = [before[i] for i in sorted(range(len(before)), key=lambda i: (-round(s[i], 9), i))[:4]]
        distances = [sum(trial.params[name] != parent.params[name] for name in trial.params) for parent in population]
        assert 1 <= min(distances) <= 2, trial.number


def test_no_architecture_twice():
    study = new_study(az.AZNASSampler(seed=2))
    study.optimize(objective, n_trials=300)
    assert len(set(architectures(study))) == 300


def test_a_small_space_is_searched_to_the_last_and_then_repeats():
    study = optuna.create_study(directions=["maximize"] * 2, sampler=az.AZNASSampler(seed=0, n_startup_trials=5))
    study.optimize(lambda t: (t.suggest_int("x", 0, 3), -t.suggest_int("y", 0, 4)), n_trials=30)
    assert len(set(architectures(study)[:20])) == 20
    assert len(study.trials) == 30


def test_not_what_another_worker_is_running():
    study = new_study(az.AZNASSampler(seed=0, n_startup_trials=5, population_size=2))
    study.optimize(objective, n_trials=30)
    running = []
    for _ in range(30):  # asked and never told, as by other workers
        trial = study.ask()
        running.append(tuple(trial.suggest_categorical(f"x{i}", CHOICES) for i in range(6)))
    assert len(set(running)) == 30


def test_two_workers_that_draw_the_same_at_the_same_moment():
    """Two processes as seen by the storage: each writes its proposal before the other has suggested anything."""
    study = new_study(az.AZNASSampler(seed=0, n_startup_trials=5, population_size=2))
    study.optimize(objective, n_trials=20)
    for seed in range(10):
        both = [az.AZNASSampler(seed=seed, n_startup_trials=5, population_size=2) for _ in range(2)]
        numbers, proposed = [], []
        for sampler in both:  # their sequences of random numbers are the same
            study.sampler = sampler
            trial = study.ask()
            numbers.append(trial.number)
            proposed.append(trial.relative_params)
        assert proposed[0] != proposed[1]
        for number in numbers:
            study.tell(number, state=TrialState.FAIL)


@pytest.mark.parametrize("finished", [False, True])
def test_a_claim_is_checked_after_it_was_written(finished):
    """The other worker's proposal appears between ours being drawn and being written; or its trial even finishes."""
    sampler = az.AZNASSampler(seed=0, n_startup_trials=5)
    study = new_study(sampler)
    study.optimize(objective, n_trials=20)
    rival = optuna.load_study(
        study_name=study.study_name, storage=study._storage, sampler=optuna.samplers.RandomSampler()
    )
    claimed = []

    class Race(type(study._storage)):
        def set_trial_system_attr(self, trial_id, key, value):
            if key == "aznas:proposal" and not claimed:
                claimed.append(value)
                if finished:
                    params = {name: ast.literal_eval(choice) for name, choice in value.items()}
                    space = dict.fromkeys(params, CategoricalDistribution(CHOICES))
                    study.add_trial(create_trial(params=params, distributions=space, values=scores_of(params)))
                else:
                    super().set_trial_system_attr(rival.ask()._trial_id, key, value)
            super().set_trial_system_attr(trial_id, key, value)

    study._storage.__class__ = Race
    trial = study.ask()
    assert {name: repr(value) for name, value in trial.relative_params.items()} != claimed[0]
    assert study.trials[trial.number].system_attrs["aznas:proposal"] != claimed[0]


def test_no_architecture_twice_in_a_conditional_space():
    """Parameters that a shallower network does not ask for do not make it another one."""

    def objective(trial):
        widths = [trial.suggest_int(f"width{i}", 1, 4) for i in range(trial.suggest_int("depth", 1, 4))]
        return sum(widths), -abs(len(widths) - 2)

    repeats = 0
    for seed in range(5):  # there are 340 architectures
        sampler = az.AZNASSampler(seed=seed, n_startup_trials=5, population_size=3)
        study = optuna.create_study(directions=["maximize"] * 2, sampler=sampler)
        study.optimize(objective, n_trials=100)
        repeats += 100 - len(set(architectures(study)))
    assert repeats == 0


def test_a_child_inherits_every_parameter_of_its_parent():
    """With parents of several shapes, a child has one parent's shape and all but its mutations from it."""

    def conditional(trial):
        depth = trial.suggest_int("depth", 1, 5)
        return sum(trial.suggest_int(f"width{i}", 1, 1000) for i in range(depth)), depth

    sampler = az.AZNASSampler(seed=0, n_startup_trials=20, population_size=5, crossover_prob=0.0, n_mutations=1)
    study = optuna.create_study(directions=["maximize"] * 2, sampler=sampler)
    study.optimize(conditional, n_trials=20)
    for _ in range(30):
        relative = study.ask().relative_params
        distances = [
            sum(relative[name] != t.params[name] for name in relative)
            for t in study.trials
            if t.params.keys() == relative.keys()
        ]
        assert min(distances) == 1


def test_seeds():
    def run(seed):
        study = new_study(az.AZNASSampler(seed=seed))
        study.optimize(objective, n_trials=60)
        return architectures(study)

    assert run(3) == run(3)
    assert run(3) != run(4)
    sampler = az.AZNASSampler(seed=3)
    sampler.reseed_rng()
    study = new_study(sampler)
    study.optimize(objective, n_trials=60)
    assert architectures(study) != run(3)


def test_accept_is_asked_before_anything_is_spent():
    asked = []

    def accept(params):
        asked.append(dict(params))
        return sum(value == "e" for value in params.values()) <= 2

    study = new_study(az.AZNASSampler(seed=0, candidate_filter=accept))
    study.optimize(objective, n_trials=100)
    for trial in study.trials[1:]:
        assert sum(value == "e" for value in trial.params.values()) <= 2
        assert trial.params in asked


def test_accept_that_rejects_everything_warns_and_goes_on():
    study = new_study(az.AZNASSampler(seed=0, candidate_filter=lambda params: False))
    with pytest.warns(UserWarning, match="No candidate that is accepted was found; .* candidate_filter rejects it"):
        study.optimize(objective, n_trials=3)
    assert len(study.trials) == 3


def test_constraints():
    def constraints(trial):  # Optuna calls it before the values are set
        return (sum(CHOICES.index(value) for value in trial.params.values()) - 14.0,)

    study = new_study(az.AZNASSampler(seed=0, constraints_func=constraints))
    study.optimize(objective, n_trials=150)
    feasible = {t.number for t in study.trials if t.values[0] <= 14}
    assert all(trial.number in feasible for trial in az.best_trials(study, 20))
    assert {entry.number for entry in az.leaderboard(study, 500)} == feasible
    assert set(az.rank_scores(study)) == feasible
    # The search keeps to where trials are feasible: mostly so, as infeasible trials are no parents.
    late = [t.number in feasible for t in study.trials[60:]]
    assert sum(late) > 0.5 * len(late)


def test_infeasible_trials_are_parents_only_while_there_is_nothing_else():
    study = new_study(az.AZNASSampler(seed=0, constraints_func=lambda trial: (1.0,)))
    study.optimize(objective, n_trials=60)
    assert az.best_trials(study, 5) == []
    best = max(sum(t.values) for t in study.trials)
    assert best > 60  # it still climbs


def test_conditional_space():
    def conditional(trial):
        depth = trial.suggest_int("depth", 1, 5)
        widths = [trial.suggest_int(f"width{i}", 8, 64, step=8) for i in range(depth)]
        if trial.suggest_categorical("kind", ("conv", "attention")) == "attention":
            widths.append(8 * trial.suggest_int("heads", 1, 8))
        return sum(widths), depth

    study = optuna.create_study(directions=["maximize"] * 2, sampler=az.AZNASSampler(seed=0))
    study.optimize(conditional, n_trials=200)
    assert max(trial.values[0] for trial in study.trials) >= 350  # of 384
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE}


def test_relative_space_is_the_parents_own():
    sampler = az.AZNASSampler(seed=0, n_startup_trials=2, population_size=1)
    study = optuna.create_study(directions=["maximize"] * 2, sampler=sampler)
    wide, narrow = {"x": IntDistribution(0, 9), "y": IntDistribution(0, 9)}, {"x": IntDistribution(0, 9)}
    study.add_trial(create_trial(params={"x": 9, "y": 9}, distributions=wide, values=(9.0, 9.0)))
    study.add_trial(create_trial(params={"x": 1}, distributions=narrow, values=(1.0, 1.0)))
    trial = study.ask()
    assert trial.relative_params.keys() == {"x", "y"}
    study.add_trial(create_trial(params={"x": 3}, distributions=narrow, values=(10.0, 10.0)))
    trial = study.ask()
    assert trial.relative_params.keys() == {"x"}
    assert trial.suggest_int("y", 0, 9) in range(10)  # what the parent lacks is sampled independently


def test_choices_that_no_longer_exist_are_sampled_anew():
    study = new_study(az.AZNASSampler(seed=0, n_startup_trials=5))
    study.optimize(objective, n_trials=20)
    fewer = CHOICES[:2]
    with pytest.raises(ValueError, match="CategoricalDistribution does not support dynamic value space"):
        study.optimize(
            lambda t: scores_of({f"x{i}": t.suggest_categorical(f"x{i}", fewer) for i in range(6)}), n_trials=1
        )
    assert len(study.get_trials(states=[TrialState.COMPLETE])) == 20


def test_ranges_may_change():
    study = optuna.create_study(directions=["maximize"] * 2, sampler=az.AZNASSampler(seed=0, n_startup_trials=5))
    study.optimize(lambda t: (t.suggest_int("x", 0, 100), -t.suggest_float("y", 0, 1)), n_trials=20)
    study.optimize(lambda t: (t.suggest_int("x", 0, 10), -t.suggest_float("y", 0, 1)), n_trials=20)
    assert all(trial.params["x"] <= 10 for trial in study.trials[20:])


def test_studies_with_failed_pruned_enqueued_and_foreign_trials():
    study = new_study(optuna.samplers.RandomSampler(seed=0))
    study.optimize(objective, n_trials=10)

    def moody(trial):
        values = objective(trial)
        if trial.number % 3 == 0:
            raise optuna.TrialPruned
        if trial.number % 3 == 1:
            raise ArithmeticError
        return values

    study.sampler = az.AZNASSampler(seed=0, n_startup_trials=5)
    study.enqueue_trial({f"x{i}": "e" for i in range(6)})
    study.optimize(moody, n_trials=60, catch=ArithmeticError)
    assert len(set(architectures(study))) == 70  # nor is one that failed or was pruned proposed again
    states = Counter(trial.state for trial in study.trials)
    assert states[TrialState.PRUNED] == states[TrialState.FAIL] == 20
    assert set(az.rank_scores(study)) == {t.number for t in study.trials if t.state == TrialState.COMPLETE}
    assert study.trials[10].params == {f"x{i}": "e" for i in range(6)}


def test_a_parents_value_outside_of_anothers_range():
    """Each proposal lies within the distributions that it is proposed for, though parents had different ones."""
    sampler = az.AZNASSampler(seed=0, n_startup_trials=1, population_size=4, n_mutations=1)
    study = optuna.create_study(directions=["maximize"] * 2, sampler=sampler)
    for high in (10, 100):
        space = {"x": IntDistribution(0, high), "y": IntDistribution(0, 10**6)}
        for y in (1, 2):
            study.add_trial(create_trial(params={"x": high, "y": y}, distributions=space, values=(1.0, 1.0)))
    for _ in range(50):
        trial = study.ask()
        space = sampler.infer_relative_search_space(study, trial._get_latest_trial())
        params = sampler.sample_relative(study, trial._get_latest_trial(), space)
        assert all(space[name]._contains(value) for name, value in params.items())


@pytest.mark.filterwarnings("ignore:Choices for a categorical distribution")
def test_choices_of_any_kind():
    def odd(trial):
        x = trial.suggest_categorical("x", ([1, 2], None, float("nan"), True, 2.5))
        y = trial.suggest_categorical("y", ("a", "b", "c"))
        return float(x is None) + (y == "b"), float(y == "c")

    study = optuna.create_study(directions=["maximize"] * 2, sampler=az.AZNASSampler(seed=0, n_startup_trials=3))
    study.optimize(odd, n_trials=15)
    assert len({(repr(t.params["x"]), t.params["y"]) for t in study.trials}) == 15


@pytest.mark.parametrize("how", ["sampler", "enqueued"])
def test_partially_fixed(how):
    """The rest is evolved around what is fixed, nothing is proposed twice, and accept sees the whole."""
    seen = []
    sampler = az.AZNASSampler(
        seed=0, n_startup_trials=5, candidate_filter=lambda params: seen.append(set(params)) or True
    )
    study = new_study(sampler)
    study.optimize(objective, n_trials=50)
    fixed = {"x0": "c", "x1": "a", "x2": "e", "x3": "e"}  # 25 architectures are left
    if how == "sampler":
        study.sampler = optuna.samplers.PartialFixedSampler(fixed, sampler)
    else:
        for _ in range(22):
            study.enqueue_trial(fixed)
    study.optimize(objective, n_trials=22)
    late = study.trials[50:]
    assert all(fixed.items() <= trial.params.items() for trial in late)
    assert len(set(architectures(study))) == 72
    assert all(names == {f"x{i}" for i in range(6)} for names in seen)


def test_what_is_enqueued_is_not_proposed_before():
    study = new_study(az.AZNASSampler(seed=0, n_startup_trials=2))
    study.optimize(lambda t: (t.suggest_int("x", 0, 9), 0, 0), n_trials=5)
    left = sorted(set(range(10)) - {trial.params["x"] for trial in study.trials})
    study.enqueue_trial({"x": left[0]})
    running = study.ask()  # the enqueued one
    study.enqueue_trial({"x": left[1]})
    waiting = study.trials[-1]
    assert waiting.state == TrialState.WAITING
    values = [study._storage.create_new_trial(study._study_id) for _ in range(2)]
    proposed = [optuna.Trial(study, trial_id).suggest_int("x", 0, 9) for trial_id in values]
    assert sorted(proposed) == left[2:4] or not set(proposed) & set(left[:2])
    assert running.suggest_int("x", 0, 9) == left[0]


def test_old_trials_with_other_choices_are_still_parents():
    """Trials added from a study whose choices were others: what is left of them is inherited."""
    study = new_study(az.AZNASSampler(seed=0, n_startup_trials=5))
    old = {f"x{i}": CategoricalDistribution(("e", "f", "g")) for i in range(6)}
    for choice in "efgef":
        params = dict.fromkeys(old, choice)
        study.add_trial(create_trial(params=params, distributions=old, values=(99.0, 99.0, 99.0)))
    new = {f"x{i}": CategoricalDistribution(CHOICES) for i in range(6)}
    study.add_trial(create_trial(params=dict.fromkeys(new, "a"), distributions=new, values=(0.0, 0.0, 0.0)))
    study.optimize(objective, n_trials=30)
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE}
    assert any(list(trial.params.values()).count("e") >= 4 for trial in study.trials[6:12])


class _Flaky(optuna.storages.InMemoryStorage):
    """Fails at the n-th call from now."""

    calls_left = None

    def _tick(self):
        if self.calls_left is not None:
            self.calls_left -= 1
            if self.calls_left == -1:
                raise ConnectionError("the storage has gone away")

    def get_trial(self, *args, **kwargs):
        self._tick()
        return super().get_trial(*args, **kwargs)

    def get_trial_id_from_study_id_trial_number(self, *args, **kwargs):
        self._tick()
        return super().get_trial_id_from_study_id_trial_number(*args, **kwargs)

    def set_trial_system_attr(self, *args, **kwargs):
        self._tick()
        return super().set_trial_system_attr(*args, **kwargs)

    def set_trial_param(self, *args, **kwargs):
        self._tick()
        return super().set_trial_param(*args, **kwargs)


@pytest.mark.parametrize("calls", range(12))
def test_a_storage_that_goes_away(calls):
    """Wherever in a trial it happens: its error is raised, and once it is back the same sampler goes on."""
    storage = _Flaky()
    sampler = az.AZNASSampler(seed=0, n_startup_trials=5)
    study = new_study(sampler, storage=storage)
    study.optimize(objective, n_trials=10)
    storage.calls_left = calls
    with pytest.raises(ConnectionError, match="the storage has gone away"):
        study.optimize(objective, n_trials=1)
    storage.calls_left = None
    study.optimize(objective, n_trials=20)
    assert len(study.get_trials(states=[TrialState.COMPLETE])) == 30
    assert len({a for a in architectures(study) if len(a) == 6}) >= 30
    (session,) = sampler._sessions
    assert session.inferred == {}
    view = session.view
    scores = {t.number: s for t, s in zip(view.history.trials, view.history.rank_scores(), strict=True)}
    assert scores.keys() | {30} == az.rank_scores(study).keys() | {30}


def test_trials_without_scores_are_no_error():
    study = optuna.create_study(direction="minimize", sampler=az.AZNASSampler(seed=0, n_startup_trials=3))
    with pytest.warns(UserWarning, match=r"No finished trial .*record\(trial, proxy_scores\)") as warned:
        study.optimize(lambda t: t.suggest_float("x", 0, 1) ** 2, n_trials=20)
    assert len(warned) == 1
    assert len(study.trials) == 20
    assert az.rank_scores(study) == {}


def test_directions_that_do_not_fit_say_what_to_do():
    for directions in (["maximize", "minimize", "maximize"], ["maximize"] * 2):
        study = optuna.create_study(directions=directions, sampler=az.AZNASSampler(seed=0, n_startup_trials=3))
        with pytest.warns(UserWarning, match=r"directions are \['maximize'.*all of them 'maximize'"):
            study.optimize(objective, n_trials=5)
        assert len(study.trials) == 5
        assert len({tuple(trial.params.values()) for trial in study.trials}) == 5


def test_architecture_and_hyperparameters():
    """Parameters before record are steered by the aggregation, all others by the hyperparameter sampler."""
    asked = Counter()

    class Spy(optuna.samplers.RandomSampler):
        def sample_independent(self, study, trial, name, distribution):
            asked[name] += 1
            return super().sample_independent(study, trial, name, distribution)

    def combined(trial):
        params = {f"x{i}": trial.suggest_categorical(f"x{i}", CHOICES) for i in range(6)}
        az.record(trial, dict(zip(("p", "q", "r"), scores_of(params), strict=True)))
        lr = trial.suggest_float("lr", 1e-4, 1e-1, log=True)
        return scores_of(params)[0] / 10 - abs(np.log10(lr) + 2)

    sampler = az.AZNASSampler(seed=0, hyperparameter_sampler=Spy(seed=0))
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.optimize(combined, n_trials=100)
    assert asked == {"lr": 100}
    assert len(az.rank_scores(study)) == 100
    # At random it is 12.
    assert np.mean([scores_of(trial.params)[0] for trial in study.trials[20:]]) > 16
    assert len({tuple(sorted((k, v) for k, v in t.params.items() if k != "lr")) for t in study.trials}) == 100


def test_a_multivariate_hyperparameter_sampler_sees_only_its_own():
    spaces = []

    class Spy(optuna.samplers.TPESampler):
        def sample_relative(self, study, trial, search_space):
            spaces.append(set(search_space))
            return super().sample_relative(study, trial, search_space)

    def combined(trial):
        x = trial.suggest_int("x", 0, 9)
        az.record(trial, {"p": x, "q": -x})
        lr, decay = trial.suggest_float("lr", 0, 1), trial.suggest_float("decay", 0, 1)
        return x * lr - decay

    hyper = Spy(seed=0, multivariate=True, n_startup_trials=5)
    study = optuna.create_study(direction="maximize", sampler=az.AZNASSampler(seed=0, hyperparameter_sampler=hyper))
    study.optimize(combined, n_trials=30)
    assert spaces
    assert all(space <= {"lr", "decay"} for space in spaces)


@pytest.mark.parametrize("n_jobs", [1, 4])
def test_threads(n_jobs):
    study = new_study(az.AZNASSampler(seed=0))
    study.optimize(objective, n_trials=80, n_jobs=n_jobs)
    assert len(study.trials) == 80
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE}


def test_pickles_without_its_caches():
    sampler = az.AZNASSampler(seed=0)
    study = new_study(sampler)
    study.optimize(objective, n_trials=40)
    study.sampler = pickle.loads(pickle.dumps(sampler))
    study.optimize(objective, n_trials=40)
    assert len(set(architectures(study))) == 80


def test_a_custom_aggregation():
    calls = []

    def first_proxy(table):
        calls.append(table.shape)
        return table[:, 0]

    study = new_study(az.AZNASSampler(seed=0, aggregation=first_proxy, n_startup_trials=10))
    study.optimize(objective, n_trials=60)
    assert (59, 3) in calls
    assert max(t.values[0] for t in study.trials) >= 20  # of 24
    study.sampler = az.AZNASSampler(aggregation=lambda table: table)
    with pytest.raises(ValueError, match="aggregation must return one score for each of 60 networks"):
        objective(study.ask())


def test_sample_relative_serves_any_space_it_is_handed():
    sampler = az.AZNASSampler(seed=0)
    study = new_study(sampler)
    space = {"x": IntDistribution(1, 9, step=2), "y": CategoricalDistribution(("a", "b"))}
    for _ in range(20):
        params = sampler.sample_relative(study, create_trial(state=TrialState.RUNNING), space)
        assert params["x"] in (1, 3, 5, 7, 9)
        assert params["y"] in ("a", "b")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"population_size": 0}, "population_size must be an integer of at least 1; got 0"),
        ({"population_size": 2.5}, "population_size must be an integer"),
        ({"n_startup_trials": 0}, "n_startup_trials must be an integer of at least 1"),
        ({"n_startup_trials": True}, "n_startup_trials must be an integer"),
        ({"n_mutations": 0}, "n_mutations must be an integer of at least 1, or a pair"),
        ({"n_mutations": (2, 1)}, "n_mutations must be"),
        ({"n_mutations": (1, 2, 3)}, "n_mutations must be"),
        ({"n_mutations": "many"}, "n_mutations must be"),
        ({"n_mutations": 1.5}, "n_mutations must be"),
        ({"crossover_prob": 1.1}, "crossover_prob must be a probability between 0 and 1; got 1.1"),
        ({"crossover_prob": float("nan")}, "crossover_prob must be a probability"),
        ({"crossover_prob": "half"}, "crossover_prob must be a probability"),
        ({"aggregation": 3}, "aggregation must be callable"),
        ({"candidate_filter": [1]}, "candidate_filter must be callable"),
        ({"constraints_func": "no"}, "constraints_func must be callable"),
        ({"hyperparameter_sampler": "tpe"}, "hyperparameter_sampler must be an Optuna sampler"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        az.AZNASSampler(**arguments)
