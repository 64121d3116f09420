"""What a command ends with when it cannot do what it was asked to."""

from __future__ import annotations


class CommandError(Exception):
    """A failure that the user can do something about; the message says what. Exit status 1."""

    status = 1


class UsageError(CommandError):
    """Arguments that make no sense. Exit status 2."""

    status = 2
