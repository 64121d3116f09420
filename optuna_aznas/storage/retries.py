"""Retries: repeats a storage call while the connection to the server is lost, for a bounded time."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from optuna.storages import BaseStorage
from optuna.trial import TrialState

from optuna_aznas._optuna import UpdateFinishedTrialError
from optuna_aznas.storage.passwords import redact_url

_LOG = logging.getLogger(__name__)

_Result = TypeVar("_Result")
_Storage = TypeVar("_Storage", bound=type[BaseStorage])

_FIRST_DELAY = 0.1  # seconds before a call is tried again; doubles each time
_LONGEST_DELAY = 2.0  # seconds

_WARNING = threading.Lock()
_LOCAL = threading.local()  # of this thread: whether a call is being retried


def delays(patience: float) -> Iterator[float]:
    """Yield how long to wait before each new try, as long as ``patience`` seconds have not passed since the first."""
    end, delay = time.monotonic() + patience, _FIRST_DELAY
    while time.monotonic() + delay <= end:
        yield delay * random.uniform(0.5, 1.5)
        delay = min(2 * delay, _LONGEST_DELAY)


class Retries:
    """Repeats calls that fail since the connection is lost, with a back-off, and logs one line for each outage.

    A call that fails before any has succeeded is not repeated: the server is not there at all.

    Args:
        url: URL of the storage; its password is kept out of the message.
        patience: Seconds for which a call is repeated.
        is_transient: Whether an error means that the same call may succeed later.
        cause: From an error to the one whose message is logged.
        has_answered: Whether a call has succeeded.
    """

    def __init__(
        self,
        url: str,
        patience: float,
        is_transient: Callable[[BaseException], bool],
        *,
        cause: Callable[[BaseException], BaseException] | None = None,
        has_answered: bool = False,
    ) -> None:
        self._url = url
        self._patience = patience
        self._is_transient = is_transient
        self._cause = cause
        self._has_answered = has_answered
        self._waiting = False  # whether a line was logged for the connection that is lost now

    def __call__(self, call: Callable[[], _Result]) -> _Result:
        """Call until the server answers, or for as long as patience lasts."""
        if getattr(_LOCAL, "retrying", False):  # a call from inside another: that one is repeated as a whole
            return call()
        _LOCAL.retrying = True
        waits: Iterator[float] | None = None
        try:
            while True:
                try:
                    result = call()
                except Exception as error:
                    if not self._has_answered or not self._is_transient(error):
                        raise
                    waits = delays(self._patience) if waits is None else waits
                    wait = next(waits, None)
                    if wait is None:
                        raise
                    self._warn(error)
                else:
                    self._has_answered, self._waiting = True, False
                    return result
                time.sleep(wait)
        finally:
            _LOCAL.retrying = False

    def _warn(self, error: BaseException) -> None:
        """Log one line, once for all threads and calls until the server answers again."""
        with _WARNING:
            if self._waiting:
                return
            self._waiting = True
        lines = str(error if self._cause is None else self._cause(error)).strip().splitlines()
        reason = redact_url(lines[0] if lines else repr(error), self._url)
        _LOG.warning(
            "optuna_aznas: the storage does not answer; trying again for up to %g s: %s", self._patience, reason
        )


class RetryingStorage(BaseStorage):
    """Base of storages whose calls are repeated; ``retries_calls`` does that for the calls that it does not define.

    A call may have reached the server although its reply was lost. Most calls may be repeated: they set a value. Of the
    others, a state that is already as asked for counts as set, and a study that is gone counts as deleted. A trial that
    was created twice leaves one ``RUNNING`` without parameters, which nothing waits for.
    """

    _retries: Retries

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        method = super().set_trial_state_values  # type: ignore[safe-super]
        calls = 0

        def set_state() -> bool:
            nonlocal calls
            calls += 1
            return method(trial_id, state, values)

        try:
            return self._retries(set_state)
        except UpdateFinishedTrialError:
            if state == TrialState.RUNNING:
                return False  # another worker took the enqueued trial, and has finished it already
            if calls > 1:  # perhaps by this very call, whose reply was lost
                trial = self.get_trial(trial_id)
                if trial.state == state and (values is None or trial.values == list(values)):
                    return True
            raise

    def delete_study(self, study_id: int) -> None:
        method = super().delete_study  # type: ignore[safe-super]
        calls = 0

        def delete() -> None:
            nonlocal calls
            calls += 1
            method(study_id)

        try:
            self._retries(delete)
        except KeyError:
            if calls == 1:
                raise


def retries_calls(names: Iterable[str] = ()) -> Callable[[_Storage], _Storage]:
    """Return a class decorator: a :class:`RetryingStorage` then repeats all calls of ``BaseStorage`` and ``names``."""
    public = [name for name, member in vars(BaseStorage).items() if callable(member) and not name.startswith("_")]

    def decorate(storage: _Storage) -> _Storage:
        for name in {*public, *names} - set(vars(RetryingStorage)):
            if hasattr(storage, name):
                setattr(storage, name, _retried(storage, name))
        return storage

    return decorate


def _retried(storage: type[BaseStorage], name: str) -> Any:
    def call(self: RetryingStorage, *arguments: Any, **named: Any) -> Any:
        method = getattr(super(storage, self), name)
        return self._retries(lambda: method(*arguments, **named))

    call.__name__ = name
    return call
