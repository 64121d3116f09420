"""Columns of numbers for the learned ranking: normal scores, ranks, centring, groups."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri
from scipy.stats import rankdata

from optuna_aznas.aggregation.rank import sum_log_ranks

_Floats = npt.NDArray[np.float64]


def normal_scores(values: _Floats) -> _Floats:
    """Return the standard normal quantiles of (rank - 1/2) / n; ties share their average rank."""
    return ndtri((rankdata(values) - 0.5) / len(values))


def rank_scores(ranks: _Floats, n: int | None = None) -> _Floats:
    """Return S, rounded, so that networks whose S differs only by rounding errors tie."""
    return np.round(sum_log_ranks(ranks, len(ranks) if n is None else n), 12)


def ranks_among(values: _Floats, table: _Floats) -> _Floats:
    """Return the ranks, 1 to n, of values (k, m) among those of a table (n, m).

    A value that occurs in the table has the mean rank of those equal to it; any other has that of the next lower one.
    """
    ranks = np.empty(values.shape)
    for k, in_order in enumerate(np.sort(table, axis=0).T):
        low, high = (np.searchsorted(in_order, values[:, k], side=side) for side in ("left", "right"))
        ranks[:, k] = np.where(high > low, 0.5 * (low + high + 1), np.maximum(low, 1))
    return ranks


def centred(block: _Floats, rows: npt.NDArray[np.intp] | None = None) -> _Floats:
    """Return columns of mean 0, scaled to a total variance of 1, both among ``rows`` (by default among all rows)."""
    reference = block if rows is None else block[rows]
    if not len(reference):
        return block
    variance = float(np.var(reference, axis=0).sum())
    return (block - reference.mean(axis=0)) * (1.0 / np.sqrt(variance) if variance > 0.0 else 0.0)


def standardised(block: _Floats) -> _Floats:
    """Return columns of mean 0 and equal variance, 1 in total, without those that are constant.

    Rows with a number that is not finite have the mean, 0, in all columns.
    """
    known = np.isfinite(block).all(axis=1)
    reference = block[known]
    if not len(reference):
        return block[:, :0]
    varied = np.ptp(reference, axis=0) > 0.0
    scaled = np.zeros((len(block), int(varied.sum())))
    if scaled.size:
        reference = reference[:, varied]
        scale = reference.std(axis=0) * np.sqrt(reference.shape[1])
        scaled[known] = (reference - reference.mean(axis=0)) / scale
    return scaled


def by_group(labels: Sequence[int], n_columns: int, name: str) -> list[list[int]]:
    """Return the columns of each group; without labels all are one group."""
    if not labels:
        return [list(range(n_columns))] if n_columns else []
    if len(labels) != n_columns:
        raise ValueError(f"{name} must have a label for each of {n_columns} columns; got {len(labels)}.")
    groups: dict[int, list[int]] = {}
    for column, label in enumerate(labels):
        groups.setdefault(label, []).append(column)
    return list(groups.values())


def check_length(name: str, values: npt.NDArray[np.float64], n: int, ndim: int) -> None:
    if values.ndim != ndim or len(values) != n:
        raise ValueError(f"{name} must have {ndim} dimensions and a row for each of {n} networks; got {values.shape}.")
