"""What a study says of its scored trials: best_trials, leaderboard, rank_scores."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from optuna_aznas._arguments import check_count
from optuna_aznas._text import for_terminal, text_table
from optuna_aznas.aggregation import consensus_weights
from optuna_aznas.aggregation.consensus import describe_weights
from optuna_aznas.study.history import StudyHistory


def rank_scores(study: Study) -> dict[int, float]:
    """Return the rank score S of each scored and feasible trial, by trial number.

    S is at most 0, and bigger is better. Ranks are taken over all scored trials of the study, whatever their state, so
    a trial's S changes as the study grows. See :func:`~optuna_aznas.aggregate`.
    """
    history = StudyHistory.of(study)
    scored = zip(history.trials, history.rank_scores(), history.feasible, strict=True)
    return {trial.number: float(s) for trial, s, feasible in scored if feasible}


def best_trials(study: Study, n: int = 10) -> list[FrozenTrial]:
    """Return the ``n`` trials with the highest rank score S, best first.

    Only completed trials that satisfy all constraints are returned; ranks are taken over all scored trials.

    Raises:
        ValueError: ``n`` is not an integer of at least 1.
    """
    check_count("n", n)
    history = StudyHistory.of(study)
    return [history.trials[i] for i in _best_positions(history, history.rank_scores(), n)]


@dataclasses.dataclass(frozen=True)
class LeaderboardEntry:
    """One line of a leaderboard.

    Attributes:
        place: 1 for the best.
        number: The trial's number.
        rank_score: Its rank score S, at most 0.
        proxy_scores: Its proxy scores by proxy name.
        values: Its objective values.
        params: Its parameters.
    """

    place: int
    number: int
    rank_score: float
    proxy_scores: dict[str, float]
    values: tuple[float, ...]
    params: dict[str, Any]


class Leaderboard(tuple[LeaderboardEntry, ...]):
    """The best trials of a study, best first: a tuple of :class:`LeaderboardEntry` that prints as a table.

    Attributes:
        weights: The weight of each proxy in S by name (:func:`~optuna_aznas.aggregation.consensus_weights`). A line
            below the table names those that are less than 1.
    """

    weights: dict[str, float]

    def __new__(cls, entries: Iterable[LeaderboardEntry] = (), weights: Mapping[str, float] | None = None) -> Self:
        board = super().__new__(cls, entries)
        board.weights = dict(weights or {})
        return board

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return a flat dict for each entry, as ``pandas.DataFrame`` takes them.

        The keys are ``place``, ``number``, ``rank_score``, the proxies' names, and the parameters' names prefixed
        ``params_``. A proxy whose name could be one of the others is prefixed ``proxy_``, and so is one whose name
        begins with that.
        """
        return [
            {
                "place": entry.place,
                "number": entry.number,
                "rank_score": entry.rank_score,
                **{_column(name): score for name, score in entry.proxy_scores.items()},
                **{f"params_{name}": value for name, value in entry.params.items()},
            }
            for entry in self
        ]

    def __str__(self) -> str:
        if not self:
            return "(no scored trial yet)"
        rows = [["place", "trial", "S", *map(for_terminal, self[0].proxy_scores), "params"]]
        for entry in self:
            proxies = [f"{value:.4g}" for value in entry.proxy_scores.values()]
            params = ", ".join(f"{for_terminal(name)}={for_terminal(value)}" for name, value in entry.params.items())
            rows.append([str(entry.place), str(entry.number), f"{entry.rank_score:.3f}", *proxies, params])
        lines = text_table(rows, left=[len(rows[0]) - 1])
        reduced = describe_weights([for_terminal(name) for name in self.weights], list(self.weights.values()))
        return "\n".join([*lines, f"({reduced})"] if reduced else lines)


def leaderboard(study: Study, n: int = 10) -> Leaderboard:
    """Return the ``n`` trials with the highest rank score S, with their proxy scores, for printing or as data.

    The same trials as :func:`best_trials`, in the same order.

    Raises:
        ValueError: ``n`` is not an integer of at least 1.
    """
    check_count("n", n)
    history = StudyHistory.of(study)
    s = history.rank_scores()
    weights = dict(zip(history.names, consensus_weights(history.proxy_scores).tolist(), strict=True))
    entries = (
        LeaderboardEntry(
            place=place,
            number=history.trials[i].number,
            rank_score=float(s[i]),
            proxy_scores=dict(zip(history.names, map(float, history.proxy_scores[i]), strict=True)),
            values=tuple(history.trials[i].values),
            params=dict(history.trials[i].params),
        )
        for place, i in enumerate(_best_positions(history, s, n), start=1)
    )
    return Leaderboard(entries, weights)


def _column(proxy: str) -> str:
    """Return the name of a proxy's column, different from all other columns'."""
    taken = proxy in ("place", "number", "rank_score") or proxy.startswith(("params_", "proxy_"))
    return f"proxy_{proxy}" if taken else proxy


def _best_positions(history: StudyHistory, s: npt.NDArray[np.float64], n: int) -> list[int]:
    """Return positions in ``history.trials`` of the ``n`` completed and feasible trials with the highest S, best
    first; ties by number.
    """
    order = np.lexsort((np.array([trial.number for trial in history.trials]), -s))
    shown = (int(i) for i in order if history.trials[i].state == TrialState.COMPLETE and history.feasible[i])
    return list(itertools.islice(shown, n))
