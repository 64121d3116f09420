"""Questions about the best of a growing history, answered exactly without ranking all of it each time.

Both classes rank all networks now and then. Between two such rankings they rely on a bound: how far S of a network can
have come since, whatever was added (:func:`highest_later`, and from below the fact that ranks never fall).
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

import numpy as np

from optuna_aznas.aggregation.rank_history import RankHistory

#: Leeway for rounding where a bound is compared with S.
_ROUNDING = 1e-9

#: Networks that :class:`Leaders` looks at, at least, between two rankings of all.
_CONTENDERS = 64


def highest_later(score: float, m: int, n: int, later: int) -> float:
    """Return the highest S that a network can reach while its history grows.

    A rank rises by at most one with each row that is added. So with r_k the ranks among n rows and d = later - n, S is
    later at most the sum of log((r_k + d) / later). In l_k = log(r_k) that sum is convex, and the l_k lie between 0 and
    log(n) and have a given total: it is greatest where they are most unequal.

    Args:
        score: S of the network among ``n`` rows.
        m: Number of proxies.
        n: Rows when ``score`` was computed, at least 1.
        later: Rows later, at least ``n``.
    """
    left = max(score + m * math.log(n), 0.0)
    highest = 0.0
    for _ in range(m):
        log_rank = min(left, math.log(n))
        left -= log_rank
        highest += math.log((math.exp(log_rank) + later - n) / later)
    return highest


def lowest_later(score: float, m: int, n: int, later: int) -> float:
    """Return the lowest S that a network can fall to while its history grows: no rank falls. Arguments as above."""
    return score + m * math.log(n / later)


class Leaders:
    """Which networks of a growing history have the highest S.

    When all are ranked, the best become *contenders*. From then on only they, and what is added, are looked at, for as
    long as none of the others can have come up among the leaders.

    Args:
        history: The history. Each of its rows is to be announced by :meth:`add`.
    """

    def __init__(self, history: RankHistory) -> None:
        self._history = history
        self._eligible: list[bool] = []
        self._anyone = False  # whether any row is eligible
        self._contenders: list[int] = []
        self._ranked_at = 0  # rows when all were ranked
        self._chosen = 0  # contenders then
        self._best_other = -math.inf  # the highest S, then, of an eligible row that is no contender

    def add(self, eligible: Sequence[bool]) -> None:
        """Announce rows added to the history, and which of them may lead. While none may, all may."""
        first = len(self._eligible)
        self._eligible += eligible
        if not self._anyone and any(eligible):
            self._anyone = True
            self._contenders, self._chosen, self._best_other = [], 0, -math.inf
        self._contenders += [first + i for i, may_lead in enumerate(eligible) if may_lead or not self._anyone]

    def best(self, k: int) -> list[tuple[int, float]]:
        """Return position and S of the ``k`` best rows, and of those that tie with the last of them; in no order."""
        if len(self._contenders) > 2 * max(self._chosen, _CONTENDERS, 8 * k):
            self._rank_all(k)
        s = self._history.scores(self._contenders)
        if not self._certain(s, k):
            self._rank_all(k)
            s = self._history.scores(self._contenders)
        last = np.partition(s, len(s) - k)[len(s) - k] if len(s) > k else -np.inf
        return [(self._contenders[i], float(s[i])) for i in np.flatnonzero(s >= last)]

    def _certain(self, s: np.ndarray, k: int) -> bool:
        if self._best_other == -math.inf:
            return True
        m, n = self._history.table.shape[1], len(self._history)
        bound = highest_later(self._best_other, m, self._ranked_at, n) + _ROUNDING
        return int(np.count_nonzero(s > bound)) >= k

    def _rank_all(self, k: int) -> None:
        s = self._history.scores()
        rows = np.flatnonzero(self._eligible) if self._anyone else np.arange(len(s))
        s = s[rows]
        size = max(_CONTENDERS, 8 * k)
        last = np.partition(s, len(s) - size)[len(s) - size] if len(s) > size else -np.inf
        self._contenders = rows[s >= last].tolist()
        self._best_other = float(np.max(s[s < last], initial=-np.inf))
        self._chosen, self._ranked_at = len(self._contenders), len(self._history)


class BestShare:
    """Whether a further network would be among the best of a growing history.

    Args:
        history: The history.
    """

    def __init__(self, history: RankHistory) -> None:
        self._history = history
        self._in_order = np.empty(0)  # S of all rows when they were ranked, ascending

    def includes(self, row: Sequence[float], share: float) -> bool:
        """Whether a network with the scores ``row``, if it were added, would be within the best ``share`` of all.

        That is, whether no more than that share of networks, itself included, have an S at least as high as its own.
        """
        n, m = self._history.table.shape
        ranked = len(self._in_order)
        new, recent = self._history.scores_with(row, first=ranked)
        others = 1 + int(np.count_nonzero(recent >= new))  # itself, and what was added since
        if ranked:
            low = lowest_later(0.0, m, ranked, n + 1)
            surely = ranked - bisect_right(self._in_order, new - low + _ROUNDING)
            if (surely + others) / (n + 1) > share:
                return False
            perhaps = ranked - bisect_left(
                self._in_order, new - _ROUNDING, key=lambda s: highest_later(s, m, ranked, n + 1)
            )
            if (perhaps + others) / (n + 1) <= share:
                return True
        new, s = self._history.scores_with(row)
        self._in_order = np.sort(self._history.scores())
        return (1 + int(np.count_nonzero(s >= new))) / (n + 1) <= share
