"""Journals, in a file or in Redis.

* **Torn files.** A last line torn by a crash or a full disk is removed before the next record is appended. Optuna's
  own storage cannot read the file from then on.
* **Restarts of Redis.** A command that fails because the connection is lost is tried again, for a bounded time.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock, JournalRedisBackend
from optuna.trial import TrialState

from optuna_aznas._optuna import UpdateFinishedTrialError, redis_client
from optuna_aznas.storage.retries import Retries

_LOG = logging.getLogger(__name__)

_BLOCK = 65536  # bytes read at a time when the start of the last line is looked for
_RECORD = b'{"op_code"'  # how each record of a journal begins


def open_journal_file(path: str) -> JournalStorage:
    """Open a journal in a file, after its last line was repaired if need be."""
    repair_journal(path)
    return _Journal(JournalFileBackend(path, lock_obj=_RepairingLock(path)))


def open_redis_journal(url: str, patience: float) -> JournalStorage:
    """Open a journal in Redis.

    Args:
        url: As in :func:`~optuna_aznas.open_storage`.
        patience: Likewise.
    """
    return _Journal(_RedisBackend(url, patience))


class _Journal(JournalStorage):
    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        try:
            return super().set_trial_state_values(trial_id, state, values)
        except UpdateFinishedTrialError:
            if state == TrialState.RUNNING:
                return False  # another worker took the enqueued trial, and has finished it already
            raise


class _RedisBackend(JournalRedisBackend):
    """Optuna's backend; each command is tried again while the connection is lost, and a record is appended once.

    Args:
        url: URL of the server.
        patience: Seconds for which a command is tried again.
    """

    def __init__(self, url: str, patience: float) -> None:
        super().__init__(url)
        self._retries = Retries(url, patience, _is_connection_error)
        self._n_read = 0  # records that the storage has read
        self._leave_retries_to_us()

    def __setstate__(self, state: dict[Any, Any]) -> None:
        super().__setstate__(state)
        self._leave_retries_to_us()

    def _leave_retries_to_us(self) -> None:
        """Stop the client's own retries, which append a record again though only the reply to the first was lost."""
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        redis_client(self).set_retry(Retry(NoBackoff(), 0))

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        records = self._retries(lambda: list(super(_RedisBackend, self).read_logs(log_number_from)))
        self._n_read = log_number_from + len(records)
        return iter(records)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        for record in logs:
            self._append(record)

    def _append(self, record: dict[str, Any]) -> None:
        """Append one record, unless a try whose reply was lost has done it.

        Each thread reads the journal after it has appended a record, and a record names its worker and thread. So an
        equal record behind those read is that of the lost reply.
        """
        tries = 0

        def append() -> None:
            nonlocal tries
            tries += 1
            if tries > 1 and json.loads(json.dumps(record)) in super(_RedisBackend, self).read_logs(self._n_read):
                return
            super(_RedisBackend, self).append_logs([record])

        self._retries(append)

    def save_snapshot(self, snapshot: bytes) -> None:
        self._retries(lambda: super(_RedisBackend, self).save_snapshot(snapshot))

    def load_snapshot(self) -> bytes | None:
        return self._retries(lambda: super(_RedisBackend, self).load_snapshot())


def _is_connection_error(error: BaseException) -> bool:
    """Whether the connection to Redis is lost, or the server is still loading its data."""
    import redis.exceptions

    return isinstance(error, redis.exceptions.ConnectionError | redis.exceptions.TimeoutError)


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
