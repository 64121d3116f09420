"""The four proxies of AZ-NAS: expressivity, progressivity, trainability, complexity.

Source: Lee and Ham, "AZ-NAS: Assembling Zero-Cost Proxies for Network Architecture Search", CVPR 2024
(arXiv:2403.19232), written from the paper's formulas.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from optuna_aznas.proxies.errors import ProxyEvaluationError
from optuna_aznas.proxies.trace import BlockPass

Jacobian: TypeAlias = Literal["moment", "least-squares"]

#: Names of the proxies, in the order of the paper.
AZNAS_PROXIES = ("expressivity", "progressivity", "trainability", "complexity")

_EPS_ENTROPY = 1e-8
_EPS_SIGMA = 1e-6

#: What remains to be done for one number of one block behind the pass: a function of stacks (n, a, b) that gives (n,)
#: numbers, and what the block contributes to each stack.
_Job: TypeAlias = tuple[Callable[..., Tensor], list[Tensor]]


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
        self._entropies: list[_Job | None] = []
        self._sigmas: list[_Job | None] = []
        self._differ: list[_Job | None] = []  # whether g and v differ anywhere: not where the block is an identity

    def __call__(self, block: BlockPass) -> None:
        feature = block.feature
        first = channels_first(feature, block.module)
        self._passes.append((block.name, tuple(feature.shape[1:]), block.macs / feature.shape[0]))
        self._entropies.append((spectral_entropy, [scatter(position_rows(feature, first))]) if self._entropy else None)
        if block.gradient is None or block.cotangent is None:
            self._sigmas.append(None)
            self._differ.append(None)
            return
        g, v = block.gradient, block.cotangent
        self._differ.append((_as_number, [(g != v).any().view(1)]) if g.shape == v.shape else None)
        try:
            g_rows, v_rows = on_one_grid(g, v, first)
        except ValueError as error:
            raise ProxyEvaluationError(
                f"Block {block.name!r} turns a feature of shape {tuple(g.shape)} into {tuple(v.shape)}: {error} "
                "Choose other blocks with ProxyEvaluator(blocks=[...]), or leave out trainability."
            ) from None
        positions, channels = v_rows.shape
        if self._jacobian == "moment":
            self._sigmas.append((spectral_norm, [g_rows.T @ v_rows / positions]))
        elif positions >= channels:
            self._sigmas.append((least_squares_norm, [g_rows.T @ v_rows, v_rows.T @ v_rows]))
        else:
            self._sigmas.append((least_squares_norm_of_few, [g_rows @ g_rows.T, v_rows @ v_rows.T]))

    def finish(self) -> list[BlockScores]:
        """Decompose what was gathered and return the blocks' scores, the stem first."""
        n = len(self._passes)
        numbers = _finish(self._entropies + self._sigmas + self._differ)
        entropies, sigmas, differ = numbers[:n], numbers[n : 2 * n], numbers[2 * n :]
        blocks: list[BlockScores] = []
        for i, (name, shape, macs) in enumerate(self._passes):
            sigma = sigmas[i]
            if differ[i] == 0.0:
                trainability = math.nan if self._skip_identities else -math.inf
            elif self._sigmas[i] is not None and math.isnan(sigma):
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


def position_rows(feature: Tensor, first: bool) -> Tensor:
    """Return a feature as a matrix (P, C): a row for each of the batch's positions, a column for each channel."""
    if first:
        feature = feature.movedim(1, -1)
    return feature.reshape(-1, feature.shape[-1])


def scatter(x: Tensor) -> Tensor:
    """Scatter matrix of ``x`` (P, C): P times the covariance of its columns, (C, C).

    Or the (P, P) products of the centred rows where these are fewer: its eigenvalues are the same but for zeros.
    """
    x = x - x.mean(dim=0, keepdim=True)
    return x.T @ x if x.shape[0] >= x.shape[1] else x @ x.T


def spectral_entropy(scatters: Tensor) -> Tensor:
    """Entropy of the normalised eigenvalues of (n, C, C) scatter matrices, in nats; NaN for a zero matrix."""
    eigenvalues = torch.linalg.eigvalsh(scatters).clamp_min(0.0)  # rounding leaves some just below zero
    p = eigenvalues / eigenvalues.sum(dim=-1, keepdim=True)
    return -(p * torch.log(p + _EPS_ENTROPY)).sum(dim=-1)


def spectral_norm(matrices: Tensor) -> Tensor:
    """Largest singular value of each of (n, a, b) matrices, from the eigenvalues of the smaller of their two products
    with themselves: many times faster than a singular value decomposition, and as accurate for the largest.
    """
    matrices = matrices.double()  # squares of what float32 holds fit
    a, b = matrices.shape[-2:]
    return _root_of_largest(matrices @ matrices.mT if a <= b else matrices.mT @ matrices)


def least_squares_norm(cross: Tensor, gram: Tensor) -> Tensor:
    """Largest singular value of G = (sum g v^T)(sum v v^T)^-1, the least-squares solution of g = G v; of the smallest
    solution where it is not unique.

    Args:
        cross: sum g v^T, (n, channels of g, channels of v).
        gram: sum v v^T, (n, channels of v, channels of v).
    """
    root = _inverse_root(gram)
    return spectral_norm(cross.double() @ root @ root.mT)


def least_squares_norm_of_few(g_gram: Tensor, v_gram: Tensor) -> Tensor:
    """The same as :func:`least_squares_norm` where there are fewer positions P than channels.

    There G = g (v^T v)^-1 v^T with g and v as matrices (channels, P), so G G^T = g (v^T v)^-1 g^T.

    Args:
        g_gram: g^T g, (n, P, P).
        v_gram: v^T v, (n, P, P).
    """
    root = _inverse_root(v_gram)
    return _root_of_largest(root.mT @ g_gram.double() @ root)


def _inverse_root(gram: Tensor) -> Tensor:
    """Return W with W W^T the (pseudo-)inverse of (n, C, C) symmetric positive semi-definite matrices."""
    n = gram.shape[-1]
    gram = gram.double()  # sums of +-1, hence exact, so that a singular matrix shows as one
    factor, failed = torch.linalg.cholesky_ex(gram)
    pivots = factor.diagonal(dim1=-2, dim2=-1)
    if not bool(failed.any()) and bool((pivots.amin(-1) > 0.03 * pivots.amax(-1)).all()):
        identity = torch.eye(n, dtype=gram.dtype, device=gram.device)
        return torch.linalg.solve_triangular(factor.mT, identity.expand_as(gram), upper=True)
    values, vectors = torch.linalg.eigh(gram)
    noise = values[..., -1:] * n * torch.finfo(torch.float32).eps  # the products with g are known no better
    return vectors * values.where(values > noise, math.inf).rsqrt().unsqueeze(-2)


def _root_of_largest(matrices: Tensor) -> Tensor:
    """Square root of the largest eigenvalue of (n, C, C) symmetric positive semi-definite matrices."""
    return torch.linalg.eigvalsh(matrices)[..., -1].clamp_min(0.0).sqrt()


def _as_number(flags: Tensor) -> Tensor:
    return flags[:, 0].float()


def on_one_grid(g: Tensor, v: Tensor, first: bool) -> tuple[Tensor, Tensor]:
    """Return g and v as matrices (P, channels) over the same positions.

    Where a block strides by s, g lies on the finer grid: space-to-depth (for images ``pixel_unshuffle``) moves each s x
    s patch into the channels. Where it upsamples, v does. A grid that is not a multiple is cropped or padded
    with zeros at its end.

    Raises:
        ValueError: The two have no common grid.
    """
    if g.ndim != v.ndim:
        if v.ndim == 2:  # flattened or pooled to one position for each sample
            return g.flatten(1), v
        raise ValueError("the number of dimensions changes, and positions cannot be matched.")
    if first and g.shape[2:] != v.shape[2:]:
        grid = [min(sizes) for sizes in zip(g.shape[2:], v.shape[2:], strict=True)]
        return _rows_on_grid(g, grid), _rows_on_grid(v, grid)
    if g.ndim == 3 and not first and g.shape[1] != v.shape[1]:
        raise ValueError("the number of tokens changes, and positions cannot be matched.")
    return position_rows(g, first), position_rows(v, first)


def _rows_on_grid(x: Tensor, grid: list[int]) -> Tensor:
    """Space-to-depth of (B, C, *sizes) onto ``grid``, as rows (B * positions of the grid, C * s1 * s2 * ...), s the
    rounded ratios of the sizes.
    """
    strides = [max(1, round(size / n)) for size, n in zip(x.shape[2:], grid, strict=True)]
    pad: list[int] = []
    for size, n, stride in zip(reversed(x.shape[2:]), reversed(grid), reversed(strides), strict=True):
        pad += [0, n * stride - size]
    if any(pad):
        x = nn.functional.pad(x, pad)  # a negative pad crops
    split = [*x.shape[:2]]
    for n, stride in zip(grid, strides, strict=True):
        split += [n, stride]
    d = len(grid)
    order = [0, *(2 + 2 * i for i in range(d)), 1, *(3 + 2 * i for i in range(d))]
    return x.reshape(split).permute(order).reshape(x.shape[0] * math.prod(grid), -1)


def _finish(jobs: Sequence[_Job | None]) -> list[float]:
    """Return each job's number: NaN where there is no job, or one of its matrices is not finite.

    Jobs with the same function and shapes are done at once, on the CPU, which is faster at small matrices.
    """
    results = [math.nan] * len(jobs)
    matrices = iter(_to_cpu([matrix for job in jobs if job is not None for matrix in job[1]]))
    alike: dict[Any, list[tuple[int, list[Tensor]]]] = {}
    for i, job in enumerate(jobs):
        if job is not None:
            function, own = job[0], [next(matrices) for _ in job[1]]
            alike.setdefault((function, *(matrix.shape for matrix in own)), []).append((i, own))
    pending = [(key[0], group) for key, group in alike.items()]
    while pending:
        function, group = pending.pop(0)
        stacks = [torch.stack(column) for column in zip(*(own for _, own in group), strict=True)]
        finite = torch.stack([torch.isfinite(stack).flatten(1).all(1) for stack in stacks]).all(0)
        if not bool(finite.all()):
            group = [member for member, sound in zip(group, finite.tolist(), strict=True) if sound]
            stacks = [stack[finite] for stack in stacks]
        if not group:
            continue
        try:
            values = function(*stacks).tolist()
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            # It did not converge: find out for which, and leave that NaN.
            pending += [(function, [member]) for member in group] if len(group) > 1 else []
            continue
        for (i, _), value in zip(group, values, strict=True):
            results[i] = value
    return results


def _to_cpu(tensors: list[Tensor]) -> list[Tensor]:
    """Move all tensors to the CPU in one transfer."""
    if not tensors or tensors[0].device.type == "cpu":
        return tensors
    pieces = torch.cat([t.flatten() for t in tensors]).cpu().split([t.numel() for t in tensors])
    return [piece.view(t.shape) for piece, t in zip(pieces, tensors, strict=True)]
