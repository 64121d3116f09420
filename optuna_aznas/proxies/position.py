"""The proxy position: whether tokens that are neighbours in the image still look alike to the network.

It runs one more forward pass, on a constant image. It is not among the defaults: what it adds to the ranking of
transformers is in the documentation.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optuna_aznas.proxies.context import FeaturePass
from optuna_aznas.proxies.features.block_pass import BlockPass
from optuna_aznas.proxies.model.nested import map_tensors, tensors_in
from optuna_aznas.proxies.proxy import Proxy, Stage

#: Tokens that differ from their mean by less than this, relative to their size, differ by rounding only.
_SAME = 1e-5

#: With more positions than this only every so many of them is looked at.
_MOST_POSITIONS = 400


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

    def __init__(self, *, image: bool) -> None:
        self._image = image
        self._features: list[float] = []

    def surround(self) -> AbstractContextManager[Any]:
        """Return a context manager that does nothing."""
        return nullcontext()

    def __call__(self, block: BlockPass) -> None:
        """Measure a block, if its feature has positions."""
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
        every = -(-len(tokens) // _MOST_POSITIONS)
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
    """Return two samples shaped as those of ``inputs``, constant over all positions: ones, or each sequence's first
    token.
    """

    def constant(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            return torch.ones_like(tensor[:2])
        return tensor[:2, ..., :1].expand(tensor[:2].shape).clone() if tensor.ndim > 1 else tensor[:2]

    return map_tensors(constant, inputs)


def _position(seen: FeaturePass) -> float:
    batch = seen.context.batch
    observer = PositionObserver(image=next(tensors_in(batch)).ndim == 4)
    seen.run_again(constant_batch(batch), observer)
    return observer.score()


PROXIES = (Proxy("position", Stage.FEATURES, function=_position),)
