"""The four proxies of AZ-NAS: expressivity, progressivity, trainability, complexity.

Source: Lee and Ham, "AZ-NAS: Assembling Zero-Cost Proxies for Network Architecture Search", CVPR 2024
(arXiv:2403.19232), written from the paper's formulas.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from optuna_aznas.proxies.errors import ProxyEvaluationError
from optuna_aznas.proxies.trace import BlockPass

Jacobian: TypeAlias = Literal["moment", "least-squares"]

#: Names of the proxies, in the order of the paper.
AZNAS_PROXIES = ("expressivity", "progressivity", "trainability", "complexity")

_EPS_ENTROPY = 1e-8
_EPS_SIGMA = 1e-6


@dataclasses.dataclass(frozen=True)
class BlockScores:
    """What the proxies saw at one block.

    Attributes:
        name: The block's name in the model; the first entry is the stem.
        shape: Shape of the block's output f_l for one sample, without the batch dimension.
        entropy: Entropy e_l of the normalised eigenvalues of the output's channel covariance, in nats, between 0 and
            log(channels); NaN where the output is constant or not finite.
        step: ``e_l - e_{l-1}``; NaN for the stem.
        spectral_norm: sigma, the largest singular value of the block's mean Jacobian; NaN for the stem.
        trainability: ``t_l = 2 - sigma - 1 / (sigma + 1e-6)``, at most 0; NaN for the stem, ``-inf`` for an identity in
            a CNN.
        complexity: Multiply-accumulates of one sample since the feature before.

    A part that was not asked for is NaN.
    """

    name: str
    shape: tuple[int, ...]
    entropy: float
    step: float
    spectral_norm: float
    trainability: float
    complexity: float


class AZNASObserver:
    """Gathers the matrices of the AZ-NAS proxies during a pass and turns them into scores behind it.

    During the pass only products of matrices are queued on the device; one transfer and one batched decomposition for
    each size follow in :meth:`finish`.

    Args:
        entropy: Whether entropies are wanted.
        jacobian: The estimate of the blocks' mean Jacobians. ``"moment"``: M = (1/P) sum g v^T, as in the paper.
            ``"least-squares"``: (sum g v^T)(sum v v^T)^-1, free of the moment's sampling noise.
        skip_identities: Leave identity blocks out of trainability (transformers) instead of scoring them ``-inf``.
    """

    def __init__(self, *, entropy: bool, jacobian: Jacobian, skip_identities: bool) -> None:
        self._entropy = entropy
        self._jacobian = jacobian
        self._skip_identities = skip_identities
        self._passes: list[tuple[str, tuple[int, ...], float]] = []
        self._covariances: list[Tensor | None] = []
        self._moments: list[Tensor | None] = []  # M = (1/P) sum g v^T
        self._grams: list[Tensor | None] = []  # (1/P) sum v v^T, for least squares
        self._deviations: list[Tensor | None] = []  # sum |g - v|, 0 for an identity

    def __call__(self, block: BlockPass) -> None:
        feature = block.feature
        first = channels_first(feature, block.module)
        self._passes.append((block.name, tuple(feature.shape[1:]), block.macs / feature.shape[0]))
        self._covariances.append(covariance(channel_rows(feature, first)) if self._entropy else None)
        if block.gradient is None or block.cotangent is None:
            self._moments.append(None)
            self._grams.append(None)
            self._deviations.append(None)
            return
        g, v = block.gradient, block.cotangent
        self._deviations.append((g - v).abs().sum() if g.shape == v.shape else None)
        try:
            g_rows, v_rows = on_one_grid(g, v, first)
        except ValueError as error:
            raise ProxyEvaluationError(
                f"Block {block.name!r} turns a feature of shape {tuple(g.shape)} into {tuple(v.shape)}: {error} "
                "Choose other blocks with ProxyEvaluator(blocks=[...]), or leave out trainability."
            ) from None
        positions = v_rows.shape[1]
        self._moments.append(g_rows @ v_rows.T / positions)
        self._grams.append(v_rows @ v_rows.T / positions if self._jacobian == "least-squares" else None)

    def finish(self) -> list[BlockScores]:
        """Decompose what was gathered and return the blocks' scores, the stem first."""
        covariances, moments, grams, deviations = _to_cpu(
            self._covariances, self._moments, self._grams, self._deviations
        )
        entropies = _batched(spectral_entropy, covariances)
        if self._jacobian == "least-squares":
            sigmas = _batched(lambda cross, gram: spectral_norm(least_squares_jacobian(cross, gram)), moments, grams)
        else:
            sigmas = _batched(spectral_norm, moments)
        blocks: list[BlockScores] = []
        for i, (name, shape, macs) in enumerate(self._passes):
            deviation, sigma = deviations[i], sigmas[i]
            if deviation is not None and float(deviation) == 0.0:
                trainability = math.nan if self._skip_identities else -math.inf
            elif moments[i] is not None and math.isnan(sigma):
                trainability = -math.inf
            else:
                trainability = 2.0 - sigma - 1.0 / (sigma + _EPS_SIGMA)
            step = entropies[i] - entropies[i - 1] if i else math.nan
            blocks.append(BlockScores(name, shape, entropies[i], step, sigma, trainability, macs))
        return blocks


def expressivity(blocks: list[BlockScores]) -> float:
    """Sum of the entropies over the stem and all blocks, in nats. NaN if any is."""
    return sum(block.entropy for block in blocks)


def progressivity(blocks: list[BlockScores]) -> float:
    """Smallest step of entropy from block to block, in nats. NaN if any is."""
    steps = [block.step for block in blocks[1:]]
    return math.nan if any(map(math.isnan, steps)) else min(steps)


def trainability(blocks: list[BlockScores]) -> float:
    """Mean of ``2 - sigma - 1/(sigma + 1e-6)`` over the blocks, at most 0."""
    scores = [block.trainability for block in blocks[1:] if not math.isnan(block.trainability)]
    return sum(scores) / len(scores) if scores else math.nan


def channels_first(feature: Tensor, module: nn.Module) -> bool:
    """Whether dimension 1 holds a feature's channels: images and volumes (B, C, H, W[, D]), and (B, C, L) after 1-D
    convolutions. Tokens (B, N, C) and vectors (B, C) have them last.
    """
    if feature.ndim == 3:
        return any(isinstance(m, nn.Conv1d | nn.ConvTranspose1d | nn.BatchNorm1d) for m in module.modules())
    return feature.ndim > 3


def channel_rows(feature: Tensor, first: bool) -> Tensor:
    """Return a feature as a matrix (C, P): a row for each channel, a column for each of the batch's positions."""
    if first:
        return feature.transpose(0, 1).flatten(1)
    return feature.reshape(-1, feature.shape[-1]).T


def covariance(x: Tensor) -> Tensor:
    """Covariance (C, C) of the rows of ``x`` (C, P), as S = X X^T / P of the centred rows."""
    x = x - x.mean(dim=1, keepdim=True)
    return x @ x.T / x.shape[1]


def spectral_entropy(covariances: Tensor) -> Tensor:
    """Entropy of the normalised eigenvalues of (n, C, C) covariances, in nats; NaN for a zero matrix."""
    eigenvalues = torch.linalg.eigvalsh(covariances).clamp_min(0.0)  # rounding leaves some just below zero
    p = eigenvalues / eigenvalues.sum(dim=-1, keepdim=True)
    return -(p * torch.log(p + _EPS_ENTROPY)).sum(dim=-1)


def spectral_norm(matrices: Tensor) -> Tensor:
    """Largest singular value of each of (n, a, b) matrices."""
    return torch.linalg.svdvals(matrices)[..., 0]


def on_one_grid(g: Tensor, v: Tensor, first: bool) -> tuple[Tensor, Tensor]:
    """Return g and v as matrices (channels, P) over the same positions.

    Where a block strides by s, g lies on the finer grid: space-to-depth (for images ``pixel_unshuffle``) moves each s x
    s patch into the channels. Where it upsamples, v does. A grid that is not a multiple is cropped or padded
    with zeros at its end.

    Raises:
        ValueError: The two have no common grid.
    """
    if g.ndim != v.ndim:
        if v.ndim == 2:  # flattened or pooled to one position for each sample
            return g.flatten(1).T, v.T
        raise ValueError("the number of dimensions changes, and positions cannot be matched.")
    if first:
        g_sizes, v_sizes = g.shape[2:], v.shape[2:]
        g = _to_grid(g, [min(a, b) for a, b in zip(g_sizes, v_sizes, strict=True)])
        v = _to_grid(v, [min(a, b) for a, b in zip(g_sizes, v_sizes, strict=True)])
    elif g.ndim == 3 and g.shape[1] != v.shape[1]:
        raise ValueError("the number of tokens changes, and positions cannot be matched.")
    return channel_rows(g, first), channel_rows(v, first)


def _to_grid(x: Tensor, grid: list[int]) -> Tensor:
    """Space-to-depth of (B, C, *sizes) onto ``grid``: (B, C * s1 * s2 * ..., *grid), s the rounded ratios of the
    sizes.
    """
    if list(x.shape[2:]) == grid:
        return x
    strides = [max(1, round(size / n)) for size, n in zip(x.shape[2:], grid, strict=True)]
    pad: list[int] = []
    for size, n, stride in zip(reversed(x.shape[2:]), reversed(grid), reversed(strides), strict=True):
        pad += [0, n * stride - size]
    x = nn.functional.pad(x, pad)  # a negative pad crops
    split = [*x.shape[:2]]
    for n, stride in zip(grid, strides, strict=True):
        split += [n, stride]
    d = len(grid)
    order = [0, 1, *(3 + 2 * i for i in range(d)), *(2 + 2 * i for i in range(d))]
    return x.reshape(split).permute(order).reshape(x.shape[0], -1, *grid)


def least_squares_jacobian(cross: Tensor, gram: Tensor) -> Tensor:
    """Solve ``G gram = cross`` for G, as G = (sum g v^T)(sum v v^T)^-1; the smallest solution where it is not unique.

    Args:
        cross: sum g v^T, (n, channels of g, channels of v).
        gram: sum v v^T, (n, channels of v, channels of v).
    """
    return torch.linalg.lstsq(gram, cross.mT, driver="gelsd").solution.mT


def _to_cpu(*groups: list[Tensor | None]) -> list[list[Tensor | None]]:
    """Move all tensors to the CPU in one transfer."""
    present = [t for group in groups for t in group if t is not None]
    if not present or present[0].device.type == "cpu":
        return list(groups)
    flat = torch.cat([t.flatten() for t in present]).cpu()
    pieces = iter(flat.split([t.numel() for t in present]))
    return [[None if t is None else next(pieces).view(t.shape) for t in group] for group in groups]


def _batched(function: Callable[..., Tensor], *columns: list[Tensor | None]) -> list[float]:
    """Apply ``function``, (n, a, b) each -> (n,), to all entries of one shape at once; NaN where a matrix is missing or
    not finite.
    """
    results = [math.nan] * len(columns[0])
    by_shape: dict[torch.Size, list[int]] = {}
    rows = list(zip(*columns, strict=True))
    for i, row in enumerate(rows):
        if all(matrix is not None and bool(torch.isfinite(matrix).all()) for matrix in row):
            by_shape.setdefault(row[0].shape, []).append(i)
    pending = list(by_shape.values())
    while pending:
        indices = pending.pop()
        stacks = [torch.stack([rows[i][k] for i in indices]) for k in range(len(columns))]
        try:
            values = function(*stacks).tolist()
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            # It did not converge: find out for which, and leave that NaN.
            pending += [[i] for i in indices] if len(indices) > 1 else []
            continue
        for i, value in zip(indices, values, strict=True):
            results[i] = value
    return results
