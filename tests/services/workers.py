"""Worker processes on one study: run as a module, ``python -m tests.services.workers KIND PLACE STUDY SEED TRIALS``.

With ``FOLDER`` after that, a worker that has loaded the study says so there, and begins when the file ``go`` appears.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import optuna
from optuna.trial import TrialState

import optuna_aznas as az
from tests import studies

OPERATIONS = ("none", "skip", "conv1", "conv3", "pool")
PARAMETERS = tuple(f"edge{i}" for i in range(6))  # 15,625 architectures


def open_storage(kind, place):
    """Open the storage of a kind at a place.

    Kinds: "url", "file", "redis" and "grpc", as Optuna opens them; "az", any URL, as this package does.
    """
    if kind == "az":
        return az.open_storage(place)
    if kind == "url":
        # SQLite lets one process write at a time, and the others wait for it: by default 5 seconds at most.
        waits = {"connect_args": {"timeout": studies.NEVER}} if place.startswith("sqlite:") else {}
        return optuna.storages.RDBStorage(place, engine_kwargs=waits)
    if kind == "grpc":
        return optuna.storages.GrpcStorageProxy(host="127.0.0.1", port=int(place))
    from optuna.storages import journal

    backend = journal.JournalFileBackend(place) if kind == "file" else journal.JournalRedisBackend(place)
    return optuna.storages.JournalStorage(backend)


def start(kind, place, name, seed, trials, *folder):
    """Start a worker that stops when the study has so many completed trials."""
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", __name__, kind, place, name, str(seed), str(trials), *map(str, folder)],
        cwd=Path(__file__).parents[2], stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def start_together(n_workers, place, name, trials, folder):
    """Start workers with seeds of their own, which all have loaded the study when the first of them begins."""
    processes = [start("az", place, name, seed, trials, folder) for seed in range(n_workers)]
    while len(list(folder.glob("ready-*"))) < n_workers:
        check_alive(processes)
        time.sleep(0.05)
    (folder / "go").touch()
    return processes


def check_alive(processes):
    """An error with a worker's messages if it has ended."""
    ended = [process for process in processes if process.poll() is not None]
    assert not ended, ended[0].communicate()[1]


def finish(process):
    """Wait for a worker to end; an error with its messages if it failed."""
    _, errors = process.communicate(timeout=studies.NEVER)
    assert process.returncode == 0, errors


def scores_of(params):
    """Four proxies of an architecture, in partial conflict."""
    digits = np.array([OPERATIONS.index(params[name]) for name in PARAMETERS])
    return {
        "size": float(digits.sum()),
        "evenness": -float(digits.std()),
        "order": float(np.sum(np.diff(digits) >= 0)),
        "weakest": float(digits.min()) if digits.min() else -float("inf"),
    }


def objective(trial):
    params = {name: trial.suggest_categorical(name, OPERATIONS) for name in PARAMETERS}
    az.record(trial, scores_of(params))
    time.sleep(0.01)  # the training
    lr = trial.suggest_float("lr", 1e-4, 1e-1, log=True)
    return scores_of(params)["size"] - abs(np.log10(lr) + 2)


def main(kind, place, name, seed, trials, folder=None):
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    # With hyperparameters of its own the sampler trains good architectures more than once.
    sampler = az.AZNASSampler(seed=seed, hyperparameter_sampler=optuna.samplers.RandomSampler(seed=seed))
    study = optuna.load_study(study_name=name, storage=open_storage(kind, place), sampler=sampler)
    if folder is not None:
        Path(folder, f"ready-{seed}").touch()
        while not Path(folder, "go").exists():
            time.sleep(0.001)
    enough = optuna.study.MaxTrialsCallback(trials, states=(TrialState.COMPLETE,))
    study.optimize(objective, callbacks=[enough])


if __name__ == "__main__":
    main(*sys.argv[1:4], int(sys.argv[4]), int(sys.argv[5]), *sys.argv[6:])
