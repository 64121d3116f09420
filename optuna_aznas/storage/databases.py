"""Databases: an ``RDBStorage`` that outlives a lost connection.

* **Start.** Workers that create the tables of an empty database at once collide. Opening is tried again.
* **Restart.** A call that fails because the connection is lost is tried again, for a bounded time.
* **Enqueued trials.** On SQLite, Optuna reads a trial's state and changes it in two transactions, so two workers may
  take the same enqueued trial. Here both are one transaction.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from optuna_aznas.storage.retries import Retries, RetryingStorage, delays, retries_calls

_HEARTBEAT = 30  # seconds between two signs of life of a running trial
_GRACE = 60  # seconds without one after which a trial is given up, and tried once more

#: What a driver's message holds, in lower case, where workers create the same tables at once or a server is starting.
_CREATION_RACES = (
    "already exists",
    "duplicate",
    "unique",
    "locked",
    "concurrently",
    "deadlock",
    "starting up",
    "shutting down",
)

#: Further methods of ``RDBStorage`` that talk to the database: of heartbeats, and those that Optuna's cache calls.
_DATABASE_CALLS = (
    "record_heartbeat",
    "_create_new_trial",
    "_set_trial_param",
    "_get_trials",
    "_get_best_trial_id",
    "_get_stale_trial_ids",
)

_LOCAL = threading.local()  # of this thread: whether its next transaction needs the write lock


def open_database(url: str, patience: float) -> RDBStorage:
    """Open a database; its tables are created if it is empty.

    Args:
        url: As in :func:`~optuna_aznas.open_storage`.
        patience: Likewise.
    """
    waits = delays(patience)
    while True:
        try:
            return Database(url, patience)
        except Exception as error:
            wait = next(waits, None)
            if wait is None or not _is_creation_race(error):
                raise
        time.sleep(wait)


class _TransactionalState(RDBStorage):
    """An ``RDBStorage`` that reads and changes a trial's state in one transaction, on SQLite too."""

    def __init__(self, url: str, **arguments: Any) -> None:
        super().__init__(url, **arguments)
        self._listen()

    def __setstate__(self, state: dict[Any, Any]) -> None:
        super().__setstate__(state)
        self._listen()

    def _listen(self) -> None:
        if self.engine.dialect.name == "sqlite":
            from sqlalchemy import event

            event.listen(self.engine, "begin", _take_write_lock)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        with _write_lock():
            return super().set_trial_state_values(trial_id, state, values)


@retries_calls(_DATABASE_CALLS)
class Database(RetryingStorage, _TransactionalState):
    """An ``RDBStorage`` that outlives a lost connection, and whose dead trials are tried once more.

    Args:
        url: As in :func:`~optuna_aznas.open_storage`.
        patience: Likewise.
    """

    def __init__(self, url: str, patience: float) -> None:
        self._retries = Retries(url, patience, _is_transient, cause=_driver_error, has_answered=True)
        super().__init__(
            url,
            engine_kwargs={"pool_pre_ping": True},  # a connection that broke is replaced
            heartbeat_interval=_HEARTBEAT,
            grace_period=_GRACE,
            **_retry_of_dead_trials(),
        )


def _retry_of_dead_trials() -> dict[str, Any]:
    if hasattr(optuna.storages, "RetryHeartbeatStaleTrialCallback"):  # Optuna 4.9 renamed it
        return {"heartbeat_stale_trial_callback": optuna.storages.RetryHeartbeatStaleTrialCallback(max_retry=1)}
    return {"failed_trial_callback": optuna.storages.RetryFailedTrialCallback(max_retry=1)}


@contextlib.contextmanager
def _write_lock() -> Iterator[None]:
    """Begin this thread's SQLite transactions with the write lock: what they read holds until they have written."""
    _LOCAL.locking = True
    try:
        yield
    finally:
        _LOCAL.locking = False


def _take_write_lock(connection: Any) -> None:
    if getattr(_LOCAL, "locking", False) and not connection.connection.driver_connection.in_transaction:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _driver_error(error: BaseException) -> BaseException:
    """Return the SQLAlchemy error behind an error of Optuna's, or the error itself."""
    return error.__cause__ if isinstance(error, StorageInternalError) and error.__cause__ is not None else error


def _is_transient(error: BaseException) -> bool:
    """Whether the same call may succeed later: the connection is lost, or the database is locked or overloaded."""
    from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, PendingRollbackError

    cause = _driver_error(error)
    if isinstance(cause, PendingRollbackError):  # the connection was lost in the middle of a transaction
        return True
    if not isinstance(cause, DBAPIError):
        return False
    if type(cause.orig).__module__.startswith("sqlite3"):
        return "locked" in str(cause.orig).lower()
    return cause.connection_invalidated or isinstance(cause, InterfaceError | OperationalError)


def _is_creation_race(error: BaseException) -> bool:
    """Whether opening failed since other workers create the same tables, or the server is starting or stopping."""
    from alembic.util import CommandError
    from sqlalchemy.exc import DBAPIError, IntegrityError

    cause = _driver_error(error)
    if isinstance(cause, IntegrityError | CommandError):
        return True
    return isinstance(cause, DBAPIError) and any(words in str(cause.orig).lower() for words in _CREATION_RACES)
