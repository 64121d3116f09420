"""The four proxies of AZ-NAS: expressivity, progressivity, trainability, complexity.

With features f_0 (stem), f_1, ..., f_L, the outputs of the primary blocks:

* e_l is the entropy (nats) of the normalised eigenvalues of the channel covariance of f_l.
* Expressivity is the sum of the e_l, progressivity the minimum of e_l - e_(l-1).
* v is a tensor of random signs shaped as f_l, and g = J^T v its product with the Jacobian of block l. G is the mean
  Jacobian over the P positions, estimated from the pairs (g, v), and sigma_l its largest singular value.
* Trainability is the mean of t_l = 2 - sigma_l - 1 / (sigma_l + 1e-6): 0 at sigma_l = 1 and negative elsewhere.
* Complexity is the number of multiply-accumulates of one sample.

Source: Lee and Ham, "AZ-NAS: Assembling Zero-Cost Proxies for Network Architecture Search", CVPR 2024
(arXiv:2403.19232), written from the paper's formulas. How the decompositions are batched is in
:mod:`optuna_aznas.proxies.batching`, the linear algebra in :mod:`optuna_aznas.proxies.spectra`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from optuna_aznas.proxies.batching import BatchedDecompositions, Decomposition, Reduction
from optuna_aznas.proxies.context import FeaturePass, Jacobian
from optuna_aznas.proxies.errors import ProxyEvaluationError
from optuna_aznas.proxies.features.block_pass import BlockPass
from optuna_aznas.proxies.features.grids import on_one_grid, position_rows
from optuna_aznas.proxies.matrix_functions import Wanted
from optuna_aznas.proxies.proxy import Needs, Proxy, Stage
from optuna_aznas.proxies.scores import BlockScores
from optuna_aznas.proxies.spectra import (
    least_squares_norm_of_few,
    least_squares_spectrum,
    least_squares_spectrum_of_few,
    scatter,
    sign_gram,
    spectral_entropy,
    spectrum,
    spectrum_of_few,
)

_EPS_SIGMA = 1e-6  # keeps t finite at sigma = 0
_POSITIONS = 2  # positions for each channel from which the whole spectrum of a mean Jacobian is estimated


def expressivity(blocks: Sequence[BlockScores]) -> float:
    """Return the sum of the entropies of the stem and all blocks, in nats. NaN if any is."""
    return sum(block.entropy for block in blocks)


def progressivity(blocks: Sequence[BlockScores]) -> float:
    """Return the smallest step of entropy from block to block, in nats. NaN if any entropy is."""
    if any(math.isnan(block.entropy) for block in blocks):
        return math.nan
    steps = [block.step for block in blocks[1:] if not math.isnan(block.step)]  # a second stem has none
    return min(steps) if steps else math.nan


def trainability(blocks: Sequence[BlockScores]) -> float:
    """Return the mean of ``2 - sigma - 1/(sigma + 1e-6)`` over the blocks, at most 0. NaN where no block has one."""
    scores = [block.trainability for block in blocks[1:] if not math.isnan(block.trainability)]
    return sum(scores) / len(scores) if scores else math.nan


def block_trainability(sigma: float) -> float:
    """Return ``t = 2 - sigma - 1/(sigma + 1e-6)`` of one block."""
    return 2.0 - sigma - 1.0 / (sigma + _EPS_SIGMA)


def _progressivity(seen: FeaturePass) -> float:
    return 0.0 if seen.isotropic else progressivity(seen.blocks)


def _trainability(seen: FeaturePass) -> float:
    return 0.0 if seen.isotropic and seen.context.jacobian == "least-squares" else trainability(seen.blocks)


def _expressivity(seen: FeaturePass) -> float:
    return expressivity(seen.blocks)


def _complexity(seen: FeaturePass) -> float:
    return seen.report.macs / seen.context.samples


PROXIES = (
    Proxy("expressivity", Stage.FEATURES, Needs.ENTROPIES, _expressivity),
    Proxy("progressivity", Stage.FEATURES, Needs.ENTROPIES, _progressivity),
    Proxy("trainability", Stage.FEATURES, Needs.PRODUCTS | Needs.SPECTRAL_NORMS, _trainability),
    Proxy("complexity", Stage.FEATURES, Needs.MACS, _complexity),
)

#: Names of the four proxies, in the order of the paper.
AZNAS_PROXIES = tuple(proxy.name for proxy in PROXIES)


class BlockObserver:
    """Measures every block of a pass: entropy, singular values of the mean Jacobian, multiply-accumulates.

    During the pass only products of matrices are launched; :meth:`finish` decomposes them.

    A spectrum is measured where a named proxy uses it. Isometry and Jacobian rank do not use those of blocks with few
    positions, nor, by least squares, those of a transformer whose features all have one width; trainability alone asks
    for the largest singular value of every block.

    Args:
        needs: What the named proxies need.
        jacobian: The estimate of the blocks' mean Jacobians. ``"moment"``: M = (1/P) sum g v^T, as in the paper.
            ``"least-squares"``: (sum g v^T)(sum v v^T)^-1, free of the moment's sampling noise.
        transformer: Whether the model is scored as a transformer: identity blocks are left out of trainability instead
            of scored ``-inf``.
        samples: Samples in the batch.
    """

    def __init__(self, *, needs: Needs, jacobian: Jacobian, transformer: bool, samples: int) -> None:
        self._needs = needs
        self._by_moment = jacobian == "moment"
        self._transformer = transformer
        self._samples = samples
        self._blocks: list[_Block] = []
        self._decompositions = BatchedDecompositions()
        # Whether no proxy would use the spectra if all features had one width; they wait until a second width is seen.
        self._wait = transformer and not self._by_moment and Needs.SPECTRAL_NORMS not in needs
        if self._wait:
            self._decompositions.postponed.add(_SPECTRUM)

    def __call__(self, block: BlockPass) -> None:
        """Take note of a block."""
        i, feature, first = len(self._blocks), block.feature, block.channels_first
        has_product = block.gradient is not None and block.cotangent is not None
        macs = block.macs / self._samples
        known = _Block(block.name, tuple(feature.shape[1:]), macs, block.previous, first, has_product)
        self._blocks.append(known)
        if self._wait and known.channels != self._blocks[0].channels:
            self._wait = False
            self._decompositions.postponed.clear()
        if Needs.ENTROPIES in self._needs:
            self._decompositions.add(i, _entropy_of_features, position_rows(feature, first))
        if block.gradient is not None and block.cotangent is not None:
            g, v = block.gradient, block.cotangent
            g_first = first if block.previous is None else self._blocks[block.previous].channels_first
            try:
                rows = on_one_grid(g, v, g_first, first)
            except ValueError as error:
                raise ProxyEvaluationError(
                    f"Block {block.name!r} turns a feature of shape {tuple(g.shape)} into {tuple(v.shape)}: {error} "
                    "Choose other blocks with ProxyEvaluator(blocks=[...]), or leave out trainability."
                ) from None
            self._blocks[i] = known._replace(singular_values=min(x.shape[-1] for x in rows))
            same_shape = g.shape == v.shape and rows[0].shape == rows[1].shape
            self._decompositions.add(i, self._reduction(rows[1], same_shape=same_shape), *rows)
        self._decompositions.reduce_if_due(feature.device)

    def _reduction(self, v: Tensor, *, same_shape: bool) -> Reduction:
        """Return what reduces g and ``v`` (positions, channels) to the matrices that the named proxies need."""
        if Needs.SPECTRAL_NORMS in self._needs or (Needs.SPECTRA in self._needs and not _few(*v.shape)):
            reduction = _by_moment if self._by_moment else _by_least_squares
        else:
            reduction = _finiteness
        return _with_difference(reduction) if same_shape else reduction

    def finish(self) -> list[BlockScores]:
        """Decompose what was collected and return the measurements of the stem and each block."""
        n = len(self._blocks)
        numbers = self._decompositions.finish(n, without={_SPECTRUM} if self._wait else set())
        names = (_ENTROPY, _DIFFER, _FINITE, _SPECTRUM)
        entropies, differ, finite, spectra = (numbers.get(name, [math.nan] * n) for name in names)
        scores = []
        for i, block in enumerate(self._blocks):
            measured = spectra[i]
            sigma, isometry, rank = measured if isinstance(measured, list) else [math.nan] * 3
            if differ[i] == 0.0:  # an identity
                t = isometry = rank = math.nan if self._transformer else -math.inf
            elif not math.isnan(sigma):
                t = block_trainability(sigma)
            else:  # not measured, or not finite
                t = -math.inf if block.has_product and not self._wait and finite[i] != 1.0 else math.nan
            step = entropies[i] - entropies[block.previous] if block.previous is not None else math.nan
            scores.append(
                BlockScores(
                    block.name,
                    block.shape,
                    entropies[i],
                    step,
                    sigma,
                    t,
                    block.macs,
                    isometry,
                    rank,
                    channels=block.channels,
                    singular_values=block.singular_values,
                )
            )
        return scores


class _Block(NamedTuple):
    """What is known of a block before the decompositions."""

    name: str
    shape: tuple[int, ...]
    macs: float
    previous: int | None
    channels_first: bool
    has_product: bool
    singular_values: int = 0

    @property
    def channels(self) -> int:
        return self.shape[0 if self.channels_first else -1]


# Quantities of a block. The last two are 1 or 0: whether g and v differ anywhere, which they do not where the block is
# an identity, and whether g is finite, where its spectrum is not measured.
_ENTROPY, _SPECTRUM, _DIFFER, _FINITE = "entropy", "spectrum", "differ", "finite"


def _few(positions: int, channels: int) -> bool:
    """Whether these are too few positions for an estimate of more than the largest singular value."""
    return positions < _POSITIONS * channels


# The reductions take stacks (n, P, channels) of n blocks.


def _entropy_of_features(features: Tensor) -> list[Decomposition]:
    return [Decomposition(_ENTROPY, spectral_entropy, [scatter(features)], Wanted.ENTROPY)]


def _by_moment(g: Tensor, v: Tensor) -> list[Decomposition]:
    _, positions, channels = v.shape
    cross = g.mT @ v / positions
    if _few(positions, channels):
        return [Decomposition(_SPECTRUM, spectrum_of_few, [cross])]
    return [Decomposition(_SPECTRUM, spectrum, [cross], Wanted.SPECTRUM)]


def _by_least_squares(g: Tensor, v: Tensor) -> list[Decomposition]:
    _, positions, channels = v.shape
    if positions < channels:
        return [Decomposition(_SPECTRUM, least_squares_norm_of_few, [g @ g.mT, sign_gram(v.mT)])]
    stacks = [g.mT @ v, sign_gram(v)]
    if _few(positions, channels):
        return [Decomposition(_SPECTRUM, least_squares_spectrum_of_few, stacks)]
    return [Decomposition(_SPECTRUM, least_squares_spectrum, stacks, Wanted.SPECTRUM)]


def _finiteness(g: Tensor, v: Tensor) -> list[Decomposition]:
    return [Decomposition(_FINITE, _as_number, [torch.isfinite(g.sum((1, 2), dtype=torch.float64)).unsqueeze(1)])]


@functools.cache
def _with_difference(reduction: Reduction) -> Reduction:
    """Return a reduction that also tells whether g and v differ: the same one each time, as blocks are put together by
    their reduction.
    """
    return lambda g, v: [_difference(g, v), *reduction(g, v)]


def _difference(g: Tensor, v: Tensor) -> Decomposition:
    if g.device.type == "cpu":  # equal() ends at the first difference
        flags = torch.tensor([[not torch.equal(*pair)] for pair in zip(g, v, strict=True)])
    else:
        flags = (g != v).flatten(1).any(1, keepdim=True)
    return Decomposition(_DIFFER, _as_number, [flags])


def _as_number(flags: Tensor) -> Tensor:
    return flags[:, 0].float()
