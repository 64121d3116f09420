"""Which proxy counts how much, by a study's trained results."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from optuna_aznas.aggregation.learned import MIN_RESULTS, LearnedAggregation

#: Networks on which the shares are estimated, at most, and draws of the posterior.
_NETWORKS, _DRAWS = 96, 200


class ProxyImportance(NamedTuple):
    """How much a ranking depends on one proxy.

    Attributes:
        mean: The proxy's share, 0 to 1; the shares of all proxies sum to 1.
        std: The share's standard deviation: how uncertain it is by the results so far.
    """

    mean: float
    std: float


def shares(
    scores: npt.ArrayLike, results: npt.ArrayLike, training: npt.ArrayLike | None = None, seed: int = 0
) -> list[ProxyImportance]:
    """Return each proxy's share in what the learned ranking says, in the order of the columns.

    The share is Sobol's total effect (Jansen's estimator; Saltelli et al., 2010): the mean squared change of a
    network's predicted result when one proxy's score is exchanged for another network's. It is taken for each of 200
    draws from the posterior of a :class:`~optuna_aznas.aggregation.LearnedAggregation` that sees the scores alone, not
    the architectures' parameters: what a proxy tells that the parameters tell as well is the proxy's.

    Args:
        scores: Table of shape (n, m): n networks, m proxies, bigger is better.
        results: Results of the networks, shape (n,), bigger is better; NaN for what was not trained.
        training: As in :meth:`~optuna_aznas.aggregation.LearnedAggregation.predict`.
        seed: Seed of networks and draws.

    Raises:
        ValueError: There are fewer than 5 results, or all of them are equal.
    """
    known = np.asarray(results, dtype=np.float64)
    table = np.asarray(scores, dtype=np.float64)
    trained = int(np.count_nonzero(~np.isnan(known)))
    if trained < MIN_RESULTS:
        raise ValueError(
            f"The importance of proxies is learned from trained results: {MIN_RESULTS} are needed, and there are "
            f"{trained}."
        )
    rng = np.random.default_rng(seed)
    size = min(len(table), _NETWORKS)
    rows = rng.permutation(len(table))[:size]
    exchanged = []
    for k in range(table.shape[1]):
        copy = table[rows]
        copy[:, k] = table[rng.permutation(len(table))[:size], k]
        exchanged.append(copy)
    draws = LearnedAggregation().sample(table, known, np.vstack([table[rows], *exchanged]), _DRAWS, training, rng)
    base, *others = np.split(draws, table.shape[1] + 1, axis=1)
    effects = np.stack([np.mean((base - other) ** 2, axis=1) for other in others], axis=1)
    totals = effects.sum(axis=1, keepdims=True)
    share = np.divide(effects, totals, out=np.full_like(effects, 1.0 / effects.shape[1]), where=totals > 0.0)
    return [ProxyImportance(float(m), float(s)) for m, s in zip(share.mean(axis=0), share.std(axis=0), strict=True)]
