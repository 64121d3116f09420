"""Opens a storage and finds a study in it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage

from optuna_aznas.cli._errors import CommandError, UsageError


def open_storage(url: str, *, must_exist: bool) -> BaseStorage:
    """Open the storage that a URL names.

    Args:
        url: A database URL, ``journal:FILE``, ``redis://...`` or ``grpc://HOST:PORT``.
        must_exist: Whether a file that is not there is an error; otherwise it is made.
    """
    kind, colon, rest = url.partition(":")
    if not colon:
        raise UsageError(f"--storage must be a URL such as sqlite:///aznas.db or journal:aznas.log; got {url!r}.")
    file = rest if kind == "journal" else url.removeprefix("sqlite:///") if url.startswith("sqlite:///") else None
    if must_exist and file and not Path(file).exists():
        raise CommandError(f"there is no file {file!r}. Name the storage of the search with --storage.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return _open(kind, rest, url)
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise CommandError(f"storage {_hidden(url)} cannot be opened: {reason[0] if reason else error!r}") from error


def _open(kind: str, rest: str, url: str) -> BaseStorage:
    if kind == "journal":
        from optuna.storages.journal import JournalFileBackend

        return optuna.storages.JournalStorage(JournalFileBackend(rest))
    if kind == "redis":
        from optuna.storages.journal import JournalRedisBackend

        return optuna.storages.JournalStorage(JournalRedisBackend(url))
    if kind == "grpc":
        server = urlsplit(url)
        proxy: Any = getattr(optuna.storages, "GrpcStorageProxy", None)
        if proxy is None:
            raise CommandError(f"Optuna {optuna.__version__} has no gRPC proxy; install a newer one.")
        return proxy(host=server.hostname or "localhost", port=server.port or 13000)
    retry: dict[str, Any]
    if hasattr(optuna.storages, "RetryHeartbeatStaleTrialCallback"):  # Optuna 4.9 renamed it
        retry = {"heartbeat_stale_trial_callback": optuna.storages.RetryHeartbeatStaleTrialCallback(max_retry=1)}
    else:
        retry = {"failed_trial_callback": optuna.storages.RetryFailedTrialCallback(max_retry=1)}
    return optuna.storages.RDBStorage(
        url,
        engine_kwargs={"pool_pre_ping": True},  # a connection that broke is replaced
        heartbeat_interval=30,  # a trial whose worker has died is given up after a minute, and tried once more
        grace_period=60,
        **retry,
    )


def load_study(storage: BaseStorage, url: str, name: str | None) -> optuna.Study:
    """Return the study of that name; without one, the only one there is."""
    found = optuna.get_all_study_names(storage)
    if name is None:
        if len(found) != 1:
            listed = f"has {len(found)} studies: {', '.join(sorted(found))}" if found else "has no study"
            raise CommandError(f"{_hidden(url)} {listed}. Name one with --study-name.")
        name = found[0]
    elif name not in found:
        there = ", ".join(sorted(found)) or "none"
        raise CommandError(f"{_hidden(url)} has no study {name!r}. There: {there}.")
    return optuna.load_study(study_name=name, storage=storage)


def _hidden(url: str) -> str:
    """Return a URL without its password."""
    try:
        parts = urlsplit(url)
        return url if parts.password is None else url.replace(f":{parts.password}@", ":***@")
    except ValueError:
        return url
