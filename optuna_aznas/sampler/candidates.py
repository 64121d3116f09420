"""Candidates (architectures that may be proposed), and the user's functions that filter and score them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from optuna.distributions import BaseDistribution

from optuna_aznas._warnings import WarnOnce
from optuna_aznas.sampler.strategy import Space
from optuna_aznas.study.attributes import as_numbers
from optuna_aznas.study.graph import graph_of

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
        graph: Features of its own graph by name; empty where they are not known.
    """

    params: dict[str, Any]
    present: dict[str, Any]
    proxy_scores: dict[str, float]
    key: Key
    graph: Mapping[str, float] = MappingProxyType({})


class CandidateScores(NamedTuple):
    """What a user's ``candidate_scorer`` returned for a candidate.

    Attributes:
        proxy_scores: Proxy scores by proxy name.
        graph: Features of its own graph by name; empty where it returned none.
    """

    proxy_scores: dict[str, float]
    graph: dict[str, float]


class CheckedScorer:
    """Calls a user's ``candidate_scorer`` and checks what it returns.

    Args:
        candidate_scorer: From parameters to proxy scores. Where it has a method ``score_many``, as
            :class:`~optuna_aznas.CandidateScorer` does, that is called instead: from a list of parameters to a list
            that holds for each of them proxy scores or an exception.
    """

    def __init__(self, candidate_scorer: Callable[[dict[str, Any]], Any]) -> None:
        self._candidate_scorer = candidate_scorer
        self._warn_once = WarnOnce()

    def __call__(self, candidates: Sequence[Mapping[str, Any]], names: tuple[str, ...]) -> list[CandidateScores | None]:
        """Return the proxy scores of candidates; ``None``, with a warning, for those where they cannot be computed.

        Args:
            candidates: Parameters of each candidate.
            names: Names of the study's proxies; any will do where there are none.
        """
        many = [dict(params) for params in candidates]
        outcomes = self._outcomes([dict(params) for params in many])
        return [self._checked(params, outcome, names) for params, outcome in zip(many, outcomes, strict=True)]

    def search_space(self, draw: Callable[[BaseDistribution], Any]) -> Space:
        """Return the parameters of architectures, where the user's object has a method ``search_space`` that knows."""
        search_space = getattr(self._candidate_scorer, "search_space", None)
        return {} if search_space is None else search_space(draw)

    def _outcomes(self, many: list[dict[str, Any]]) -> list[Any]:
        """Return what the user's function returned for each candidate, or the error that it raised."""
        score_many = getattr(self._candidate_scorer, "score_many", None)
        if score_many is None:
            return [_returned(self._candidate_scorer, params) for params in many]
        outcomes = _returned(score_many, many)
        if isinstance(outcomes, Exception):
            return [outcomes] * len(many)
        return list(outcomes)

    def _checked(self, params: dict[str, Any], outcome: Any, names: tuple[str, ...]) -> CandidateScores | None:
        scores = outcome if isinstance(outcome, Exception) else _returned(as_numbers, outcome)
        if isinstance(scores, Exception):
            self._warn_once(
                type(scores).__name__,
                f"candidate_scorer failed for {params}: {type(scores).__name__}: {scores}. The candidate is left out; "
                "further errors of this kind are not reported.",
            )
            return None
        if names and set(scores) != set(names):
            self._warn_once(
                "names",
                f"candidate_scorer returned {sorted(scores)}, the study's trials have {sorted(names)}; the candidate "
                "is left out. Let candidate_scorer return what the objective records.",
            )
            return None
        return CandidateScores(scores, graph_of(outcome))


def _returned(function: Callable[[Any], Any], argument: Any) -> Any:
    """Return what a function returns, or the error that it raises."""
    try:
        return function(argument)
    except Exception as error:
        return error
