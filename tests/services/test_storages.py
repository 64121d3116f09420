"""Several worker processes on one study, on each kind of storage that Optuna offers for it."""

from __future__ import annotations

import subprocess
import sys
import uuid

import optuna
import pytest
from optuna.trial import TrialState

import optuna_aznas as az
from tests import reference

WORKER = """
import sys
import optuna, optuna_aznas as az
from tests.services.test_storages import open_storage
optuna.logging.set_verbosity(optuna.logging.ERROR)
kind, place, name, seed, trials = sys.argv[1:]
study = optuna.load_study(study_name=name, storage=open_storage(kind, place), sampler=az.AZNASSampler(seed=int(seed)))

def objective(trial):
    digits = [trial.suggest_int(f"x{i}", 0, 4) for i in range(5)]
    return sum(digits), -abs(digits[0] - 2)

study.optimize(objective, n_trials=int(trials))
"""


def open_storage(kind, place):
    if kind == "url":
        return optuna.storages.RDBStorage(place)
    from optuna.storages import journal

    backend = journal.JournalFileBackend(place) if kind == "file" else journal.JournalRedisBackend(place)
    return optuna.storages.JournalStorage(backend)


def workers_share(kind, place):
    name = f"study-{uuid.uuid4().hex}"
    storage = open_storage(kind, place)
    az.create_study(study_name=name, storage=storage, proxies=["a", "b"])
    workers = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", WORKER, kind, place, name, str(seed), "30"],
            stderr=subprocess.PIPE, text=True,
        )
        for seed in (1, 2)
    ]  # fmt: skip
    for worker in workers:
        _, errors = worker.communicate(timeout=240)
        assert worker.returncode == 0, errors
    study = optuna.load_study(study_name=name, storage=open_storage(kind, place))
    assert [t.state for t in study.trials] == [TrialState.COMPLETE] * 60
    s = reference.aggregate([list(t.values) for t in study.trials])
    assert list(az.rank_scores(study).values()) == pytest.approx(s)
    # Both saw the other's trials: what repeats can only have been proposed at the same moment.
    assert len({tuple(t.params.values()) for t in study.trials}) >= 55
    # And both evolve: uniform sampling has a mean of 10 in the first proxy.
    assert sum(t.values[0] for t in study.trials[30:]) / 30 > 11


def test_sqlite(tmp_path):
    workers_share("url", f"sqlite:///{tmp_path}/study.db")


def test_journal_file(tmp_path):
    workers_share("file", f"{tmp_path}/journal.log")


@pytest.mark.postgres
def test_postgresql(postgres_storage):
    workers_share("url", postgres_storage)


@pytest.mark.redis
def test_redis(redis_url):
    workers_share("redis", redis_url)


@pytest.mark.postgres
def test_infinite_scores_and_attributes_survive_postgresql(postgres_storage):
    study = az.create_study(study_name="s", storage=postgres_storage, proxies=["a", "b"])
    study.tell(study.ask(), (1.0, float("-inf")))
    trial = study.ask()
    az.record(trial, {"a": 1.0, "b": float("nan")})
    trial.suggest_float("lr", 0, 1)
    loaded = optuna.load_study(study_name="s", storage=postgres_storage)
    assert loaded.trials[0].values == [1.0, float("-inf")]
    assert loaded.trials[1].user_attrs == {"aznas:scores": {"a": 1.0, "b": "-inf"}, "aznas:architecture": []}
