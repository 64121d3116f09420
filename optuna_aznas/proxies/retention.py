"""Entropy retention: how little entropy a network's features lose from block to block.

With e_l the entropy of feature f_l (:mod:`optuna_aznas.proxies.aznas`), the score is the sum over the blocks of
``min(0, e_l - e_(l-1))``, in nats: 0 where no block loses any. AZ-NAS's progressivity is the smallest of the same
steps. A smallest step falls as blocks are added, so it prefers shallow networks; what a network loses in total does not
depend on the number of blocks that lose nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from optuna_aznas.proxies.context import FeaturePass
from optuna_aznas.proxies.proxy import Needs, Proxy, Stage
from optuna_aznas.proxies.scores import BlockScores


def entropy_retention(blocks: Sequence[BlockScores]) -> float:
    """Return the sum of the negative steps of entropy, in nats, at most 0. NaN if any entropy is."""
    if any(math.isnan(block.entropy) for block in blocks):
        return math.nan
    return sum(min(0.0, block.step) for block in blocks if not math.isnan(block.step))  # a stem has no step


def _entropy_retention(seen: FeaturePass) -> float:
    return 0.0 if seen.isotropic else entropy_retention(seen.blocks)


PROXIES = (Proxy("entropy_retention", Stage.FEATURES, Needs.ENTROPIES, _entropy_retention),)
