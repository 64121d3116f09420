"""consensus_weights: count a proxy as far as it agrees with the others, seen from the proxy scores alone.

On most spaces most proxies rank better than chance, so a proxy that runs against the others ranks worse than chance.
One that is unrelated to the others may tell something new or nothing at all: the layers' spectra of multi-layer
perceptrons that differ in width are hardly more than noise. With r_k the correlation of the ranks of proxy k with the
sum of the other proxies' ranks,

    w_k = clip(1/2 + (r_k + e) / 0.4, 0, 1),   e = 2 / sqrt(n),

divided by the largest of them. In a large study a proxy counts fully from r = 0.2 on, half where it is unrelated to
the others, and not at all below -0.2. The standard error of r for an unrelated proxy is 1 / sqrt(n), so a small study
leaves a proxy its weight until there is evidence against it. That matters in a search: a sampler proposes networks
with a high S, and among networks that were selected by a sum its terms agree less than among all. In r the others
count alike: with weights that depend on each other, one of two groups of equal size that disagree would be left out as
a whole.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from optuna_aznas.aggregation.table import as_table

_Floats = npt.NDArray[np.float64]

_FULL = 0.2  # correlation with the others from which a proxy counts fully, in a large study
_DOUBT = 2.0  # standard errors by which a correlation may be higher than it is seen
_FEWEST = 10  # networks below which all proxies count alike


def consensus_weights(proxy_scores: npt.ArrayLike) -> _Floats:
    """Return a weight from 0 to 1 for each proxy: 1 where it agrees with the others, 0 where it contradicts them.

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
    if n < _FEWEST or m < 3:
        return np.ones(m)
    centred = ranks - (n + 1) / 2
    others = centred.sum(axis=1, keepdims=True) - centred
    scale = np.sqrt((centred**2).sum(axis=0) * (others**2).sum(axis=0))
    # A proxy that is the same for all networks, or the only one that is not, contradicts nothing.
    r = np.divide((centred * others).sum(axis=0), scale, out=np.ones(m), where=scale > 1e-9 * n)
    weights = np.clip(0.5 + (r + _DOUBT / np.sqrt(n)) / (2.0 * _FULL), 0.0, 1.0)
    largest = weights.max()
    return np.round(weights / largest, 6) if largest > 0 else np.ones(m)  # the last bits depend on the order


def describe_weights(names: Sequence[str], weights: npt.ArrayLike) -> str:
    """Say in words which proxies count less than others, and why; an empty string if none does.

    Args:
        names: The proxies.
        weights: Their consensus weights, shape (m,).

    Example:
        >>> describe_weights(["expressivity", "isometry"], [1.0, 0.4])
        'isometry counts 40%, as it agrees little with the other proxies on these networks'
    """
    pairs = list(zip(names, np.asarray(weights, dtype=np.float64).tolist(), strict=True))
    little = [f"{name} counts {weight:.0%}" for name, weight in pairs if 0 < weight < 1]
    against = [name for name, weight in pairs if weight == 0]
    reasons = []
    if little:
        verb = "it agrees" if len(little) == 1 else "they agree"
        reasons.append(f"{', '.join(little)}, as {verb} little with the other proxies on these networks")
    if against:
        are, rank = ("is", "it ranks") if len(against) == 1 else ("are", "they rank")
        reasons.append(f"{', '.join(against)} {are} not counted, as {rank} these networks against the other proxies")
    return "; ".join(reasons)
