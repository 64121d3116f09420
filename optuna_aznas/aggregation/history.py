"""Non-linear rank aggregation over a table that grows network by network, without starting over."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from optuna_aznas.aggregation.rank import as_table, check_weights, sum_log_ranks

#: From so many new rows at once, ranking everything anew is cheaper than inserting row by row.
_BULK = 64


class RankHistory:
    """A score table that grows, with its ranks kept up to date.

    At any moment :meth:`scores` equals :func:`~optuna_aznas.aggregation.aggregate` of all rows so far, to the last bit.
    A new row costs O(n m) comparisons and no sorting: it lifts the rank of every better entry by one, and of every
    equal one by a half.

    Args:
        weights: Weights of the proxies, as for :func:`~optuna_aznas.aggregation.aggregate`.

    Example:
        >>> history = RankHistory()
        >>> history.append([1.0, 10.0])
        >>> history.extend([[2.0, 30.0], [3.0, 20.0]])
        >>> history.scores().round(3)
        array([-2.197, -0.405, -0.405])
    """

    def __init__(self, weights: npt.ArrayLike | None = None) -> None:
        self._given_weights = weights
        self._weights = np.ones(0)
        self._n = 0
        self._table = np.empty((0, 0))
        self._ranks = np.empty((0, 0))

    def __len__(self) -> int:
        return self._n

    @property
    def table(self) -> npt.NDArray[np.float64]:
        """The scores so far, shape (n, m), NaN replaced by ``-inf``. A read-only view."""
        return _read_only(self._table[: self._n])

    @property
    def ranks(self) -> npt.NDArray[np.float64]:
        """Ascending ranks of the scores within each proxy, shape (n, m), 1 to n, ties averaged. A read-only view."""
        return _read_only(self._ranks[: self._n])

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
        if self._n == 0:
            self._weights = check_weights(self._given_weights, new.shape[1])
            self._table = self._ranks = np.empty((0, new.shape[1]))
        elif new.shape[1] != self._table.shape[1]:
            raise ValueError(f"rows must have {self._table.shape[1]} proxies, as those before; got {new.shape[1]}.")
        self._reserve(self._n + len(new))
        if len(new) >= _BULK:
            self._table[self._n : self._n + len(new)] = new
            self._n += len(new)
            self._ranks[: self._n] = rankdata(self._table[: self._n], method="average", axis=0)
            return
        for row in new:
            table, ranks = self._table[: self._n], self._ranks[: self._n]
            better, equal = table > row, table == row
            ranks += better
            ranks += 0.5 * equal
            ties = equal.sum(axis=0)
            self._table[self._n] = row
            self._ranks[self._n] = self._n - better.sum(axis=0) - ties + 1 + 0.5 * ties
            self._n += 1

    def scores(self) -> npt.NDArray[np.float64]:
        """Return S of every network so far, shape (n,), in the order in which they were added."""
        if self._n == 0:
            return np.zeros(0)
        return sum_log_ranks(self._ranks[: self._n], self._weights)

    def _reserve(self, size: int) -> None:
        if size > len(self._table):
            capacity = max(size, 2 * len(self._table), 64)
            for name in ("_table", "_ranks"):
                grown = np.empty((capacity, self._table.shape[1]))
                grown[: self._n] = getattr(self, name)[: self._n]
                setattr(self, name, grown)


def _read_only(array: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    view = array[:]
    view.flags.writeable = False
    return view
