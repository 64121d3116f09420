"""Workers that start at the same moment on an empty study, with one seed."""

from __future__ import annotations

import ast

import optuna
import pytest
import sqlalchemy.event
from optuna.distributions import CategoricalDistribution
from optuna.storages import InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState, create_trial

import optuna_aznas as az
from optuna_aznas.sampler.view import StudyView

OPERATIONS = tuple("abcdefghi")


def workers_of(study, n, seed=0):
    """Independent views of one study, as by as many processes."""
    return [
        optuna.load_study(study_name=study.study_name, storage=study._storage, sampler=az.AZNASSampler(seed=seed))
        for _ in range(n)
    ]


@pytest.mark.parametrize("kind", ["memory", "journal"])
@pytest.mark.parametrize("order", ["by parameter", "by trial"])
def test_the_first_trials_of_workers_with_one_seed(kind, order, tmp_path):
    """Nine workers, and no trial is finished: each gets its own architecture."""
    storage = InMemoryStorage() if kind == "memory" else JournalStorage(JournalFileBackend(str(tmp_path / "journal")))
    study = optuna.create_study(directions=["maximize"] * 2, storage=storage)
    trials = [worker.ask() for worker in workers_of(study, 9)]
    suggested = [{} for _ in trials]
    names = ("x", "y")
    if order == "by parameter":
        steps = [(i, name) for name in names for i in range(9)]
    else:
        steps = [(i, name) for i in range(9) for name in names]
    for i, name in steps:
        n = 9 if name == "y" else 3
        suggested[i][name] = trials[i].suggest_categorical(name, OPERATIONS[:n])
    assert len({tuple(params.values()) for params in suggested}) == 9


def test_equal_seeds_do_not_draw_equal_values():
    study = optuna.create_study(directions=["maximize"] * 2)
    drawn = [trial.suggest_float("x", 0.0, 1.0) for trial in [worker.ask() for worker in workers_of(study, 5)]]
    assert len({round(x, 3) for x in drawn}) == 5
    again = optuna.create_study(directions=["maximize"] * 2)
    assert [worker.ask().suggest_float("x", 0.0, 1.0) for worker in workers_of(again, 5)] == drawn


def test_a_first_trial_is_claimed_before_it_is_taken():
    """The other worker's claim of the same last parameter appears just before ours is written."""
    study = optuna.create_study(directions=["maximize"] * 2, sampler=az.AZNASSampler(seed=0))
    rival = optuna.load_study(
        study_name=study.study_name, storage=study._storage, sampler=optuna.samplers.RandomSampler()
    ).ask()
    claimed = []

    class Race(type(study._storage)):
        def set_trial_system_attr(self, trial_id, key, value):
            if key == "aznas:proposal" and not claimed:
                claimed.append(value)
                super().set_trial_system_attr(rival._trial_id, key, value)
            super().set_trial_system_attr(trial_id, key, value)

    study._storage.__class__ = Race
    value = study.ask().suggest_categorical("x", OPERATIONS[:3])
    assert len(claimed) == 1
    assert claimed[0] != {"x": repr(value)}


def test_a_trial_is_read_while_it_records(tmp_path):
    """A database reads a trial in several statements. Between two of them the other worker suggests and records."""
    url = f"sqlite:///{tmp_path}/study.db"
    study = optuna.create_study(directions=["maximize"] * 2, storage=url, sampler=az.AZNASSampler(seed=0))
    rival = optuna.load_study(study_name=study.study_name, storage=url).ask()
    trial = study.ask()
    storage = study._storage._backend
    claimed = []

    class Race(type(storage)):
        def set_trial_system_attr(self, trial_id, key, value):
            if not claimed:
                claimed.append(value)
                super().set_trial_system_attr(rival._trial_id, key, value)
            super().set_trial_system_attr(trial_id, key, value)

    storage.__class__ = Race
    recorded = []

    @sqlalchemy.event.listens_for(storage.engine, "before_cursor_execute")
    def between_parameters_and_attributes(connection, cursor, statement, parameters, *_):
        if claimed and not recorded and "FROM trial_user_attributes" in statement and rival._trial_id in parameters:
            recorded.append(claimed[0]["x"])
            value = ast.literal_eval(claimed[0]["x"])
            rival.study.sampler = optuna.samplers.PartialFixedSampler({"x": value}, optuna.samplers.RandomSampler())
            rival.suggest_categorical("x", OPERATIONS[:3])
            az.record(rival, {"a": 1.0})

    value = trial.suggest_categorical("x", OPERATIONS[:3])
    assert recorded
    assert value != rival.params["x"]


def test_a_claim_ends_with_the_values_that_were_suggested():
    """A claim of a draw that was given up does not keep others from it."""
    study = optuna.create_study(directions=["maximize"] * 2, sampler=az.AZNASSampler(seed=0))
    values = [study.ask().suggest_categorical("x", OPERATIONS[:3]) for _ in range(3)]
    assert sorted(values) == sorted(OPERATIONS[:3])
    assert study.ask().suggest_categorical("x", OPERATIONS[:3]) in OPERATIONS[:3]  # all are taken: one of them again
    for trial in study.trials[:3]:
        assert trial.system_attrs["aznas:proposal"] == {"x": repr(trial.params["x"])}


class Rival:
    """A trial of another worker that claims the first architecture that a trial of ``study`` claims, at that moment.

    Args:
        study: The study.
        gives_way: Whether it claims something else as soon as it is read once more.
        is_older: Whether its number is lower than that of the next trial of ``study``.
    """

    def __init__(self, study, gives_way, is_older):
        self.claim = None
        self.n_claims = 0
        reader = optuna.load_study(
            study_name=study.study_name, storage=study._storage, sampler=optuna.samplers.RandomSampler()
        )
        own = None if is_older else study.ask()
        trial = reader.ask()
        self.own = study.ask() if own is None else own
        rival = self

        class Race(type(study._storage)):
            def set_trial_system_attr(self, trial_id, key, value):
                if trial_id == rival.own._trial_id:
                    rival.n_claims += 1
                    if rival.claim is None:
                        rival.claim = value
                        super().set_trial_system_attr(trial._trial_id, key, value)
                super().set_trial_system_attr(trial_id, key, value)

            def get_trial(self, trial_id):
                read = super().get_trial(trial_id)
                if gives_way and trial_id == trial._trial_id and rival.claim is not None:
                    super().set_trial_system_attr(trial._trial_id, "aznas:proposal", {"x": "'elsewhere'"})
                return read

        study._storage.__class__ = Race


@pytest.mark.parametrize(
    ("gives_way", "is_older", "takes_it"), [(True, False, True), (False, False, False), (True, True, False)]
)
def test_of_two_claims_at_once_that_of_the_lower_number_stands(gives_way, is_older, takes_it):
    """It is taken if the other trial gives way. If it does not, it had taken it before it could see our claim."""
    study = optuna.create_study(directions=["maximize"] * 2, sampler=az.AZNASSampler(seed=0))
    rival = Rival(study, gives_way, is_older)
    value = rival.own.suggest_categorical("x", OPERATIONS)
    assert (rival.claim == {"x": repr(value)}) == takes_it
    assert (rival.n_claims == 1) == takes_it


def test_claims_go_on_until_one_stands():
    """However often other workers are faster, no architecture is taken that one of them has."""
    study = optuna.create_study(directions=["maximize"] * 2, sampler=az.AZNASSampler(seed=0))
    others = [trial._trial_id for trial in [worker.ask() for worker in workers_of(study, 20)]]
    taken = []

    class Race(type(study._storage)):
        def set_trial_system_attr(self, trial_id, key, value):
            if len(taken) < len(others) and trial_id not in others:
                super().set_trial_system_attr(others[len(taken)], key, value)
                taken.append(value)
            super().set_trial_system_attr(trial_id, key, value)

    study._storage.__class__ = Race
    value = study.ask().suggest_int("x", 0, 99)
    assert len(taken) == 20
    assert {"x": f"{value}.0"} not in taken


def test_nine_workers_take_all_nine_architectures():
    """Values are spread over the workers, so that enough of them are left for the parameters that come later."""
    for seed in range(5):
        study = optuna.create_study(directions=["maximize"] * 2)
        trials = [worker.ask() for worker in workers_of(study, 9, seed)]
        xs = [trial.suggest_categorical("x", OPERATIONS[:3]) for trial in trials]
        ys = [trial.suggest_categorical("y", OPERATIONS[:3]) for trial in trials]
        assert len(set(zip(xs, ys, strict=True))) == 9


def test_a_network_that_asks_for_less_is_recognised_while_it_runs():
    """The candidate has a parameter that the running trial's network, which is otherwise the same, never asked for."""
    study = optuna.create_study(directions=["maximize"] * 2, sampler=az.AZNASSampler(seed=0))
    running = study.ask()
    running.suggest_categorical("depth", [1])
    az.record(running, {"a": 1.0})
    view = StudyView(study, None)
    trial = study.ask()
    view.update(study.trials[trial.number])
    assert view.is_duplicate({"depth": 1, "width": 5})
    assert not view.is_duplicate({"depth": 2, "width": 5})


def test_a_claim_costs_no_more_statements_with_more_workers(tmp_path):
    """Databases read a trial in seven statements, and several trials together in as many."""

    def n_statements(n_others):
        url = f"sqlite:///{tmp_path}/{n_others}.db"
        study = optuna.create_study(directions=["maximize"] * 2, storage=url, sampler=az.AZNASSampler(seed=0))
        for _ in range(n_others):
            study.ask().suggest_categorical("x", OPERATIONS)
        trial = study.ask()
        statements = []
        sqlalchemy.event.listen(
            study._storage._backend.engine, "before_cursor_execute", lambda *c: statements.append(c)
        )
        trial.suggest_categorical("x", OPERATIONS)
        return len(statements)

    assert n_statements(6) == n_statements(2)


@pytest.mark.parametrize("n_left", [1, 2])
def test_the_last_architectures_behind_the_values_of_a_slow_trial_are_left_to_it(n_left):
    """A trial has suggested x, and y not yet. The last architecture behind its value is the last that others take."""
    study = optuna.create_study(direction="maximize", sampler=az.AZNASSampler(seed=0))
    slow = study.ask()
    x = slow.suggest_categorical("x", OPERATIONS[:3])
    space = {"x": CategoricalDistribution(OPERATIONS[:3]), "y": CategoricalDistribution(OPERATIONS[:3])}
    evaluated = [{"x": x, "y": y} for y in OPERATIONS[n_left:3]]
    evaluated += [{"x": next(other for other in OPERATIONS[:3] if other != x), "y": "a"}]
    for params in evaluated:
        attrs = {"aznas:scores": {"a": 1.0, "b": 1.0}, "aznas:architecture": ["x", "y"]}
        study.add_trial(create_trial(params=params, distributions=space, value=0.5, user_attrs=attrs))
    proposed = [study.ask().relative_params for _ in range(9 - len(evaluated))]
    *others, last = [params["x"] == x for params in proposed]
    assert last
    assert sum(others) == n_left - 1
    slow.suggest_categorical("y", OPERATIONS[:3])


@pytest.mark.filterwarnings("ignore:4 of 4 finished trials")
def test_a_value_is_preferred_that_leaves_room_for_another_trial():
    """Each value of x is another trial's too. The one architecture that is left with "a" is that trial's."""
    study = optuna.create_study(direction="maximize", sampler=az.AZNASSampler(seed=0))
    x, y = CategoricalDistribution(OPERATIONS[:2]), CategoricalDistribution(OPERATIONS[:4])
    for params in [{"x": "a", "y": operation} for operation in "abc"] + [{"x": "b", "y": "a"}]:
        study.add_trial(create_trial(params=params, distributions={"x": x, "y": y}, value=0.0))
    for value in "abb":
        study.add_trial(create_trial(state=TrialState.RUNNING, params={"x": value}, distributions={"x": x}))
    assert study.ask().suggest_categorical("x", OPERATIONS[:2]) == "b"


def test_a_worker_knows_the_space_and_the_proxies_of_trials_that_are_being_trained():
    """No trial is finished. The first one trains; the others are chosen among scored candidates."""

    def scores_of(params):
        return {"a": float(params["x"]), "b": float(params["y"])}

    study = optuna.create_study(direction="maximize")
    workers = [
        optuna.load_study(
            study_name=study.study_name,
            storage=study._storage,
            sampler=az.AZNASSampler(seed=0, candidate_scorer=scores_of),
        )
        for _ in range(8)
    ]
    chosen = []
    for worker in workers:
        trial = worker.ask()
        chosen.append({name: trial.suggest_int(name, 0, 8) for name in "xy"})
        assert set(trial.relative_params) == (set("xy") if len(chosen) > 1 else set())
        az.record(trial, scores_of(chosen[-1]))
        trial.suggest_float("lr", 1e-3, 1.0)
    best = sorted((x + 1) * (y + 1) for x in range(9) for y in range(9))[-27:]
    assert all((params["x"] + 1) * (params["y"] + 1) in best for params in chosen[1:])
    assert len({tuple(params.values()) for params in chosen}) == 8
