"""open_storage: opens a storage by its URL."""

from __future__ import annotations

import warnings

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage

from optuna_aznas.storage.databases import open_database
from optuna_aznas.storage.journals import open_journal_file, open_redis_journal


def open_storage(url: str, *, patience: float = 60.0) -> BaseStorage:
    """Open a storage that several workers share.

    Any number of workers may open the same empty database at once. With a database, Redis or the gRPC proxy, a worker
    whose connection is lost logs one line and tries again. If a trial's worker has died, a database gives the trial up
    after a minute, and it is tried once more. In a journal file, a torn last line is repaired with a warning.

    Args:
        url: A database URL such as ``sqlite:///nas.db`` or ``postgresql+psycopg://user:password@host/database``;
            ``journal:FILE``; ``redis://HOST:PORT``; or ``grpc://HOST:PORT``, Optuna's gRPC proxy.
        patience: Seconds for which a call is tried again while the connection is lost; also the time for which opening
            a database is tried again while other workers create the tables. A server that refuses the first connection
            is an error at once. Not used for journal files.

    Returns:
        A storage for ``storage=`` of :func:`~optuna_aznas.create_study`, ``optuna.load_study`` and the like.

    Raises:
        ValueError: ``url`` is no URL.
        RuntimeError: This Optuna has no gRPC proxy.
        Exception: What Optuna or the driver raises where the storage cannot be opened. Such a message may hold the
            password; :func:`~optuna_aznas.storage.redact_url` hides it.

    Example:
        >>> storage = open_storage("sqlite://")
        >>> optuna.create_study(storage=storage).trials
        []
    """
    kind, colon, rest = url.partition(":")
    if not colon:
        raise ValueError(f"a storage is a URL such as sqlite:///nas.db or journal:nas.log; got {url!r}.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        if kind == "journal":
            return open_journal_file(rest)
        if kind in ("redis", "rediss"):
            return open_redis_journal(url, patience)
        if kind == "grpc":
            if not hasattr(optuna.storages, "GrpcStorageProxy"):
                raise RuntimeError(f"Optuna {optuna.__version__} has no gRPC proxy; install a newer one.")
            from optuna_aznas.storage.grpc_proxy import open_grpc_proxy

            return open_grpc_proxy(url, patience)
        return open_database(url, patience)
