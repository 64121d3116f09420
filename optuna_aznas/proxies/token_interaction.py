"""The proxy token_interaction: how much of what a block computes for one token depends on the others.

It takes one more vector-Jacobian product through each block. It is not among the defaults: what it adds to the ranking
of transformers is in the documentation.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from optuna_aznas.proxies.context import ScoringContext
from optuna_aznas.proxies.features.block_pass import BlockPass
from optuna_aznas.proxies.proxy import Needs, Proxy, Stage


class TokenInteractionObserver:
    """Measures how much of a block's gradient crosses from one token to others.

    Half of the positions are drawn, and v is as for trainability but zero at all others. Then g = J^T v is the gradient
    that flows back through the block from the drawn positions, and what arrives at the others has crossed. A block that
    mixes evenly sends half of what crosses to drawn positions too, hence the factor 2 in the block's interaction:

        2 * (energy of g at the others) / (energy of g)

    with the energy the sum of squares: 0 for an MLP, a 1 x 1 convolution or an identity, about 1 where a token's result
    has nothing of its own input. The proxy ``token_interaction`` is the sum over the blocks. Blocks that change the
    number of positions are left out.

    Args:
        generator: Source of the draws.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator
        self._blocks: list[Tensor] = []

    def surround(self) -> AbstractContextManager[Any]:
        """Return a context manager that does nothing."""
        return nullcontext()

    def __call__(self, block: BlockPass) -> None:
        """Measure a block, if it has a product and keeps the number of positions."""
        g, v = block.gradient, block.cotangent
        if g is None or v is None or block.product is None or g.ndim < 3 or g.ndim != v.ndim:
            return
        channels = 1 if block.channels_first else -1
        positions = list(v.shape)
        positions[channels] = 1
        if [size for i, size in enumerate(g.shape) if i != channels % g.ndim] != [
            size for i, size in enumerate(v.shape) if i != channels % v.ndim
        ]:
            return
        drawn = torch.randint(0, 2, positions, generator=self._generator, device=v.device).to(v.dtype)
        energy = block.product(v * drawn).double().square()
        self._blocks.append(2 * (energy * (1 - drawn)).sum() / energy.sum())

    def score(self) -> float:
        """Return the sum over the blocks, 0 or more; NaN where a block's gradient vanishes or is not finite."""
        return float(torch.stack(self._blocks).sum()) if self._blocks else 0.0


def _observer(context: ScoringContext) -> TokenInteractionObserver:
    return TokenInteractionObserver(context.generator("tokens"))


PROXIES = (Proxy("token_interaction", Stage.FEATURES, Needs.PRODUCTS, observer=_observer),)
