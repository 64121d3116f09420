"""A server that goes away for a while: workers wait for it and go on; a call whose reply was lost counts once."""

from __future__ import annotations

import copy
import glob
import inspect
import json
import logging
import os
import pickle
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.storages import _cached_storage
from optuna.trial import TrialState

import optuna_aznas as az
from optuna_aznas._optuna import UpdateFinishedTrialError
from optuna_aznas.storage import databases, journals, retries
from tests.services import workers


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Cluster:
    """A PostgreSQL server of its own, which may be stopped."""

    def __init__(self, programs, folder):
        self._programs, self._folder = programs, folder
        self.port = free_port()
        self._run("initdb", "-A trust -U postgres --no-sync")

    def _run(self, program, arguments):
        command = f"{self._programs}/{program} -D {self._folder}/data {arguments} >{self._folder}/{program}.out 2>&1"
        as_user = ["su", "postgres", "-c", command] if os.geteuid() == 0 else ["sh", "-c", command]
        done = subprocess.run(as_user, cwd="/", timeout=120)
        assert done.returncode == 0, Path(self._folder, f"{program}.out").read_text()

    def start(self):
        options = f"-p {self.port} -k {self._folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        self._run("pg_ctl", f"-w -l {self._folder}/log -o '{options}' start")

    def stop(self, mode):
        self._run("pg_ctl", f"-w -m {mode} stop")


@pytest.fixture
def cluster(missing):
    pytest.importorskip("psycopg", reason="the package psycopg is not installed (extra 'services')")
    found = shutil.which("initdb") or max(glob.glob("/usr/lib/postgresql/*/bin/initdb"), default=None)
    if found is None:
        missing("PostgreSQL's programs initdb and pg_ctl are not installed")
    if os.geteuid() == 0 and subprocess.run(["su", "postgres", "-c", "true"], capture_output=True).returncode:
        missing("there is no user postgres, and PostgreSQL does not run as root")
    folder = tempfile.mkdtemp(prefix="aznas-postgres-", dir="/tmp")
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres")
    cluster = Cluster(Path(found).resolve().parent, folder)
    cluster.start()
    yield cluster
    cluster.stop("immediate")
    shutil.rmtree(folder)


@pytest.mark.crash
@pytest.mark.postgres
def test_four_workers_survive_restarts_of_postgresql(cluster, tmp_path):
    url = f"postgresql+psycopg://postgres@127.0.0.1:{cluster.port}/postgres"
    study = optuna.create_study(study_name="s", storage=az.open_storage(url), direction="maximize")
    processes = workers.start_together(4, url, "s", 150, tmp_path)
    modes = {40: "fast", 90: "immediate"}  # stopped in order, and as by a crash, when so many trials are complete
    for least, mode in modes.items():
        while len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))) < least:
            workers.check_alive(processes)
            time.sleep(0.1)
        cluster.stop(mode)
        time.sleep(1)
        cluster.start()
    ended = [process.communicate(timeout=240)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, ended
    said = [len(re.findall("the storage does not answer; trying again for up to 60 s", errors)) for errors in ended]
    assert max(said) <= len(modes)  # at most one line for each restart
    assert sum(said) >= 4  # and most workers noticed both
    trials = study.trials
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    assert len(complete) >= 150
    others = [trial for trial in trials if trial.state != TrialState.COMPLETE]
    print(f"{len(complete)} complete, others: {[(trial.number, trial.state.name) for trial in others]}")
    # What a lost reply may leave: a trial that is running without parameters.
    assert all(trial.state == TrialState.RUNNING and not trial.params for trial in others)
    for trial in complete:
        assert trial.user_attrs["aznas:scores"].keys() == workers.scores_of(trial.params).keys()


def survive(url, start_server, stop_server, folder):
    """Two workers; the server stops for a second when 20 trials are complete. Return the states of the trials."""
    study = optuna.create_study(study_name="s", storage=az.open_storage(url), direction="maximize")
    processes = workers.start_together(2, url, "s", 60, folder)
    while len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))) < 20:
        workers.check_alive(processes)
        time.sleep(0.1)
    stop_server()
    time.sleep(1)
    start_server()
    ended = [process.communicate(timeout=240)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 2, ended
    assert all(errors.count("the storage does not answer; trying again for up to 60 s") == 1 for errors in ended), ended
    states = [trial.state for trial in study.trials]
    assert states.count(TrialState.COMPLETE) >= 60
    return states


@pytest.fixture
def server():
    """A server process that may be stopped as by a crash, and started again."""
    running = []

    def start(command, port):
        running.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        while True:
            assert running[-1].poll() is None
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                return
            except OSError:
                time.sleep(0.05)

    def stop():
        process = running.pop()
        process.kill()
        process.wait()

    yield start, stop
    while running:
        stop()


@pytest.mark.crash
@pytest.mark.redis
def test_workers_survive_a_restart_of_redis(server, missing, tmp_path):
    pytest.importorskip("redis", reason="the package redis is not installed (extra 'services')")
    if shutil.which("redis-server") is None:
        missing("the program redis-server is not installed")
    start, stop = server
    port = free_port()
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", str(tmp_path), "--save", ""]
    command += ["--appendonly", "yes", "--appendfsync", "always"]
    start(command, port)
    states = survive(f"redis://127.0.0.1:{port}", lambda: start(command, port), stop, tmp_path)
    assert set(states) == {TrialState.COMPLETE}  # a record whose reply was lost is there once


PROXY = """
import sys
import optuna, optuna_aznas
optuna.storages.run_grpc_proxy_server(optuna_aznas.open_storage(sys.argv[1]), host="127.0.0.1", port=int(sys.argv[2]))
"""


@pytest.mark.crash
@pytest.mark.skipif(not hasattr(optuna.storages, "GrpcStorageProxy"), reason="this Optuna has no gRPC proxy")
def test_workers_survive_a_restart_of_the_grpc_proxy(server, tmp_path):
    pytest.importorskip("grpc", reason="the package grpcio is not installed (extra 'services')")
    start, stop = server
    port = free_port()
    command = [sys.executable, "-W", "ignore", "-c", PROXY, f"sqlite:///{tmp_path}/nas.db", str(port)]
    start(command, port)
    states = survive(f"grpc://127.0.0.1:{port}", lambda: start(command, port), stop, tmp_path)
    assert set(states) <= {TrialState.COMPLETE, TrialState.RUNNING}  # what a lost reply may leave


# --- Single calls, on SQLite, with errors as a driver raises them -----------------------------------------------------


class Lost(Exception):  # noqa: N818
    pass


def lost():
    error = sqlalchemy.exc.OperationalError("select 1", {}, Lost("server closed the connection: password=hunter22"))
    wrapped = StorageInternalError("An exception is raised during the commit.")
    wrapped.__cause__ = error
    return wrapped


@pytest.fixture
def database(tmp_path, monkeypatch):
    monkeypatch.setattr(retries, "_FIRST_DELAY", 0.001)
    return az.open_storage(f"sqlite:///{tmp_path}/nas.db", patience=5.0)


def fail(monkeypatch, name, *, times, after=False):
    """Let a call of Optuna's storage fail so many times, before or after it has reached the database."""
    real, calls = getattr(optuna.storages.RDBStorage, name), []

    def failing(self, *arguments, **named):
        calls.append(name)
        if len(calls) > times:
            return real(self, *arguments, **named)
        if after:
            real(self, *arguments, **named)
        raise lost()

    monkeypatch.setattr(optuna.storages.RDBStorage, name, failing)
    return calls


def test_every_call_of_the_cache_is_tried_again():
    """Optuna reaches the database through its cache, which calls private names too: each of them is covered."""
    used = set(re.findall(r"self\._backend\.(\w+)\(", inspect.getsource(_cached_storage)))
    without = {"get_heartbeat_interval", "get_failed_trial_callback", "get_heartbeat_stale_trial_callback"}
    assert used - without <= {*vars(databases.Database), *vars(retries.RetryingStorage)}


@pytest.mark.parametrize("name", ["_create_new_trial", "_get_trials", "set_trial_user_attr", "set_trial_state_values"])
def test_calls_that_fail_are_tried_again(database, monkeypatch, caplog, name):
    study = optuna.create_study(storage=database)
    calls = fail(monkeypatch, name, times=3)

    def objective(trial):
        trial.set_user_attr("a", 1)
        return trial.suggest_float("x", 0, 1)

    with caplog.at_level(logging.WARNING, logger="optuna_aznas"):
        study.optimize(objective, n_trials=2)
    assert len(calls) > 3
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 2
    lines = [record.getMessage() for record in caplog.records if record.name == "optuna_aznas.storage.retries"]
    assert 1 <= len(lines) <= 3  # one an outage; on a busy machine a heartbeat that succeeds ends one
    assert all("trying again for up to 5 s" in line for line in lines)
    assert not any("hunter22" in line for line in lines)


def test_patience_ends(tmp_path, monkeypatch):
    database = az.open_storage(f"sqlite:///{tmp_path}/nas.db", patience=0.3)
    calls = fail(monkeypatch, "get_all_studies", times=10**6)
    with pytest.raises(StorageInternalError):
        optuna.get_all_study_names(database)
    assert len(calls) > 1


def test_other_errors_are_raised_at_once(database, monkeypatch):
    calls = []

    def wrong(self):
        calls.append(1)
        raise sqlalchemy.exc.ProgrammingError("select", {}, Lost("no such column"))

    monkeypatch.setattr(optuna.storages.RDBStorage, "get_all_studies", wrong)
    with pytest.raises(sqlalchemy.exc.ProgrammingError):
        optuna.get_all_study_names(database)
    assert len(calls) == 1


def test_a_value_whose_reply_was_lost_counts_once(database, monkeypatch):
    study = optuna.create_study(storage=database)
    fail(monkeypatch, "set_trial_state_values", times=1, after=True)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE]


def test_a_value_that_someone_else_has_set_is_not_taken_for_ours(database, monkeypatch):
    study = optuna.create_study(storage=database)
    study.add_trial(optuna.trial.create_trial(value=1.0))
    trial_id = study.trials[0]._trial_id
    with pytest.raises(UpdateFinishedTrialError):
        database.set_trial_state_values(trial_id, TrialState.COMPLETE, [1.0])  # the reply was not lost
    fail(monkeypatch, "set_trial_state_values", times=1)
    with pytest.raises(UpdateFinishedTrialError):
        database.set_trial_state_values(trial_id, TrialState.COMPLETE, [2.0])


def test_a_deletion_whose_reply_was_lost(database, monkeypatch):
    optuna.create_study(storage=database, study_name="s")
    fail(monkeypatch, "delete_study", times=1, after=True)
    optuna.delete_study(study_name="s", storage=database)
    assert optuna.get_all_study_names(database) == []
    with pytest.raises(KeyError):
        database.delete_study(1)


def test_a_locked_sqlite_file_is_waited_for(tmp_path):
    file = tmp_path / "nas.db"
    study = optuna.create_study(storage=az.open_storage(f"sqlite:///{file}?timeout=0.05"))
    other = sqlite3.connect(file, check_same_thread=False)
    other.execute("begin exclusive")
    release = threading.Timer(1.0, other.rollback)
    release.start()
    study.set_user_attr("a", 1)
    release.join()
    assert study.user_attrs == {"a": 1}


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda storage: pickle.loads(pickle.dumps(storage))])
def test_a_copy_takes_the_write_lock_too(database, copied):
    database = copied(database)
    statements = []
    sqlalchemy.event.listen(database.engine, "before_cursor_execute", lambda *call: statements.append(call[2]))
    study = optuna.create_study(storage=database)
    study.enqueue_trial({"x": 0.5})
    assert "BEGIN IMMEDIATE" not in statements
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    assert statements.count("BEGIN IMMEDIATE") == 2  # taken, told


@pytest.mark.parametrize("kind", ["sqlite:///{}/nas.db", "journal:{}/nas.log"])
def test_an_enqueued_trial_that_is_finished_already_is_not_taken(tmp_path, kind):
    """Optuna up to 4.1 lets the worker die that saw the trial waiting, and finds it finished."""
    storage = az.open_storage(kind.format(tmp_path))
    study = optuna.create_study(storage=storage)
    study.add_trial(optuna.trial.create_trial(value=1.0))
    assert storage.set_trial_state_values(study.trials[0]._trial_id, TrialState.RUNNING) is False
    assert study.trials[0].state == TrialState.COMPLETE


# --- Redis and the gRPC proxy, with errors as their clients raise them ------------------------------------------------


class FakeRedis:
    """What a journal needs of Redis, in memory; ``lose`` says how often a call fails, after it has done its work."""

    def __init__(self, url):
        self.records, self.snapshot, self.lose = [], None, 0

    def _reply(self, value=None):
        import redis

        if self.lose:
            self.lose -= 1
            raise redis.exceptions.ConnectionError(f"no connection to redis://:hunter22@{'h' * 3}")
        return value

    def append_logs(self, logs):
        self.records += [json.dumps(log) for log in logs]
        self._reply()

    def read_logs(self, log_number_from):
        yield from self._reply([json.loads(record) for record in self.records[log_number_from:]])

    def save_snapshot(self, snapshot):
        self.snapshot = snapshot
        self._reply()

    def load_snapshot(self):
        return self._reply(self.snapshot)


@pytest.fixture
def redis_journal(monkeypatch):
    """A journal in a Redis that is faked."""
    pytest.importorskip("redis", reason="the package redis is not installed (extra 'services')")
    monkeypatch.setattr(retries, "_FIRST_DELAY", 0.001)
    for name in ("__init__", "_reply", "append_logs", "read_logs", "save_snapshot", "load_snapshot"):
        monkeypatch.setattr(optuna.storages.journal.JournalRedisBackend, name, vars(FakeRedis)[name], raising=False)
    monkeypatch.setattr(journals._RedisBackend, "_leave_retries_to_us", lambda self: None)
    return lambda patience: journals.open_redis_journal("redis://:hunter22@host", patience)


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_a_record_whose_reply_was_lost_is_appended_once(redis_journal, caplog, lost):
    storage = redis_journal(5.0)
    study = optuna.create_study(storage=storage)
    backend = storage._backend

    def losing(operation):
        before, backend.lose = len(backend.records), lost
        with caplog.at_level(logging.WARNING, logger="optuna_aznas"):
            done = operation()
        assert backend.lose == 0
        assert len(backend.records) == before + 1
        return done

    trial = losing(study.ask)
    losing(lambda: trial.suggest_float("x", 0, 1))
    losing(lambda: trial.set_user_attr("a", 1))
    losing(lambda: trial.set_user_attr("a", 1))  # an equal record is appended again where it is meant
    losing(lambda: study.tell(trial, 1.0))
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE]
    lines = [record.getMessage() for record in caplog.records if record.name == "optuna_aznas.storage.retries"]
    assert len(lines) == 5
    assert not any("hunter22" in line for line in lines)


def test_patience_with_redis_ends(redis_journal):
    import redis

    study = optuna.create_study(storage=redis_journal(0.05))
    study._storage._backend.lose = 10**6
    with pytest.raises(redis.exceptions.ConnectionError):
        study.set_user_attr("a", 1)
    assert study._storage._backend.lose < 10**6 - 1


def test_a_server_that_is_not_there_is_an_error_at_once(monkeypatch):
    monkeypatch.setattr(retries.time, "sleep", lambda seconds: pytest.fail("waited"))
    redis = pytest.importorskip("redis", reason="the package redis is not installed (extra 'services')")
    with pytest.raises(redis.exceptions.ConnectionError):
        az.open_storage(f"redis://127.0.0.1:{free_port()}")
    grpc = pytest.importorskip("grpc", reason="the package grpcio is not installed (extra 'services')")
    if hasattr(optuna.storages, "GrpcStorageProxy"):
        storage = az.open_storage(f"grpc://127.0.0.1:{free_port()}")
        with pytest.raises(grpc.RpcError):
            storage.get_all_studies()


@pytest.mark.parametrize(
    ("code", "details", "is_repeated"),
    [
        ("UNAVAILABLE", "failed to connect to all addresses", True),
        ("UNKNOWN", "Stream removed (Socket closed)", True),
        ("UNKNOWN", "Exception calling application: 'no such study'", False),
        ("UNKNOWN", None, False),
        ("NOT_FOUND", "", False),
    ],
)
@pytest.mark.skipif(not hasattr(optuna.storages, "GrpcStorageProxy"), reason="this Optuna has no gRPC proxy")
@pytest.mark.parametrize("call", ["get_all_studies", "get_trial", "get_trial_id_from_study_id_trial_number"])
def test_what_the_grpc_proxy_is_asked_again_after(call, code, details, is_repeated, monkeypatch):
    """A proxy that stops in the middle of a call, as against one that answers with an error."""
    grpc = pytest.importorskip("grpc", reason="the package grpcio is not installed (extra 'services')")

    class Failed(grpc.RpcError):
        def code(self):
            return grpc.StatusCode[code]

        def details(self):
            return details

    answers = [1, Failed(), 2]

    def answer(self, *arguments):
        given = answers.pop(0)
        if isinstance(given, Exception):
            raise given
        return given

    monkeypatch.setattr(retries, "_FIRST_DELAY", 0.001)
    monkeypatch.setattr(optuna.storages.GrpcStorageProxy, call, answer)
    storage = az.open_storage(f"grpc://127.0.0.1:{free_port()}", patience=1.0)
    arguments = [0] * (len(inspect.signature(getattr(optuna.storages.BaseStorage, call)).parameters) - 1)
    assert getattr(storage, call)(*arguments) == 1
    if is_repeated:
        assert getattr(storage, call)(*arguments) == 2
    else:
        with pytest.raises(Failed):
            getattr(storage, call)(*arguments)


@pytest.mark.redis
def test_the_client_of_redis_does_not_repeat_commands_by_itself(redis_url):
    """It would append a record twice."""
    for storage in (az.open_storage(redis_url), copy.deepcopy(az.open_storage(redis_url))):
        assert storage._backend._redis.get_retry().get_retries() == 0
