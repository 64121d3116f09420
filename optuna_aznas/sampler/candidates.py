"""Architectures that were looked at and not yet trained."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from optuna.distributions import BaseDistribution

from optuna_aznas.study.attributes import as_numbers

#: A function from an architecture's parameters to its scores.
Score = Callable[[dict[str, Any]], Any]

#: What tells an architecture from others.
Key = frozenset[tuple[str, str]]


class Architecture(NamedTuple):
    """An architecture that a child can have as a parent.

    Attributes:
        params: Its parameters.
        distributions: Their distributions.
    """

    params: dict[str, Any]
    distributions: dict[str, BaseDistribution]


class Candidate(NamedTuple):
    """An architecture that may be proposed.

    Attributes:
        params: A value for every parameter that architectures of the study have.
        asked: Those of them that it asks for, as far as that is known.
        scores: Its scores by proxy name; empty where nobody computes them.
        key: What tells it from others.
    """

    params: dict[str, Any]
    asked: dict[str, Any]
    scores: dict[str, float]
    key: Key


class CandidateScorer:
    """Calls a user's ``score`` and gets along with what it does.

    Args:
        score: From parameters to scores.
    """

    def __init__(self, score: Score) -> None:
        self._score = score
        self._warned: set[str] = set()

    def __call__(self, params: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, float] | None:
        """Return the scores of an architecture under the study's proxies; ``None``, and a warning, if there are none.

        Args:
            params: Parameters of the architecture.
            names: The study's proxies.
        """
        try:
            scores = as_numbers(self._score(dict(params)))
        except Exception as error:
            self._warn(
                type(error).__name__,
                f"score failed for {dict(params)}: {type(error).__name__}: {error}. The candidate is left out; "
                "further errors of this kind are not reported.",
            )
            return None
        if set(scores) != set(names):
            self._warn(
                "names",
                f"score returned {sorted(scores)}, the study's trials have {sorted(names)}; the candidate is left out. "
                "Let score return what the objective records.",
            )
            return None
        return scores

    def _warn(self, kind: str, message: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(message, stacklevel=2)
