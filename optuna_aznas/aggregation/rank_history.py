"""Non-linear rank aggregation over a table that grows network by network, without starting over."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from optuna_aznas.aggregation.rank import aggregate, as_table, sum_log_ranks

_Floats = npt.NDArray[np.float64]


class RankHistory:
    """A score table that grows, with what is needed to rank any of its rows, or a new one, at once.

    S of all rows at any moment equals :func:`~optuna_aznas.aggregation.aggregate` of the rows so far, to the last bit.
    Each proxy's scores are kept sorted: a new row is inserted (n numbers move, nothing is sorted), and a rank is a
    binary search.

    Example:
        >>> history = RankHistory()
        >>> history.append([1.0, 10.0])
        >>> history.extend([[2.0, 30.0], [3.0, 20.0]])
        >>> history.scores().round(3)
        array([-2.197, -0.405, -0.405])
    """

    def __init__(self) -> None:
        self._n = 0
        self._table: _Floats = np.empty((0, 0))
        self._sorted: _Floats = np.empty((0, 0))  # a row for each proxy

    def __len__(self) -> int:
        return self._n

    @property
    def table(self) -> _Floats:
        """The scores so far, shape (n, m), NaN replaced by ``-inf``. A read-only view."""
        view = self._table[: self._n]
        view.flags.writeable = False
        return view

    def append(self, row: npt.ArrayLike) -> None:
        """Add one network's scores, shape (m,)."""
        self.extend(np.asarray(row, dtype=np.float64)[np.newaxis])

    def extend(self, rows: npt.ArrayLike) -> None:
        """Add several networks' scores, shape (k, m).

        Raises:
            ValueError: The rows do not have as many proxies as those before.
        """
        if np.size(rows) == 0:
            return
        new = as_table(rows)
        m = new.shape[1]
        if self._n == 0:
            self._table, self._sorted = np.empty((0, m)), np.empty((m, 0))
        elif m != self._table.shape[1]:
            raise ValueError(f"rows must have {self._table.shape[1]} proxies, as those before; got {m}.")
        n, size = self._n, self._n + len(new)
        if size > len(self._table):
            capacity = max(size, 2 * len(self._table), 64)
            table, in_order = np.empty((capacity, m)), np.empty((m, capacity))
            table[:n], in_order[:, :n] = self._table[:n], self._sorted[:, :n]
            self._table, self._sorted = table, in_order
        self._table[n:size] = new
        for column, values in zip(self._sorted, np.sort(new, axis=0).T, strict=True):
            column[:size] = np.insert(column[:n], np.searchsorted(column[:n], values), values)
        self._n = size

    def scores(self, rows: Sequence[int] | None = None) -> _Floats:
        """Return S of the rows at these positions, shape (k,); by default of all, in the order in which they were
        added.
        """
        if rows is None:
            return aggregate(self._table[: self._n]) if self._n else np.zeros(0)
        return sum_log_ranks(self._ranks(self._table[: self._n][rows]), self._n)

    def scores_with(self, row: npt.ArrayLike, first: int = 0) -> tuple[float, _Floats]:
        """Return what S would be with one more network: that of the new one, and those of the rows from ``first`` on.

        Args:
            row: The new network's scores, shape (m,). It is not added.
            first: Position of the first of the rows that are asked for.
        """
        if self._n == 0:
            return 0.0, np.zeros(0)
        (new,) = as_table(np.asarray(row, dtype=np.float64)[np.newaxis])
        rows = self._table[first : self._n]
        ranks = self._ranks(rows) + (rows > new) + 0.5 * (rows == new)
        # Once added it shares the rank of those it ties with; if there are none, it lies above all that are lower.
        own = self._ranks(new[np.newaxis]) + 0.5
        return float(sum_log_ranks(own, self._n + 1)[0]), sum_log_ranks(ranks, self._n + 1)

    def _ranks(self, rows: _Floats) -> _Floats:
        """Return the ascending ranks of scores (k, m) among all, ties averaged. Scores that are not in the table lie
        halfway between the neighbours.
        """
        ranks = np.empty(rows.shape)
        for k, in_order in enumerate(self._sorted[:, : self._n]):
            below, through = (np.searchsorted(in_order, rows[:, k], side=side) for side in ("left", "right"))
            ranks[:, k] = 0.5 * (below + through + 1)
        return ranks
