"""Candidates (architectures that may be proposed), and the user's functions that filter and score them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from optuna_aznas.study.attributes import as_numbers

#: A function from a candidate's parameters to whether it may be proposed.
CandidateFilter = Callable[[dict[str, Any]], bool]

#: Identifies an architecture: its parameters with their values as text.
Key = frozenset[tuple[str, str]]


class Candidate(NamedTuple):
    """An architecture that may be proposed.

    Attributes:
        params: A value for every parameter that architectures of the study have.
        present: Those of them that the architecture itself has, as far as that is known.
        proxy_scores: Its proxy scores by proxy name; empty where there is no candidate_scorer.
        key: Identifies the architecture.
    """

    params: dict[str, Any]
    present: dict[str, Any]
    proxy_scores: dict[str, float]
    key: Key


class CandidateScorer:
    """Calls a user's ``candidate_scorer`` and checks what it returns.

    Args:
        candidate_scorer: From parameters to proxy scores.
    """

    def __init__(self, candidate_scorer: Callable[[dict[str, Any]], Any]) -> None:
        self._candidate_scorer = candidate_scorer
        self._warned: set[str] = set()

    def __call__(self, params: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, float] | None:
        """Return a candidate's proxy scores; ``None``, with a warning, if they could not be computed.

        Args:
            params: Parameters of the candidate.
            names: Names of the study's proxies.
        """
        try:
            scores = as_numbers(self._candidate_scorer(dict(params)))
        except Exception as error:
            self._warn_once(
                type(error).__name__,
                f"candidate_scorer failed for {dict(params)}: {type(error).__name__}: {error}. The candidate is left "
                "out; further errors of this kind are not reported.",
            )
            return None
        if set(scores) != set(names):
            self._warn_once(
                "names",
                f"candidate_scorer returned {sorted(scores)}, the study's trials have {sorted(names)}; the candidate "
                "is left out. Let candidate_scorer return what the objective records.",
            )
            return None
        return scores

    def _warn_once(self, kind: str, message: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(message, stacklevel=2)
