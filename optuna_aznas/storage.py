"""Opens a storage for many workers: started at once, killed, or cut off from their database for a while.

Optuna's storages are used as they are; what is added guards against faults that end a worker or lose a study:

* **Start.** Workers that create the tables of an empty database at once collide. Opening is tried again.
* **Restart.** A database call that fails because the connection is lost is tried again, for a bounded time.
* **Enqueued trials.** On SQLite, Optuna reads a trial's state and changes it in two transactions, so two workers may
  take the same enqueued trial. Here both are one transaction.
* **Journal files.** A last line torn by a crash or a full disk is removed before the next record is appended.

Imports optuna, never torch.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar
from urllib.parse import quote, quote_plus, unquote, unquote_plus, urlsplit

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import TrialState

from optuna_aznas._optuna import UpdateFinishedTrialError

_LOG = logging.getLogger(__name__)

_Result = TypeVar("_Result")

_FIRST_DELAY = 0.1  # seconds before a call is tried again; doubles each time
_LONGEST_DELAY = 2.0  # seconds
_HEARTBEAT = 30  # seconds between two signs of life of a running trial
_GRACE = 60  # seconds without one after which a trial is given up, and tried once more


def open_storage(url: str, *, patience: float = 60.0) -> BaseStorage:
    """Open a storage that several workers share.

    Any number of workers may open the same empty database at once. With a database, a worker whose connection is lost
    logs one line and tries again. If a trial's worker has died, the trial is given up after a minute and tried once
    more. In a journal file, a torn last line is repaired with a warning.

    Args:
        url: A database URL such as ``sqlite:///nas.db`` or ``postgresql+psycopg://user:password@host/database``;
            ``journal:FILE``; ``redis://HOST:PORT``; or ``grpc://HOST:PORT``, Optuna's gRPC proxy.
        patience: Seconds for which a database call is tried again while the connection is lost; also the time for which
            opening is tried again while other workers create the tables. A server that refuses the first connection
            is an error at once. Not used for journal files, Redis and gRPC.

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
            repair_journal(rest)
            return _Journal(JournalFileBackend(rest, lock_obj=_RepairingLock(rest)))
        if kind in ("redis", "rediss"):
            from optuna.storages.journal import JournalRedisBackend

            return _Journal(JournalRedisBackend(url))
        if kind == "grpc":
            proxy: Any = getattr(optuna.storages, "GrpcStorageProxy", None)
            if proxy is None:
                raise RuntimeError(f"Optuna {optuna.__version__} has no gRPC proxy; install a newer one.")
            server = urlsplit(url)
            return proxy(host=server.hostname or "localhost", port=server.port or 13000)
        return _open_database(url, patience)


# --- Databases -------------------------------------------------------------------------------------------------------

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

#: Methods of ``RDBStorage`` that talk to the database, by public name and by the names that ``_CachedStorage`` calls.
_DATABASE_CALLS = (
    *sorted(BaseStorage.__abstractmethods__ - {"set_trial_state_values"}),
    "get_best_trial",
    "get_n_trials",
    "get_trial_params",
    "get_trial_user_attrs",
    "get_trial_system_attrs",
    "get_trial_param",
    "get_trial_id_from_study_id_trial_number",
    "get_trial_number_from_id",
    "record_heartbeat",
    "_create_new_trial",
    "_set_trial_param",
    "_get_trials",
    "_get_best_trial_id",
    "_get_stale_trial_ids",
)

_WARNING = threading.Lock()
_LOCAL = threading.local()  # of this thread: whether a call is being retried, and whether it needs the write lock


def _open_database(url: str, patience: float) -> RDBStorage:
    retry: dict[str, Any]
    if hasattr(optuna.storages, "RetryHeartbeatStaleTrialCallback"):  # Optuna 4.9 renamed it
        retry = {"heartbeat_stale_trial_callback": optuna.storages.RetryHeartbeatStaleTrialCallback(max_retry=1)}
    else:
        retry = {"failed_trial_callback": optuna.storages.RetryFailedTrialCallback(max_retry=1)}
    end = time.monotonic() + patience
    delay = _FIRST_DELAY
    while True:
        try:
            return _Database(
                url,
                patience,
                engine_kwargs={"pool_pre_ping": True},  # a connection that broke is replaced
                heartbeat_interval=_HEARTBEAT,
                grace_period=_GRACE,
                **retry,
            )
        except Exception as error:
            if not _is_creation_race(error) or time.monotonic() + delay > end:
                raise
        time.sleep(delay * random.uniform(0.5, 1.5))
        delay = min(2 * delay, _LONGEST_DELAY)


class _Database(RDBStorage):
    """An ``RDBStorage`` that outlives a lost connection, and changes a trial's state in one transaction.

    A call may have reached the database although its reply was lost. Most calls may be repeated: they set a value. Of
    the others, a state that is already as asked for counts as set, and a study that is gone counts as deleted. A trial
    that was created twice leaves one ``RUNNING`` without parameters, which nothing waits for.
    """

    def __init__(self, url: str, patience: float, **arguments: Any) -> None:
        self._patience = patience
        self._waiting = False  # whether a warning was logged for the connection that is lost now
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
        calls = 0

        def set_state() -> bool:
            nonlocal calls
            calls += 1
            with _write_lock():
                return super(_Database, self).set_trial_state_values(trial_id, state, values)

        try:
            return self._persistently(set_state)
        except UpdateFinishedTrialError:
            if state == TrialState.RUNNING:
                return False  # another worker took the enqueued trial, and has finished it already
            if calls > 1:  # perhaps by this very call, whose reply was lost
                trial = self.get_trial(trial_id)
                if trial.state == state and (values is None or trial.values == list(values)):
                    return True
            raise

    def delete_study(self, study_id: int) -> None:
        calls = 0

        def delete() -> None:
            nonlocal calls
            calls += 1
            super(_Database, self).delete_study(study_id)

        try:
            self._persistently(delete)
        except KeyError:
            if calls == 1:
                raise

    def _persistently(self, call: Callable[[], _Result]) -> _Result:
        """Call until the database answers, or for as long as patience lasts."""
        if getattr(_LOCAL, "retrying", False):  # a call from inside another: that one is repeated as a whole
            return call()
        _LOCAL.retrying = True
        end: float | None = None
        delay = _FIRST_DELAY
        try:
            while True:
                try:
                    result = call()
                except Exception as error:
                    if not _is_transient(error):
                        raise
                    end = time.monotonic() + self._patience if end is None else end
                    if time.monotonic() + delay > end:
                        raise
                    self._warn(error)
                else:
                    self._waiting = False
                    return result
                time.sleep(delay * random.uniform(0.5, 1.5))
                delay = min(2 * delay, _LONGEST_DELAY)
        finally:
            _LOCAL.retrying = False

    def _warn(self, error: BaseException) -> None:
        """Log one line, once for all threads and calls until the database answers again."""
        with _WARNING:
            if self._waiting:
                return
            self._waiting = True
        reason = redact_url(_first_line(_driver_error(error)), self.url)
        _LOG.warning(
            "optuna_aznas: the database does not answer; trying again for up to %g s: %s", self._patience, reason
        )


def _retried(name: str) -> Any:
    def call(self: _Database, *arguments: Any, **named: Any) -> Any:
        method = getattr(super(_Database, self), name)
        return self._persistently(lambda: method(*arguments, **named))

    call.__name__ = name
    return call


for _name in _DATABASE_CALLS:
    if hasattr(RDBStorage, _name) and _name not in vars(_Database):
        setattr(_Database, _name, _retried(_name))


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


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else repr(error)


# --- Journal files ---------------------------------------------------------------------------------------------------

_BLOCK = 65536  # bytes read at a time when the start of the last line is looked for
_RECORD = b'{"op_code"'  # how each record of a journal begins


class _Journal(JournalStorage):
    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        try:
            return super().set_trial_state_values(trial_id, state, values)
        except UpdateFinishedTrialError:
            if state == TrialState.RUNNING:
                return False  # another worker took the enqueued trial, and has finished it already
            raise


class _RepairingLock(JournalFileSymlinkLock):
    """Optuna's lock; whoever holds it finds a journal that ends with a whole line.

    A record is appended under this lock. So a worker that goes on does not append behind a line that another one tore.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._path = path

    def acquire(self) -> bool:
        """Acquire the lock, then repair the last line if it is torn."""
        acquired = super().acquire()
        try:
            if _is_torn(self._path):
                _repair(self._path)
        except BaseException:
            self.release()
            raise
        return acquired


def repair_journal(path: str | os.PathLike[str]) -> bool:
    """Repair the last line of a journal file, under Optuna's lock, and log a warning if there was something to repair.

    A line that lacks only its end is completed. A torn line is removed: Optuna has never read it. If another worker has
    appended its record to a torn line, that record is kept. A journal that may not be written is left as it is, since
    Optuna leaves out a torn last line when it reads.

    Args:
        path: The file; it need not exist.

    Returns:
        Whether the file was changed.
    """
    file = os.fspath(path)
    if not os.path.exists(file) or _last_line(file)[2] is None:
        return False
    lock = JournalFileSymlinkLock(file)
    try:
        lock.acquire()
    except OSError:
        return False
    try:
        return _repair(file)
    except PermissionError:
        return False
    finally:
        lock.release()


def _is_torn(path: str) -> bool:
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"
    return False


def _last_line(path: str) -> tuple[int, bytes, bytes | None]:
    """Return where the last line begins, the line, and what it should be: ``None`` if it is right as it is."""
    with open(path, "rb") as file:
        end = begin = file.seek(0, os.SEEK_END)
        line = b""
        while begin:
            begin = max(0, begin - _BLOCK)
            file.seek(begin)
            line = file.read(min(_BLOCK, end - begin - len(line))) + line
            before, newline, _ = line[:-1].rpartition(b"\n")
            if newline:
                begin += len(before) + 1
                line = line[len(before) + 1 :]
                break
    if not line or (line.endswith(b"\n") and _is_record(line)):
        return begin, line, None
    if _is_record(line):
        return begin, line, line + b"\n"
    behind = line[line.rfind(_RECORD) :]  # a record that another worker has appended to the torn one
    return begin, line, behind.rstrip(b"\n") + b"\n" if _is_record(behind) else b""


def _is_record(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _repair(path: str) -> bool:
    """Repair the last line, by someone who holds the lock."""
    begin, line, right = _last_line(path)
    if right is None:
        return False
    with open(path, "r+b") as file:
        if right.startswith(line):
            file.seek(0, os.SEEK_END)
            file.write(right[len(line) :])
        else:
            file.truncate(begin)
            file.seek(begin)
            file.write(right)
        file.flush()
        os.fsync(file.fileno())
    done = "was completed" if right.startswith(line) else f"was removed ({len(line) - len(right)} bytes)"
    _LOG.warning("optuna_aznas: the last line of %s was torn, by a crash or a full disk, and %s.", path, done)
    return True


# --- Passwords -------------------------------------------------------------------------------------------------------

_HIDDEN = "***"
_SECRET = r"[\w.-]*(?:pass|pwd|secret|token|auth)[\w.-]*"  # names of URL parameters whose values are secret
_SHORT = 4  # characters; a shorter password is hidden only where it is a word of its own

#: In a URL that stands alone the password ends at the last ``@``: people write ``/ # ? @`` and spaces in it unquoted.
_IN_URL = (
    re.compile(r"^[\w.+-]+:(?://)?[^:@]*:(?P<secret>.*)@", re.DOTALL),
    re.compile(rf"(?=[?&;]{_SECRET}=(?P<secret>[^&;]*))", re.IGNORECASE),
)

#: In a text a URL ends at white space.
_IN_TEXT = (
    re.compile(r"[\w.+-]+://[^\s:@]*:(?P<secret>\S*)@"),
    re.compile(rf"(?=[?&;]{_SECRET}=(?P<secret>[^\s&;'\"]*))", re.IGNORECASE),
    re.compile(r"\bpassword\s*=\s*(?P<secret>'[^']*'|\"[^\"]*\"|[^\s;&,)]+)", re.IGNORECASE),
)


def redact_url(text: str, url: str | None = None) -> str:
    """Hide the passwords in a text: in a URL, in its parameters, and in the messages of drivers.

    Args:
        text: What is to be shown.
        url: The storage URL in use. Its password is then hidden wherever the text holds it, also quoted, unquoted and
            in part. Without it, only what looks like a URL or a driver's ``password=...`` is searched.

    Returns:
        The text with ``***`` for each password. Where a password holds an unquoted ``@``, or a parameter does, more
        than the password may be hidden.

    Example:
        >>> redact_url("postgresql://user:a/b#c?d@host/nas?sslmode=require")
        'postgresql://user:***@host/nas?sslmode=require'
        >>> redact_url("no host 'b@host'", "postgresql://user:a@b@host/nas")
        "no host '***@host'"
    """
    if url is not None:
        text = text.replace(url, _masked(url, _IN_URL))
        for secret in _secrets(url):
            if len(secret) >= _SHORT:
                text = text.replace(secret, _HIDDEN)
            else:
                text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", _HIDDEN, text)
    return _masked(text, _IN_TEXT)


def _masked(text: str, patterns: Sequence[re.Pattern[str]]) -> str:
    spans = sorted(match.span("secret") for pattern in patterns for match in pattern.finditer(text))
    shown: list[str] = []
    end = 0
    for begin, stop in spans:
        if stop <= end or begin == stop:
            continue
        if begin > end or not shown:
            shown += [text[end:begin], _HIDDEN]
        end = stop
    return "".join([*shown, text[end:]])


def _secrets(url: str) -> list[str]:
    """Return the passwords of a URL in each spelling, and the parts at which a driver may cut them; longest first."""
    written = {match["secret"] for pattern in _IN_URL for match in pattern.finditer(url)}
    parts = {part for secret in written for part in re.split(r"[/?#@:\[\]&;\s]", secret)}
    spellings: set[str] = set()
    for secret in written | parts:
        plain = {secret, unquote(secret), unquote_plus(secret)}
        spellings |= plain
        for spelling in plain:
            spellings |= {quote(spelling, safe=""), quote(spelling), quote_plus(spelling), repr(spelling)[1:-1]}
    return sorted(spellings - {"", _HIDDEN}, key=len, reverse=True)
