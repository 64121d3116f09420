"""Checks of tables of proxy scores."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def as_table(proxy_scores: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return proxy scores as an (n, m) array of floats with ``-inf`` for NaN, or raise ``ValueError``."""
    table = np.array(proxy_scores, dtype=np.float64)
    if table.ndim != 2 or table.shape[1] == 0:
        raise ValueError(f"proxy_scores must be a table of shape (networks, proxies); got shape {table.shape}.")
    table[np.isnan(table)] = -np.inf
    return table


def check_weights(weights: npt.ArrayLike, m: int) -> npt.NDArray[np.float64]:
    """Return the weights of ``m`` proxies as an array, or raise ``ValueError``."""
    w = np.asarray(weights, dtype=np.float64)
    if w.shape != (m,) or not np.all(np.isfinite(w)) or np.any(w < 0):
        raise ValueError(f"weights must be {m} finite numbers of at least 0, one for each proxy; got {weights!r}.")
    return w
