"""Errors that end a command, with their exit status."""

from __future__ import annotations


class CommandError(Exception):
    """A failure that the user can do something about; the message says what. Exit status 1."""

    status = 1


class UsageError(CommandError):
    """Invalid arguments. Exit status 2."""

    status = 2
