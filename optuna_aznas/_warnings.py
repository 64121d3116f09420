"""WarnOnce: warnings that are given once for each kind."""

from __future__ import annotations

import warnings


class WarnOnce:
    """Gives a warning the first time that its kind comes up."""

    def __init__(self) -> None:
        self._kinds: set[str] = set()

    def __call__(self, kind: str, message: str) -> None:
        """Warn, unless a warning of this kind was given before."""
        if kind not in self._kinds:
            self._kinds.add(kind)
            warnings.warn(message, stacklevel=3)
