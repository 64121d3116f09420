"""Proxies for vision transformers and other models of tokens: attention, position, token interaction.

None of them is among the defaults: what they add to the ranking of transformers is in the documentation. Each looks at
one thing that expressivity and complexity do not:

* ``attention``: whether the heads look around, and at different places.
* ``position``: whether tokens that are neighbours in the image still look alike to the network.
* ``token_interaction``: how much of what a block computes for one token depends on the others.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from optuna_aznas.proxies.features.trace import BlockPass
from optuna_aznas.proxies.model.nested import map_tensors

#: Names of the proxies.
TRANSFORMER_PROXIES = ("attention", "position", "token_interaction")

_SOFTMAX = {
    torch.ops.aten._softmax,
    *([torch.ops.aten._safe_softmax] if hasattr(torch.ops.aten, "_safe_softmax") else []),
}

#: Tokens that differ from their mean by less than this, relative to their size, differ by rounding.
_SAME = 1e-5


class AttentionObserver(TorchDispatchMode):
    """Watches the attention maps of a forward pass.

    With A_h (N x M, rows sum to 1) the map of head h = 1..H, ``-sum p log p`` the entropy of a row, and all means over
    the batch's samples and the rows:

        spread = mean over h of entropy(A_h) / log M
        difference = (entropy(mean over h of A_h) - mean over h of entropy(A_h)) / log H

    Spread is 1 where every head looks everywhere alike and 0 where each looks at one token; difference, the heads'
    Jensen-Shannon divergence, is 0 where all heads do the same and 1 where they look at disjoint places. Both lie
    between 0 and 1. A layer's score is their product, the proxy ``attention`` the sum over the layers: heads that look
    around, each in another way. With one head it is 0, as it is in a model without attention.

    Maps are recognised by their softmax: over the last of four dimensions (B, H, N, M), or of three (B * H, N, M) as in
    :class:`torch.nn.MultiheadAttention`. Fused kernels hide it, so the pass must run on the plain one
    (``SDPBackend.MATH``).

    Args:
        batch_size: B.
    """

    def __init__(self, batch_size: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._batch_size = batch_size
        self._layers: list[Tensor] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in _SOFTMAX and args[1] in (-1, out.ndim - 1):
            if out.ndim == 3 and out.shape[0] % self._batch_size == 0:
                self._observe(out.view(self._batch_size, -1, *out.shape[1:]))
            elif out.ndim == 4:
                self._observe(out)
        return out

    def _observe(self, maps: Tensor) -> None:
        _, heads, rows, columns = maps.shape
        if heads < 2 or rows < 2 or columns < 2:
            return
        own = mixed = torch.zeros((), device=maps.device)
        for sample in maps.detach():  # one by one, as long sequences have large maps
            own = own + _entropy(sample)
            mixed = mixed + _entropy(sample.mean(dim=0))
        own, mixed = own / len(maps), mixed / len(maps)
        self._layers.append((own / math.log(columns)) * ((mixed - own) / math.log(heads)))

    def score(self) -> float:
        """Return the sum over the layers seen, 0 or more."""
        return float(torch.stack(self._layers).sum()) if self._layers else 0.0


def _entropy(p: Tensor) -> Tensor:
    return torch.special.entr(p.double()).sum(dim=-1).mean()


class TokenInteractionObserver:
    """Measures how much of a block's gradient crosses from one token to others.

    Half of the positions are drawn; with v as for trainability but zero at the others, g = J^T v is the gradient that
    flows back from the drawn ones through that block alone. What arrives at the others has crossed. As a block that
    mixes evenly sends half of what crosses to positions that are drawn too, the block's interaction is

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

    def __call__(self, block: BlockPass) -> None:
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


class PositionObserver:
    """Measures how well the features keep the patches' neighbourhood.

    The model is run on a constant image, so that tokens differ by their position alone. For each feature: Spearman's
    rank correlation, over all pairs of positions, between the cosine similarity of the two tokens (their mean over all
    positions subtracted) and their nearness (minus the Euclidean distance on the grid). 1: the nearer, the more alike;
    0: nothing of the grid is left, or positions are not told apart. The proxy ``position`` is the mean over the
    features, between -1 and 1.

    Tokens (B, N, C) lie on a square grid where the model's input is an image (those before the grid, such as a class
    token, are left out), else on a line; features with two or three spatial dimensions are taken as they are.

    Args:
        image: Whether the model's input is an image.
    """

    #: Pairs of more positions than this are too many: every so many positions are looked at.
    _MOST = 400

    def __init__(self, *, image: bool) -> None:
        self._image = image
        self._features: list[float] = []

    def __call__(self, block: BlockPass) -> None:
        feature = block.feature[0].detach().double()
        if feature.ndim < 2:
            return
        if block.channels_first:
            feature = feature.movedim(0, -1)
        grid, tokens = list(feature.shape[:-1]), feature.flatten(0, -2)
        if len(grid) == 1 and self._image:
            side = math.isqrt(grid[0])
            if side > 1:
                tokens, grid = tokens[grid[0] - side**2 :], [side, side]
        if len(tokens) < 4:
            return
        places = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float64) for n in grid)).view(len(tokens), -1)
        every = -(-len(tokens) // self._MOST)
        self._features.append(_correlation(tokens.cpu()[::every], places[::every]))

    def score(self) -> float:
        """Return the mean over the features; 0 where there are none with positions."""
        return sum(self._features) / len(self._features) if self._features else 0.0


def _correlation(tokens: Tensor, places: Tensor) -> float:
    from scipy.stats import spearmanr  # not needed to score with other proxies, and slow to import

    if not bool(torch.isfinite(tokens).all()):
        return math.nan
    own = tokens - tokens.mean(dim=0)
    if float(own.norm()) <= _SAME * float(tokens.norm()):
        return 0.0
    own = torch.nn.functional.normalize(own, dim=-1)
    upper = np.triu_indices(len(tokens), k=1)
    nearness = -torch.cdist(places, places).numpy()[upper]
    similarity = (own @ own.T).numpy()[upper].round(9)  # positions that are alike tie
    if np.ptp(similarity) == 0.0:
        return 0.0
    return float(spearmanr(similarity, nearness).statistic)


def constant_batch(inputs: Any) -> Any:
    """Return two samples like those of ``inputs`` in which all positions hold the same: ones, or each sequence's first
    token.
    """

    def constant(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            return torch.ones_like(tensor[:2])
        return tensor[:2, ..., :1].expand(tensor[:2].shape).clone() if tensor.ndim > 1 else tensor[:2]

    return map_tensors(constant, inputs)
