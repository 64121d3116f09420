"""Opens a storage and finds a study in it."""

from __future__ import annotations

from pathlib import Path

import optuna
from optuna.storages import BaseStorage

import optuna_aznas.storage
from optuna_aznas.cli._errors import CommandError, UsageError
from optuna_aznas.storage import redact_url


def open_storage(url: str, *, must_exist: bool) -> BaseStorage:
    """Open the storage that a URL names.

    Args:
        url: As in :func:`optuna_aznas.open_storage`.
        must_exist: Whether a file that is not there is an error; otherwise it is made.
    """
    kind, colon, rest = url.partition(":")
    if not colon:
        raise UsageError(f"--storage must be a URL such as sqlite:///aznas.db or journal:aznas.log; got {url!r}.")
    file = rest if kind == "journal" else _sqlite_file(url) if kind.startswith("sqlite") else None
    if must_exist and file and not Path(file).exists():
        raise CommandError(f"there is no file {file!r}. Name the storage of the search with --storage.")
    try:
        return optuna_aznas.storage.open_storage(url)
    except Exception as error:
        lines = redact_url(str(error), url).strip().splitlines()
        reason = lines[0] if lines else type(error).__name__
        raise CommandError(f"storage {redact_url(url, url)} cannot be opened: {reason}") from error


def is_in_memory(url: str) -> bool:
    """Whether a URL names a database in the memory of this process."""
    return url.startswith("sqlite") and "file:" not in url and _sqlite_file(url) is None


def _sqlite_file(url: str) -> str | None:
    """Return the path of an SQLite file; ``None`` for a database in memory, or a URL that cannot be read."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        path = make_url(url).database
    except ArgumentError:
        return None
    return None if path is None or path == ":memory:" or path.startswith("file:") else path


def load_study(storage: BaseStorage, url: str, name: str | None) -> optuna.Study:
    """Return the study of that name; without one, the only one there is."""
    found = optuna.get_all_study_names(storage)
    if name is None:
        if len(found) != 1:
            listed = f"has {len(found)} studies: {', '.join(sorted(found))}" if found else "has no study"
            raise CommandError(f"{redact_url(url, url)} {listed}. Name one with --study-name.")
        name = found[0]
    elif name not in found:
        there = ", ".join(sorted(found)) or "none"
        raise CommandError(f"{redact_url(url, url)} has no study {name!r}. There: {there}.")
    return optuna.load_study(study_name=name, storage=storage)
