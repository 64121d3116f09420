"""complete_scores: estimates the proxy scores of networks that have none, by their parameters."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr

from optuna_aznas.aggregation.columns import centred, normal_scores
from optuna_aznas.aggregation.gaussian_process import interpolate
from optuna_aznas.aggregation.networks import Parameters
from optuna_aznas.aggregation.table import as_table

_MAX_SCORED = 500  # most networks from which they are estimated
_ESTIMATE_LENGTH = 3.0  # length scale
_ESTIMATE_NOISE = 0.02  # variance of the noise
_SPREAD_SINGLE = 2.4  # variance of the parameters one by one
_SPREAD_POOLED = 2.15  # variance of the parameters pooled

_Floats = npt.NDArray[np.float64]


def complete_scores(proxy_scores: npt.ArrayLike, is_scored: npt.NDArray[np.bool_], parameters: Parameters) -> _Floats:
    """Estimate the proxy scores of networks that have none from those of other networks, by their parameters.

    Each proxy's normal scores are interpolated by a Gaussian process over the parameters. An estimate is then read back
    as the proxy score that lies at the same quantile.

    Args:
        proxy_scores: Table of shape (n, m); rows that are not scored are ignored.
        is_scored: Which rows are scored, shape (n,).
        parameters: The architectures as numbers, of n rows.

    Returns:
        The table with the other rows filled in.
    """
    table = as_table(proxy_scores)
    if is_scored.all() or not is_scored.any():
        return table
    x = np.hstack(
        [
            np.sqrt(_SPREAD_SINGLE) * centred(parameters.single),
            np.sqrt(_SPREAD_POOLED) * centred(parameters.pooled),
        ]
    )
    rows = np.flatnonzero(is_scored)
    rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), _MAX_SCORED)).astype(int)]
    y = np.stack([normal_scores(column) for column in table[rows].T], axis=1)
    quantiles = ndtr(interpolate(x[rows], y, x[~is_scored], _ESTIMATE_LENGTH, _ESTIMATE_NOISE))
    for column, in_order, quantile in zip(table.T, np.sort(table[rows], axis=0).T, quantiles.T, strict=True):
        column[~is_scored] = in_order[np.clip((quantile * len(rows)).astype(int), 0, len(rows) - 1)]
    return table
