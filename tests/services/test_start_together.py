"""Workers that are started at the same moment, on an empty database too: none dies, and they agree on the study."""

from __future__ import annotations

import re
import uuid
from urllib.parse import urlsplit

import optuna
import pytest
from optuna.trial import TrialState

import optuna_aznas as az
from optuna_aznas.cli import _settle
from tests.services import together

WORKERS = 6
SEARCHES = 4

STORAGES = [
    "sqlite",
    "journal",
    pytest.param("postgres", marks=pytest.mark.postgres),
    pytest.param("redis", marks=pytest.mark.redis),
]


@pytest.fixture
def url(request, tmp_path):
    """URL of an empty storage of the kind that the test is run with."""
    kind = request.param
    if kind == "postgres":
        yield request.getfixturevalue("postgres_storage")
    elif kind == "redis":
        import redis

        # A database of its own, as the journal's keys are the same in each: another one for each server URL, so that
        # runs beside each other do not meet.
        server = urlsplit(request.getfixturevalue("redis_url"))
        own = server._replace(path=f"/{13 - int(server.path.strip('/') or 0)}").geturl()
        client = redis.Redis.from_url(own)
        client.flushdb()
        yield own
        client.flushdb()
    else:
        yield f"sqlite:///{tmp_path}/nas.db" if kind == "sqlite" else f"journal:{tmp_path}/nas.log"


def all_trials(url, name):
    return optuna.load_study(study_name=name, storage=az.open_storage(url)).trials


def check_all_ended_well(ended):
    assert [status for status, _ in ended] == [0] * len(ended), "\n".join(errors for _, errors in ended if errors)


@pytest.mark.parametrize("url", STORAGES, indirect=True)
def test_workers_of_a_script(url, tmp_path):
    check_all_ended_well(together.start(tmp_path / "barrier", [["create", url]] * WORKERS))
    assert optuna.get_all_study_names(az.open_storage(url)) == ["together"]
    trials = all_trials(url, "together")
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 3 * WORKERS
    assert [trial.number for trial in trials] == list(range(3 * WORKERS))


SEARCH = ["search", "nas_bench_201", "--trials", "1", "--device", "cpu", "--quiet", "--batch-size", "1"]
SEARCH += ["--input-shape", "3,8,8", "--storage"]


@pytest.mark.parametrize("url", STORAGES, indirect=True)
def test_searches_with_the_same_settings(url, tmp_path):
    ended = together.start(tmp_path / "barrier", [[*SEARCH, url, "--budget", "100M"]] * SEARCHES)
    check_all_ended_well(ended)
    assert sum("New study" in errors for _, errors in ended) == 1
    trials = all_trials(url, "nas_bench_201")
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * SEARCHES
    assert sum("fixed_params" in trial.system_attrs for trial in trials) == 1  # the first network, once


@pytest.mark.parametrize("url", STORAGES, indirect=True)
def test_searches_with_other_settings(url, tmp_path):
    """One worker's settings win: others that ask for something else refuse, and one that asks for nothing follows."""
    tasks = [[*SEARCH, url, "--evaluator-seed", str(seed)] for seed in range(1, SEARCHES)] + [[*SEARCH, url]]
    ended = together.start(tmp_path / "barrier", tasks)
    study = optuna.load_study(study_name="nas_bench_201", storage=az.open_storage(url))
    won = study.user_attrs["aznas:search"]["evaluator_seed"]
    for (*_, seed), (status, errors) in zip(tasks[:-1], ended[:-1], strict=True):
        if int(seed) == won:
            assert status == 0, errors
        else:
            assert status == 1, errors
            assert f"was searched with --evaluator-seed {won}, not --evaluator-seed {seed}" in errors
    check_all_ended_well(ended[-1:])
    assert len(study.trials) == sum(status == 0 for status, _ in ended)


@pytest.mark.parametrize("url", STORAGES, indirect=True)
def test_enqueued_trials_are_taken_once(url, tmp_path):
    study = together._open(url, "enqueued")
    for x in range(40):
        study.enqueue_trial({"x": x})
    check_all_ended_well(together.start(tmp_path / "barrier", [["take", url, 10]] * 4))
    trials = all_trials(url, "enqueued")
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 40
    assert [trial.params["x"] for trial in trials] == list(range(40))


@pytest.mark.crash
@pytest.mark.parametrize("url", STORAGES, indirect=True)
def test_no_architecture_is_scored_twice(url, tmp_path):
    """Five rounds of six workers with one seed, which together score most of a small space."""
    rounds = [f"round-{number}" for number in range(5)]
    folder, sides, n_trials = tmp_path / "barrier", (3, 3, 3), 4
    task = ["crowd", url, rounds, str(folder), WORKERS, sides, n_trials]
    check_all_ended_well(together.start(folder, [task] * WORKERS))
    for name in rounds:
        trials = all_trials(url, name)
        assert [trial.state for trial in trials] == [TrialState.COMPLETE] * WORKERS * n_trials
        scored = [tuple(trial.params[f"p{i}"] for i in range(len(sides))) for trial in trials]
        assert len(set(scored)) == len(scored), name


# The steps of a start, one after the other, in the order in which they go wrong.

SETTINGS = {"proxies": ("a", "b"), "budget": None, "evaluator_seed": 0}
FIRST = {"x": 1}


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(_settle, "_WAIT", 0.2)
    monkeypatch.setattr(_settle, "_SETTLE", 0.0)


def enqueued(study):
    return [trial.system_attrs["fixed_params"] for trial in study.trials]


@pytest.mark.usefixtures("quick")
def test_the_creator_of_a_study_dies_before_it_has_written_its_settings(tmp_path):
    storage = az.open_storage(f"sqlite:///{tmp_path}/nas.db")
    study = az.create_study(study_name="s", storage=storage, proxies=["a", "b"])
    assert _settle.stored_settings(storage, "s") is None
    stored, created = _settle.settle(storage, "s", {**SETTINGS, "evaluator_seed": 5, "budget": 7.0}, FIRST)
    assert (stored["evaluator_seed"], created) == (5, False)
    assert enqueued(study) == [FIRST]
    assert study.user_attrs["aznas:budget"] == 7.0
    again, created = _settle.settle(storage, "s", SETTINGS, FIRST)
    assert (again, created) == (stored, False)
    assert enqueued(study) == [FIRST]


@pytest.mark.usefixtures("quick")
def test_the_creator_of_a_study_dies_after_it_has_enqueued_the_first_network(tmp_path):
    storage = az.open_storage(f"journal:{tmp_path}/nas.log")
    study = az.create_study(study_name="s", storage=storage, proxies=["a", "b"])
    study.enqueue_trial(FIRST)
    _settle.settle(storage, "s", SETTINGS, FIRST)
    assert enqueued(study) == [FIRST]


@pytest.mark.usefixtures("quick")
def test_settings_that_were_written_last_are_taken_by_all(tmp_path, monkeypatch):
    """Two workers take over at the same moment: the one that was overwritten says so, and enqueues nothing."""
    storage = az.open_storage(f"sqlite:///{tmp_path}/nas.db")
    study = az.create_study(study_name="s", storage=storage, proxies=["a", "b"])
    other = {**SETTINGS, "proxies": ["a", "b"], "evaluator_seed": 9, "writer": uuid.uuid4().hex}
    monkeypatch.setattr(_settle.time, "sleep", lambda seconds: seconds or study.set_user_attr("aznas:search", other))
    monkeypatch.setattr(_settle, "_WAIT", 0.0)
    assert _settle.settle(storage, "s", SETTINGS, FIRST) == (other, False)
    assert study.trials == []


def test_a_study_of_another_make_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(_settle, "_SETTLE", 0.0)
    monkeypatch.setattr(_settle, "_WAIT", float("inf"))
    storage = az.open_storage(f"sqlite:///{tmp_path}/nas.db")
    study = az.create_study(study_name="s", storage=storage, proxies=["a", "b"])
    study.optimize(lambda trial: (1.0, 2.0), n_trials=1)
    assert _settle.stored_settings(storage, "s") == {}
    stored, created = _settle.settle(storage, "s", SETTINGS, FIRST)
    assert (stored["evaluator_seed"], created) == (0, False)
    assert len(study.trials) == 1


def test_going_on_enqueues_nothing_again(tmp_path):
    url = f"sqlite:///{tmp_path}/nas.db"
    for _ in range(2):
        [(status, errors)] = together.start(tmp_path / uuid.uuid4().hex, [[*SEARCH, url]])
        assert status == 0, errors
    assert re.search(r"Continuing study 'nas_bench_201': 1 trials so far", errors)
    assert ["fixed_params" in trial.system_attrs for trial in all_trials(url, "nas_bench_201")] == [True, False]
