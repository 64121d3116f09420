"""Two proxies of the whole spectrum of the blocks' mean Jacobians: isometry and Jacobian rank.

AZ-NAS's trainability looks at the largest singular value of each block's mean Jacobian G
(:mod:`optuna_aznas.proxies.aznas`). A gradient keeps its length in every direction only where all singular values are
near 1 (dynamical isometry: Saxe et al., ICLR 2014; Pennington et al., NeurIPS 2017). With sigma_1, ..., sigma_k the
singular values of a block's G:

* Isometry is minus the mean over the blocks of ``mean_i |log max(sigma_i, 0.001)|``: 0 where all are 1.
* Jacobian rank is the mean over the blocks of ``-sum_i p_i log p_i / log k``, where ``p_i = sigma_i / sum_j sigma_j``:
  the logarithm of the effective rank (Roy and Vetterli, EUSIPCO 2007) over that of the full rank, from 0 to 1. Where
  all features are vectors it is the mean of ``-sum_i p_i log p_i``, in nats. A layer of a perceptron is a random
  matrix: divided by log k its entropy is hardly more than a function of the matrix's aspect ratio, and what tells two
  layers apart is k itself.

As in trainability, a block that returns its input is -inf in a CNN: it keeps every gradient and computes nothing. The
decompositions are those of trainability, so both cost nothing beside it. Blocks with too few positions for an estimate
of the whole spectrum are left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from optuna_aznas.proxies.context import FeaturePass
from optuna_aznas.proxies.proxy import Needs, Proxy, Stage
from optuna_aznas.proxies.scores import BlockScores


def isometry(blocks: Sequence[BlockScores]) -> float:
    """Return the mean of the blocks' isometries, at most 0; 0 where no block has one, NaN where one is not finite."""
    return _mean(blocks, [block.isometry for block in blocks])


def jacobian_rank(blocks: Sequence[BlockScores]) -> float:
    """Return the mean of the blocks' Jacobian ranks, from 0 to 1, or in nats where all features are vectors.

    0 and NaN as in :func:`isometry`.
    """
    in_nats = all(len(block.shape) == 1 for block in blocks)
    return _mean(blocks, [block.jacobian_rank * (_log_full_rank(block) if in_nats else 1.0) for block in blocks])


def _log_full_rank(block: BlockScores) -> float:
    return math.log(max(block.singular_values, 1))


def _mean(blocks: Sequence[BlockScores], values: Sequence[float]) -> float:
    if any(math.isnan(block.spectral_norm) and block.trainability == -math.inf for block in blocks):
        return math.nan  # features or gradients that are not finite
    measured = [value for value in values if not math.isnan(value)]
    return sum(measured) / len(measured) if measured else 0.0


def _tells_only_width(seen: FeaturePass) -> bool:
    """Whether all of a transformer's features have one width: least squares then measures little but the width."""
    return seen.isotropic and seen.context.jacobian == "least-squares"


def _isometry(seen: FeaturePass) -> float:
    return 0.0 if _tells_only_width(seen) else isometry(seen.blocks)


def _jacobian_rank(seen: FeaturePass) -> float:
    return 0.0 if _tells_only_width(seen) else jacobian_rank(seen.blocks)


PROXIES = (
    Proxy("isometry", Stage.FEATURES, Needs.PRODUCTS | Needs.SPECTRA, _isometry),
    Proxy("jacobian_rank", Stage.FEATURES, Needs.PRODUCTS | Needs.SPECTRA, _jacobian_rank),
)
