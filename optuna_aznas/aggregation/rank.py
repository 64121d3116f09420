"""aggregate: non-linear rank aggregation of proxy scores (Lee and Ham, CVPR 2024, arXiv:2403.19232)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from optuna_aznas.aggregation.consensus import weights_of_ranks
from optuna_aznas.aggregation.table import as_table, check_weights


def aggregate(
    proxy_scores: npt.ArrayLike, weights: npt.ArrayLike | None = None, *, floor: float = 0.0
) -> npt.NDArray[np.float64]:
    """Return the rank score S of each network: several proxies combined by their ranks.

    With ``rank_k(i)`` the ascending rank of network i under proxy k (the best has rank n; ties share their average),

        S(i) = sum_k  w_k * log( rank_k(i) / n ).

    Because of the logarithm, a network that is bad under one proxy cannot make up for it under the others. S is at most
    0, and 0 only for a network that is alone at the top of every proxy. It compares networks of one table, and cannot
    be compared across tables.

    The weights are 1, as in the paper, except that a proxy counts less where it does not agree with the others
    (:func:`consensus_weights`). :func:`aggregate_aznas` is the paper's S to the letter.

    Args:
        proxy_scores: Table of shape (n, m): n networks, m proxies, bigger is better. NaN counts as ``-inf``.
        weights: Weights w_k of the proxies, shape (m,), not negative; consensus weights by default.
        floor: Lower bound on ``rank_k(i) / n``, at least 0 and below 1: no proxy then contributes less than
            ``w_k log(floor)``. 0, the plain formula, by default.

    Returns:
        S, shape (n,).

    Raises:
        ValueError: ``proxy_scores`` is not two-dimensional, ``weights`` do not fit it or are negative or not finite, or
            ``floor`` is out of range.

    Example:
        >>> aggregate([[1.0, 10.0], [2.0, 30.0], [3.0, 20.0]]).round(3)
        array([-2.197, -0.405, -0.405])
    """
    table = as_table(proxy_scores)
    w = None if weights is None else check_weights(weights, table.shape[1])
    if isinstance(floor, bool) or not isinstance(floor, int | float) or not 0.0 <= floor < 1.0:
        raise ValueError(f"floor must be at least 0 and below 1; got {floor!r}.")
    return _aggregate(table, w, floor)[0]


def aggregate_with_weights(
    proxy_scores: npt.ArrayLike,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return :func:`aggregate` and :func:`consensus_weights` of a table, shapes (n,) and (m,)."""
    return _aggregate(as_table(proxy_scores), None)


def aggregate_aznas(proxy_scores: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return the paper's S of each network: :func:`aggregate` with all weights 1.

    To use it in a search, pass ``AZNASSampler(aggregation=aggregate_aznas)``.

    Args:
        proxy_scores: Table of shape (n, m): n networks, m proxies, bigger is better. NaN counts as ``-inf``.

    Returns:
        S, shape (n,), at most 0.

    Raises:
        ValueError: ``proxy_scores`` is not two-dimensional.
    """
    table = as_table(proxy_scores)
    return _aggregate(table, np.ones(table.shape[1]))[0]


def _aggregate(
    table: npt.NDArray[np.float64], weights: npt.NDArray[np.float64] | None, floor: float = 0.0
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return S and the weights that it has: consensus weights where none are given. The table is ranked once."""
    n = len(table)
    ranks = rankdata(table, method="average", axis=0)
    w = weights_of_ranks(ranks) if weights is None else weights
    return sum_log_ranks(np.maximum(ranks, floor * n) if floor else ranks, n, w), w


def sum_log_ranks(
    ranks: npt.NDArray[np.float64], n: int, weights: npt.NDArray[np.float64] | None = None
) -> npt.NDArray[np.float64]:
    """Return S, shape (k,), of networks by their ranks, shape (k, m), among ``n`` networks.

    The sum runs proxy by proxy, so that equal ranks give equal bits whatever the memory layout.
    """
    total = np.zeros(len(ranks))
    for column, weight in zip(ranks.T, np.ones(ranks.shape[1]) if weights is None else weights, strict=True):
        total += weight * np.log(column / n)
    return total
