"""consensus_weights: count a proxy less where it contradicts the others, seen from the proxy scores alone.

A proxy that tells something new is worth counting, so agreement is not asked for: a proxy without any correlation to
the others keeps its full weight. A proxy that runs against the others is another matter. On most spaces most proxies
rank better than chance, and then a contradicting one ranks worse than chance. With r_k the correlation of the ranks of
proxy k with the weighted sum of the other proxies' log ranks,

    w_k = clip(1 + (r_k + 1 / sqrt(n)) / 0.15, 0, 1),

starting from weights of 1, until the weights no longer change. The term 1 / sqrt(n) is the standard error of r_k for a
proxy without any correlation, so that chance does not decide in a small study.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from optuna_aznas.aggregation.table import as_table

_Floats = npt.NDArray[np.float64]

_RANGE = 0.15  # range of negative correlations over which a weight falls from 1 to 0
_ROUNDS = 10  # rounds at most; each moves the weights half way
_FEWEST = 10  # networks below which all proxies count alike


def consensus_weights(proxy_scores: npt.ArrayLike) -> _Floats:
    """Return a weight from 0 to 1 for each proxy, less than 1 only where it contradicts the others.

    Args:
        proxy_scores: Table of shape (n, m): n networks, m proxies, bigger is better. NaN counts as ``-inf``.

    Returns:
        The weights, shape (m,): all 1 for fewer than 10 networks or 3 proxies.

    Raises:
        ValueError: ``proxy_scores`` is not two-dimensional.

    Example:
        >>> import numpy as np
        >>> x = np.random.default_rng(0).random((100, 3))
        >>> consensus_weights(np.column_stack([x[:, 0], x[:, 0] + 0.1 * x[:, 1], x[:, 0] + 0.1 * x[:, 2], -x[:, 0]]))
        array([1., 1., 1., 0.])
    """
    return weights_of_ranks(rankdata(as_table(proxy_scores), method="average", axis=0))


def weights_of_ranks(ranks: _Floats) -> _Floats:
    """Return :func:`consensus_weights` of networks by their ranks, shape (n, m)."""
    n, m = ranks.shape
    weights = np.ones(m)
    if n < _FEWEST or m < 3:
        return weights
    centred = ranks - ranks.mean(axis=0)
    spread = np.sqrt((centred**2).sum(axis=0))
    logs = np.log(ranks)
    chance = 1.0 / np.sqrt(n)
    for _ in range(_ROUNDS):
        parts = logs * weights
        others = parts.sum(axis=1, keepdims=True) - parts
        others = others - others.mean(axis=0)
        scale = spread * np.sqrt((others**2).sum(axis=0))
        # A proxy that is the same for all networks, or the only one left, contradicts nothing.
        r = np.divide((centred * others).sum(axis=0), scale, out=np.ones(m), where=scale > 1e-9 * n)
        moved = 0.5 * (weights + np.clip(1.0 + (r + chance) / _RANGE, 0.0, 1.0))
        if np.allclose(moved, weights, atol=1e-3):
            break
        weights = moved
    return np.round(weights, 2)  # moving half way each time leaves a rest of 0.001


def describe_weights(names: Sequence[str], weights: npt.ArrayLike) -> str:
    """Say in words which proxies count less than others, and why; an empty string if none does.

    Args:
        names: The proxies.
        weights: Their consensus weights, shape (m,).

    Example:
        >>> describe_weights(["expressivity", "isometry"], [1.0, 0.4])
        'isometry counts 40%, as it ranks these networks against the other proxies'
    """
    reduced = [
        f"{name} counts {weight:.0%}" if weight > 0 else f"{name} is not counted"
        for name, weight in zip(names, np.asarray(weights, dtype=np.float64), strict=True)
        if weight < 1
    ]
    if not reduced:
        return ""
    verb = "as it ranks" if len(reduced) == 1 else "as they rank"
    return f"{', '.join(reduced)}, {verb} these networks against the other proxies"
