"""Errors that end a command with one line of message, and their exit statuses."""

from __future__ import annotations

from collections.abc import Iterator


class CommandError(Exception):
    """A failure that the user can do something about; the message says what. Exit status 1."""

    status = 1


class UsageError(CommandError):
    """Invalid arguments. Exit status 2."""

    status = 2


#: Top-level packages of the exceptions that a storage raises when its file or server fails.
_STORAGE_LIBRARIES = ("sqlalchemy", "sqlite3", "psycopg", "psycopg2", "pymysql", "MySQLdb", "redis", "grpc")


def failure_of_environment(error: BaseException) -> str | None:
    """Return what failed outside of this program: a disk, a file, a server; ``None`` for any other error.

    Args:
        error: The error. The errors from which it was raised count, too; the original one is reported.
    """
    reasons = [reason for each in _chain(error) if (reason := _reason(each)) is not None]
    return reasons[-1] if reasons else None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        driver_error = getattr(error, "orig", None)  # of SQLAlchemy
        if isinstance(driver_error, BaseException):
            error = driver_error
        else:  # Optuna raises an AssertionError while it handles a storage's error, so the context counts, too
            error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _reason(error: BaseException) -> str | None:
    details = getattr(error, "details", None)
    if type(error).__module__.partition(".")[0] == "grpc" and callable(details):
        return f"the server of grpc:// does not answer: {details()}"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    is_storage_error = type(error).__name__ == "StorageInternalError"  # of Optuna, which need not be imported
    if isinstance(error, OSError) or is_storage_error or _is_from_storage_library(error):
        return str(error).strip().partition("\n")[0] or type(error).__name__
    return None


def _is_from_storage_library(error: BaseException) -> bool:
    return type(error).__module__.partition(".")[0] in _STORAGE_LIBRARIES
