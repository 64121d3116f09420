"""Checks of arguments that several public names share."""

from __future__ import annotations


def check_count(name: str, value: object) -> None:
    """Raise ``ValueError`` unless ``value`` is an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1; got {value!r}.")


def check_n_workers(value: object) -> None:
    """Raise ``ValueError`` unless ``value`` is an integer of at least 0, or ``None``."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise ValueError(f"n_workers must be an integer of at least 0; got {value!r}.")


def check_callable(name: str, value: object) -> None:
    """Raise ``ValueError`` unless ``value`` is callable or ``None``."""
    if value is not None and not callable(value):
        raise ValueError(f"{name} must be callable; got {value!r}.")
