"""How much each proxy counts in the learned ranking: Sobol's total effects."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from optuna_aznas.aggregation.learned import MIN_TRAINED, LearnedAggregation

_MAX_NETWORKS = 96  # most networks on which the shares are estimated
_DRAWS = 200  # draws from the posterior


class ProxyImportance(NamedTuple):
    """How much a ranking depends on one proxy.

    Attributes:
        mean: The proxy's share, 0 to 1; the shares of all proxies sum to 1.
        std: The share's posterior standard deviation, given the trained values so far.
    """

    mean: float
    std: float


def shares(
    proxy_scores: npt.ArrayLike,
    trained_values: npt.ArrayLike,
    hyperparameters: npt.ArrayLike | None = None,
    seed: int = 0,
) -> list[ProxyImportance]:
    """Return each proxy's share in the learned ranking, in the order of the columns.

    The share is Sobol's total effect (Jansen's estimator; Saltelli et al., 2010): the mean squared change of a
    network's predicted trained value when one proxy score is exchanged for another network's. It is taken for each of
    200 draws from the posterior of a :class:`~optuna_aznas.aggregation.LearnedAggregation` that sees the proxy scores
    alone, not the architectures' parameters. An effect that a proxy and the parameters explain equally well is
    therefore counted as the proxy's.

    Args:
        proxy_scores: Table of shape (n, m): n networks, m proxies, bigger is better.
        trained_values: Trained values of the networks, shape (n,), bigger is better; NaN for what was not trained.
        hyperparameters: As in :meth:`~optuna_aznas.aggregation.LearnedAggregation.predict`.
        seed: Seed of networks and draws.

    Raises:
        ValueError: There are fewer than 5 trained values, or all of them are equal.
    """
    values = np.asarray(trained_values, dtype=np.float64)
    table = np.asarray(proxy_scores, dtype=np.float64)
    trained = int(np.count_nonzero(~np.isnan(values)))
    if trained < MIN_TRAINED:
        raise ValueError(
            f"The importance of proxies is learned from trained values: {MIN_TRAINED} are needed, and there are "
            f"{trained}."
        )
    rng = np.random.default_rng(seed)
    size = min(len(table), _MAX_NETWORKS)
    rows = rng.permutation(len(table))[:size]
    exchanged = []
    for k in range(table.shape[1]):
        copy = table[rows]
        copy[:, k] = table[rng.permutation(len(table))[:size], k]
        exchanged.append(copy)
    others = np.vstack([table[rows], *exchanged])
    draws = LearnedAggregation().sample(table, values, others, _DRAWS, hyperparameters, rng)
    base, *changed = np.split(draws, table.shape[1] + 1, axis=1)
    effects = np.stack([np.mean((base - one) ** 2, axis=1) for one in changed], axis=1)
    totals = effects.sum(axis=1, keepdims=True)
    share = np.divide(effects, totals, out=np.full_like(effects, 1.0 / effects.shape[1]), where=totals > 0.0)
    return [ProxyImportance(float(m), float(s)) for m, s in zip(share.mean(axis=0), share.std(axis=0), strict=True)]
